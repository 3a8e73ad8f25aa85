# SPDX-License-Identifier: MIT
"""Runs a suite and writes its record: nothing half, and no finished case lost."""

import datetime
import math
import re
import time
from pathlib import Path

from tqdm import tqdm

from convstudy import paths
from convstudy.compile import prepare
from convstudy.device import devices
from convstudy.measure import provenance
from convstudy.measure.suite import not_measured, numbers
from convstudy.records import SCHEMA, RecordError, digest, machines, newest, validate_result, write
from convstudy.records.journal import Journal

LOCAL = paths.LOCAL_MEASUREMENTS.name
SEED = 2023
_TIME_WAS_UP = "time was up before it; measure again, with more or without --stop-after"
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_NUMBERS = re.compile(r"\d+(,\d+)*")
# What leads to a file from the root; neither a URL, nor a fraction, nor a relative path.
_FOLDERS = re.compile(r"(?<![\w.~:/)])/(?:[\w.+@~-]+/)+")


def run(suite, machine=LOCAL, options=None, say=print, stop_after_s=None):
    """Measure `suite` on this machine and return the path of its record.

    Parameters
    ----------
    suite : Suite
    machine : str
        Folder of ``data/measurements/``: lower-case letters, digits and hyphens. ``local`` is not
        committed; any other takes clean sources only.
    options : dict, optional
        Other than the suite's defaults; text is read as the default's type.
    say : callable
        Takes one line at a time.
    stop_after_s : float, optional
        Begin no case after so long: what is left is recorded as skipped.

    Raises
    ------
    ValueError
        For a slug or an option that will not do.
    RuntimeError
        Where the machine lacks what the suite needs, sources are changed and the record is to be
        kept, or every case failed.
    """
    if not _SLUG.fullmatch(machine):
        raise ValueError(
            f"measure: {machine!r} cannot name a machine; use lower-case letters, digits and "
            f"hyphens, such as nvidia-h200"
        )
    options, cases = asked_for(suite, options or {})
    reason = suite.why_not()
    if reason:
        raise RuntimeError(f"suite {suite.name} cannot run here: {reason}")
    source = provenance.source()
    if source["dirty"] and machine != LOCAL:
        raise RuntimeError(
            f"measure: tracked files are changed, so a record of {machine!r} would name a commit "
            f"that it was not made of; commit first, or leave MACHINE out for a local record"
        )
    header = {
        "suite": suite.name,
        "options": options,
        "source": source["sha256"],
        "machine": provenance.machine(machine),
        "software": provenance.software(),
    }
    # A virtual machine may get more memory as it needs it.
    same = {key: value for key, value in header["machine"].items() if key != "ram_bytes"}
    path = paths.BUILD / "measurements" / f"{machine}-{suite.name}.jsonl"
    journal = Journal(path, header | {"machine": same})
    if journal.set_aside:
        say(f"{suite.name}: an unfinished run of other code or options is kept in build/")
    if journal.finished:
        say(f"{suite.name}: {len(journal.finished)} cases are finished already; going on")
    began = time.perf_counter()
    until = began + (float("inf") if stop_after_s is None else stop_after_s)
    if suite.launches and devices():
        prepare(suite.launches(options), devices()[0])
    try:
        _run_cases(suite, cases, journal, until)
    except KeyboardInterrupt:
        say(f"{suite.name}: stopped; the same command goes on after the last finished case")
        raise
    record = _record(header, journal, source, time.perf_counter() - began)
    path = write(record, paths.MEASUREMENTS / machine)
    journal.remove()
    say(f"{suite.name}: {path.relative_to(paths.MEASUREMENTS)}")
    return path


def asked_for(suite, options):
    """Return all options of `suite` with those given, and the cases that they ask for.

    Raises
    ------
    ValueError
        For an option that will not do: before any work, and before what is unfinished is touched.
    """
    options = _options(suite, options)
    cases = list(suite.cases(options))
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"suite {suite.name} has two cases {twice[0]!r}; name them apart")
    return options, cases


def _run_cases(suite, cases, journal, until):
    with tqdm(cases, desc=suite.name, unit="case", disable=None, leave=False) as progress:
        for case in progress:
            if _is_finished(journal.finished.get(case.name)):
                continue
            if time.perf_counter() > until:
                # Not in the journal: a run that goes on has time for it.
                journal.finished[case.name] = [not_measured(case, "skipped", _TIME_WAS_UP)]
                continue
            progress.set_postfix_str(case.name)
            journal.add(case.name, _results(case))


