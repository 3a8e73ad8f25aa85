# SPDX-License-Identifier: MIT
"""The paper's twelve claims, and the verdict of the records on each.

A verdict is one of four words, and follows from numbers alone:

reproduced
    The same thing was measured here, and agrees.
explained
    The paper's number comes out of arithmetic or of a way of measuring, shown here; it does not
    mean what the paper takes it to mean.
refuted
    The same thing was measured here, and does not agree.
out of reach
    Nothing here has measured it.

Where the paper says that something saves much, saving more agrees too: only less than the paper's
number, by more than `POINTS` percentage points, refutes it. A share of time has to lie as near to
the paper's from either side.
"""

import textwrap
from dataclasses import dataclass, replace

import pandas as pd

from convstudy import paths
from convstudy.plots import labels
from convstudy.plots.fig1_function_share import PAPER_SHARE
from convstudy.plots.fig4_batch import PAYS, first_that_keeps_paying
from convstudy.plots.figS4_networks import NETWORKS
from convstudy.plots.figS4_shares import PAPER_SHARE as PAPER_SHARE_OF_NETWORKS
from convstudy.plots.labels import percent
from convstudy.records.statistics import amdahl, tflops
from convstudy.study.evidence import Evidence

REPRODUCED, EXPLAINED, REFUTED, OUT_OF_REACH = (
    "reproduced",
    "explained",
    "refuted",
    "out of reach",
)

# Shares of time differ between processors, and between programs.
POINTS = 10

_CPU, _NAIVE = "CPU, plain loops", "GPU, not optimised"
_TILED, _TWO = "1 GPU, tiled", "2 GPUs, tiled + data parallel"
_BLOCKED = "conv2d_fprop_4_register_blocked"
_NETWORKS = {name: NETWORKS[name] for name in ("vgg16", "resnet18", "resnet50")}


@dataclass(frozen=True)
class Finding:
    """What this study has to say on one claim."""

    ours: str
    verdict: str
    reason: str


def ledger(machines):
    """Return the table of all claims: id, claim, paper, ours, verdict, reason.

    Parameters
    ----------
    machines : sequence of str
        Whose records are heard, the preferred first.

    Returns
    -------
    pandas.DataFrame
        One row a claim, P1 to P12. All numbers of a row are of one machine: the first that has
        measured whatever the claim needs. Where none has, the verdict is "out of reach" and the
        reason says what the first machine lacks.
    """
    claims = _claims().reset_index()
    found = [vars(_found(claim, machines)) for claim in claims["id"]]
    table = pd.concat([claims, pd.DataFrame(found)], axis="columns")
    return table[["id", "claim", "paper", "ours", "verdict", "reason"]]


def told(claim, machines):
    """Return one claim's row of the ledger as text, for a notebook.

    Parameters
    ----------
    claim : str
        ``"P1"`` to ``"P12"``.
    machines : sequence of str
        As in `ledger`.

    Raises
    ------
    ValueError
        If there is no such claim.
    """
    if claim not in _JUDGES:
        raise ValueError(f"there is no claim {claim!r}; there are {', '.join(_JUDGES)}")
    row, found = _claims().loc[claim], _found(claim, machines)
    parts = {"paper": row["paper"], **vars(found)}
    lines = [f"{claim}  {row['claim']}"]
    for name, text in parts.items():
        lines.append(textwrap.fill(f"{name:9}{text}", 88, subsequent_indent=9 * " "))
    return "\n".join(lines)


def _claims():
    return pd.read_csv(paths.PAPER / "claims.csv").set_index("id")


def _found(claim, machines):
    lacking = []
    for machine in machines:
        evidence = Evidence(machine)
        try:
            found = _JUDGES[claim](evidence)
        except LookupError as error:
            lacking.append(str(error))
            continue
        return replace(found, ours=labels.marked(found.ours, evidence.stale))
    return Finding("not measured", OUT_OF_REACH, lacking[0] if lacking else "No machine was named.")


def _at_least(share, printed):
    return 100 * (printed - share) <= POINTS


def _has_two(evidence):
    """Return whether the network was timed on two GPUs, as the paper runs it."""
    try:
        evidence.environment(_TWO, "network")
    except LookupError:
        return False
    return True


