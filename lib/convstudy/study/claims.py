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
    Nothing here can measure it yet.
"""

import textwrap
from dataclasses import dataclass

import pandas as pd

from convstudy import paths
from convstudy.study.evidence import Evidence

REPRODUCED, EXPLAINED, REFUTED, OUT_OF_REACH = (
    "reproduced",
    "explained",
    "refuted",
    "out of reach",
)

# Shares of time differ between processors: within this many percentage points of the paper's is
# the same finding.
_POINTS = 10
_CPU, _NAIVE = "CPU, plain loops", "GPU, not optimised"
_TILED, _TWO = "1 GPU, tiled", "2 GPUs, tiled + data parallel"


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
        Whose records are heard. A claim is judged on the first of them that has measured it.
    """
    evidence = Evidence(machines)
    claims = pd.read_csv(paths.PAPER / "claims.csv")
    findings = pd.DataFrame([_JUDGES[claim](evidence) for claim in claims["id"]])
    table = pd.concat([claims, findings], axis="columns")
    return table[["id", "claim", "paper", "ours", "verdict", "reason"]]


def told(claim, machines):
    """Return one claim's row of the ledger as text, for a notebook; where evidence lacks, so too.

    Parameters
    ----------
    claim : str
        ``"P1"`` to ``"P12"``.
    machines : sequence of str
        As in `ledger`.
    """
    row = pd.read_csv(paths.PAPER / "claims.csv").set_index("id").loc[claim]
    try:
        found = _JUDGES[claim](Evidence(machines))
    except LookupError as error:
        found = Finding("not measured", OUT_OF_REACH, str(error))
    parts = {"paper": row["paper"], "ours": found.ours, "verdict": found.verdict}
    lines = [f"{claim}  {row['claim']}"]
    for name, text in (parts | {"reason": found.reason}).items():
        lines.append(textwrap.fill(f"{name:9}{text}", 88, subsequent_indent=9 * " "))
    return "\n".join(lines)


def _p1(evidence):
    ours = evidence.reduction(_CPU, _TWO, execution="offload")
    resident = evidence.reduction(_CPU, _TWO, execution="resident")
    return Finding(
        f"{ours:.0%} less time; {resident:.2%} with the whole network on the GPU",
        REPRODUCED if abs(ours - 0.82) * 100 <= _POINTS else REFUTED,
        "The share of convolution on the CPU is the most that speeding up convolution can save: "
        "the paper states 82%, 80% and 81% for one thing, and (20.4 - 3.8) / 20.4 is 81.4%.",
    )


def _p2(evidence):
    days = pd.read_csv(paths.PAPER / "yadan.csv").set_index(["gpus", "parallelism"])["days"]
    saved = 1 - days / days[1, "none"]
    ours = [saved[2, "model"], saved[2, "data"], saved[4, "model and data"]]
    printed = [0.37, 0.33, 0.54]
    same = all(abs(a - b) < 0.006 for a, b in zip(ours, printed, strict=True))
    return Finding(
        " / ".join(f"{share:.0%}" for share in ours),
        EXPLAINED if same else REFUTED,
        "These are the cited table's days against ONE GPU's 10.5 days, not against a CPU.",
    )


def _p3(evidence):
    share = evidence.share("convolution", execution="cpu-plain")
    blas = evidence.share("convolution", execution="cpu-blas")
    return Finding(
        f"{share:.0%} (plain loops), {blas:.0%} (BLAS)",
        REPRODUCED if abs(share - 0.82) * 100 <= _POINTS else REFUTED,
        "The share depends on how badly the rest is written as much as on the convolution: "
        "plain loops and BLAS differ on the same CPU.",
    )


def _p4(evidence):
    share = evidence.share("convolution", execution="cpu-blas")
    return Finding(
        f"U-Net alone: {share:.0%}",
        OUT_OF_REACH,
        "VGG and ResNet are not part of the study yet; U-Net's share says nothing about theirs.",
    )


def _p5(evidence):
    latency = evidence.memory("latency", "device") / evidence.memory("latency", "shared")
    bandwidth = evidence.memory("bandwidth", "shared") / evidence.memory("bandwidth", "device")
    near = 50 <= latency <= 200 or 50 <= bandwidth <= 200
    return Finding(
        f"{latency:.0f} times in latency, {bandwidth:.0f} times in bandwidth",
        REPRODUCED if near else REFUTED,
        "One access waits that much longer for device memory; all multiprocessors together read "
        "that much faster from shared memory. Neither is a factor of 100, and caches lie between.",
    )


