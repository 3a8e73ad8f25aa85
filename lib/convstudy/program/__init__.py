# SPDX-License-Identifier: MIT
"""A network as a fixed list of launches on fixed memory: traced, fused, planned and captured."""
