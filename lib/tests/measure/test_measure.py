# SPDX-License-Identifier: MIT
"""Measuring: three clocks, where numbers come from, and a runner that may be killed."""

import contextlib
import dataclasses
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_suite

from convstudy import compile, paths, records
from convstudy.conv.algorithm import plan
from convstudy.device import CPU, EMULATOR, Device, array_module, devices
from convstudy.measure import clocks, provenance, runner
from convstudy.measure.suite import Case, Suite, checked, result
from convstudy.measure.suites import SUITES
from convstudy.problem import ConvProblem

# ------------------------------------------------------------------------------------ clocks


class FakeCuda:
    """Of CuPy what clocks use: work is asked for, and done later in a thread, in order."""

    WORK_S = 0.01

    def __init__(self):
        self.int8 = np.int8
        self.cuda = SimpleNamespace(
            Device=self.device, Event=self.event, get_elapsed_time=self.elapsed
        )
        self.stream = ThreadPoolExecutor(1)
        self.asked, self.log, self.flushed_bytes = [], [], 0
        self.current, self.synchronised, self.recorded = 0, [], set()

    def later(self, work, *arguments):
        self.asked.append(self.stream.submit(work, *arguments))
        return self.asked[-1]

    def work(self):
        self.log.append(("run", all(task.done() for task in self.asked)))
        self.later(time.sleep, self.WORK_S)

    def device(self, index):
        return FakeDevice(self, index)

    def event(self):
        event = SimpleNamespace()

        def record():
            self.recorded.add(self.current)
            event.at = self.later(time.perf_counter)

        event.record = record
        event.synchronize = lambda: event.at.result()
        return event

    def elapsed(self, start, stop):
        return (stop.at.result() - start.at.result()) * 1e3

    def empty(self, size, dtype):
        array = np.empty(size, dtype)
        on = self.current

        def memset_async(value, count):
            self.log.append(("flush", self.current == on))
            self.flushed_bytes = count
            self.later(time.sleep, 4 * self.WORK_S)

        return SimpleNamespace(nbytes=array.nbytes, data=SimpleNamespace(memset_async=memset_async))


class FakeDevice:
    """One GPU of `cuda`; ``with`` makes it the current one."""

    def __init__(self, cuda, index):
        self.cuda, self.index = cuda, index

    def __enter__(self):
        self.before, self.cuda.current = self.cuda.current, self.index

    def __exit__(self, *error):
        self.cuda.current = self.before

    def synchronize(self):
        self.cuda.synchronised.append(self.index)
        for task in self.cuda.asked:
            task.result()


GPU = Device("gpu", "a fake", index=1, l2_bytes=1000)


@pytest.fixture
def fake(monkeypatch):
    found = FakeCuda()
    monkeypatch.setattr(clocks, "array_module", lambda device: found)
    yield found
    found.stream.shutdown()


@pytest.mark.parametrize("clock", clocks.CLOCKS)
@pytest.mark.parametrize(("repeats", "warmup"), [(1, 0), (4, 3), (2, 1)])
def test_it_runs_as_often_as_it_says(clock, repeats, warmup, fake):
    samples = clocks.sample(fake.work, clock, GPU, repeats, warmup)
    assert len(fake.log) == repeats + warmup
    assert len(samples) == repeats
    assert all(type(seconds) is float and seconds > 0 for seconds in samples)


def test_a_host_clock_stops_at_the_return_and_the_others_at_the_end(fake):
    seconds = {clock: clocks.sample(fake.work, clock, GPU, 5, 1) for clock in clocks.CLOCKS}
    assert max(seconds["host"]) < fake.WORK_S / 2
    assert min(seconds["synchronised"]) >= fake.WORK_S
    assert min(seconds["event"]) >= fake.WORK_S
    assert np.median(seconds["event"]) < 2 * fake.WORK_S


@pytest.mark.parametrize("clock", clocks.CLOCKS)
@pytest.mark.parametrize("flush", [False, True])
def test_every_timed_call_finds_an_idle_device(clock, flush, fake):
    clocks.sample(fake.work, clock, GPU, 4, 2, flush)
    idle = [was_idle for what, was_idle in fake.log if what == "run"]
    # An event clock has asked for its first event by then.
    assert all(idle[2:]) or clock == "event"
    assert set(fake.synchronised) == {GPU.index}
    assert fake.recorded == ({GPU.index} if clock == "event" else set())
    assert all(task.done() for task in fake.asked), "nothing is left behind"