def _p6(evidence):
    times = [
        evidence.ladder(f"conv2d_fprop_{rung}", n=1)
        for rung in ("1_naive", "2_coalesced", "3_tiled", "4_register_blocked")
    ]
    naive, coalesced, tiled, blocked = times
    return Finding(
        f"{naive / tiled:.1f} times the naive kernel, {coalesced / tiled:.1f} times the coalesced",
        REPRODUCED if tiled < coalesced < naive else REFUTED,
        f"All 18 layers, one image: {naive * 1e3:.1f}, {coalesced * 1e3:.1f} and "
        f"{tiled * 1e3:.1f} ms. Tiling helps, and is not the end: register blocking takes "
        f"{blocked * 1e3:.1f} ms.",
    )


def _p7(evidence):
    table = evidence.batch(execution="resident")
    largest = table.index.max()
    gain = table.loc[largest, 1] / table.loc[largest, 2]
    return Finding(
        f"{gain:.2f} times on 2 GPUs at {largest} images",
        REPRODUCED if gain >= 1.5 else REFUTED,
        "Chunks are independent: any cut gives the same bits, and copies hide behind compute.",
    )


def _p8(evidence):
    cpu = evidence.environment(_CPU, "convolution", "synchronised")
    gpu = evidence.environment(_NAIVE, "convolution", "synchronised", execution="offload")
    start = evidence.startup()
    return Finding(
        f"{gpu - cpu:+.2f} s ({gpu:.3f} s against {cpu:.1f} s)",
        REPRODUCED if gpu > cpu else REFUTED,
        f"Even the naive kernel, its transfers included, is {cpu / gpu:.0f} times faster than the "
        f"plain loops. Of the causes measured, copying every layer takes "
        f"{start['transfers'] * 1e3:.0f} ms, creating the context and compiling "
        f"{start['context'] + start['compile']:.2f} s; none explains 17 s.",
    )


def _p9(evidence):
    host = evidence.launch("host")
    waited = evidence.launch("synchronised")
    flops = evidence.unet_flops()
    implied = flops / 0.00039 / 1e12
    peak = evidence.hardware("NVIDIA A30", "fp32_tflops")
    return Finding(
        f"the same launches: {host * 1e3:.2f} ms unsynchronised, {waited * 1e3:.2f} ms finished",
        EXPLAINED if implied > peak and host < waited / 2 else REFUTED,
        f"0.39 ms for {flops / 1e9:.1f} GFLOP is {implied:.0f} TFLOP/s on a card whose fp32 peak "
        f"is {peak:g}: a host clock that stops when the launch returns shows such a number.",
    )


def _p10(evidence):
    one = evidence.reduction(_CPU, _TILED, execution="offload")
    two = evidence.reduction(_CPU, _TWO, execution="offload")
    share = evidence.share("convolution", execution="cpu-plain")
    printed = (1 - 4.0 / 20.4, 1 - 3.8 / 20.4)
    near = max(abs(one - printed[0]), abs(two - printed[1])) * 100 <= _POINTS
    return Finding(
        f"{one:.0%} less on 1 GPU, {two:.0%} on 2",
        REPRODUCED if near else REFUTED,
        f"20.4 - 16.6 = 3.8 s stayed on the CPU. Amdahl's ceiling with convolution at {share:.0%} "
        f"is {1 / (1 - share):.1f} times here, and 5.4 times in the paper: it is reached.",
    )


def _p11(evidence):
    offload = evidence.batch(execution="offload")
    resident = evidence.batch(execution="resident")
    pays = [int(n) for n in resident.index if resident.loc[n, 1] / resident.loc[n, 2] >= 1.1]
    gain = (offload[1] / offload[2]).max()
    first = f"{min(pays)} images" if pays else "no size measured"
    return Finding(
        f"at most {gain:.2f} times with the rest on the CPU; resident, a second GPU pays from "
        f"{first}",
        EXPLAINED if gain < 1.1 else REFUTED,
        "The data set's size is not the cause: as long as the rest of the network runs on the "
        "CPU, the second GPU shortens a part that takes almost no time.",
    )


def _p12(evidence):
    return Finding(
        "not measured",
        OUT_OF_REACH,
        "VGG and ResNet are not part of the study yet.",
    )


_JUDGES = {
    f"P{number}": judge
    for number, judge in enumerate(
        (_p1, _p2, _p3, _p4, _p5, _p6, _p7, _p8, _p9, _p10, _p11, _p12), start=1
    )
}
