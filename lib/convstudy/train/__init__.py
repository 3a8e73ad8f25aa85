# SPDX-License-Identifier: MIT
"""Training: losses, optimisers, the image set, checkpoints, and the loop that joins them."""
