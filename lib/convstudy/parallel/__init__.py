# SPDX-License-Identifier: MIT
"""Data parallelism: a batch in chunks over streams and GPUs, with the copies overlapped."""
