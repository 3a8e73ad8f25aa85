# SPDX-License-Identifier: MIT
"""Every number that is derived from raw samples: the only place where one is computed."""

import numpy as np


def median(samples):
    """Return the median of raw samples; NaN where there are none."""
    return float(np.median(samples)) if len(samples) else float("nan")


def quantile(samples, share):
    """Return the value below which `share` of the samples lie; NaN where there are none."""
    return float(np.quantile(samples, share)) if len(samples) else float("nan")


def tflops(flops, seconds):
    """Return 10^12 floating-point operations a second."""
    return flops / seconds / 1e12


def share_of_peak(flops, seconds, peak):
    """Return the share that was reached of `peak`, in floating-point operations a second."""
    return flops / seconds / peak


def speedup(seconds, reference):
    """Return how many times as fast `seconds` is as `reference`, a time of the same work."""
    return reference / seconds


def amdahl(share, speedup):
    """Return how much faster the whole becomes when `share` of its time becomes `speedup` faster.

    Examples
    --------
    >>> round(amdahl(16.6 / 20.4, float("inf")), 2)
    5.37
    """
    return 1 / (1 - share + share / speedup)
