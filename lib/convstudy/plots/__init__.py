# SPDX-License-Identifier: MIT
"""Figures and tables: one module each, records in, a drawing and its plotted table out."""
