# SPDX-License-Identifier: MIT
"""Convolutions: the algorithms, their NumPy twin, and the one call that runs them."""
