# SPDX-License-Identifier: MIT
"""What each rank does to be timed: ``mpiexec -n 2 python -m convstudy.measure.ranked``.

All ranks do the same thing at the same time, and a sample is the time of the slowest of them.
Rank 0 reads a job from each line of its input, and answers by a line, a JSON list of rows, of which
`suites.scaling` makes its results. So ranks are started once for many jobs: that takes them longer
than most jobs do.
"""

import contextlib
import datetime
import functools
import json
import os
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from convstudy import compile
from convstudy.device import array_module, devices
from convstudy.measure import pytorch, pytorch_unet
from convstudy.measure.runner import SEED
from convstudy.models.unet import UNet
from convstudy.nn.reference import ReferenceOps
from convstudy.parallel import launch
from convstudy.parallel.backend import RankedBackend
from convstudy.parallel.communicator import Alone
from convstudy.parallel.gpu import RankedGpuBackend
from convstudy.parallel.grid import CUT_FROM, Grid
from convstudy.parallel.inference import ChunkedInference
from convstudy.parallel.nccl import Nccl, own_gpu
from convstudy.program.inference import Inference
from convstudy.tolerance import relative_error

_RATE = 1e-4
# So small a time is of several calls, or the clock and the barrier would be much of it.
_LONG_ENOUGH_S = 0.05
_MOST_CALLS = 64
# Of a rank's images, where they come from the host: enough for the copies to hide behind.
_CHUNKS = 8


@dataclass(frozen=True)
class Job:
    """What is timed on all ranks.

    Attributes
    ----------
    what : str
        "training", "inference", "inference from the host", "timeline", or "links".
    processor : {"cpu", "gpu"}
    precision : str
    images : list of int
        Of all ranks together, one measurement each; for links, bytes.
    width : int
        Channels of the network's first level.
    size : list of int
        Height and width of its images.
    repeats : int
    model, cut_from : int
        As of `Grid`.
    is_pytorch : bool
        Whether PyTorch does it, in place of ours.
    """

    what: str
    processor: str
    precision: str
    images: list
    width: int
    size: list
    repeats: int
    model: int = 1
    cut_from: int = CUT_FROM
    is_pytorch: bool = False


class Session:
    """Ranks that do one job after another, started when they first get one.

    They end with the session, or where one of them fails: the next job then starts others.

    Parameters
    ----------
    timeout_s : float
        How long a job may take.
    """

    def __init__(self, timeout_s=1500):
        self._timeout_s, self._started = timeout_s, {}

    def run(self, count, job):
        """Return the rows of a job on `count` ranks, each {labels, samples, values}.

        One rank on a GPU is this process; more are started by MPI's launcher, and on CPUs each
        has a core.

        Raises
        ------
        RuntimeError
            Where a rank fails; the message is its reason.
        """
        if count == 1 and job.processor == "gpu":
            return _Member(Alone()).measure(job)
        if count not in self._started:
            self._started[count] = launch.Conversation(count, "-m", "convstudy.measure.ranked")
        try:
            return json.loads(self._started[count].ask(json.dumps(asdict(job)), self._timeout_s))
        except RuntimeError:
            self._started.pop(count).end()
            raise

    def end(self):
        """End all ranks."""
        while self._started:
            self._started.popitem()[1].end()


class _Member:
    """One rank, and the GPU that it keeps from job to job where there are several."""

    def __init__(self, ranks):
        self._ranks = ranks

    @functools.cached_property
    def _gpus(self):
        return Nccl(self._ranks, own_gpu(self._ranks, devices()))

    def measure(self, job):
        """Return the rows of a job; on all ranks the same."""
        if job.is_pytorch:
            with contextlib.closing(_Beside(self._ranks, job)) as beside:
                return [row for amount in job.images for row in beside(amount)]
        # One GPU alone has nothing to say, and is timed without what several say it by.
        several = job.processor == "gpu" and self._ranks.size > 1
        work = _WORK[job.what](self._ranks, self._gpus if several else None, job)
        return [row for amount in job.images for row in work(amount)]


def _row(labels, samples=(), **values):
    return {"labels": labels, "samples": samples, "values": values}


def _timed(ranks, call, settle, repeats, warmup=2):
    """Return seconds of one call, the slowest rank's each time."""
    for _ in range(warmup):
        once = _span(ranks, call, settle, 1)
    calls = min(_MOST_CALLS, max(1, round(_LONG_ENOUGH_S / once)))
    return [_span(ranks, call, settle, calls) / calls for _ in range(repeats)]


def _span(ranks, call, settle, calls):
    settle()
    ranks.barrier()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    settle()
    return max(ranks.exchange(time.perf_counter() - began))


@functools.cache
def _network(width):
    network = UNet.initialised(SEED, width=width)
    network.randomise_statistics(SEED)
    return network


def _batch(job, n):
    rng = np.random.default_rng(SEED)
    images = rng.random((n, 3, *job.size), np.float32)
    return images, (rng.random((n, *job.size)) < 0.3).astype(np.int32)