@pytest.mark.parametrize("clock", clocks.CLOCKS)
def test_l2_is_flushed_before_each_timed_call_and_outside_of_it(clock, fake):
    samples = clocks.sample(fake.work, clock, GPU, 3, 2, flush=True)
    assert [what for what, _ in fake.log] == [*["run"] * 2, *["flush", "run"] * 3]
    assert all(on_its_device for what, on_its_device in fake.log if what == "flush")
    assert fake.flushed_bytes >= GPU.l2_bytes
    assert max(samples) < 3 * fake.WORK_S, "a flush takes four times the work"
    assert fake.current == 0, "the caller's device is current again"


def test_it_stops_when_its_time_is_spent_but_not_before_two_samples(fake):
    assert len(clocks.sample(fake.work, "synchronised", GPU, 1000, 1, most_s=0.0)) == 2
    few = clocks.sample(fake.work, "synchronised", GPU, 1000, 1, most_s=6 * fake.WORK_S)
    assert 2 < len(few) < 10
    assert len(clocks.sample(fake.work, "synchronised", GPU, 1, 1, most_s=0.0)) == 1


def test_several_devices_are_waited_for_together(fake):
    pair = (GPU, dataclasses.replace(GPU, index=3))
    assert min(clocks.sample(fake.work, "synchronised", pair, 2, 0)) >= fake.WORK_S
    assert set(fake.synchronised) == {1, 3}
    with pytest.raises(ValueError, match=r"clocks: events are one GPU's"):
        clocks.sample(fake.work, "event", pair)
    with pytest.raises(ValueError, match=r"clocks: only one GPU's L2 is flushed"):
        clocks.sample(fake.work, "host", pair, flush=True)


@pytest.mark.parametrize("clock", ["host", "synchronised"])
def test_on_a_cpu_both_wall_clocks_are_one(clock):
    calls = []
    samples = clocks.sample(lambda: (calls.append(1), time.sleep(0.005)), clock, CPU, 3, 2)
    assert len(calls) == 5
    assert len(samples) == 3
    assert min(samples) >= 0.005


def test_a_stopwatch_times_one_call():
    calls = []
    seconds = clocks.once("synchronised", CPU)(lambda: (calls.append(1), time.sleep(0.005)))
    assert len(calls) == 1
    assert 0.005 <= seconds < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sundial", CPU), "no clock 'sundial'; choose one of host, synchronised, event"),
        ((None, CPU), "no clock None"),
        (("event", CPU), "events are one GPU's; use the synchronised clock"),
        (("host", CPU, 0), "0 repeats"),
        (("host", CPU, 3, -1), "-1 warm-ups"),
        (("host", CPU, 3, 1, True), "only one GPU's L2 is flushed"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_it_runs(arguments, message):
    def run():
        raise AssertionError("it ran")

    with pytest.raises(ValueError, match=f"^clocks: .*{message}"):
        clocks.sample(run, *arguments)


def test_laps_are_asked_for_before_any_is_waited_for(monkeypatch):
    asked, now = [], iter(range(0, 1000, 5))

    class Event:
        def record(self):
            self.at = next(now)
            asked.append("mark")

        def synchronize(self):
            asked.append("wait")

    cuda = SimpleNamespace(
        Device=lambda index: contextlib.nullcontext(),
        Event=Event,
        get_elapsed_time=lambda start, stop: stop.at - start.at,
    )
    monkeypatch.setattr(clocks, "array_module", lambda device: SimpleNamespace(cuda=cuda))
    runs = [lambda side=side: asked.append(side) for side in "abc"]
    assert clocks.laps(runs, Device("gpu", "a GPU")) == [0.005] * 3
    assert asked == ["c", "mark", "a", "mark", "b", "mark", "c", "mark", "wait"]


@pytest.mark.gpu
def test_laps_of_a_kernel_are_not_longer_than_its_time_by_events(rng):
    device = devices()[0]
    xp = array_module(device)
    problem = ConvProblem(4, 64, 128, 191, 64, 3, 3, padding=(1, 1))
    launch = plan("conv2d_fprop_3_tiled", problem, device)
    shapes = problem.x_shape, problem.w_shape, (problem.k,)
    arrays = [xp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]
    arrays.append(xp.empty(problem.y_shape, np.float32))

    def run():
        launch.run(device, arrays)

    event = np.median(clocks.sample(run, "event", device, 10))
    laps = [clocks.laps([run] * 4, device) for _ in range(10)]
    assert 0.8 * event < np.median(laps) < 1.05 * event


@pytest.mark.gpu
def test_three_clocks_of_a_kernel(rng):
    device = devices()[0]
    xp = array_module(device)
    problem = ConvProblem(16, 64, 128, 191, 64, 3, 3, padding=(1, 1))
    launch = plan("conv2d_fprop_3_tiled", problem, device)
    shapes = problem.x_shape, problem.w_shape, (problem.k,)
    arrays = [xp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]
    arrays.append(xp.empty(problem.y_shape, np.float32))

    def run():
        launch.run(device, arrays)

    host, synchronised, event = (
        np.median(clocks.sample(run, clock, device, 10)) for clock in clocks.CLOCKS
    )
    assert host < synchronised / 4
    # Medians of different runs, while the GPU's clock rises and falls.
    assert event <= 1.05 * synchronised
    assert event > synchronised / 2
    # No chip is faster than its peak, and a clock that stops too soon says it is.
    assert problem.flops / event < device.peak_fp32_flops


@pytest.mark.gpu
def test_a_flushed_l2_is_slow():
    device = devices()[0]
    xp = array_module(device)
    # One thread follows a chain through 2 MB, a line a step: nothing but latency.
    chase = xp.RawKernel(
        'extern "C" __global__ void chase(const int* next, int* out)'
        "{ int i = 0; for (int step = 0; step < 16384; ++step) i = next[i]; *out = i; }",
        "chase",
    )
    order = np.random.default_rng(1).permutation(16384)
    chain = np.zeros(16384 * 32, np.int32)
    chain[order * 32] = np.roll(order, -1) * 32
    following, out = xp.asarray(chain), xp.zeros(1, xp.int32)

    def run():
        chase((1,), (1,), (following, out))

    warm, flushed = (
        np.median(clocks.sample(run, "event", device, 10, flush=flush)) for flush in (False, True)
    )
    assert flushed > 1.2 * warm


# -------------------------------------------------------------------------------- provenance


def test_no_name_of_a_host_a_user_or_a_folder(monkeypatch):
    for variable in ("USER", "LOGNAME", "HOSTNAME", "HOST"):
        monkeypatch.setenv(variable, "planted-name")
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "ab" * 20)
    found = [provenance.machine("some-slug"), provenance.software(), provenance.source()]
    text = "\n".join(str(value) for value in _values(found))
    private = {"planted-name", socket.gethostname(), *_user_names(), str(Path.home())}
    private |= {str(paths.ROOT), sys.prefix, os.getcwd()}
    for name in private - {"/"}:
        assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text), name
    assert not re.search(r"^/", text, re.MULTILINE), "no value is a path"


