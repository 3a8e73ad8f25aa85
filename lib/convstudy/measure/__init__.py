# SPDX-License-Identifier: MIT
"""Measuring: clocks, provenance, and the suites that write records."""