@functools.cache
def _expected(width, size):
    """Return the scores of the first image of each batch, in float64."""
    images, _ = _batch(Job("", "", "", [], width, list(size), 0), 1)
    return _network(width).forward(images, ReferenceOps())


class _Training:
    """Steps of training, gradients added up over the ranks."""

    def __init__(self, ranks, gpus, job):
        self._ranks, self._gpus, self._job = ranks, gpus or ranks, job
        self._grid = Grid(ranks, job.model, job.cut_from)
        self._carriers = Grid(gpus, job.model, job.cut_from) if gpus else self._grid
        self._device = _device(gpus, job)

    def __call__(self, n):
        backend, images, masks = self._open(n)
        outcome = backend.step(images, masks, _RATE)
        losses = self._ranks.exchange(float(outcome.loss))
        if not np.isfinite(losses[0]) or len(set(losses)) > 1:
            raise RuntimeError(f"ranks disagree on the loss: {losses}")
        if self._device is None:
            call, settle = lambda: backend.step(images, masks, _RATE), self._ranks.settle
        elif self._ranks.size == 1:
            call, settle = backend.run, lambda: _wait_for(self._device)
        else:
            call, settle = backend.run, self._gpus.settle
        samples = _timed(self._ranks, call, settle, self._job.repeats)
        kernels = self._close(backend)
        yield _row({"images": n, "side": "ours"}, samples, loss=losses[0], **kernels)

    def _open(self, n):
        """Return what trains on `n` images, and this rank's of them."""
        job, grid, network = self._job, self._grid, _network(self._job.width)
        images, masks = _batch(job, n)
        own = grid.share(n)
        if self._device is None:
            backend = RankedBackend(network, grid, n, batch_norm="local")
        else:
            backend = RankedGpuBackend(
                *(network, grid, self._carriers, (n, 3, *job.size), job.precision),
                batch_norm="local",
                device=self._device,
            )
        return backend, images[own], masks[own]

    def _close(self, backend):
        """Give memory back before the next batch takes its own; return `_kernels` of what ran."""
        if self._device is None:
            return {}
        kernels = _kernels(backend.program)
        backend.close()
        if self._device.is_gpu:
            array_module(self._device).get_default_memory_pool().free_all_blocks()
        return kernels


class _Timeline(_Training):
    """When each rank does what in one step."""

    def __call__(self, n):
        backend, images, masks = self._open(n)
        for _ in range(2):
            backend.step(images, masks, _RATE)
        self._ranks.barrier()
        every = self._ranks.exchange(backend.timeline(images, masks, _RATE))
        events = [{"gpu": rank, **event} for rank, own in enumerate(every) for event in own]
        seconds = max(event["stop_s"] for event in events)
        kernels = self._close(backend)
        yield _row({"images": n, "side": "ours"}, [seconds], events=events, **kernels)


class _Inference:
    """Forward passes, each rank of its own images."""

    def __init__(self, ranks, gpus, job):
        self._ranks, self._job = ranks, job
        self._device = _device(gpus, job)
        self._grid = Grid(ranks, job.model, job.cut_from)

    def __call__(self, n):
        job, ranks, network = self._job, self._ranks, _network(self._job.width)
        images, _ = _batch(job, n)
        at_once, kernels = 1, {}
        if job.processor == "cpu":
            backend = RankedBackend(network, self._grid, n)
            check = backend.predict(images[: ranks.size])
            samples = _timed(ranks, lambda: backend.predict(images), ranks.settle, job.repeats)
        else:
            own = np.ascontiguousarray(images[self._grid.share(n)])
            open_one = self._from_host if job.what.endswith("host") else self._resident
            at_once = _CHUNKS if open_one == self._from_host else 1
            check, call, settle, programs = open_one(network, own)
            kernels = _kernels(*programs)
            samples = _timed(ranks, call, settle, job.repeats)
        samples = [each / at_once for each in samples]
        yield _row({"images": n, "side": "ours"}, samples, **self._checked(check), **kernels)

    def _resident(self, network, own):
        inference = Inference(network, own.shape, self._job.precision, self._device)
        check = inference(own)
        return check, inference.run, lambda: _wait_for(self._device), [inference.program]

    def _from_host(self, network, own):
        inference = ChunkedInference(network, [self._device], 2, _CHUNKS, self._job.precision)
        many = np.concatenate([own] * _CHUNKS)

        def call():
            return inference.run(many)

        return call()[: len(own)], call, lambda: None, inference.programs

    def _checked(self, scores):
        if self._ranks.rank:
            return {}
        expected = _expected(self._job.width, tuple(self._job.size))
        return {"error": relative_error(np.ascontiguousarray(scores[:1]), expected)}