def _values(value):
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _values(part)
    else:
        yield value


def _user_names():
    import pwd

    with_environment = getpass.getuser()
    try:
        return {with_environment, pwd.getpwuid(os.getuid()).pw_name}
    except KeyError:
        return {with_environment}


def test_the_machine_and_its_software_are_what_a_record_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MEASUREMENTS", tmp_path / "measurements")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "ab" * 20)
    path = runner.run(tiny_suite.suite(tmp_path), say=lambda line: None)
    record = records.load(path)
    assert record["machine"]["cpu"]["model"] == provenance.cpu_model()
    assert len(record["machine"]["gpus"]) == len(devices())
    assert record["software"]["numpy"] == np.__version__
    assert record["software"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "blas" in record["software"]["blas"].lower()
    assert record["source"] == {
        "commit": "ab" * 20,
        "dirty": False,
        "sha256": provenance.tree_sha256(),
    }


@pytest.mark.gpu
def test_a_gpu_tells_what_it_is_and_how_it_does():
    for device in devices():
        nvml, handle = provenance._nvml(device.index)
        assert nvml.nvmlDeviceGetName(handle) == device.name
        state = provenance.gpu_state(device.index)
        assert state["sm_clock_mhz"] > 0
    told = provenance.machine("some-slug")["gpus"]
    assert all(gpu["clocks_mhz"]["sm_max"] and gpu["driver"] != "unknown" for gpu in told)


TOPOLOGY = """\
\t{on}GPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID{off}
GPU0\t X \tNV18\tSYS\tPIX\t0-31\t0\t\tN/A
GPU1\tNV18\t X \tNODE\tSYS\t32-63\t1\t\tN/A
GPU2\tSYS\tNODE\t X \tSYS\t32-63\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""


@pytest.mark.parametrize("escapes", [("", ""), ("\x1b[4m", "\x1b[0m")])
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0], None),
        ([0, 1], [["X", "NV18"], ["NV18", "X"]]),
        ([2, 0], [["X", "SYS"], ["SYS", "X"]]),
        ([1, 2, 0], [["X", "NODE", "NV18"], ["NODE", "X", "SYS"], ["NV18", "SYS", "X"]]),
        ([0, 3], None),
    ],
)
def test_the_topology_is_that_of_the_gpus_seen(order, expected, escapes, monkeypatch):
    text = TOPOLOGY.format(on=escapes[0], off=escapes[1])
    done = SimpleNamespace(stdout=text)
    monkeypatch.setattr(provenance.subprocess, "run", lambda *a, **k: done)
    monkeypatch.setattr(provenance, "devices", lambda: tuple(order))
    nvml = SimpleNamespace(nvmlDeviceGetIndex=lambda handle: handle)
    monkeypatch.setattr(provenance, "_nvml", lambda index: (nvml, order[index]))
    assert provenance._topology() == expected


def test_a_topology_nobody_tells_is_none(monkeypatch):
    monkeypatch.setattr(provenance, "devices", lambda: (0, 1))
    monkeypatch.setattr(provenance, "_output", lambda *command: None)
    assert provenance._topology() is None


@pytest.mark.parametrize("commit", ["abc", "AB" * 20, "ab" * 20 + "\n", "main", "g" * 40])
def test_a_commit_that_is_none_is_refused(commit, monkeypatch):
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, commit)
    with pytest.raises(RuntimeError, match=f"set {provenance.COMMIT_VARIABLE} to the 40 hex"):
        provenance.source()


def test_a_commit_is_needed(monkeypatch, tmp_path):
    monkeypatch.delenv(provenance.COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="commit is unknown \\(None\\)"):
        provenance.source()
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "ab" * 20)
    assert provenance.source()["commit"] == "ab" * 20


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A committed checkout of one module and a notes file, in place of this one."""
    package = tmp_path / "lib" / "package"
    package.mkdir(parents=True)
    (package / "module.py").write_text("one = 1\n")
    (tmp_path / "notes.md").write_text("notes\n")
    who = ("-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "Begin")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "PACKAGE", package)
    monkeypatch.delenv(provenance.COMMIT_VARIABLE, raising=False)
    return tmp_path


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git; install it")
def test_sources_that_differ_from_their_commit_are_dirty(checkout, monkeypatch):
    head = (checkout / ".git" / "refs" / "heads").iterdir()
    assert provenance.source()["commit"] == next(head).read_text().strip()
    assert provenance.source()["dirty"] is False
    (checkout / "data.json").write_text("a new record\n")
    assert provenance.source()["dirty"] is False, "records are added between two measurements"
    (checkout / "lib" / "package" / "new.py").write_text("two = 2\n")
    assert provenance.source()["dirty"] is True, "what is measured is in no commit"
    (checkout / "lib" / "package" / "new.py").unlink()
    assert provenance.source()["dirty"] is False
    (checkout / "notes.md").write_text("other notes\n")
    assert provenance.source()["dirty"] is True
    (checkout / "notes.md").write_text("notes\n")
    assert provenance.source()["dirty"] is False
    output = provenance._output
    monkeypatch.setattr(provenance, "_output", lambda *c: None if "status" in c else output(*c))
    assert provenance.source()["dirty"] is True, "git does not answer"
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "")
    assert provenance.source()["dirty"] is True, "an empty variable vouches for nothing"
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "ab" * 20)
    assert provenance.source()["dirty"] is False


