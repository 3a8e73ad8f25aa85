# SPDX-License-Identifier: MIT
"""The memory hierarchy, measured: how long one load takes, and how many bytes a second arrive.

Latency: a single thread follows a chain of addresses, each load giving the next, so that no two
overlap. Bandwidth: every core reads, with many loads under way. Where the bytes come from is
decided by the size of the working set, and on a GPU also by the kind of the load
(`kernels/memory_*.cu`). No measurement is returned unless every launch of it gave the answer
expected of it.

Every function takes its stopwatch, ``time(run) -> seconds``: it calls ``run()`` once and returns
what that took, on the device where it runs there.
"""

import contextlib
import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convstudy.compile import Launch
from convstudy.device import array_module

GPU_SPACES = ("registers", "shared", "L1", "L2", "device")
CPU_SPACES = ("L1", "L2", "L3", "DRAM")

# Links of a chain stay inside one page before they go on to the next: the chain then measures
# memory and not the translation of addresses. 2 MiB is a GPU's page, and a CPU's large one.
_PAGE = 2 * 2**20
# A GPU's cache line. A CPU's is 64 bytes, fetched in pairs, and prefetchers guess the next pair.
_GPU_NODE = 128
_CPU_NODE = 256
_WORD = 8

_THREADS = 256
# 32 warps a multiprocessor: with four loads of 16 bytes each under way in every thread, 64 KiB,
# twice what the fastest memory delivers in the time of one load.
_BLOCKS_PER_SM = 4
_VECTOR = 16
_OPERANDS = 3 * 4


@dataclass(frozen=True)
class Plan:
    """One measurement on a GPU: what is launched, and on how much memory.

    Attributes
    ----------
    space : str
        One of `GPU_SPACES`.
    launch : Launch
    working_set_bytes : int
        What the launch reads again and again; for device memory, what it reads from.
    amount : int
        Latency: accesses that are timed, one after the other. Bandwidth: bytes read.
    """

    space: str
    launch: Launch
    working_set_bytes: int
    amount: int


def latency_plan(device, space, set_bytes=None, rounds=None):
    """Return how the latency of `space` is measured on `device`.

    Parameters
    ----------
    device : Device
        A GPU, or `device.EMULATOR`.
    space : str
        One of `GPU_SPACES`.
    set_bytes, rounds : int, optional
        Working set of a cache, and the timed loop's length. The defaults take some milliseconds
        on a GPU: far longer than a launch, so that cycles and elapsed time agree on a clock.
    """
    _check("latency_plan", space, GPU_SPACES)
    one = (1,)
    # Rounds are one more than whole laps take: a chase that never left would be found out.
    unroll = 64 if space == "registers" else 16
    defines = (("UNROLL", unroll),)
    if space == "registers":
        rounds = rounds or 2**20 // unroll
        launch = Launch("memory_latency_1_registers", one, one, (rounds,), defines)
        return Plan(space, launch, _OPERANDS, rounds * unroll)
    if space == "shared":
        nodes = 1024
        rounds = rounds or 2**17 // unroll + 1
        defines += (("NODES", nodes),)
        launch = Launch("memory_latency_2_shared", one, one, (rounds,), defines)
        return Plan(space, launch, 4 * nodes, rounds * unroll)
    size, links = {
        # Every GPU since 2017 can give L1 64 KiB and more.
        "L1": (32 * 2**10, 2**17),
        # Far more than an L1; far less than an L2, even if each half of it keeps a copy.
        "L2": (_whole(device.l2_bytes / 8, _PAGE), 2**16),
        "device": (_whole(4 * device.l2_bytes, _PAGE), 2**13),
    }[space]
    nodes = (set_bytes or size) // _GPU_NODE
    rounds = rounds or links // unroll + 1
    warmup = 256 if space == "device" else nodes
    defines += (("CACHE_L1", int(space == "L1")),)
    launch = Launch("memory_latency_3_global", one, one, (warmup, rounds), defines)
    return Plan(space, launch, nodes * _GPU_NODE, rounds * unroll)


