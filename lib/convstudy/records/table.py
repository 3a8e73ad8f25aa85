# SPDX-License-Identifier: MIT
"""All that was measured, as tables: one row a result of each machine's newest record."""

import warnings

from convstudy import paths
from convstudy.records import statistics
from convstudy.records.record import RecordError, load, read, sources_sha256

_COLUMNS = (
    *("machine", "record", "commit", "case", "kernel", "clock", "cache", "transfers", "status"),
    *("reason", "samples", "median_s", "p20_s", "p80_s", "error", "passed", "stale"),
)


# Whose records the committed figures are drawn from, and in what order: a claim is judged by the
# first that has measured what it needs.
COMMITTED = ("nvidia-h200-x2", "nvidia-h200", "amd-epyc-2c")


def named(text):
    """Return the slugs that `text` names, between commas; those of `COMMITTED` where it is empty.

    Examples
    --------
    >>> named("local, a30")
    ('local', 'a30')
    >>> named("") == COMMITTED
    True
    """
    return tuple(slug.strip() for slug in text.split(",")) if text else COMMITTED


def machines():
    """Return the slugs of the machines that have records, sorted."""
    return tuple(sorted({path.parent.name for path in paths.MEASUREMENTS.glob("*/*.json")}))


def check_machines(slugs):
    """Raise ValueError where a machine has no record at all; the message lists those that have."""
    known = machines()
    for slug in slugs:
        if slug not in known:
            raise ValueError(
                f"there is no record of machine {slug!r}; there are records of "
                f"{', '.join(known) or 'none'} (`make measure` adds one of this machine, in the "
                f"folder that MACHINE= names)"
            )


def newest(machine, suite):
    """Return the newest record of `suite` of `machine`, or None.

    Ids begin with the time, so the last by name is the newest.

    Raises
    ------
    ValueError
        Where the machine has no record at all; the message lists those that have.
    RecordError
        Where the record is broken, or is another machine's.
    """
    files = _own_files(machine, suite)
    return _own(machine, files[-1]) if files else None


def _own_files(machine, suite):
    check_machines([machine])
    return _files(paths.MEASUREMENTS / machine, suite)


def _own(machine, file):
    record = load(file)
    if record["machine"]["slug"] != machine:
        raise RecordError(
            f"{machine}/{file.name}: machine.slug: {record['machine']['slug']!r}, yet it lies "
            f"in the folder of {machine!r}"
        )
    return record


def _files(folder, suite, depth=""):
    files = sorted(folder.glob(f"{depth}*-{suite}.json"), key=lambda file: file.name)
    # A suite's name may end another's; what it is follows the time and the commit.
    return [file for file in files if file.stem.split("-", 2)[2:] == [suite]]


def every(suite):
    """Yield all records of `suite`, of all machines, from the oldest to the newest; see `read`.

    One that is broken is left out, with a warning.
    """
    for file in _files(paths.MEASUREMENTS, suite, "*/"):
        try:
            yield read(file)
        except RecordError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)


def table(suite, of=None, current_sha256=None, older=False):
    """Return the results of the newest record of `suite` of each machine.

    Parameters
    ----------
    suite : str
    of : sequence of str, optional
        Slugs; all machines where it is left out.
    current_sha256 : callable, optional
        ``current_sha256(kernel, defines) -> str``, the hash of a kernel's source as it is now. A
        row of another hash is stale: its kernel, or one of those that it names, has changed since
        it was measured.
    older : bool
        Whether those of all other records come before: of a suite that is measured part by part.

    Returns
    -------
    pandas.DataFrame
        Columns: machine, record, commit, case, the labels, kernel, clock, cache, transfers,
        status, reason, samples, median_s, p20_s, p80_s, error (the largest relative one against
        the reference; NaN where none was compared), passed (whether that is within tolerance),
        ``value_...``, stale. No rows where no machine has run the suite.
    """
    import pandas as pd  # slow to import, and not needed to read records

    rows = []
    for machine in machines() if of is None else of:
        files = _own_files(machine, suite)
        for file in files if older else files[-1:]:
            record = _own(machine, file)
            for result in record["results"]:
                rows.append(_row(record, machine, result, current_sha256))
    return pd.DataFrame(rows, columns=None if rows else _COLUMNS)


def _row(record, machine, result, current_sha256):
    samples, check = result["samples_s"], result["check"] or {}
    return {
        "machine": machine,
        "record": record["id"],
        "commit": record["source"]["commit"],
        "case": result["case"],
        **result["labels"],
        "kernel": result["kernel"],
        "clock": result["clock"],
        "cache": result["cache"],
        "transfers": result["transfers"],
        "status": result["status"],
        "reason": result["reason"],
        "samples": len(samples),
        "median_s": statistics.median(samples),
        "p20_s": statistics.quantile(samples, 0.2),
        "p80_s": statistics.quantile(samples, 0.8),
        "error": check.get("max_relative_error", float("nan")),
        "passed": check.get("passed"),
        **{f"value_{name}": value for name, value in result["values"].items()},
        "stale": _stale(result, current_sha256),
    }


def _stale(result, current_sha256):
    if current_sha256 is None or result["source_sha256"] is None:
        return False
    defines = tuple((result["launch"] or {}).get("defines", {}).items())
    try:
        if result["kernel"] is None:
            current = sources_sha256(result["values"].get("kernels", ""), current_sha256)
        else:
            current = current_sha256(result["kernel"], defines)
        return current != result["source_sha256"]
    except ValueError:  # the kernel is no more
        return True


def provenance(machine, suite):
    """Return one line on where a machine's numbers of a suite come from."""
    record = newest(machine, suite)
    if record is None:
        return f"{machine}: no record of suite {suite!r}"
    gpus = [gpu["name"] for gpu in record["machine"]["gpus"]]
    hardware = " + ".join([record["machine"]["cpu"]["model"], *gpus])
    commit = record["source"]["commit"][:7]
    return f"{machine}: {hardware}; commit {commit}; {record['id']}.json"
