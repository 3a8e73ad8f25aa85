# SPDX-License-Identifier: MIT
"""Every kernel under NVIDIA's compute-sanitizer: memory, races, unwritten numbers, barriers."""