def bandwidth_plan(device, space, set_bytes=None, laps=None):
    """Return how the bandwidth of `space` is measured on `device`.

    Parameters
    ----------
    device, space
        As in `latency_plan`.
    set_bytes, laps : int, optional
        Working set of a cache or of device memory, and how often it is read. The defaults take
        about a millisecond on a large GPU.
    """
    _check("bandwidth_plan", space, GPU_SPACES)
    blocks = _BLOCKS_PER_SM * device.sm_count
    grid, block, threads = (blocks,), (_THREADS,), blocks * _THREADS
    defines = (("THREADS", _THREADS),)
    if space == "registers":
        chains, unroll = 8, 16
        laps = laps or 2**11
        defines += (("CHAINS", chains), ("UNROLL", unroll))
        launch = Launch("memory_bandwidth_1_registers", grid, block, (laps,), defines)
        in_registers = threads * chains * _OPERANDS
        return Plan(space, launch, in_registers, in_registers * unroll * laps)
    unroll = 4
    defines += (("UNROLL", unroll),)
    step = threads * unroll * _VECTOR
    if space == "shared":
        laps = laps or 2**12
        launch = Launch("memory_bandwidth_2_shared", grid, block, (laps,), defines)
        return Plan(space, launch, step, step * laps)
    size = {
        "L1": step,  # 16 KiB a block, 64 KiB a multiprocessor
        "L2": device.l2_bytes / 4,
        # So much that the launch itself vanishes in the time.
        "device": max(8 * device.l2_bytes + step, min(2**31, device.memory_bytes / 8)),
    }[space]
    rounds = max(1, round((set_bytes or size) / step))
    size = rounds * step
    laps = laps or {"L1": 2**12, "L2": math.ceil(4 * 2**30 / size), "device": 1}[space]
    defines += (("CACHE_L1", int(space == "L1")),)
    launch = Launch("memory_bandwidth_3_global", grid, block, (rounds, laps), defines)
    return Plan(space, launch, size, size * laps)


def measure_latency(device, plan, time, repeats=10, seed=0):
    """Measure the cycles and seconds of one access.

    Parameters
    ----------
    device : Device
    plan : Plan
        From `latency_plan`.
    time : callable
        ``time(run) -> seconds``.
    repeats : int
        Launches to time. One more goes before them, to compile, to warm up and to be checked.
    seed : int
        Of the random order in which memory is visited.

    Returns
    -------
    dict
        ``cycles``: of one access, one number a launch. ``seconds``: the same by the clock measured
        in that launch. ``clock_hz``: that clock, the launch's own cycles over its elapsed time.
        ``accesses``: those timed in a launch, ``working_set_bytes``.

    Raises
    ------
    RuntimeError
        Where a launch does not end where the chain leads.
    """
    _check_repeats("measure_latency", repeats)
    xp = array_module(device)
    with _on(device):
        chain, ends = _latency_input(plan, xp, np.random.default_rng(seed))
        out = xp.zeros(3, dtype=np.int64)
        out[2] = ends(0)
        cold = plan.space == "device"
        other = xp.zeros(2 * device.l2_bytes, dtype=np.uint8) if cold else None
        samples = []
        for i in range(repeats + 1):
            if cold:  # fill L2 with other lines; read, for a written one costs when it must leave
                other.max()
            elapsed = time(lambda: plan.launch.run(device, [chain, out]))
            timed, total, end = out.tolist()
            if end != ends(i + 1):
                raise RuntimeError(
                    f"{plan.launch.kernel}: {plan.space} ended at {end}, expected {ends(i + 1)}; "
                    f"the chain was not followed, so its time means nothing"
                )
            clock = total / elapsed
            samples.append((timed / plan.amount, timed / plan.amount / clock, clock))
    cycles, seconds, clock_hz = map(list, zip(*samples[1:], strict=True))
    return {
        "cycles": cycles,
        "seconds": seconds,
        "clock_hz": clock_hz,
        "accesses": plan.amount,
        "working_set_bytes": plan.working_set_bytes,
    }


