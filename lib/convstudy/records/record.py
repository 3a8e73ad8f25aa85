# SPDX-License-Identifier: MIT
"""One record: its form, its digest, and the file it lies in.

A record is written once and never changed. Whatever is read is checked first, and a fault is
named by file and field.
"""

import datetime
import functools
import hashlib
import json
import math
import os
from pathlib import Path

SCHEMA = "convstudy/measurement/1"
_DRAFT_7 = "http://json-schema.org/draft-07/schema#"


class RecordError(ValueError):
    """A record is not what a record must be; the message names the file and the field."""


@functools.cache
def _schema(part):
    schema = json.loads(Path(__file__).with_name("schema.json").read_text())
    return {"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]} if part else schema


@functools.cache
def _follows(part):
    """Return what raises unless a value follows the schema: in a twentieth of `_worst`'s time."""
    import fastjsonschema

    # It knows drafts up to 7, of which the schema's words have the same meaning.
    return fastjsonschema.compile(_schema(part) | {"$schema": _DRAFT_7})


def digest(record):
    """Return the hash over all of `record` but its own digest."""
    rest = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(_canonical(rest).encode()).hexdigest()


def sources_sha256(words, sha256):
    """Return one hash of the sources of several kernels, by which a record knows them.

    Parameters
    ----------
    words : str
        Kernels, each with the macros that it was asked by: ``a_kernel another+STREAM``.
    sha256 : callable
        ``sha256(kernel, defines) -> str``, of one.
    """
    hashes = []
    for word in words.split():
        kernel, *asked = word.split("+")
        hashes.append(sha256(kernel, tuple((name, 1) for name in asked)))
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


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
    _follow("", record, name)
    seen = set()
    for i, result in enumerate(record["results"]):
        if result["case"] in seen:
            raise RecordError(f"{name}: results[{i}].case: {result['case']!r} stands there twice")
        seen.add(result["case"])
    try:
        created = datetime.datetime.strptime(record["created_utc"], "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        raise RecordError(
            f"{name}: created_utc: {record['created_utc']!r} is on no calendar"
        ) from None
    time = f"{created:%Y%m%dT%H%M%SZ}"
    identity = f"{time}-{record['source']['commit'][:7]}-{record['suite']}"
    if record["id"] != identity:
        raise RecordError(f"{name}: id: {record['id']!r}, but time, commit and suite: {identity!r}")
    _check_digest(record, name)


def validate_result(result, name):
    """Raise `RecordError` unless `result` can be one of a record's results."""
    _follow("result", result, name)


def _follow(part, value, name):
    """Refuse what does not follow the schema, or a part of it, or that JSON cannot hold."""
    for path, leaf in _leaves(value):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise RecordError(f"{name}: {_field(path)}: {leaf} is not a finite number")
        if not isinstance(leaf, str | int | float | None):
            kind = type(leaf).__name__
            raise RecordError(f"{name}: {_field(path)}: JSON has no {kind}, as {leaf!r} is")
    try:
        _follows(part)(value)
    except ValueError as refused:
        field, text = _worst(part, value) or refused.message.split(" ", 1)
        raise RecordError(f"{name}: {field.removeprefix('data.')}: {_short(text)}") from None


def _worst(part, value):
    """Return the field that is wrong and how, in words that tell alternatives apart.

    None where nothing is: a line's end behind a text, say, this validator does not mind.
    """
    import jsonschema

    errors = jsonschema.Draft202012Validator(_schema(part)).iter_errors(value)
    error = [None, *sorted(errors, key=lambda e: len(e.absolute_path))][-1]
    if error is None:
        return None
    while error.context:  # of alternatives, the one that came closest says most
        error = max(error.context, key=lambda e: (len(e.absolute_path), e.validator != "type"))
    return _field(error.absolute_path), error.message


def _leaves(value, path=()):
    """Yield the path and the value of all that is neither a dict nor a list."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        yield path, value
        return
    for name, part in items:
        yield from _leaves(part, (*path, name))


def _field(path):
    """Return a path as text, such as ``results[3].samples_s[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "the whole"


def _short(text, limit=200):
    """Return `text` without its middle, where it is long: a message ends with what is wrong."""
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def load(path):
    """Return the record in file `path`, validated.

    Raises
    ------
    RecordError
        Where the file is no JSON, holds a name twice or a number that is none, does not validate,
        or is named unlike its record.
    """
    path = Path(path)
    record = _parsed(path)
    validate(record, _name(path))
    if path.name != f"{record['id']}.json":
        raise RecordError(f"{_name(path)}: id: {record['id']!r}, unlike the file's name")
    return record


def _name(path):
    # The folder is the machine's: files of two may have one name.
    return f"{path.parent.name}/{path.name}"


def read(path):
    """Return the record in file `path`, whose digest fits: it was validated before it was written.

    In a tenth of the time that `load` takes, for who computes with a record and does not show it.

    Raises
    ------
    RecordError
        Where the file is no JSON, or was changed.
    """
    path = Path(path)
    record = _parsed(path)
    _check_digest(record, _name(path))
    return record


def _parsed(path):
    try:
        return json.loads(
            path.read_text("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{_name(path)}: not a record: {error}; restore the file, or remove it and measure "
            "again"
        ) from None


def _check_digest(record, name):
    try:
        fits = isinstance(record, dict) and record.get("digest") == digest(record)
    except ValueError:  # of a number that JSON cannot hold
        fits = False
    if not fits:
        raise RecordError(
            f"{name}: digest: it does not fit the content, so the record was changed after it was "
            f"written; restore the file, or measure again"
        )


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
    validate(record, "the record to write")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['id']}.json"
    # Written under another name and then renamed: a reader never sees half a record. That name is
    # taken by one writer at a time, so none renames over what another has just written.
    unfinished = path.with_suffix(".tmp")
    file = unfinished.open("x", encoding="utf-8")
    try:
        with file:
            if path.exists():
                raise FileExistsError(
                    f"{path.name} exists; records are only ever added, never replaced"
                )
            file.write(_text(record))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
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
