# SPDX-License-Identifier: MIT
"""Records: what is refused and how, what a killed run leaves, and the tables made of them."""

import copy
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from recorded import SHA, make, row

from convstudy import paths, records
from convstudy.records import RecordError, statistics
from convstudy.records import record as record_module
from convstudy.records.journal import Journal


@pytest.fixture
def measurements(tmp_path, monkeypatch):
    """A folder of records that holds none."""
    folder = tmp_path / "measurements"
    folder.mkdir()
    monkeypatch.setattr(paths, "MEASUREMENTS", folder)
    return folder


def keep(folder, record):
    return records.write(record, folder / record["machine"]["slug"])


def change(record, path, value):
    """Return a copy with another value (or, for `...`, nothing) at `path`."""
    changed = copy.deepcopy(record)
    part = changed
    for name in path[:-1]:
        part = part[name]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return changed


def leaves(value, path=()):
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in items:
            yield from leaves(part, (*path, name))
    else:
        yield path, value


R = ("results", 1)

REFUSED = {
    "missing at the top": (("source",), ..., "the whole.*'source' is a required property"),
    "missing in a row": ((*R, "status"), ..., r"results\[1\].*'status' is a required property"),
    "extra at the top": (("host",), "x", "the whole.*'host' was unexpected"),
    "extra in a row": ((*R, "median_s"), 1.0, r"results\[1\].*'median_s' was unexpected"),
    "extra in machine": (("machine", "hostname"), "x", "machine: .*'hostname' was unexpected"),
    "a line's end": (("machine", "slug"), "box\n", "machine.slug: must match pattern"),
    "another schema": (("schema",), "convstudy/measurement/2", "schema: "),
    "negative sample": ((*R, "samples_s", 1), -0.5, r"results\[1\].samples_s\[1\]: -0.5"),
    "zero sample": ((*R, "samples_s", 0), 0.0, r"results\[1\].samples_s\[0\]: 0.0"),
    "NaN sample": ((*R, "samples_s", 2), float("nan"), r"results\[1\].samples_s\[2\]: nan"),
    "endless value": ((*R, "values", "x"), float("inf"), r"results\[1\].values.x: inf"),
    "NaN in a list": (
        (*R, "values", "events", 0, "start_s"),
        float("nan"),
        r"results\[1\].values.events\[0\].start_s: nan",
    ),
    "NumPy's integer": ((*R, "values", "x"), np.int64(3), r"results\[1\].values.x: .*int64"),
    "text sample": ((*R, "samples_s", 0), "0.5", r"results\[1\].samples_s\[0\]: '0.5'"),
    "true as a sample": ((*R, "samples_s", 0), True, r"results\[1\].samples_s\[0\]: True"),
    "samples of no clock": ((*R, "clock"), None, r"results\[1\].clock: None is not of type"),
    "short sha": (("source", "sha256"), SHA[:-1], "source.sha256: '0123"),
    "sha in capitals": ((*R, "source_sha256"), SHA.upper(), r"results\[1\].source_sha256: '0123"),
    "short commit": (("source", "commit"), "ab" * 10, "source.commit: "),
    "unknown clock": ((*R, "clock"), "sundial", r"results\[1\].clock: 'sundial'"),
    "unknown cache": ((*R, "cache"), "cold", r"results\[1\].cache: 'cold'"),
    "unknown status": ((*R, "status"), "fine", r"results\[1\].status: 'fine'"),
    "ok with a reason": ((*R, "reason"), "why not", r"results\[1\].reason: 'why not'"),
    "skipped without": ((*R, "status"), "skipped", r"results\[1\].(reason|samples_s): "),
    "id of another form": (("id",), "yesterday-ladder", "id: 'yesterday-ladder'"),
    "id of another suite": (("suite",), "memory", "id: '20240102T030405Z-abababa-ladder'"),
    "id of another commit": (("source", "commit"), "cd" * 20, "id: .*-cdcdcdc-ladder"),
    "id of another time": (("created_utc",), "2024-01-02T03:04:06Z", "id: .*030406Z"),
    "no such day": (("created_utc",), "2024-02-30T03:04:05Z", "created_utc: '2024-02-30.*calendar"),
    "duplicated case": ((*R, "case"), "a", r"results\[1\].case: 'a' stands there twice"),
    "failed check": ((*R, "check", "passed"), False, r"results\[1\].check.passed: "),
    "grid of text": ((*R, "launch", "grid", 0), "2", r"results\[1\].launch.grid\[0\]: '2'"),
    "grid of four": ((*R, "launch", "grid"), [1, 1, 1, 1], r"results\[1\].launch.grid: .* long"),
    "grid of none": ((*R, "launch", "grid"), [], r"results\[1\].launch.grid: .*non-empty"),
    "block of four": ((*R, "launch", "block"), [1] * 4, r"results\[1\].launch.block: .* long"),
    "empty grid": ((*R, "launch", "grid", 0), 0, r"results\[1\].launch.grid\[0\]: 0"),
    "define of text": ((*R, "launch", "defines", "T"), "4", r"results\[1\].launch.defines.T: "),
    "launch without block": (
        (*R, "launch", "block"),
        ...,
        r"results\[1\].launch: 'block' is a required",
    ),
    "label of labels": ((*R, "labels", "layer"), {}, r"results\[1\].labels.layer: "),
    "tuple": ((*R, "samples_s"), (0.5,), r"results\[1\].samples_s: .*tuple"),
    "no results": (("results",), [], "results: .*non-empty"),
    "slug with a path": (("machine", "slug"), "../x", "machine.slug: "),
    "half a GPU": (("machine", "gpus", 0, "driver"), ..., r"machine.gpus\[0\]: 'driver'"),
}