def _p1(evidence):
    # Another GPU only saves more: one that saves enough settles it.
    where, gpus = (_TWO, "2 GPUs") if _has_two(evidence) else (_TILED, "1 GPU")
    offload = evidence.saved(_CPU, where)
    resident = evidence.saved(_CPU, where, "resident")
    if where == _TILED and not _at_least(offload, 0.82):
        raise LookupError(f"{evidence.machine} has one GPU, which saves {percent(offload)} alone.")
    return Finding(
        f"{percent(offload)} less time on {gpus}; {percent(resident)} with the whole network there",
        REPRODUCED if _at_least(offload, 0.82) else REFUTED,
        "What convolution takes of the CPU's time is the most that faster convolutions can save. "
        "The paper states 82%, 80% and 81% for one thing: (20.4 - 3.8) / 20.4 is 81.4%."
        + _beside_blas(evidence)
        + (" Data parallelism was not measured." if where == _TILED else ""),
    )


def _p2(_):
    table = pd.read_csv(paths.PAPER / "yadan.csv").set_index(["gpus", "parallelism"])
    saved = 1 - table["days"] / table.loc[(1, "none"), "days"]
    ours = [saved[2, "model"], saved[2, "data"], saved[4, "model and data"]]
    same = all(abs(a - b) < 0.006 for a, b in zip(ours, (0.37, 0.33, 0.54), strict=True))
    memory = int((table["confirmed"] == "from memory").sum())
    kept = f" ({memory} of the {len(table)} times are quoted from memory.)" if memory else ""
    one = table.loc[(1, "none"), "days"]
    return Finding(
        " / ".join(map(percent, ours)) + ", against one GPU",
        EXPLAINED if same else REFUTED,
        f"The cited table's days, against its one GPU's {one:g} days and not against a CPU, give "
        f"{'these' if same else 'other'} percentages.{kept}",
    )


def _p3(evidence):
    shares = {
        program: evidence.share("convolution", execution)
        for program, execution in (("plain loops", "cpu-plain"), ("BLAS", "cpu-blas"))
    }
    off = {program: 100 * abs(share - PAPER_SHARE) for program, share in shares.items()}
    nearest = min(off, key=off.get)
    return Finding(
        ", ".join(f"{percent(share)} ({program})" for program, share in shares.items()),
        REPRODUCED if off[nearest] <= POINTS else REFUTED,
        "They lie "
        + " and ".join(f"{labels.many(round(off[p]), 'percentage point')} ({p})" for p in off)
        + " from the paper's, and the nearer one counts. A share holds for one "
        "program on one CPU: it depends on how the rest is written as much as on the convolutions.",
    )


def _p4(evidence):
    shares = {
        program: {n: evidence.convolution_share(n, execution) for n in _NETWORKS}
        for program, execution in (("plain loops", "cpu-plain"), ("BLAS", "cpu-blas"))
    }
    all_shares = [share for each in shares.values() for share in each.values()]
    least = min(all_shares)
    below = sum(share <= PAPER_SHARE_OF_NETWORKS for share in all_shares)
    try:
        left = {n: evidence.convolution_share(n, "resident", _BLOCKED) for n in _NETWORKS}
        after = f"After, with all of it on the GPU and register-blocked: {_of_each(left)}."
    except LookupError:
        after = "What is left of it on a GPU, this machine cannot tell."
    return Finding(
        "; ".join(f"{program}: {_of_each(each)}" for program, each in shares.items()),
        REPRODUCED if _at_least(least, PAPER_SHARE_OF_NETWORKS) else REFUTED,
        f"One image of 224 x 224 on the CPU. Of the {len(all_shares)} shares {below} "
        f"{'is' if below == 1 else 'are'} not above {PAPER_SHARE_OF_NETWORKS:.0%}, and the least "
        f"is {percent(least)}. {after}",
    )


def _p5(evidence):
    latency = evidence.memory("latency", "device") / evidence.memory("latency", "shared")
    bandwidth = evidence.memory("bandwidth", "shared") / evidence.memory("bandwidth", "device")
    near = 50 <= latency <= 200 or 50 <= bandwidth <= 200
    return Finding(
        f"{latency:.0f} times in latency, {bandwidth:.1f} times in bandwidth",
        REPRODUCED if near else REFUTED,
        "One access waits that much longer for device memory, and all multiprocessors together "
        "read that much faster from shared memory. "
        + ("One of the two is near 100." if near else "Neither is near 100."),
    )


