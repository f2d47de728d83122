"""The step sizes of the full-batch methods: Armijo's search, both ways, and mNAQ's explicit step.

A search is handed the loss, the point ŵ at which it starts, the direction d, the learning rate
included, and the slope ĝᵀd with the raw gradient. It returns the step size and whether a trial
satisfied its condition. Where none did, the size is that of the lowest trial if that one lies below
E(ŵ), and otherwise 0: the search has found no step.
"""

import functools

import numpy as np

from .vectors import norm

SUFFICIENT_DECREASE = 1e-3  # η of the Armijo test
AMPLE_DECREASE = 0.5  # in the place of η where the step is to become longer
TRIALS = 14
HALVING = 0.5
SHORTER, LONGER = 1.0 / 16.0, 4.0  # while there is no pair


def passes(value, start, share, alpha, slope):
    """Whether E(ŵ + αd) ≤ E(ŵ) + cαĝᵀd, with both losses finite."""
    finite = np.isfinite(value) and np.isfinite(start)
    return bool(finite and value <= start + share * alpha * slope)


def lowest(tried, start):
    """The step size of the lowest of the finite trials, 0 where it does not lie below E(ŵ).

    Args:
      tried: pairs (value, step size), the first of equal values to be taken.
      start: E(ŵ); NaN counts as +∞.
    """
    start = np.inf if np.isnan(start) else start
    lower = [pair for pair in tried if np.isfinite(pair[0]) and pair[0] < start]
    return min(lower, key=lambda pair: pair[0])[1] if lower else 0.0


def line(loss, w_hat, d):
    """E(ŵ + αd) as a function of α that takes no value twice."""
    return functools.cache(lambda alpha: loss(w_hat + alpha * d))


def shortened(values, slope, first, factor):
    """The first of the step sizes `first`, `first`·`factor`, … that passes the Armijo test."""
    start = values(0.0)
    sizes = [first * factor**trial for trial in range(TRIALS)]
    for alpha in sizes:
        if passes(values(alpha), start, SUFFICIENT_DECREASE, alpha, slope):
            return alpha, True
    return lowest([(values(alpha), alpha) for alpha in sizes], start), False


def armijo(loss, w_hat, d, slope, first=1.0):
    """The search that halves its step."""
    return shortened(line(loss, w_hat, d), slope, first, HALVING)


def two_way(loss, w_hat, d, slope):
    """The search without a pair: longer, 4, 16, …, where 1 decreases amply, else shorter.

    It lengthens as long as each is lower than the last.
    """
    values = line(loss, w_hat, d)
    start = values(0.0)
    alpha = 1.0
    ample = passes(values(alpha), start, AMPLE_DECREASE, alpha, slope)
    if not (ample and values(alpha) < start):
        return shortened(values, slope, 1.0, SHORTER)
    for _ in range(TRIALS - 1):
        longer = alpha * LONGER
        ample = passes(values(longer), start, AMPLE_DECREASE, longer, slope)
        if not (ample and values(longer) < values(alpha)):
            break
        alpha = longer
    return alpha, True


def explicit_step(loss, w_hat, d, slope, lipschitz):
    """The step size of mNAQ: 1 where the Armijo test holds, else −δĝᵀd/(Lip‖d‖²)."""
    value = loss(w_hat + d)
    if np.isfinite(value) and value <= loss(w_hat) + SUFFICIENT_DECREASE * slope:
        return 1.0
    length = norm(d)
    if length == 0.0:
        return 0.0
    delta = 1e-7 if length > 1000.0 else 1e-4
    return -delta * slope / (lipschitz * length * length)
