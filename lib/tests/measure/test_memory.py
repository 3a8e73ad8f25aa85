# SPDX-License-Identifier: MIT
"""The memory hierarchy's kernels read what they claim to read, and nothing passes unchecked."""

import dataclasses
import re
import statistics
import time

import numpy as np
import pytest
from chips import A30, H200
from ptx import bound, ptx

from convstudy import compile, device
from convstudy.device import EMULATOR
from convstudy.measure import memory

SMALL = dataclasses.replace(EMULATOR, sm_count=2, l2_bytes=2**18)
SIZES = {"L1": None, "L2": 3 * 2**17, "device": 5 * 2**17}


def small_latency(space, rounds=5):
    return memory.latency_plan(SMALL, space, set_bytes=100 * 128, rounds=rounds)


def small_bandwidth(space, laps=3):
    return memory.bandwidth_plan(SMALL, space, SIZES.get(space), laps)


class Stopwatch:
    """A clock that keeps what the emulator counted."""

    def __call__(self, run):
        start = time.perf_counter()
        self.counts = run()
        return time.perf_counter() - start


# ---- on the emulator -----------------------------------------------------------------------------


@pytest.mark.parametrize("space", memory.GPU_SPACES)
def test_a_latency_kernel_makes_one_access_a_link(space):
    clock, plan = Stopwatch(), small_latency(space)
    result = memory.measure_latency(SMALL, plan, clock, repeats=3)
    assert len(result["cycles"]) == len(result["seconds"]) == len(result["clock_hz"]) == 3
    assert result["working_set_bytes"] == {"registers": 12, "shared": 4096}.get(space, 12800)
    warmup = {"L1": 100, "L2": 100, "device": 256}.get(space, 0)
    counts = clock.counts
    if space == "registers":
        assert counts.global_loads == 3
    elif space == "shared":  # the table copied, once around, and the timed part
        assert (counts.global_loads, counts.shared_stores) == (1024 + 1, 1024)
        assert counts.shared_loads == 1024 + plan.amount
    else:
        assert counts.global_loads == 1 + warmup + plan.amount
    assert plan.amount == 5 * (64 if space == "registers" else 16)


@pytest.mark.parametrize("space", memory.GPU_SPACES)
def test_a_bandwidth_kernel_reads_the_bytes_it_is_credited_with(space):
    clock, plan = Stopwatch(), small_bandwidth(space)
    result = memory.measure_bandwidth(SMALL, plan, clock, repeats=2)
    assert len(result["cycles"]) == len(result["seconds"]) == 2
    assert result["bytes"] == plan.amount
    threads, counts = 8 * 256, clock.counts
    assert counts.global_stores == threads + 8
    assert counts.barriers == 8 * (2 if space == "shared" else 1)
    if space == "registers":
        assert plan.amount == threads * 8 * (3 * 16) * 12
    elif space == "shared":
        assert counts.shared_load_bytes == plan.amount
    else:
        assert counts.global_load_bytes == plan.amount
        assert counts.global_loads * 16 == plan.amount
        # 32 lanes read 512 bytes side by side: 16 sectors.
        assert counts.global_load_sectors == counts.global_load_requests * 16


@pytest.mark.parametrize("space", memory.GPU_SPACES)
def test_times_lie_between_the_right_readings_of_the_clock(space):
    # The emulator's clock counts how often it is read.
    def second(run):
        run()
        return 1.0

    plan = small_latency(space)
    latency = memory.measure_latency(SMALL, plan, second, repeats=1)
    assert latency["cycles"] == [1 / plan.amount]
    assert latency["clock_hz"] == [3]
    assert memory.measure_bandwidth(SMALL, small_bandwidth(space), second, 1)["cycles"] == [256]


@pytest.mark.parametrize(
    ("quantity", "space", "old", "new"),
    [
        ("latency", "registers", "fmaf(a, b, c)", "fmaf(a, b, c + 1.0f)"),
        ("latency", "registers", "u < UNROLL", "u < UNROLL - 1"),
        ("latency", "shared", "u < UNROLL", "u < UNROLL - 1"),
        ("latency", "shared", "i = 0; i < NODES; ++i) offset", "i = 1; i < NODES; ++i) offset"),
        ("latency", "L1", "i < warmup", "i <= warmup"),
        ("latency", "device", "u < UNROLL", "u < UNROLL + 1"),
        ("latency", "L2", "at = (const address_t*)load(at)", "load(at)"),
        ("bandwidth", "registers", "u < UNROLL", "u < UNROLL + 1"),
        ("bandwidth", "registers", "(CHAINS + i) * THREADS", "CHAINS * THREADS"),
        ("bandwidth", "shared", "at += 32", "at += 33"),
        ("bandwidth", "shared", "sum.y += v.y", "sum.y += v.x"),
        ("bandwidth", "L1", "blockIdx.x * (rounds", "0 * (rounds"),
        ("bandwidth", "L2", "from = first", "from = x"),
        ("bandwidth", "device", "from += UNROLL * step", "from += step"),
        ("bandwidth", "device", "sum.w += v[u].w", "sum.w += v[u].z"),
    ],
)
def test_a_wrong_kernel_is_refused(quantity, space, old, new, monkeypatch):
    whole = compile.source

    def faulty(kernel, defines=()):
        text = whole(kernel, defines)
        assert old in text
        return text.replace(old, new)

    monkeypatch.setattr(compile, "source", faulty)
    compile._on_emulator.cache_clear()
    plan = small_latency(space) if quantity == "latency" else small_bandwidth(space)
    measure = getattr(memory, f"measure_{quantity}")
    try:
        with pytest.raises(RuntimeError, match="time means nothing"):
            measure(SMALL, plan, Stopwatch(), repeats=1)
    finally:
        compile._on_emulator.cache_clear()


