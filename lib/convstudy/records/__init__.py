# SPDX-License-Identifier: MIT
"""Records of measurements: written once, checked whenever they are read, and made into tables."""

from convstudy.records.record import (
    SCHEMA,
    RecordError,
    digest,
    load,
    read,
    sources_sha256,
    validate,
    validate_result,
    write,
)
from convstudy.records.table import (
    COMMITTED,
    check_machines,
    every,
    machines,
    named,
    newest,
    provenance,
    table,
)

__all__ = [
    "COMMITTED",
    "SCHEMA",
    "RecordError",
    "check_machines",
    "digest",
    "every",
    "load",
    "machines",
    "named",
    "newest",
    "provenance",
    "read",
    "sources_sha256",
    "table",
    "validate",
    "validate_result",
    "write",
]