def measure_bandwidth(device, plan, time, repeats=10):
    """Measure how long it takes all multiprocessors together to read ``plan.amount`` bytes.

    Parameters
    ----------
    device, time, repeats
        As in `measure_latency`.
    plan : Plan
        From `bandwidth_plan`.

    Returns
    -------
    dict
        ``seconds``: of a launch, one number a launch. ``cycles``: of its slowest block.
        ``bytes``: read by a launch (for registers, the operands of its multiply-adds).
        ``multiprocessors``, ``working_set_bytes``. Bytes a cycle and multiprocessor are
        ``bytes / cycles / multiprocessors``.

    Raises
    ------
    RuntimeError
        Where a launch's sums are not those of its data.
    """
    _check_repeats("measure_bandwidth", repeats)
    xp = array_module(device)
    with _on(device):
        x, expected = _bandwidth_input(plan, xp)
        out = xp.empty(expected.size, dtype=np.float32)
        clocks = xp.zeros(plan.launch.grid[0], dtype=np.int64)
        samples = []
        for _ in range(repeats + 1):
            out.fill(np.nan)
            elapsed = time(lambda: plan.launch.run(device, [x, out, clocks]))
            wrong = int((out != expected).sum())
            if wrong:
                raise RuntimeError(
                    f"{plan.launch.kernel}: {plan.space}, {wrong} of {out.size} sums are wrong; "
                    f"not everything was read, so its time means nothing"
                )
            samples.append((elapsed, int(clocks.max())))
    seconds, cycles = map(list, zip(*samples[1:], strict=True))
    return {
        "seconds": seconds,
        "cycles": cycles,
        "bytes": plan.amount,
        "multiprocessors": device.sm_count,
        "working_set_bytes": plan.working_set_bytes,
    }


# ---- data, and what a kernel must make of them ---------------------------------------------------


def visiting_order(nodes, nodes_per_page, rng):
    """Return 0 to nodes - 1 in random order, but page by page."""
    order = np.arange(nodes)
    for start in range(0, nodes, nodes_per_page):
        rng.shuffle(order[start : start + nodes_per_page])
    return order


def chain_of(order, spacing):
    """Return an array in which word ``spacing * order[i]`` holds ``spacing * order[i + 1]``."""
    chain = np.empty(len(order) * spacing, dtype=np.uint64)
    chain.fill(0)
    chain[spacing * order] = spacing * np.roll(order, -1)
    return chain