def test_the_hash_of_the_tree_changes_with_every_source(tmp_path):
    names = ("a.py", "deep/b.cu", "deep/c.cuh", "d.h", "e.cpp", "f.json")
    texts = {name: f"text {i}" for i, name in enumerate(names)}

    def plant(folder, names):
        for name in names:
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(texts[name])
        return tmp_path / folder

    one = provenance.tree_sha256(plant("one", texts))
    assert re.fullmatch(r"[0-9a-f]{64}", one)
    folder = plant("two", reversed(texts))
    assert provenance.tree_sha256(folder) == one, "neither order nor place counts"
    (folder / "notes.txt").write_text("no source")
    (folder / "a.pyc").write_text("no source")
    assert provenance.tree_sha256(folder) == one
    seen = {one}
    for name in texts:
        file = folder / name
        for change in (lambda f: f.write_text("other"), lambda f: f.unlink()):
            change(file)
            seen.add(provenance.tree_sha256(folder))
        file.write_text(texts[name])
    (folder / "a.py").rename(folder / "a2.py")  # it keeps its place
    seen.add(provenance.tree_sha256(folder))
    assert len(seen) == 2 + 2 * len(texts)


# ------------------------------------------------------------------------------ suite, result


def test_a_result_of_a_launch_says_what_ran():
    problem = ConvProblem(1, 3, 8, 9, 4, 3, 3, padding=(1, 1))
    launch = plan("conv2d_fprop_3_tiled", problem, EMULATOR)
    row = result("a", {"n": 1}, np.ones(2), clock="event", problem=problem, launch=launch)
    records.validate_result(row, "a")
    assert row["kernel"] == "conv2d_fprop_3_tiled"
    assert row["source_sha256"] == compile.source_sha256(launch.kernel, launch.defines)
    assert row["launch"]["defines"] == dict(launch.defines)
    assert row["problem"]["padding"] == [1, 1]