def _is_finished(results):
    # What failed once is tried again: what it lacked may be there by now.
    return results is not None and all(result["status"] != "failed" for result in results)


def _results(case):
    if case.skip:
        return [not_measured(case, "skipped", case.skip)]
    try:
        results = case.run()
        _check(case, results)
        return results
    except Exception as error:
        # One case that fails must not take the others with it.
        text = _without_folders((str(error).splitlines() or [""])[0])
        return [not_measured(case, "failed", f"{type(error).__name__}: {text}".rstrip(": "))]


def _check(case, results):
    """Refuse now what the record would be refused for at the end, with all other cases in it."""
    if not results:
        raise ValueError("it gives no result")
    names = [result["case"] for result in results]
    for name, result in zip(names, results, strict=True):
        if name != case.name and not name.startswith(f"{case.name}/"):
            raise ValueError(f"its result is called {name!r}; begin that with {case.name!r}")
        if names.count(name) > 1:
            raise ValueError(f"two of its results are called {name!r}")
        validate_result(result, name)


def _without_folders(text):
    """Return `text` without the folders of this machine, which may name its user."""
    for folder, name in ((paths.ROOT, "."), (Path.home(), "~")):
        if folder != Path("/"):
            text = text.replace(str(folder), name)
    return _FOLDERS.sub("", text)


def _record(header, journal, source, seconds):
    results = [result for results in journal.finished.values() for result in results]
    if not any(result["status"] == "ok" for result in results):
        reasons = sorted({result["reason"] for result in results})
        raise RuntimeError(f"suite {header['suite']}: nothing was measured: {'; '.join(reasons)}")
    now = datetime.datetime.now(datetime.UTC)
    record = {
        "schema": SCHEMA,
        "id": f"{now:%Y%m%dT%H%M%SZ}-{source['commit'][:7]}-{header['suite']}",
        "suite": header["suite"],
        "created_utc": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "duration_s": round(seconds, 3),
        "machine": header["machine"],
        "software": header["software"],
        "source": source,
        "method": {"seed": SEED, "options": header["options"]},
        "results": results,
    }
    return record | {"digest": digest(record)}


def missing(suites, machine=LOCAL, say=print):
    """Return those of `suites` that this machine can run and has no record of with this source.

    A broken record is none, and `say` takes a line on it.
    """
    fresh = provenance.tree_sha256()

    def has(suite):
        try:
            record = newest(machine, suite.name) if machine in machines() else None
        except RecordError as error:
            say(f"{suite.name}: {error}")
            return False
        return record is not None and record["source"]["sha256"] == fresh

    return [suite for suite in suites if suite.why_not() is None and not has(suite)]


def _options(suite, given):
    unknown = sorted(set(given) - set(suite.options))
    if unknown:
        known = ", ".join(suite.options) or "none"
        raise ValueError(f"suite {suite.name} has no option {unknown[0]!r}; its options: {known}")
    options = dict(suite.options)
    for name, value in given.items():
        kind = type(options[name])
        try:
            options[name] = value if type(value) is kind else _READ[kind](str(value))
        except (KeyError, ValueError):
            raise ValueError(
                f"suite {suite.name}: {name}={value!r} must be of type {kind.__name__}, "
                f"such as {suite.options[name]!r}"
            ) from None
        _check_numbers(suite, name, options[name])
    return options


def _check_numbers(suite, name, value):
    default = suite.options[name]
    least = suite.least.get(name, 0 if type(default) is float else 1)
    if type(value) in (int, float):
        if not least <= value < math.inf:
            most = " and finite" if type(value) is float else ""
            raise ValueError(f"suite {suite.name}: {name}={value} must be at least {least}{most}")
    elif name in suite.least or _NUMBERS.fullmatch(str(default)):
        try:
            good = value == default or min(numbers(value)) >= least
        except ValueError:
            good = False
        if not good:
            raise ValueError(
                f"suite {suite.name}: {name}={value!r} must be whole numbers of at least {least} "
                f"between commas, such as {default or '1,2'}"
            )


# Text as a value; bool("no") would be true.
_READ = {
    int: int,
    float: float,
    str: str,
    bool: lambda text: {"true": True, "false": False}[text.lower()],
}
