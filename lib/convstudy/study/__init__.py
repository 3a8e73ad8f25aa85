# SPDX-License-Identifier: MIT
"""The paper's claims, the verdict of the records on each, and the notebooks that tell of it."""