def test_the_record_these_tests_start_from_is_valid(tmp_path):
    record = make()
    path = records.write(record, tmp_path)
    assert path.name == "20240102T030405Z-abababa-ladder.json"
    assert records.load(path) == record
    assert path.stat().st_mode & 0o044, "others may read it"
    # One line a field and one a result: a diff of two records can be read.
    assert len(path.read_text().splitlines()) == 2 + 10 + 1 + len(record["results"]) + 1


@pytest.mark.parametrize("label", [("algorithm", "cudnn"), ("side", "pytorch-graph")])
def test_what_ours_is_compared_with_is_as_exact_as_it_is(label):
    name, value = label
    row = change(make()["results"][1], ("check", "passed"), False)
    records.validate_result(change(row, ("labels", name), value), "there")
    with pytest.raises(RecordError, match="there: check.passed: "):
        records.validate_result(change(row, ("labels", name), "ours"), "there")


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_validate_is_refused_by_file_and_field(why, tmp_path):
    path, value, message = REFUSED[why]
    bad = change(make(), path, value)
    with pytest.raises(RecordError, match=f"there.json: {message}"):
        records.validate(bad | {"digest": SHA}, "there.json")
    with pytest.raises(RecordError, match=message):
        records.write(bad | {"digest": SHA}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("why", sorted(REFUSED.keys() - {"NumPy's integer", "tuple"}))
def test_a_file_that_does_not_validate_is_refused_by_file_and_field(why, tmp_path):
    path, value, message = REFUSED[why]
    bad = change(make(), path, value)
    file = tmp_path / "20240102T030405Z-abababa-ladder.json"
    file.write_text(json.dumps(bad))
    if isinstance(value, float) and not np.isfinite(value):
        message = r"not a record: (NaN|Infinity) is not a number"
    with pytest.raises(RecordError, match=f"^{tmp_path.name}/{file.name}: {message}"):
        records.load(file)


@pytest.mark.parametrize("name", ["skipped", "failed"])
def test_what_was_not_measured_says_why_and_has_no_samples(name):
    not_measured = row("c", status=name, reason="no GPU", samples_s=[])
    records.validate_result(not_measured, "c")
    for wrong in ({"reason": None}, {"reason": ""}, {"samples_s": [1.0]}):
        with pytest.raises(RecordError, match=f"^c: {next(iter(wrong))}: "):
            records.validate_result(not_measured | wrong, "c")


def test_a_long_message_keeps_its_end():
    long = {
        "block": [1],
        "grid": [1],
        "shared_bytes": 0,
        "defines": {f"D{i}": 1 for i in range(99)},
    }
    with pytest.raises(RecordError, match="launch: .{10,220}'thread' was unexpected") as caught:
        records.validate_result(row(launch=long | {"thread": 1}), "a")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a record: "),
        ('{"schema": NaN}', "not a record: NaN is not a number"),
        ('{"schema": -Infinity}', "not a record: -Infinity is not a number"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "not a record: 'b' stands there twice"),
        ("[]", "the whole: "),
        ("null", "the whole: "),
        ("[" * 100_000, "not a record: "),
    ],
)
def test_what_is_no_json_object_is_refused(text, message, tmp_path):
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(RecordError, match=f"^{tmp_path.name}/broken.json: {message}"):
        records.load(file)


