# SPDX-License-Identifier: MIT
"""One record: its form, its digest, and the file it lies in.

A record is written once and never changed. Whatever is read is checked first, and a fault is
named by file and field.
"""

import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path

import jsonschema

SCHEMA = "convstudy/measurement/1"


class RecordError(ValueError):
    """A record is not what a record must be; the message names the file and the field."""


@functools.cache
def _validator():
    schema = json.loads(Path(__file__).with_name("schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)


def digest(record):
    """Return the hash over all of `record` but its own digest."""
    rest = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(_canonical(rest).encode()).hexdigest()


def _canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def validate(record, name="record"):
    """Raise `RecordError` unless `record` follows the schema and its digest fits.

    Parameters
    ----------
    record : dict
    name : str
        How the message calls it: the file's name.
    """
    errors = sorted(_validator().iter_errors(record), key=lambda e: len(e.absolute_path))
    if errors:
        error = errors[-1]
        while error.context:  # of alternatives, the one that came closest says most
            error = max(error.context, key=lambda e: len(e.absolute_path))
        raise RecordError(f"{name}: {_field(error)}: {error.message[:200]}")
    seen = set()
    for i, result in enumerate(record["results"]):
        if result["case"] in seen:
            raise RecordError(f"{name}: results[{i}].case: {result['case']!r} stands there twice")
        seen.add(result["case"])
        check = result["check"]
        if result["status"] == "ok" and check and not check["passed"]:
            raise RecordError(f"{name}: results[{i}].check: it failed, yet the status is ok")
    if record["digest"] != digest(record):
        raise RecordError(
            f"{name}: digest: it does not fit the content, so the record was changed after it was "
            f"written; restore the file, or measure again"
        )


def _field(error):
    """Return a path such as ``results[3].samples_s[0]``."""
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path
    ).lstrip(".")
    return path or "the whole"


def load(path):
    """Return the record in file `path`, validated.

    Raises
    ------
    RecordError
        Where the file is no JSON, holds a name twice or a number that is none, or does not
        validate.
    """
    path = Path(path)
    try:
        record = json.loads(
            path.read_text(), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise RecordError(f"{path.name}: not a record: {error}") from None
    validate(record, path.name)
    return record


def _unique(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice in one object")
    return found


def _no_constant(text):
    raise ValueError(f"{text} is not a number")


def write(record, folder):
    """Write `record` to ``<folder>/<id>.json`` and return the path; all of it, or nothing.

    Raises
    ------
    RecordError
        Where it does not validate.
    FileExistsError
        Where there is such a file: records are only ever added.
    """
    validate(record, record.get("id", "record"))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['id']}.json"
    if path.exists():
        raise FileExistsError(f"{path.name} exists; records are only ever added, never replaced")
    # Written under another name and then renamed: a reader never sees half a record.
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as file:
        file.write(_text(record))
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.rename(file.name, path)
    return path


def _text(record):
    """Return JSON with one line a field and one line a result, so that a diff can be read."""
    lines = []
    for name, value in record.items():
        if name == "results":
            rows = ",\n".join("  " + to_line(row) for row in value)
            lines.append(f'"results": [\n{rows}\n]')
        else:
            lines.append(f"{json.dumps(name)}: {to_line(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def to_line(value):
    """Return `value` as one line of JSON."""
    return json.dumps(value, allow_nan=False)