@pytest.mark.parametrize("quantity", ["latency", "bandwidth"])
@pytest.mark.parametrize("space", memory.GPU_SPACES)
def test_a_kernel_that_never_ran_is_refused(quantity, space):
    plan = small_latency(space) if quantity == "latency" else small_bandwidth(space)
    with pytest.raises(RuntimeError, match=r"expected|wrong"):
        getattr(memory, f"measure_{quantity}")(SMALL, plan, lambda run: 1.0)


# ---- what is asked of the GPU --------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [H200, A30], ids=lambda gpu: gpu.name)
def test_working_sets_lie_where_they_should(gpu):
    latency = {space: memory.latency_plan(gpu, space) for space in memory.GPU_SPACES}
    bandwidth = {space: memory.bandwidth_plan(gpu, space) for space in memory.GPU_SPACES}
    assert latency["L1"].working_set_bytes <= 64 * 2**10
    assert bandwidth["L1"].working_set_bytes <= 64 * 2**10 * gpu.sm_count
    for plans in (latency, bandwidth):
        assert 2**20 <= plans["L2"].working_set_bytes <= gpu.l2_bytes / 2
        assert dict(plans["L1"].launch.defines)["CACHE_L1"] == 1
        assert dict(plans["L2"].launch.defines)["CACHE_L1"] == 0
        assert dict(plans["device"].launch.defines)["CACHE_L1"] == 0
    assert latency["device"].working_set_bytes >= 4 * gpu.l2_bytes
    assert bandwidth["device"].working_set_bytes >= 8 * gpu.l2_bytes
    assert bandwidth["device"].amount == bandwidth["device"].working_set_bytes
    for space in ("L1", "L2"):  # a chase that never leaves must not end where it is expected
        links = sum(latency[space].launch.scalars[:1]) + latency[space].amount
        assert links % (latency[space].working_set_bytes // 128)


@pytest.mark.parametrize("arch", compile.ARCHITECTURES)
def test_four_blocks_fit_a_multiprocessor(arch):
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", exc_type=ImportError)
    for space in memory.GPU_SPACES:
        for plan in (memory.latency_plan(H200, space), memory.bandwidth_plan(H200, space)):
            code = compile.cubin(plan.launch.kernel, arch, plan.launch.defines)
            assert (code.spill_bytes, code.stack_bytes) == (0, 0)
            assert plan.launch.threads == bound(plan.launch)
            assert 4 * plan.launch.threads * code.registers <= 65536
            assert 4 * code.shared_bytes <= 64 * 2**10


@pytest.mark.parametrize(
    ("space", "policy"),
    [
        ("L1", r"ld\.(ca\.global|global\.ca)"),
        ("L2", r"ld\.(cg\.global|global\.cg)"),
        ("device", r"ld\.(cg\.global|global\.cg)"),
    ],
)
def test_loads_say_which_cache_they_use_and_none_is_optimised_away(space, policy):
    latency = ptx(memory.latency_plan(H200, space).launch)
    assert len(re.findall(policy + r"\.u64", latency)) == 1 + 16  # the warm-up's, and the unrolled
    bandwidth = ptx(memory.bandwidth_plan(H200, space).launch)
    assert len(re.findall(policy + r"\.v4\.f32", bandwidth)) == 4


def test_shared_loads_and_register_links_are_not_optimised_away():
    shared = [f(H200, "shared").launch for f in (memory.latency_plan, memory.bandwidth_plan)]
    assert len(re.findall(r"ld\.shared\.u32", ptx(shared[0]))) == 1 + 16
    assert len(re.findall(r"ld\.shared\.v4\.f32", ptx(shared[1]))) == 4
    registers = [f(H200, "registers").launch for f in (memory.latency_plan, memory.bandwidth_plan)]
    assert len(re.findall(r"fma\.rn", ptx(registers[0]))) == 64
    assert len(re.findall(r"fma\.rn", ptx(registers[1]))) == 16 * 8


# ---- the chain -----------------------------------------------------------------------------------


def test_a_chain_is_one_cycle_page_by_page():
    rng = np.random.default_rng(7)
    nodes, page, spacing = 90, 16, 3
    order = memory.visiting_order(nodes, page, rng)
    assert sorted(order) == list(range(nodes))
    assert (order // page == np.arange(nodes) // page).all()
    assert (order != np.arange(nodes)).any()
    chain = memory.chain_of(order, spacing)
    at, seen = int(order[0]) * spacing, []
    for _ in range(nodes):
        seen.append(at)
        at = int(chain[at])
    assert at == seen[0]
    assert seen == list(order * spacing)


# ---- the CPU -------------------------------------------------------------------------------------


def test_the_cpu_measures_its_own_hierarchy():
    clock, spaces = Stopwatch(), memory.cpu_spaces()
    assert spaces[0] == "L1"
    assert spaces[-1] == "DRAM"
    sets = [memory.cpu_working_set(space) for space in spaces]
    assert sets == sorted(sets)
    assert sets[0] <= memory.cpu_caches()[1]
    assert sets[-1] >= 2 * memory.cpu_caches()[max(memory.cpu_caches())] or sets[-1] == 2**30
    latency = [memory.cpu_latency(space, clock, repeats=3, links=2**16) for space in spaces]
    assert all(len(each["seconds"]) == 3 for each in latency)
    first, last = (statistics.median(each["seconds"]) for each in (latency[0], latency[-1]))
    assert 1e-10 < first < 2e-8
    assert 3 * first < last < 1e-5
    for space in spaces:
        bandwidth = memory.cpu_bandwidth(space, clock, threads=2, repeats=1, read_bytes=2**24)
        assert 1e8 < bandwidth["bytes"] / bandwidth["seconds"][0] < 1e14
        assert bandwidth["threads"] == 2


def test_twice_the_laps_take_longer():
    # A compiler that saw through the laps would read once, whatever their number.
    clock = Stopwatch()
    few, many = (
        min(memory.cpu_bandwidth("L1", clock, 1, 5, size)["seconds"]) for size in (2**28, 2**31)
    )
    assert many > 3 * few


def test_caches_without_sysfs_are_guessed(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path)
    memory.cpu_caches.cache_clear()
    try:
        assert memory.cpu_spaces() == ("L1", "L2", "L3", "DRAM")
    finally:
        memory.cpu_caches.cache_clear()


@pytest.mark.parametrize("ask", [memory.latency_plan, memory.bandwidth_plan])
def test_an_unknown_space_is_refused(ask):
    with pytest.raises(ValueError, match="no space 'texture'; use one of registers, shared"):
        ask(EMULATOR, "texture")
    with pytest.raises(ValueError, match="no space 'shared'; use one of L1"):
        memory.cpu_working_set("shared")


def test_no_repeats_are_refused():
    plans = small_latency("shared"), small_bandwidth("shared")
    for call in (
        lambda: memory.measure_latency(SMALL, plans[0], Stopwatch(), repeats=0),
        lambda: memory.measure_bandwidth(SMALL, plans[1], Stopwatch(), repeats=0),
        lambda: memory.cpu_latency("L1", Stopwatch(), repeats=0),
        lambda: memory.cpu_bandwidth("L1", Stopwatch(), repeats=0),
    ):
        with pytest.raises(ValueError, match="repeats must be at least 1"):
            call()


# ---- a GPU ---------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_gpu_answers_in_the_order_of_its_hierarchy():
    import cupy

    gpu = device.get_device()

    def clock(run):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return cupy.cuda.get_elapsed_time(start, stop) / 1e3

    cycles, rates = [], []
    for space in memory.GPU_SPACES:
        latency = memory.measure_latency(gpu, memory.latency_plan(gpu, space), clock, repeats=5)
        cycles.append(statistics.median(latency["cycles"]))
        assert 0.5 < statistics.median(latency["clock_hz"]) / gpu.clock_hz < 1.05
        plan = memory.bandwidth_plan(gpu, space)
        bandwidth = memory.measure_bandwidth(gpu, plan, clock, repeats=5)
        rates.append(bandwidth["bytes"] / statistics.median(bandwidth["seconds"]))
        if space == "shared":  # 32 banks of 4 bytes
            each = bandwidth["bytes"] / min(bandwidth["cycles"]) / bandwidth["multiprocessors"]
            assert 100 < each <= 128.5
    registers, shared, l1, l2, memory_cycles = cycles
    assert 2 < registers < 8
    assert 15 < shared < 50
    assert 20 < l1 < 80
    assert 120 < l2 < 500
    assert 300 < memory_cycles < 1500
    assert registers < shared < l2 < memory_cycles
    assert l1 < l2
    assert rates[0] > rates[1] > rates[3] > rates[4]
    assert rates[2] > rates[3]
    assert 0.5 < rates[4] / gpu.memory_bandwidth < 1.02