def test_a_number_too_large_for_any_is_refused(tmp_path):
    file = tmp_path / "20240102T030405Z-abababa-ladder.json"
    file.write_text(json.dumps(make()).replace("0.125", "1e999", 1))
    with pytest.raises(RecordError, match=r"results\[0\].samples_s\[2\]: inf"):
        records.load(file)
    with pytest.raises(RecordError, match=r"digest: it does not fit"):
        records.read(file)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "broken.json"
    file.write_bytes(b'{"schema": "\xff\xfe"}')
    with pytest.raises(
        RecordError, match=r"/broken.json: not a record: .*; restore the file, or remove it"
    ):
        records.load(file)


def test_a_file_cut_anywhere_is_refused(tmp_path, rng):
    whole = records.write(make(), tmp_path)
    text = whole.read_text().rstrip()
    for length in [len(text) - 1, *rng.integers(1, len(text), 20)]:
        whole.write_text(text[:length])
        with pytest.raises(RecordError, match=whole.name):
            records.load(whole)


def test_a_renamed_file_is_refused(tmp_path):
    path = records.write(make(), tmp_path)
    renamed = path.rename(path.with_name("20250102T030405Z-abababa-ladder.json"))
    with pytest.raises(RecordError, match=r"/20250102.*: id: '20240102T030405Z-abababa-ladder'"):
        records.load(renamed)


