# SPDX-License-Identifier: MIT
"""The functions of a network, each in several executions behind one interface, `ops.Ops`."""