def _p6(evidence):
    naive, coalesced, tiled, blocked = (
        evidence.ladder(f"conv2d_fprop_{rung}")
        for rung in ("1_naive", "2_coalesced", "3_tiled", "4_register_blocked")
    )
    helps = tiled < coalesced < naive
    end = (
        f"Tiling helps and is not the end: register blocking takes {_time(blocked)}."
        if helps
        else "The three are not in the order that the paper's reasoning asks for."
    )
    return Finding(
        f"{naive / tiled:.1f} times as fast as naive, {coalesced / tiled:.1f} times as coalesced",
        REPRODUCED if helps else REFUTED,
        f"The 18 convolutions of one image take {_time(naive)} naive, {_time(coalesced)} "
        f"coalesced and {_time(tiled)} tiled. {end}",
    )


def _p7(evidence):
    gains = evidence.gains("resident")
    gain, most = gains.iloc[-1], int(gains.index[-1])
    if most < 2:
        raise LookupError(
            f"{evidence.machine} has measured one image only, which two GPUs cannot share; "
            f"`make measure SUITE=batch`, on a machine that can, adds more."
        )
    return Finding(
        f"{gain:.2f} times as fast on 2 GPUs, for a batch of {most}",
        REPRODUCED if gain >= 1.5 else REFUTED,
        "The chunks are independent, so two GPUs share a batch without speaking to each other"
        + ("." if gain >= 1.5 else "; that does not pay here."),
    )


def _p8(evidence):
    cpu = evidence.environment(_CPU, "convolution", "cpu")
    gpu = evidence.environment(_NAIVE, "convolution")
    transfers = evidence.startup("transfers", "pageable")
    once = sum(evidence.startup(what) for what in ("import", "context", "compile"))
    printed = _printed(_NAIVE, "convolution")
    if gpu > cpu:
        verdict, so = REPRODUCED, "An unoptimised GPU can be slower than this CPU."
    elif gpu + once >= printed:
        verdict, so = EXPLAINED, "Starting up inside the timed region makes up the difference."
    else:
        verdict, so = REFUTED, f"All of it together is far from the paper's {printed:g} s."
    return Finding(
        f"{gpu - cpu:+.2f} s ({_time(gpu)} against {_time(cpu)})",
        verdict,
        f"The naive kernel's time includes its transfers, {_time(transfers)} for all layers; "
        f"import, context and compilation take {_time(once)} once. {so}",
    )


def _p9(evidence):
    host, waited = evidence.launch("host"), evidence.launch("synchronised")
    implied = tflops(evidence.flops(), _printed(_TILED, "convolution"))
    peak = evidence.hardware("NVIDIA A30", "fp32_tflops")
    stops = host < waited / 2
    return Finding(
        f"the same tiled launches: {_time(host)} by the host clock, {_time(waited)} until finished",
        EXPLAINED if implied > peak and stops else REFUTED,
        f"0.39 ms for {evidence.flops() / 1e9:.1f} GFLOP means {implied:.0f} TFLOP/s on a card "
        f"whose fp32 peak is {peak:g}. "
        + (
            "A host clock that does not wait for the GPU shows such a time."
            if stops
            else "A host clock that does not wait shows no such time here."
        ),
    )


def _p10(evidence):
    one, has_two = evidence.saved(_CPU, _TILED), _has_two(evidence)
    # A second GPU takes nothing back of what one saves.
    two = evidence.saved(_CPU, _TWO) if has_two else one
    of_two = f", {percent(two)} less on 2" if has_two else "; 2 not measured"
    network = evidence.environment(_CPU, "network", "cpu")
    share = evidence.environment(_CPU, "convolution", "cpu") / network
    ceiling, paper = amdahl(share, float("inf")), amdahl(16.6 / 20.4, float("inf"))
    times = 1 / (1 - two)
    beyond = _beyond(evidence, (_CPU, "cpu"), "on the CPU alone") if times > ceiling else ""
    printed = (1 - _printed(where, "network") / 20.4 for where in (_TILED, _TWO))
    near = all(_at_least(*pair) for pair in zip((one, two), printed, strict=True))
    if not (near or has_two):
        raise LookupError(f"{evidence.machine} has one GPU, which saves {percent(one)} alone.")
    return Finding(
        f"{percent(one)} less on 1 GPU{of_two}",
        REPRODUCED if near else REFUTED,
        f"In the paper 20.4 - 16.6 = 3.8 s stay on the CPU, so {paper:.1f} times is the ceiling, "
        f"and it is reached. Here convolution is {share:.0%}, the ceiling {ceiling:.1f} times, "
        f"and {'2 GPUs reach' if has_two else '1 GPU reaches'} {times:.1f} times"
        f"{'' if has_two else ', of which a second takes nothing back'}{beyond}.",
    )