def other(value):
    """Return another value of the same type, which only the digest can tell from the first."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return None if value is None else value + "0"


def test_every_value_is_under_the_digest(tmp_path):
    record = make()
    path = records.write(record, tmp_path)
    seen = 0
    for where, value in leaves(record):
        for changed in (other(value), None if value is not None else "x", ...):
            if changed is value or (changed is ... and isinstance(where[-1], int)):
                continue
            path.write_text(json.dumps(change(record, where, changed)))
            with pytest.raises(RecordError, match=f"^{tmp_path.name}/{path.name}: "):
                records.load(path)
            seen += 1
    assert seen > 200
    path.write_text(json.dumps(record))
    assert records.load(path) == record


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*R, "samples_s", 0), 0.25000000000000006),
        ((*R, "values", "bytes"), 10.0),
        ((*R, "labels", "layer"), "enc0b"),
        (("method", "options", "repeats"), 4),
        (("machine", "topology", 0, 1), "SYS"),
        (("software", "torch"), "2.6"),
    ],
)
def test_a_valid_but_changed_value_is_told_by_the_digest(path, value):
    with pytest.raises(RecordError, match=r"^x.json: digest: .*measure again"):
        records.validate(change(make(), path, value), "x.json")


def test_records_are_only_added(tmp_path):
    path = records.write(make(), tmp_path)
    before = path.read_text()
    with pytest.raises(FileExistsError, match=r"20240102T030405Z-abababa-ladder.json exists"):
        records.write(make(results=[row("other")]), tmp_path)
    assert path.read_text() == before
    records.write(make(time="20240102T030406Z"), tmp_path)
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_of_two_writers_of_one_id_one_is_refused(moment, tmp_path, monkeypatch):
    refused = []

    def meanwhile(target, name):
        original = getattr(target, name)

        def step(*arguments):
            monkeypatch.setattr(target, name, original)
            with pytest.raises(FileExistsError) as caught:
                records.write(make(results=[row("second")]), tmp_path)
            refused.append(caught.value)
            return original(*arguments)

        monkeypatch.setattr(target, name, step)

    meanwhile(*{"fsync": (os, "fsync"), "rename": (record_module.Path, "rename")}[moment])
    path = records.write(make(results=[row("first")]), tmp_path)
    assert len(refused) == 1
    assert [result["case"] for result in records.load(path)["results"]] == ["first"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["fsync", "rename", "text"])
def test_a_write_that_fails_leaves_nothing(broken, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    target = {
        "fsync": (os, "fsync"),
        "rename": (record_module.Path, "rename"),
        "text": (record_module, "_text"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*target[broken], fail)
        with pytest.raises(OSError, match="No space left"):
            records.write(make(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert records.load(records.write(make(), tmp_path)) == make()
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_reader_sees_all_of_a_record_or_none(tmp_path, monkeypatch):
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda f: (seen.append(list(tmp_path.glob("*.json"))), fsync(f))
    )
    records.write(make(), tmp_path)
    assert seen == [[]]


# ----------------------------------------------------------------------------------- tables


def test_a_table_has_the_newest_record_of_each_machine(measurements):
    keep(measurements, make("20240102T030405Z", results=[row("old")]))
    keep(measurements, make("20240103T000000Z", "01" * 20, results=[row("new"), row("newer")]))
    keep(measurements, make("20240104T000000Z", suite="other"))
    keep(measurements, make("20240104T000000Z", suite="more-ladder"))
    keep(measurements, make("20230101T000000Z", machine="second", results=[row("theirs")]))
    table = records.table("ladder")
    assert list(table["case"]) == ["new", "newer", "theirs"]
    assert list(table["machine"]) == ["box", "box", "second"]
    assert list(table["commit"].str[:4]) == ["0101", "0101", "abab"]
    assert set(table["record"]) == {
        "20240103T000000Z-0101010-ladder",
        "20230101T000000Z-abababa-ladder",
    }
    assert list(records.table("ladder", ["second"])["case"]) == ["theirs"]
    older = records.table("ladder", ["box"], older=True)
    assert list(older["case"]) == ["old", "new", "newer"]
    assert records.machines() == ("box", "second")


def test_every_record_of_a_suite_comes_from_the_oldest_to_the_newest(measurements):
    for time, machine, suite in (
        ("20240103T030405Z", "attic", "tuning"),
        ("20240102T030405Z", "box", "tuning"),
        ("20240104T030405Z", "box", "tuning"),
        ("20240105T030405Z", "box", "ladder"),
        ("20240106T030405Z", "box", "other-tuning"),
    ):
        keep(measurements, make(time, machine=machine, suite=suite))
    found = [record["id"][:8] for record in records.every("tuning")]
    assert found == ["20240102", "20240103", "20240104"]
    assert list(records.every("never")) == []
    (measurements / "box" / "20240107T030405Z-abababa-tuning.json").touch()
    with pytest.warns(UserWarning, match=r"left out: box/20240107.*: not a record"):
        assert len(list(records.every("tuning"))) == 3


def test_a_changed_record_is_not_read(tmp_path):
    path = records.write(make(), tmp_path)
    assert records.read(path) == make()
    path.write_text(path.read_text().replace("0.25", "0.26"))
    with pytest.raises(RecordError, match=f"{path.name}: digest: it does not fit"):
        records.read(path)
    for text, message in (("{", "not a record"), ("[]", "digest: "), ("{}", "digest: ")):
        path.write_text(text)
        with pytest.raises(RecordError, match=message):
            records.read(path)


def test_reading_takes_neither_pandas_nor_a_schema(tmp_path):
    script = "import sys, convstudy.conv.tuned; print({'pandas', 'jsonschema'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_a_row_has_labels_values_and_statistics(measurements):
    failed = row("f", status="failed", reason="why", samples_s=[], labels={"extra": "x"}, values={})
    keep(measurements, make(results=[row("a", samples_s=[4.0, 1.0, 2.0, 3.0, 100.0]), failed]))
    first, second = (line for _, line in records.table("ladder").iterrows())
    assert first[["layer", "n", "share", "quick"]].tolist() == ["enc0a", 2, 0.5, True]
    assert first["value_bytes"] == 10
    assert first["value_events"] == [{"gpu": 0, "start_s": 0.5}]
    assert (first["clock"], first["cache"], first["transfers"]) == ("event", "flushed", "excluded")
    assert (first["samples"], first["median_s"]) == (5, 3.0)
    assert (first["p20_s"], first["p80_s"]) == pytest.approx((1.8, 23.2))
    assert (second["status"], second["reason"], second["extra"]) == ("failed", "why", "x")
    assert second["samples"] == 0
    assert np.isnan(second["median_s"])


def test_rows_whose_kernel_has_changed_are_stale(measurements):
    rows = [
        row("fresh"),
        row("changed", kernel="conv2d_fprop_2_coalesced"),
        row("gone", kernel="conv2d_fprop_9_removed"),
        row("other constants", launch=row()["launch"] | {"defines": {"T": 8, "A": 1}}),
        row("defaults", launch=None),
        row("no kernel", kernel=None, source_sha256=None, launch=None),
    ]
    keep(measurements, make(results=rows))
    asked = []

    def current_sha256(kernel, defines):
        asked.append((kernel, defines))
        if "removed" in kernel:
            raise ValueError("no such kernel")
        return SHA if "naive" in kernel and defines in ((("T", 4),), ()) else "f" * 64

    table = records.table("ladder", current_sha256=current_sha256).set_index("case")
    assert table["stale"].to_dict() == {
        "fresh": False,
        "changed": True,
        "gone": True,
        "other constants": True,
        "defaults": False,
        "no kernel": False,
    }
    # In their order, since the compiler is given them in it.
    assert ("conv2d_fprop_1_naive", (("T", 8), ("A", 1))) in asked
    assert not records.table("ladder")["stale"].any(), "nothing to compare with"


def test_rows_of_several_kernels_are_stale_once_one_of_them_has_changed(measurements):
    def current_sha256(kernel, defines):
        return f"{kernel} {defines}"

    words = "a_kernel another+STATISTICS+STREAM"
    both = "a_kernel () another (('STATISTICS', 1), ('STREAM', 1))"
    sha256 = hashlib.sha256(both.encode()).hexdigest()
    assert records.sources_sha256(words, current_sha256) == sha256
    whole = {"kernel": None, "launch": None, "source_sha256": sha256}
    rows = [
        row("fresh", values={"kernels": words}, **whole),
        row("changed", values={"kernels": "a_kernel another"}, **whole),
        row("nobody knows", values={}, **whole),
    ]
    keep(measurements, make(results=rows))
    table = records.table("ladder", current_sha256=current_sha256).set_index("case")
    assert table["stale"].to_dict() == {"fresh": False, "changed": True, "nobody knows": True}


def test_a_machine_without_records_names_those_that_have(measurements):
    with pytest.raises(ValueError, match=r"no record of machine 'moon'; there are records of none"):
        records.newest("moon", "ladder")
    keep(measurements, make())
    keep(measurements, make(machine="second"))
    for ask in (records.newest, records.provenance, lambda m, s: records.table(s, [m])):
        with pytest.raises(ValueError, match=r"'moon'.*box, second.*MACHINE= names"):
            ask("moon", "ladder")


def test_a_suite_nobody_has_run_is_an_empty_table(measurements):
    assert len(records.table("ladder")) == 0
    keep(measurements, make())
    empty = records.table("never", ["box"])
    assert len(empty) == 0
    assert len(empty[(empty["status"] == "ok") & ~empty["stale"].astype(bool)]) == 0
    fixed = set(records.table("ladder")) - {"layer", "n", "share", "quick"}
    assert set(empty) == {name for name in fixed if not name.startswith("value_")}
    assert records.newest("box", "never") is None
    assert records.provenance("box", "never") == "box: no record of suite 'never'"


def test_a_stray_or_broken_file_is_passed_over_or_named(measurements):
    path = keep(measurements, make())
    path.with_name("notes-ladder.json").write_text("{}")
    path.with_name("20990102T030405Z-abababa-ladder.tmp").write_text('{"half": ')
    assert records.newest("box", "ladder")["id"] == path.stem
    later = path.with_name("20250102T030405Z-abababa-ladder.json")
    later.write_text("{}")
    with pytest.raises(RecordError, match=later.name):
        records.table("ladder")


def test_a_record_of_another_machine_is_refused(measurements):
    records.write(make(machine="second"), measurements / "box")
    with pytest.raises(RecordError, match=r"machine.slug: 'second', yet .* folder of 'box'"):
        records.newest("box", "ladder")


def test_provenance_is_one_line(measurements):
    keep(measurements, make())
    assert records.provenance("box", "ladder") == (
        "box: A CPU + A GPU; commit abababa; 20240102T030405Z-abababa-ladder.json"
    )


def test_statistics(rng):
    samples = sorted(rng.random(101))
    assert statistics.median(samples) == samples[50]
    assert statistics.quantile(samples, 0.2) == pytest.approx(samples[20])
    assert np.isnan(statistics.median([]))
    assert np.isnan(statistics.quantile([], 0.5))
    assert statistics.tflops(3e12, 1.5) == 2.0
    assert statistics.share_of_peak(3e12, 1.5, 8e12) == 0.25
    assert statistics.speedup(0.5, reference=2.0) == 4.0
    assert statistics.amdahl(0.5, 2) == pytest.approx(1 / (0.5 + 0.25))
    assert statistics.amdahl(0.0, 7) == 1
    assert statistics.amdahl(1.0, 7) == pytest.approx(7)


# ---------------------------------------------------------------------------------- journals

HEADER = {"suite": "s", "options": {"n": "1,16"}, "source": SHA}


def test_a_journal_goes_on_where_it_was_left(tmp_path):
    path = tmp_path / "build" / "s.jsonl"
    first = Journal(path, HEADER)
    assert first.finished == {}
    first.add("a", [row("a")])
    first.add("b", [row("b/1"), row("b/2")])
    second = Journal(path, HEADER)
    assert second.finished == {"a": [row("a")], "b": [row("b/1"), row("b/2")]}
    assert second.set_aside is None
    second.add("c", [])
    assert list(Journal(path, HEADER).finished) == ["a", "b", "c"]
    second.remove()
    assert list(path.parent.iterdir()) == []


def test_a_torn_line_costs_its_case_alone(tmp_path):
    path = tmp_path / "s.jsonl"
    journal = Journal(path, HEADER)
    journal.add("a", [row("a")])
    kept = len(path.read_bytes())
    journal.add("b", [row("b")])
    whole = path.read_bytes()
    for length in range(kept, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        again = Journal(path, HEADER)
        assert list(again.finished) == ["a"], length
        again.add("c", [row("c")])
        assert list(Journal(path, HEADER).finished) == ["a", "c"], length
    # A disk may leave zeros, or the rest of something else, instead of a line.
    lines = whole.splitlines()
    for rubbish in (b"\0" * 50, b"\xff\xfe{", b'{"case": "a"'):
        path.write_bytes(b"\n".join([lines[0], rubbish, lines[2]]))
        assert list(Journal(path, HEADER).finished) == ["b"]


@pytest.mark.parametrize("name", ["suite", "options", "source"])
def test_a_journal_of_something_else_is_set_aside_whole(name, tmp_path):
    path = tmp_path / "s.jsonl"
    texts = []
    for i in range(3):
        journal = Journal(path, HEADER | {name: f"other {i}"})
        journal.add("a", [row(f"a{i}")])
        texts.append(path.read_text())
    last = Journal(path, HEADER)
    assert last.finished == {}
    assert last.set_aside is not None
    aside = [file.read_text() for file in sorted(tmp_path.iterdir()) if file != path]
    assert sorted(aside) == sorted(texts)


def test_a_journal_that_was_set_aside_is_taken_up_again(tmp_path):
    path = tmp_path / "s.jsonl"
    Journal(path, HEADER).add("a", [row("a")])
    Journal(path, HEADER | {"options": {"n": "4"}}).add("b", [row("b")])
    again = Journal(path, HEADER)
    assert again.finished == {"a": [row("a")]}
    again.remove()
    assert list(Journal(path, HEADER | {"options": {"n": "4"}}).finished) == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_case_is_on_disk_before_the_next_begins(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "s.jsonl", HEADER)
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda f: (synced.append((tmp_path / "s.jsonl").read_text().count("\n")), fsync(f)),
    )
    journal.add("a", [])
    journal.add("b", [])
    assert synced == [2, 3]


def test_a_torn_rewrite_leaves_the_journal_it_was_made_from(tmp_path, monkeypatch):
    path = tmp_path / "s.jsonl"
    Journal(path, HEADER).add("a", [row("a")])
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "rename", lambda *a: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            Journal(path, HEADER)
    for _ in range(2):
        assert list(Journal(path, HEADER).finished) == ["a"]
