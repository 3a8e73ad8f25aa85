# SPDX-License-Identifier: MIT
"""Records of measurements: written once, checked whenever they are read, and made into tables."""

from convstudy.records.record import (
    SCHEMA,
    RecordError,
    digest,
    load,
    validate,
    validate_result,
    write,
)
from convstudy.records.table import COMMITTED, machines, named, newest, provenance, table

__all__ = [
    "COMMITTED",
    "SCHEMA",
    "RecordError",
    "digest",
    "load",
    "machines",
    "named",
    "newest",
    "provenance",
    "table",
    "validate",
    "validate_result",
    "write",
]