def _beyond(evidence, where, named):
    """Return what says why more than Amdahl's law allows was measured: the rest took less."""
    after = (_TWO if _has_two(evidence) else _TILED), "offload"
    rest = [
        evidence.environment(place, "network", execution)
        - evidence.environment(place, "convolution", execution)
        for place, execution in (where, after)
    ]
    return (
        f"; what is beyond that is of the rest on the CPU, which took {_time(rest[1])} there and "
        f"{_time(rest[0])} {named}"
    )


def _p11(evidence):
    one = evidence.environment(_TILED, "network")
    convolution = evidence.environment(_TILED, "convolution")
    ceiling = amdahl(convolution / one, 2)
    if not _has_two(evidence) and ceiling < PAYS:
        return Finding(
            f"{ceiling:.2f} times as fast at most, with the rest on the CPU",
            EXPLAINED,
            f"Convolution is {convolution / one:.1%} of what is left on 1 GPU, and a second GPU "
            "takes nothing else, for any amount of data. How two do was not measured.",
        )
    two = evidence.environment(_TWO, "network")
    gains = evidence.gains("resident")
    first = first_that_keeps_paying(gains)
    hardly = one / two < PAYS
    is_beyond = hardly and one / two > ceiling
    beyond = _beyond(evidence, (_TILED, "offload"), "on 1 GPU") if is_beyond else ""
    resident = (
        f"from {first:.0f} images on" if first > 0 else f"at no batch up to {gains.index.max()}"
    )
    return Finding(
        f"{one / two:.2f} times as fast with the rest on the CPU; with all on the GPUs a second "
        f"one pays {resident}",
        EXPLAINED if hardly and ceiling < PAYS else REPRODUCED if hardly else REFUTED,
        f"Convolution is {convolution / one:.1%} of what is left on 1 GPU, so a second could give "
        f"{ceiling:.2f} times at most, for any amount of data{beyond}."
        if hardly
        else "Here the second GPU does make a difference, even with the rest on the CPU.",
    )


def _p12(evidence):
    plain = {n: evidence.network(n, _CPU, execution="cpu-plain") for n in _NETWORKS}
    naive, tiled = (
        {n: evidence.network(n, where, "convolution") for n in _NETWORKS}
        for where in (_NAIVE, _TILED)
    )
    saved = {n: 1 - evidence.network(n, _TILED) / plain[n] for n in _NETWORKS}
    resident = {n: plain[n] / evidence.network(n, _TILED, execution="resident") for n in _NETWORKS}
    helps = all(tiled[n] < naive[n] and saved[n] > 0 for n in _NETWORKS)
    return Finding(
        f"{_of_each(saved)} less time on 1 GPU, tiled, the rest on the CPU",
        REPRODUCED if helps else REFUTED,
        f"Tiled convolutions take {_of_each({n: tiled[n] / naive[n] for n in _NETWORKS})} of the "
        f"unoptimised ones' time. With the whole network on the GPU: "
        + ", ".join(f"{labels.times(resident[n])} ({_NETWORKS[n]})" for n in _NETWORKS)
        + " as fast as plain loops on the CPU.",
    )


def _beside_blas(evidence):
    """Return what a CPU takes that is used well, with and without the paper's convolutions."""
    try:
        alone = evidence.environment("CPU, BLAS", "network", "cpu")
        tiled = evidence.environment(_TILED, "network", rest="cpu-blas")
    except LookupError:
        return ""
    return (
        f" The CPU's are plain loops; through BLAS it takes {_time(alone)}, and {_time(tiled)} "
        "with the tiled convolutions on the GPU."
    )


def _of_each(shares):
    """Return a share of each network as text."""
    return ", ".join(f"{percent(share)} ({_NETWORKS[name]})" for name, share in shares.items())


def _printed(environment, what):
    """Return the seconds that the paper prints for one bar of Fig. 4."""
    table = pd.read_csv(paths.PAPER / "execution_time.csv").set_index(["environment", "what"])
    return float(table.loc[(environment, what), "seconds"])


def _time(seconds):
    return labels.quantity(seconds, "s")


_JUDGES = {
    f"P{number}": judge
    for number, judge in enumerate(
        (_p1, _p2, _p3, _p4, _p5, _p6, _p7, _p8, _p9, _p10, _p11, _p12), start=1
    )
}
