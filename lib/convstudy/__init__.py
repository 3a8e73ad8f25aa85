# SPDX-License-Identifier: MIT
"""A reproducible study of tiled and data-parallel GPU convolutions for U-Net."""

__version__ = "0.1.0"
