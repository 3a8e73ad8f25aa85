# SPDX-License-Identifier: MIT
"""Fig. 2: latency and bandwidth of each level of memory, of the GPU and of the CPU."""

from convstudy.device import CPU, devices
from convstudy.measure import memory
from convstudy.measure.clocks import once
from convstudy.measure.suite import Case, Suite, result
from convstudy.measure.suites.network import no_gpu


def cases(options):
    """Yield a latency and a bandwidth case for each level of memory."""
    for quantity in ("latency", "bandwidth"):
        for space in memory.CPU_SPACES:
            if space in memory.cpu_spaces():
                yield _case("cpu", quantity, space, options, None)
        for space in memory.GPU_SPACES:
            yield _case("gpu", quantity, space, options, no_gpu())


def _case(processor, quantity, space, options, skip):
    labels = {"processor": processor, "quantity": quantity, "space": space}
    measure = _MEASURES[processor]
    name = f"{processor}/{quantity}/{space}"
    return Case(name, lambda: [measure(name, labels, options["repeats"])], labels, skip)


def _on_gpu(name, labels, repeats):
    device = devices()[0]
    if labels["quantity"] == "latency":
        plan = memory.latency_plan(device, labels["space"])
        found = memory.measure_latency(device, plan, once("event", device), repeats)
    else:
        plan = memory.bandwidth_plan(device, labels["space"])
        found = memory.measure_bandwidth(device, plan, once("event", device), repeats)
    samples = found.pop("seconds")
    return result(
        name,
        labels,
        samples,
        clock="event",
        launch=plan.launch,
        warmup=1,
        values=found,
        device=device,
    )


def _on_cpu(name, labels, repeats):
    measure = memory.cpu_latency if labels["quantity"] == "latency" else memory.cpu_bandwidth
    found = measure(labels["space"], once("synchronised", CPU), repeats=repeats)
    samples = found.pop("seconds")
    return result(name, labels, samples, clock="synchronised", warmup=1, values=found)


_MEASURES = {"gpu": _on_gpu, "cpu": _on_cpu}

SUITE = Suite(
    "memory",
    "Fig. 2: the memory hierarchy",
    cases,
    options={"repeats": 10},
    quick={"repeats": 5},
)
