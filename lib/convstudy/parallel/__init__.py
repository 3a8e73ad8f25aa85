# SPDX-License-Identifier: MIT
"""Many processors: a batch in chunks over streams and GPUs, and ranks that train together."""