def test_a_result_of_many_launches_names_their_kernels():
    problem = ConvProblem(1, 3, 8, 9, 4, 3, 3)
    tiled, naive = (
        plan(f"conv2d_fprop_{rung}", problem, EMULATOR) for rung in ("3_tiled", "1_naive")
    )
    asking = dataclasses.replace(tiled.main_launch, defines=(("TILE_C", 4), ("STREAM", 1)))
    kernels = compile.words([naive, tiled, tiled, asking])
    assert kernels == "conv2d_fprop_1_naive conv2d_fprop_3_tiled conv2d_fprop_3_tiled+STREAM"
    given = {"clock": "event", "kernels": kernels, "values": {"bytes": 3}}
    row = result("a", {"algorithm": ""}, [1.0], **given)
    records.validate_result(row, "a")
    assert row["values"] == {"bytes": 3, "kernels": kernels}
    assert (row["kernel"], row["launch"]) == (None, None)
    assert row["source_sha256"] == records.sources_sha256(kernels, compile.source_sha256)
    assert result("a", {}, [1.0], kernels=None)["source_sha256"] is None


def test_a_row_is_stale_once_its_kernel_has_changed(tmp_path, monkeypatch):
    tiny_suite.use(tmp_path, monkeypatch.setattr)
    kernel, other = "conv2d_fprop_1_naive", "conv2d_fprop_2_coalesced"
    problem = ConvProblem(1, 3, 8, 9, 4, 3, 3)
    launch = plan(other, problem, EMULATOR)
    rows = [
        result("network", {"algorithm": kernel}, [1.0], clock="event"),
        result("launch", {"algorithm": other}, [1.0], clock="event", launch=launch),
        result("cpu", {"algorithm": "cpu-blas"}, [1.0], clock="host"),
        result("program", {}, [1.0], clock="event", kernels=f"{other} {kernel}"),
    ]
    suite = Suite("tiny", "t", lambda options: [_case(row["case"], row) for row in rows])
    runner.run(suite, "box", say=lambda line: None)

    def stale():
        table = records.table("tiny", ["box"], compile.source_sha256).set_index("case")
        return table["stale"].to_dict()

    fresh = dict.fromkeys(("network", "launch", "cpu", "program"), False)
    assert stale() == fresh
    kernels = shutil.copytree(paths.KERNELS, tmp_path / "kernels")
    monkeypatch.setattr(paths, "KERNELS", kernels)
    compile.source.cache_clear()
    try:
        assert stale() == fresh
        changed = kernels / f"{kernel}.cu"
        changed.write_text(changed.read_text() + "// changed\n")
        compile.source.cache_clear()
        assert stale() == fresh | {"network": True, "program": True}
        (kernels / f"{other}.cu").unlink()
        compile.source.cache_clear()
        assert stale() == fresh | {"network": True, "launch": True, "program": True}
    finally:
        compile.source.cache_clear()


def _case(name, *rows):
    return Case(name, lambda: list(rows), {"name": name})


def test_what_is_wrong_is_not_timed(rng):
    reference = rng.standard_normal((4, 5))
    good = checked(reference.astype(np.float32), reference, 27)
    assert good["passed"] is True
    assert 0 < good["max_relative_error"] <= good["tolerance"]
    wrong = reference.astype(np.float32)
    wrong[1, 2] += 0.01
    empty = np.full((4, 5), np.nan, np.float32)
    for actual in (wrong, empty):
        with pytest.raises(RuntimeError, match="the result is wrong"):
            checked(actual, reference, 27)