def _latency_input(plan, xp, rng):
    """Return the kernel's input and ``ends(i)``: where it stands after i launches."""
    if plan.space == "registers":
        a, c = (int(v) for v in rng.integers(1, 8, size=2))
        count = a + c * plan.amount
        return xp.asarray([a, 1, c], dtype=np.float32), lambda launches: count if launches else 0

    if plan.space == "shared":
        nodes, unit = dict(plan.launch.defines)["NODES"], 4
        order = visiting_order(nodes, nodes, rng)
        chain = xp.asarray(unit * chain_of(order, 1), dtype=np.uint32)
        links = nodes + plan.amount
    else:
        unit = _GPU_NODE // _WORD
        order = visiting_order(plan.working_set_bytes // _GPU_NODE, _PAGE // _GPU_NODE, rng)
        chain = xp.asarray(chain_of(order, unit))
        chain *= xp.uint64(_WORD)  # words become addresses
        chain += xp.uint64(_address(chain))
        links = plan.launch.scalars[0] + plan.amount
    return chain, lambda launches: unit * int(order[launches * links % len(order)])


def _address(array):
    return array.data.ptr if hasattr(array.data, "ptr") else array.ctypes.data


def _small_numbers(xp, count):
    """Return whole numbers 0 to 7 as float32, in no pattern: their sums are exact."""
    values = xp.arange(count, dtype=np.uint32)
    values *= xp.uint32(2654435769)  # Fibonacci hashing: the top bits look random
    values >>= xp.uint32(29)
    return values.astype(np.float32)


def _bandwidth_input(plan, xp):
    """Return the kernel's input, and what each of its threads must write."""
    constants = dict(plan.launch.defines)
    blocks, laps = plan.launch.grid[0], plan.launch.scalars[-1]
    threads, unroll = constants["THREADS"], constants["UNROLL"]
    thread = xp.arange(threads)
    if plan.space == "registers":
        chains = constants["CHAINS"]
        b, c = x = _small_numbers(xp, 2 * chains * threads).reshape(2, chains, threads)
        b[:] = 1 - 2 * (b % 2)
        # b = 1 adds c at every link; b = -1 turns a into c - a and back.
        a, links = thread + xp.arange(chains)[:, None], laps * unroll
        sums = xp.where(b == 1, a + links * c, c - a if links % 2 else a).sum(0)
        return x, xp.tile(sums, blocks)
    if plan.space == "shared":
        x = _small_numbers(xp, 4 * unroll * threads)
        vectors = x.reshape(-1, 4).sum(1)
        # Vectors that thread 0 meets, and how often; thread t meets those t further on.
        met = np.arange(laps)[:, None] * 32 + np.arange(unroll) * threads
        often = xp.asarray(np.bincount(met.ravel() % vectors.size, minlength=vectors.size))
        at = (thread[:, None] + xp.arange(vectors.size)) % vectors.size
        return x, xp.tile((vectors[at] * often).sum(1), blocks)
    x = _small_numbers(xp, plan.working_set_bytes // 4)
    if plan.space == "L1":
        sums = x.reshape(blocks, -1, threads, 4).sum((1, 3)).ravel()
    else:
        sums = x.reshape(-1, blocks * threads, 4).sum((0, 2))
    return x, laps * sums


def _on(device):
    if device.is_gpu:
        return array_module(device).cuda.Device(device.index)
    return contextlib.nullcontext()


def _whole(size, unit):
    return max(1, round(size / unit)) * unit


def _check_repeats(who, repeats):
    if repeats < 1:
        raise ValueError(f"{who}: repeats must be at least 1, got {repeats}")


def _check(who, space, spaces):
    if space not in spaces:
        raise ValueError(f"{who}: no space {space!r}; use one of {', '.join(spaces)}")


# ---- the CPU -------------------------------------------------------------------------------------


@functools.cache
def cpu_caches():
    """Return the bytes of the first core's data caches by level, such as {1: 32768, ...}.

    Linux tells them; elsewhere they are those of an ordinary desktop processor.
    """
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
            if kind != "Instruction":
                scale = {"K": 2**10, "M": 2**20, "G": 2**30}[size[-1]]
                sizes[int(level)] = int(size[:-1]) * scale
    return sizes or {1: 32 * 2**10, 2: 2**20, 3: 16 * 2**20}


def cpu_spaces():
    """Return those of `CPU_SPACES` that this CPU has."""
    return *(f"L{level}" for level in sorted(cpu_caches()) if level <= 3), "DRAM"


def cpu_working_set(space):
    """Return the bytes to read for them to come from `space`, and not from a smaller cache.

    Half of a core's own cache; of one that cores share, a quarter, if that is beyond the level
    above; of memory four times the largest cache, within 64 MiB and 1 GiB.
    """
    _check("cpu_working_set", space, cpu_spaces())
    caches = cpu_caches()
    if space == "DRAM":
        return _whole(min(max(4 * max(caches.values()), 64 * 2**20), 2**30), _PAGE)
    level = int(space[1])
    size = caches[level]
    quarter = level == 3 and size // 4 >= 2 * caches.get(2, 0)
    return _whole(size // (4 if quarter else 2), _CPU_NODE)


@functools.cache
def _cpu_loops():
    import numba

    # Unsigned: a signed index would cost a test for negative ones in every link.
    @numba.njit("uint64(uint64[::1], uint64, int64)", nogil=True)
    def chase(chain, at, links):
        for _ in range(links):
            at = chain[at]
        return at

    @numba.njit("uint64(uint64[::1], int64)", nogil=True)
    def add_up(x, laps):
        total = np.uint64(0)
        for _ in range(laps):
            for i in range(x.size):
                total += x[i]
        return total

    return chase, add_up


def cpu_latency(space, time, repeats=5, links=None, seed=0):
    """Measure the seconds of one load by one core.

    Parameters
    ----------
    space : str
        One of `cpu_spaces`.
    time : callable
        ``time(run) -> seconds``.
    repeats, links : int
        Timed runs, and loads in each (by default, some ten milliseconds' worth).
    seed : int
        Of the random order.

    Returns
    -------
    dict
        ``seconds``: of one load, one number a run; ``accesses``, ``working_set_bytes``.

    Raises
    ------
    RuntimeError
        Where a run does not end where the chain leads.
    """
    _check_repeats("cpu_latency", repeats)
    size = cpu_working_set(space)
    links = links or {"L1": 2**23, "L2": 2**22, "L3": 2**20, "DRAM": 2**18}[space]
    order = visiting_order(size // _CPU_NODE, _PAGE // _CPU_NODE, np.random.default_rng(seed))
    chain = chain_of(order, _CPU_NODE // _WORD)
    chase, _ = _cpu_loops()
    # A cache is filled by going once around; memory is entered where nothing has been read yet.
    place = 0 if space == "DRAM" else len(order)
    at = chase(chain, order[0] * (_CPU_NODE // _WORD), place)
    seconds = []
    for _ in range(repeats):
        ended = []
        elapsed = time(lambda start=at, ended=ended: ended.append(chase(chain, start, links)))
        (at,) = ended
        place += links
        expected = order[place % len(order)] * (_CPU_NODE // _WORD)
        if at != expected:
            raise RuntimeError(
                f"cpu_latency: {space} ended at word {at}, expected {expected}; "
                f"the chain was not followed, so its time means nothing"
            )
        seconds.append(elapsed / links)
    return {"seconds": seconds, "accesses": links, "working_set_bytes": size}


def cpu_bandwidth(space, time, threads=None, repeats=5, read_bytes=None, seed=0):
    """Measure how long the cores together take to read a number of bytes.

    Parameters
    ----------
    space, time, repeats, seed
        As in `cpu_latency`.
    threads : int, optional
        One on each core that this process may use, if not given.
    read_bytes : int, optional
        What each thread reads, in whole laps; one lap of memory.

    Returns
    -------
    dict
        ``seconds``: one number a run; ``bytes``: read in a run by all threads; ``threads``;
        ``working_set_bytes``: of one thread for L1 and L2, of all together for L3 and DRAM.

    Raises
    ------
    RuntimeError
        Where a sum is not that of the data.
    """
    _check_repeats("cpu_bandwidth", repeats)
    size = cpu_working_set(space)
    threads = threads or len(os.sched_getaffinity(0))
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2**64, size=size // _WORD, dtype=np.uint64)
    if space == "DRAM":  # a part each: otherwise one thread would find what another has fetched
        parts = np.array_split(x, threads)
    elif space == "L3":  # the same for all: a part might fit into a core's own cache
        parts = [x] * threads
    else:
        parts = [x.copy() for _ in range(threads)]
    # Tens of milliseconds: the threads then start and end at nearly the same time.
    read_bytes = read_bytes or {"L1": 2**32, "L2": 2**32, "L3": 2**31, "DRAM": 0}[space]
    laps = max(1, read_bytes // parts[0].nbytes)
    expected = [int(part.sum()) * laps % 2**64 for part in parts]
    _, add_up = _cpu_loops()
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for i in range(repeats + 1):
            sums = []
            elapsed = time(lambda sums=sums: sums.extend(pool.map(add_up, parts, [laps] * threads)))
            if [int(total) for total in sums] != expected:
                raise RuntimeError(
                    f"cpu_bandwidth: {space} gave {sums}, expected {expected}; "
                    f"not everything was read, so its time means nothing"
                )
            if i:
                seconds.append(elapsed)
    return {
        "seconds": seconds,
        "bytes": laps * sum(part.nbytes for part in parts),
        "threads": threads,
        "working_set_bytes": size,
    }
