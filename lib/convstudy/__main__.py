# SPDX-License-Identifier: MIT
"""``python -m convstudy``: the command line."""

import sys

from convstudy.cli import main

sys.exit(main())