# ------------------------------------------------------------------------------------ runner


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of its own for records and journals; source and software stand still."""
    tiny_suite.use(tmp_path, monkeypatch.setattr)
    return tmp_path


def measure(suite, machine="local", options=None):
    """Run a suite; return its record, and what was said."""
    said = []
    path = runner.run(suite, machine, options, said.append)
    return records.load(path), said


def test_a_run_writes_one_valid_record_and_no_more(folder):
    record, said = measure(tiny_suite.suite(folder), "some-box", {"repeats": "3"})
    assert [row["case"] for row in record["results"]] == list(tiny_suite.NAMES)
    assert record["results"][0]["samples_s"] == [0.25, 0.5, 0.75]
    assert record["method"] == {
        "seed": runner.SEED,
        "options": tiny_suite.OPTIONS | {"repeats": 3},
    }
    assert record["machine"]["slug"] == "some-box"
    assert tiny_suite.ran(folder) == list(tiny_suite.NAMES)
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "ran"]
    assert files == [folder / "measurements" / "some-box" / f"{record['id']}.json"]
    assert said == [f"tiny: some-box/{record['id']}.json"]


@pytest.mark.parametrize("when", ["in a case", "while writing"])
def test_a_killed_run_leaves_no_half_record_and_loses_no_finished_case(when, folder):
    process = subprocess.Popen(
        [sys.executable, tiny_suite.__file__, folder, when], stdout=subprocess.PIPE, text=True
    )
    with process:
        if when == "in a case":
            assert process.stdout.readline() == "reached\n"
            process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    before = tiny_suite.ran(folder)
    assert before == list(tiny_suite.NAMES[: 3 if when == "in a case" else 5])
    assert list(folder.glob("measurements/*/*.json")) == []
    finished = before[:2] if when == "in a case" else before
    time.sleep(1)  # ids are to the second, and the killed run has taken one
    record, said = measure(tiny_suite.suite(folder))
    assert said[0] == f"tiny: {len(finished)} cases are finished already; going on"
    rest = [name for name in tiny_suite.NAMES if name not in finished]
    assert tiny_suite.ran(folder) == before + rest
    assert [row["case"] for row in record["results"]] == list(tiny_suite.NAMES)
    assert {row["status"] for row in record["results"]} == {"ok"}
    assert not list((folder / "build").rglob("*.jsonl"))


def test_what_time_was_not_enough_for_is_skipped(folder, monkeypatch):
    clock = iter(range(100))  # which each case, and the end, asks once
    monkeypatch.setattr(runner.time, "perf_counter", lambda: float(next(clock)))
    path = runner.run(tiny_suite.suite(folder), say=lambda line: None, stop_after_s=2)
    rows = records.load(path)["results"]
    assert tiny_suite.ran(folder) == ["one", "two"]
    assert [row["status"] for row in rows] == ["ok"] * 2 + ["skipped"] * 3
    assert all("--stop-after" in row["reason"] for row in rows[2:])


def _interrupt():
    raise KeyboardInterrupt


def test_an_interrupted_run_keeps_its_journal(folder):
    said = []
    with pytest.raises(KeyboardInterrupt):
        runner.run(tiny_suite.suite(folder, two=_interrupt), say=said.append)
    assert said == ["tiny: stopped; the same command goes on after the last finished case"]
    assert list(folder.glob("measurements/*/*")) == []
    record, _ = measure(tiny_suite.suite(folder))
    assert tiny_suite.ran(folder) == ["one", "two", "two", "three", "four", "five"]
    assert len(record["results"]) == 5


def test_an_option_that_a_suite_refuses_leaves_an_unfinished_run_alone(folder):
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_suite.suite(folder, two=_interrupt))

    def cases(options):
        raise ValueError("too large")

    with pytest.raises(ValueError, match="too large"):
        measure(dataclasses.replace(tiny_suite.suite(folder), cases=cases), options={"n": "4"})
    measure(tiny_suite.suite(folder))
    assert tiny_suite.ran(folder) == ["one", "two", "two", "three", "four", "five"]
    assert not list((folder / "build").rglob("*.jsonl"))


@pytest.mark.parametrize("other", ["options", "source", "machine"])
def test_what_was_finished_under_other_terms_is_measured_anew(other, folder, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        runner.run(tiny_suite.suite(folder, two=_interrupt), say=lambda line: None)
    options = {"repeats": 5} if other == "options" else {}
    if other == "source":
        changed = {"commit": "ab" * 20, "dirty": True, "sha256": "6" * 64}
        monkeypatch.setattr(provenance, "source", lambda: changed)
    machine = provenance.machine
    if other == "machine":
        monkeypatch.setattr(provenance, "machine", lambda slug: machine(slug) | {"kernel": "7.0"})
    record, said = measure(tiny_suite.suite(folder), options=options)
    assert "an unfinished run of other code or options is kept" in said[0]
    assert tiny_suite.ran(folder) == ["one", "two", *tiny_suite.NAMES]
    assert {len(row["samples_s"]) for row in record["results"]} == {options.get("repeats", 2)}
    (kept,) = (folder / "build").rglob("*.jsonl")
    assert '"one"' in kept.read_text()


def _fail(error):
    def run():
        raise error

    return run


def test_failed_and_skipped_cases_say_why_and_take_no_other_along(folder):
    where = f"{paths.ROOT}/lib/x.cu and {Path.home()}/.cache/y"
    special = {
        "two": _fail(MemoryError(f"no room in {where}\nand more lines")),
        "three": "no GPU here; run it where there is one",
        "four": _fail(KeyError()),
    }
    record, _ = measure(tiny_suite.suite(folder, **special))
    rows = {row["case"]: row for row in record["results"]}
    assert [row["status"] for row in rows.values()] == ["ok", "failed", "skipped", "failed", "ok"]
    reason = rows["two"]["reason"]
    assert reason.startswith("MemoryError: no room in ")
    assert "more lines" not in reason
    assert str(paths.ROOT) not in reason
    assert str(Path.home()) not in reason
    assert rows["three"]["reason"] == "no GPU here; run it where there is one"
    assert rows["four"]["reason"] == "KeyError"
    assert rows["two"]["labels"] == {"name": "two"}
    assert "three" not in tiny_suite.ran(folder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("'/scratch/ann/x.cu' is missing", "'x.cu' is missing"),
        ("(/mnt/envs/ann-1/lib/y.so)", "(y.so)"),
        ("at 3 TB/s of (N, C)/(H, W), see https://a.b/c/d", None),
        ("./lib/x.cu and lib/convstudy/y.py", None),
        ("a/b/c of 1/2/3", None),
    ],
)
def test_a_reason_names_files_without_their_folders(text, told, folder):
    record, _ = measure(tiny_suite.suite(folder, two=_fail(OSError(text))))
    assert record["results"][1]["reason"] == f"OSError: {told or text}"


def _row(name, **fields):
    return result(name, {}, [0.5], clock="host") | fields


NO_RESULTS = {
    "none at all": (lambda: None, "it gives no result"),
    "an empty list": (list, "it gives no result"),
    "NaN": (lambda: [_row("two", samples_s=[float("nan")])], r"two: samples_s\[0\]: nan"),
    "no time": (lambda: [_row("two", samples_s=[0.0])], r"two: samples_s\[0\]: 0.0"),
    "NumPy": (lambda: [_row("two", values={"x": np.float32(1)})], "two: values.x: .*float32"),
    "an array": (lambda: [_row("two", values={"x": np.ones(2)})], "two: values.x: .*ndarray"),
    "a wrong check": (
        lambda: [
            _row(
                "two",
                check={
                    "reference": "float64",
                    "max_relative_error": 1.0,
                    "tolerance": 0.1,
                    "passed": False,
                },
            )
        ],
        "two: check.passed",
    ),
    "a name of its own": (lambda: [_row("three/a")], "'three/a'; begin that with 'two'"),
    "a longer word": (lambda: [_row("twofold")], "begin that with 'two'"),
    "twice the same": (lambda: [_row("two/a"), _row("two/a")], "two of its results are called"),
}


@pytest.mark.parametrize("why", NO_RESULTS)
def test_a_result_that_no_record_could_hold_fails_its_case_alone(why, folder):
    run, message = NO_RESULTS[why]
    record, _ = measure(tiny_suite.suite(folder, two=run))
    assert [row["case"] for row in record["results"]] == list(tiny_suite.NAMES)
    failed = [row for row in record["results"] if row["status"] != "ok"]
    assert [row["case"] for row in failed] == ["two"]
    assert re.search(message, failed[0]["reason"])


def test_a_failed_case_is_tried_again_and_a_finished_one_is_not(folder):
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_suite.suite(folder, one=_fail(OSError("busy")), three=_interrupt))
    record, _ = measure(tiny_suite.suite(folder))
    assert tiny_suite.ran(folder) == ["one", "two", "three", "one", "three", "four", "five"]
    assert [row["case"] for row in record["results"]] == list(tiny_suite.NAMES)
    assert {row["status"] for row in record["results"]} == {"ok"}


def test_nothing_measured_is_no_record_and_can_be_tried_again(folder):
    special = {name: _fail(OSError(name)) for name in tiny_suite.NAMES[1:]} | {"one": "no GPU"}
    with pytest.raises(RuntimeError, match=r"suite tiny: nothing was measured: .*five.*; no GPU"):
        measure(tiny_suite.suite(folder, **special))
    assert list(folder.glob("measurements/*/*")) == []
    special = {"one": "no GPU"}
    record, _ = measure(tiny_suite.suite(folder, **special))
    assert [row["status"] for row in record["results"]] == ["skipped", *["ok"] * 4]


def test_two_cases_of_one_name_are_refused(folder):
    suite = Suite("tiny", "t", lambda options: [_case("a", _row("a")), _case("a", _row("a/b"))])
    with pytest.raises(ValueError, match=r"suite tiny has two cases 'a'"):
        measure(suite)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"repeats": "7"}, ("repeats", 7)),
        ({"n": 16}, ("n", "16")),
        ({"fast": "true"}, ("fast", True)),
        ({"fast": "False"}, ("fast", False)),
        ({"fast": True}, ("fast", True)),
    ],
)
def test_options_are_of_their_default_s_type(given, expected, folder):
    name, value = expected
    record, _ = measure(tiny_suite.suite(folder), options={"repeats": 1} | given)
    found = record["method"]["options"][name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeat": 3}, "no option 'repeat'; its options: repeats, n, fast, share, seeds, gpus"),
        ({"repeats": "many"}, "repeats='many' must be of type int, such as 2"),
        ({"repeats": 2.5}, "repeats=2.5 must be of type int"),
        ({"repeats": None}, "repeats=None must be of type int"),
        ({"repeats": True}, "repeats=True must be of type int"),
        ({"fast": "perhaps"}, "fast='perhaps' must be of type bool"),
        ({"repeats": "0"}, "repeats=0 must be at least 1"),
        ({"repeats": -1}, "repeats=-1 must be at least 1"),
        ({"share": "nan"}, "share=nan must be at least 0 and finite"),
        ({"share": "inf"}, "share=inf must be at least 0 and finite"),
        ({"n": "abc"}, "n='abc' must be whole numbers of at least 1 between commas, such as 1,2"),
        ({"n": ""}, "n='' must be whole numbers of at least 1"),
        ({"n": "4,0"}, "n='4,0' must be whole numbers of at least 1"),
        ({"seeds": "-1"}, "seeds='-1' must be whole numbers of at least 0"),
        ({"gpus": "x"}, "gpus='x' must be whole numbers of at least 1"),
    ],
)
def test_options_that_will_not_do_are_refused_before_work(options, message, folder):
    with pytest.raises(ValueError, match=f"^suite tiny.*{message}"):
        measure(tiny_suite.suite(folder), options=options)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("suite", "options", "message"),
    [
        ("functions", {"repeats": "0"}, "repeats=0 must be at least 1"),
        ("networks", {"size": "-5"}, "size=-5 must be at least 1"),
        ("networks", {"precisions": "fp7"}, "no 'fp7'; there are fp32, tf32, bf16"),
        ("scaling", {"ranks": "0"}, "ranks='0' must be"),
        ("scaling", {"gpus": "x"}, "gpus='x' must be"),
        ("scaling", {"n_cpu": "0"}, "n_cpu='0' must be"),
        ("scaling", {"precisions": "fp7"}, "no 'fp7'"),
        ("chunks", {"chunks": "0"}, "chunks='0' must be"),
        ("learning", {"recipe": "steps"}, "recipe='steps': 'steps' is not of the form name=value"),
        ("unet", {"whats": "x"}, "no 'x'; there are inference, training"),
        ("unet", {"compiled": "x/y"}, "no 'x/y'"),
        ("tuning", {"passes": "x"}, "no 'x'; there are fprop, dgrad, wgrad"),
        ("convolutions", {"rungs": "x"}, "no 'x'; there are chosen, all"),
    ],
)
def test_what_a_suite_cannot_do_is_refused_before_work(suite, options, message):
    with pytest.raises(ValueError, match=message):
        runner.asked_for(SUITES[suite], options)


def test_defaults_are_options_that_will_do():
    for suite in SUITES.values():
        runner.asked_for(suite, suite.quick)
    assert runner.asked_for(SUITES["ladder"], {"plain_repeats": "0"})[0]["plain_repeats"] == 0


@pytest.mark.parametrize("slug", ["", "Box", "a b", "../x", "a/b", "-a", "a-", "a--b", "a\n", "é"])
def test_a_slug_that_names_no_folder_is_refused_before_work(slug, folder):
    with pytest.raises(ValueError, match="cannot name a machine; use lower-case"):
        measure(tiny_suite.suite(folder), slug)
    assert list(folder.iterdir()) == []


def test_changed_sources_make_local_records_only(folder, monkeypatch):
    source = provenance.source() | {"dirty": True}
    monkeypatch.setattr(provenance, "source", lambda: source)
    with pytest.raises(RuntimeError, match=r"'some-box'.*commit first, or leave MACHINE out"):
        measure(tiny_suite.suite(folder), "some-box")
    assert list(folder.iterdir()) == []
    record, _ = measure(tiny_suite.suite(folder))
    assert record["source"]["dirty"] is True


def test_a_suite_that_needs_more_gpus_is_refused(folder):
    suite = dataclasses.replace(tiny_suite.suite(folder), gpus=len(devices()) + 1)
    with pytest.raises(RuntimeError, match=rf"cannot run here: it needs {suite.gpus} GPU"):
        measure(suite)
    assert list(folder.iterdir()) == []


def test_what_is_missing_here(folder, monkeypatch):
    tiny = tiny_suite.suite(folder)
    other = dataclasses.replace(tiny, name="other")
    impossible = dataclasses.replace(tiny, name="impossible", gpus=len(devices()) + 1)
    suites = [tiny, other, impossible]
    assert runner.missing(suites) == [tiny, other]
    measure(tiny)
    assert runner.missing(suites) == [other]
    assert runner.missing(suites, "some-box") == [tiny, other]
    (folder / "measurements" / "local" / "20990102T030405Z-abababa-tiny.json").touch()
    said = []
    assert runner.missing(suites, say=said.append) == [tiny, other]
    assert re.match(r"tiny: local/20990102.*: not a record: .*; restore the file", said[0])
    monkeypatch.setattr(provenance, "tree_sha256", lambda: "7" * 64)
    assert runner.missing(suites) == [tiny, other], "the library has changed since"