class _Links:
    """What moves bytes between ranks: our all-reduce, the carrier's own, and one link."""

    def __init__(self, ranks, gpus, job):
        self._ranks, self._carrier, self._job = ranks, gpus or ranks, job

    def __call__(self, size):
        carrier, ranks = self._carrier, self._ranks
        # As much as the largest size needs: it is given out again for the next.
        room = carrier.room(max(self._job.images) // 4)
        array = self._zeros(size // 4) if room is None else room[: size // 4]

        def ping_pong():
            if ranks.rank == 0:
                carrier.send(array, 1)
                carrier.receive(array, 1)
            elif ranks.rank == 1:
                carrier.receive(array, 0)
                carrier.send(array, 0)

        for what, side, call, times in (
            ("all-reduce", "ours", lambda: carrier.all_reduce(array), 1),
            ("all-reduce", "library", lambda: carrier.bare_all_reduce(array), 1),
            ("link", "ours", ping_pong, 2),
        ):
            samples = _timed(ranks, call, carrier.settle, self._job.repeats)
            labels = {"what": what, "bytes": size, "side": side}
            yield _row(labels, [each / times for each in samples])
        carrier.give_back(room)

    def _zeros(self, count):
        if self._job.processor == "cpu":
            return np.zeros(count, np.float32)
        return array_module(self._carrier.device).zeros(count, np.float32)


class _Beside:
    """PyTorch on the same ranks: several train under DistributedDataParallel."""

    def __init__(self, ranks, job):
        import torch

        self._ranks, self._job, self._torch = ranks, job, torch
        self._on_gpu = job.processor == "gpu"
        if self._on_gpu:
            torch.cuda.set_device(own_gpu(ranks, devices()).index)
        else:
            torch.set_num_threads(1)
        if self._shares_gradients:
            from torch import distributed

            # It would ask, within a capture, how far the work is.
            os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
            distributed.init_process_group(
                "nccl" if self._on_gpu else "gloo",
                init_method=f"tcp://127.0.0.1:{ranks.tell(_free_port())}",
                rank=ranks.rank,
                world_size=ranks.size,
                timeout=datetime.timedelta(seconds=ranks.patience_s),
            )

    @property
    def _shares_gradients(self):
        return self._job.what == "training" and self._ranks.size > 1

    def __call__(self, n):
        job = self._job
        images, masks = _batch(job, n)
        own = Grid(self._ranks).share(n)
        for way in ("eager", "graph") if self._on_gpu else ("eager",):
            runner = pytorch_unet.Runner(
                *(_network(job.width), images[own], masks[own], job.precision),
                channels_last=self._on_gpu,
                device="cuda" if self._on_gpu else "cpu",
            )
            if self._shares_gradients:
                self._distribute(runner)
            call = getattr(runner, job.what)(way)
            samples = _timed(self._ranks, call, self._settle, job.repeats, warmup=4)
            side = f"{'ddp' if self._shares_gradients else 'pytorch'}-{way}"
            yield _row({"images": n, "side": side}, samples)
            del runner, call
            pytorch.release()

    def _distribute(self, runner):
        """Let a runner's gradients be added up over the ranks, so that its step can be captured."""
        torch = self._torch
        # What PyTorch asks for (Notes on CUDA, "Usage with DistributedDataParallel").
        runner.warmup = 11
        with torch.cuda.stream(torch.cuda.Stream() if self._on_gpu else None):
            runner.module = torch.nn.parallel.DistributedDataParallel(
                runner.module, gradient_as_bucket_view=True
            )

    def _settle(self):
        if self._on_gpu:
            self._torch.cuda.synchronize()

    def close(self):
        if self._shares_gradients:
            self._torch.distributed.destroy_process_group()


_WORK = {
    "training": _Training,
    "timeline": _Timeline,
    "inference": _Inference,
    "inference from the host": _Inference,
    "links": _Links,
}


def _device(gpus, job):
    """Return the GPU of this rank, or None where it has a core."""
    if job.processor == "cpu":
        return None
    return gpus.device if gpus else devices()[0]


def _wait_for(device):
    array_module(device).cuda.Device(device.index).synchronize()


def _kernels(*programs):
    """Return what a record is told of what programs launch."""
    launches = (launch for program in programs for launch in program.launches)
    return {"kernels": compile.words(launches)}


def _stay_on_core(rank):
    """Keep this process's threads, of those that are still to begin, on one core."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


def _free_port():
    import socket

    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(ranks):
    """Do the jobs that rank 0 reads, and let it answer, until there are no more."""
    member, waiting = _Member(ranks), ranks.split(0)
    waiting.patience_s = float("inf")  # another number of ranks may have the next job
    while line := waiting.tell(sys.stdin.readline() if ranks.rank == 0 else None):
        job = Job(**json.loads(line))
        if job.processor == "cpu":
            _stay_on_core(ranks.rank)
        rows = member.measure(job)
        if ranks.rank == 0:
            launch.answer(json.dumps(rows))


if __name__ == "__main__":
    launch.run(serve)
