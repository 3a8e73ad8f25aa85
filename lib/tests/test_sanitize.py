# SPDX-License-Identifier: MIT
"""What runs under compute-sanitizer: every kernel, checked; and what is said of what it finds."""

import re
import subprocess
import types

import numpy as np
import pytest
from chips import H200

from convstudy import cli, compile, device
from convstudy.conv.algorithm import ALGORITHMS
from convstudy.device import EMULATOR
from convstudy.nn.cuda import KERNELS
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.tape import TapeOps
from convstudy.sanitize import cases as all_cases
from convstudy.sanitize import tools as sanitize
from convstudy.sanitize.cases import Case
from convstudy.train.losses import cross_entropy_dice


def test_every_kernel_is_among_the_cases_in_every_precision_that_it_has_code_for():
    cases = list(all_cases.cases(H200))
    launched = {launch.kernel for case in cases for launch in case.launches}
    named = {case.name for case in cases}
    functions = {kernel for kernel, method in KERNELS.items() if method in named}
    # Those that measure memory have no result that could be wrong.
    everything = {kernel for kernel in compile.kernels() if not kernel.startswith("memory_")}
    assert launched | functions == everything
    for row in ALGORITHMS.values():
        own = [case for case in cases if case.name.startswith(f"{row.id} ")]
        sizes = {case.name.split()[-1] for case in own}
        assert not row.plan or 2 <= len(sizes) <= 3, row.id
        if "bf16" in row.precisions and row.plan:
            assert any(" bf16 " in case.name for case in own), row.id
    assert len(cases) < 150


def case(pattern):
    """Return the first case that matches."""
    return next(case for case in all_cases.cases(EMULATOR) if re.match(pattern, case.name))


SOME = [
    *("conv2d_fprop_4", "conv2d_fprop_8_mma tf32", "conv2d_dgrad_9", "conv2d_wgrad_8_mma bf16"),
    *("statistics of conv2d_fprop_11_halo bf16", "statistics of conv2d_fprop_10_wgmma fp32"),
    *("batch_norm", "pad_concat", "gradient of average pooling", "border", "mask"),
]


@pytest.mark.parametrize("pattern", SOME)
def test_a_case_is_right_and_would_be_seen_to_be_wrong(pattern, monkeypatch):
    case(pattern).run()

    def err(actual, *arguments):
        return right(actual + 2, *arguments)

    right = all_cases.tolerance.relative_error
    monkeypatch.setattr(all_cases.tolerance, "relative_error", err)
    with pytest.raises(AssertionError, match="exceeds the tolerance"):
        case(pattern).run()


class Twin:
    """A program that computes what it is to compute, or `times` as much, without any kernel."""

    times = 1.0

    def __init__(self, network, *_, **__):
        self.network, self.program = network, self

    def state(self):
        return {}

    def load(self, images, masks=None, rate=None):
        self.images, self.masks = images, masks

    def scores(self):
        return self.times * self.network.forward(self.images, ReferenceOps()).astype(np.float32)

    def gradients(self):
        tape = TapeOps(ReferenceOps())
        self.network.place(tape)
        logits = self.network.apply(self.images.astype(float), tape)
        gradients = tape.backward(cross_entropy_dice(logits, self.masks)[1])
        return {name: self.times * each for name, each in gradients.items()}

    allocate = load_state = reload = run = lambda self, *_, **__: None


@pytest.mark.parametrize("pattern", ["training, .*, fp32, sgd", "inference, bilinear"])
def test_a_wrong_program_would_be_seen(pattern, monkeypatch):
    for name in ("GpuBackend", "Inference"):
        monkeypatch.setattr(all_cases, name, Twin)
    case(pattern).run()
    monkeypatch.setattr(Twin, "times", 1.1)
    with pytest.raises(AssertionError, match=r"exceeds the tolerance|the tolerance is"):
        case(pattern).run()


def test_a_run_without_a_tool_counts_what_is_wrong(monkeypatch, capsys):
    def wrong():
        raise AssertionError("by much")

    cases = [Case("one", (), lambda: None), Case("two", (), wrong)]
    monkeypatch.setattr(sanitize, "cases", lambda gpu: cases)
    monkeypatch.setattr(device, "require_gpu", lambda who: (EMULATOR,))
    monkeypatch.setattr(device, "allocate_plainly", lambda: None)
    assert sanitize.run_bare() == 1
    assert capsys.readouterr().out.splitlines() == [
        *("one", "two", "two: by much"),
        "2 cases, 1 of them wrong",
    ]


@pytest.fixture
def runs(monkeypatch):
    """Let processes only seem to run: their commands, and what each leaves."""
    commands, results = [], {}

    def run(command, **options):
        commands.append(command)
        tool = command[command.index("--tool") + 1] if "--tool" in command else "none"
        status, output = results.get(tool, (0, "86 cases, 0 of them wrong\n"))
        if status is None:
            raise subprocess.TimeoutExpired(command, 1, output=b"stuck")
        return types.SimpleNamespace(returncode=status, stdout=output)

    monkeypatch.setattr(sanitize.subprocess, "run", run)
    monkeypatch.setattr(sanitize, "program", lambda: "the-sanitizer")
    monkeypatch.setattr(sanitize, "cases", lambda gpu: ())
    monkeypatch.setattr(compile, "prepare", lambda launches, device: list(launches))
    monkeypatch.setattr(device, "require_gpu", lambda who: (EMULATOR,))
    return commands, results


def test_all_tools_run_behind_one_run_without(runs):
    commands, _ = runs
    said = []
    assert sanitize.check(say=said.append) == 0
    assert [command[0] == "the-sanitizer" for command in commands] == [False] + [True] * 4
    assert [command[2] for command in commands[1:]] == list(sanitize.TOOLS)
    assert all(command[-2:] == ["sanitize", "--bare"] for command in commands)
    assert said[1].startswith("memcheck: clean; 86 cases, 0 of them wrong (")


def test_what_a_tool_finds_is_shown_and_the_others_run_on(runs):
    _, results = runs
    results |= {"racecheck": (86, "=== ERROR: a race\n"), "initcheck": (None, "")}
    said = []
    assert sanitize.check(say=said.append) == 1
    assert [line.split(";")[0] for line in said if ";" in line] == [
        *("no tool: clean", "memcheck: clean", "racecheck: FAULTS"),
        *("initcheck: not finished after 150 s", "synccheck: clean"),
    ]
    assert "  === ERROR: a race" in said
    assert "  stuck" in said


def test_where_results_are_wrong_no_tool_is_started(runs):
    commands, results = runs
    results["none"] = (1, "two: by much\n")
    assert sanitize.check(("memcheck",), say=lambda line: None) == 1
    assert len(commands) == 1


def test_what_is_missing_is_said(monkeypatch, capsys):
    assert cli.main(["sanitize", "memcheck,leakcheck"]) == 2
    assert "no tool 'leakcheck'; choose of memcheck, racecheck" in capsys.readouterr().err
    monkeypatch.setattr(sanitize.shutil, "which", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="compute-sanitizer is not on the PATH .* toolkit"):
        sanitize.program()


@pytest.mark.skipif(bool(device.devices()), reason="says what is missing where there is no GPU")
def test_a_gpu_that_is_not_there_is_asked_for(capsys):
    for words in (["sanitize"], ["sanitize", "--bare"]):
        assert cli.main(words) == 2
        assert "sanitize needs a GPU: CuPy finds no CUDA device here" in capsys.readouterr().err
