# SPDX-License-Identifier: MIT
"""The networks of the study: plain lists of layers, their parameters named as in PyTorch."""
