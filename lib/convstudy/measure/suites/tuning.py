# SPDX-License-Identifier: MIT
"""Which kernel, cut how, is fastest for each pass of U-Net's convolutions: the tuned table.

What "auto" then takes on GPUs of this name (`conv.tuned`). Transposed convolutions are there as the
convolutions that they are, without what they end with: that a result is scattered does not tell
kernels apart.
"""

from dataclasses import replace
from itertools import chain

import numpy as np

from convstudy.conv import tuned
from convstudy.conv.algorithm import candidates, plan
from convstudy.device import devices
from convstudy.measure.graphs import alternating, capture
from convstudy.measure.suite import Case, Suite, checked, not_measured, result
from convstudy.measure.suites import passes
from convstudy.records import statistics

# Times closer than this count as equal. Half a percent is left on either side of it for what
# noise does to a median, so that two runs choose times within 3% of each other.
WITHIN = 0.02
# After a few rounds of all candidates, those that are so much slower than the fastest leave.
_HEATS, _LEAVE = 3, 1.12
# Where there is so little to do, much of the time is waiting, of which estimates know little; and a
# try takes little: so many times more are tried.
_FEW_FLOPS, _MORE = 1e10, 3


def pick(samples, within=WITHIN):
    """Return which of several is chosen: the first that is not slower than the fastest by more.

    Each round is measured against its own fastest, so that a clock that drifts from round to round
    plays no part; and of a candidate's rounds the median counts, so that none that hung does.

    Parameters
    ----------
    samples : sequence of sequence of float
        Seconds of each in the same rounds, in the order in which they are preferred for other
        reasons: estimates do not depend on the day, so among equals it is always the same one.
    within : float
        What counts as equal.

    Returns
    -------
    int
    """
    rounds = [min(each) for each in zip(*samples, strict=True)]
    slower = [
        statistics.median([one / fastest for one, fastest in zip(each, rounds, strict=True)])
        for each in samples
    ]
    limit = (1 + within) * min(slower)
    return next(i for i, ratio in enumerate(slower) if ratio <= limit)


def cases(options):
    """Yield a case for each pass, precision, batch and different layer."""
    for labels, which, problem in _different(options):
        name = "{pass}/{precision}/n{n}/{layer}".format(**labels).replace(" ", "+")
        heats = _Heats(name, labels, which, problem, options)
        yield Case(name, heats.run, labels, passes.why_not())


def launches(options):
    """Return what the cases launch on this machine's GPU."""
    device = devices()[0]
    return [
        plan(candidate.id, problem, device, choice=candidate.choice)
        for _, which, problem in _different(options)
        for candidate in _candidates(which, problem, device, options)
    ]


def _different(options):
    """Yield each problem once, with the names of all layers that are alike."""
    found, all_problems = {}, passes.problems(options)
    if "network" not in options:
        all_problems = chain(all_problems, passes.enlargements(options))
    for labels, which, problem in all_problems:
        first, _, _ = found.setdefault((which, problem), (labels, which, problem))
        if first is not labels:
            first["layer"] += f" {labels['layer']}"
    yield from found.values()


def _candidates(which, problem, device, options):
    more = _MORE if problem.flops < _FEW_FLOPS else 1
    return candidates(problem, device, which, more * options["within"], more * options["most"])


class _Heats:
    """All candidates of one problem, in rounds, and those that are nearly the fastest in more."""

    def __init__(self, name, labels, which, problem, options):
        self.name, self.labels = name, labels
        self.which, self.problem, self.options = which, problem, options

    def run(self):
        """Check and time the candidates; return the row of the one chosen, and of any wrong one."""
        device = devices()[0]
        try:
            return self._run(device)
        finally:
            passes.release(device)

    def _run(self, device):
        arrays = [passes.Arrays(self.problem, device, seed) for seed in range(passes.SETS)]
        operands = [each.operands(self.which) for each in arrays]
        truth = passes.truth(self.which, self.problem, arrays[0])
        replays, checks, wrong = {}, {}, []
        for candidate in _candidates(self.which, self.problem, device, self.options):
            launch = plan(candidate.id, self.problem, device, choice=candidate.choice)
            try:
                checks[candidate] = self._checked(launch, device, operands[0], truth)
            except Exception as error:  # the others are still of use
                wrong.append(self._wrong(candidate, error))
                continue
            replays[candidate] = capture(device, self._calls(launch, device, operands))
        if not replays:
            raise RuntimeError(f"no candidate is right: {wrong[0]['reason']}")
        return [self._row(*self._timed(replays, device), checks, device), *wrong]

    def _checked(self, launch, device, operands, truth):
        operands[-1].view(np.uint8).fill(255)  # a NaN in every type
        launch.run(device, operands)
        terms = passes.terms(self.which, self.problem)
        return checked(operands[-1], truth, terms, precision=self.problem.precision)

    def _calls(self, launch, device, operands):
        count = passes.calls(self.problem)
        given = [operands[i % passes.SETS] for i in range(count)]
        return [lambda arrays=arrays: launch.run(device, arrays) for arrays in given]

    def _timed(self, replays, device):
        """Return the samples of all, of a few rounds; and of those that stay, of the rounds then.

        A round takes each candidate once, one right behind the other: whatever drifts, as clocks
        and temperature do, meets all of them alike.
        """
        count, options = passes.calls(self.problem), self.options
        heats = alternating(replays, count, device, _HEATS)
        limit = _LEAVE * min(map(statistics.median, heats.values()))
        stay = {c: r for c, r in replays.items() if statistics.median(heats[c]) <= limit}
        final = alternating(stay, count, device, options["rounds"], 1, options["seconds"])
        return heats | final, final

    def _row(self, samples, final, checks, device):
        chosen = list(final)[pick(list(final.values()))]
        launch = plan(chosen.id, self.problem, device, choice=chosen.choice)
        choice = {"algorithm": chosen.id, "choice": tuned.text(chosen.choice)}
        return result(
            self.name,
            self.labels | choice | {"layout": self.problem.layout},
            samples[chosen],
            clock="event",
            problem=self.problem,
            launch=launch,
            cache=passes.cache(self.problem, device),
            transfers="excluded",
            warmup=2,
            values={
                "calls": passes.calls(self.problem),
                "sets": passes.SETS,
                "candidates": [str(candidate) for candidate in samples],
                "candidate_samples_s": list(samples.values()),
            },
            check=checks[chosen],
            device=device,
        )

    def _wrong(self, candidate, error):
        text = (str(error).splitlines() or [""])[0]
        case = Case(f"{self.name}/{candidate}", self.run, self.labels | {"algorithm": candidate.id})
        return not_measured(case, "failed", f"{type(error).__name__}: {text}")


SUITE = Suite(
    tuned.SUITE,
    "The fastest kernel, and how it is cut, for each pass of U-Net's layers",
    cases,
    gpus=1,
    options=passes.OPTIONS | {"within": 1.6, "most": 12, "rounds": 15, "seconds": 0.3},
    quick={"n": "1"},
    launches=launches,
)
# A suite of its own: its records are not U-Net's table anew, but more.
NETWORKS = replace(
    SUITE,
    name=tuned.NETWORKS_SUITE,
    title="The fastest kernel, and how it is cut, for each pass of VGG's and ResNet's layers",
    options=SUITE.options | passes.NETWORKS_OPTIONS,
)
