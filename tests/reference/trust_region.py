"""The trust-region subproblem min gᵀs + ½sᵀBs, ‖s‖ ≤ Δ with a dense B, and the radius rule.

Two solvers: the global solution from an eigendecomposition of B, and CG-Steihaug, which is
Algorithm 7.2 of Nocedal & Wright.
"""

from typing import NamedTuple

import numpy as np

SLACK = np.finfo(np.float64).eps  # of both reductions, as a share of |E(ŵ)|
MIN_RADIUS, MAX_RADIUS = 1e-10, 1e10
NEAR_ZERO = 1e-12  # eigenvalues, as a share of the largest
NOT_SEEN = 1e-13  # the part of g in the lowest eigenspace, as a share of ‖g‖
CG_TOLERANCE = 1e-12


class RadiusRule(NamedTuple):
    """What becomes of a trial point and of Δ.

    Attributes:
      accept: η: the point is taken where ared/pred is above it.
      shrink_below: l: the radius shrinks where the ratio is below it.
      grow_above: u: the radius grows where the ratio is above it and the step is long.
      boundary: ρ: a step is long where ‖s‖ > ρΔ.
      shrink: the factor of the radius in the one case.
      grow: its factor in the other one.
    """

    accept: float = 1e-6
    shrink_below: float = 0.1
    grow_above: float = 0.75
    boundary: float = 0.8
    shrink: float = 0.5
    grow: float = 2.0


DEFAULT_RULE = RadiusRule()


def model(B, g, s):
    """The model value gᵀs + ½sᵀBs; the predicted reduction is its negative."""
    return g @ s + 0.5 * (s @ B @ s)


def reduction_ratio(value, trial_value, predicted):
    """The ratio (ared + δ)/(pred + δ), 0 where pred is not positive or anything is not finite."""
    ared = value - trial_value
    if not (np.isfinite(ared) and np.isfinite(predicted) and predicted > 0.0):
        return 0.0
    slack = SLACK * abs(value)  # δ
    ratio = (ared + slack) / (predicted + slack)
    return float(ratio) if np.isfinite(ratio) else 0.0


def clip_radius(radius):
    """The radius within its bounds."""
    return float(min(max(radius, MIN_RADIUS), MAX_RADIUS))


def next_radius(radius, ratio, length, rule=DEFAULT_RULE):
    """Δ of the next step, after one of this ratio and length ‖s‖."""
    if ratio > rule.grow_above and length > rule.boundary * radius:
        radius = rule.grow * radius
    elif not ratio >= rule.shrink_below:
        radius = rule.shrink * radius
    return clip_radius(radius)


def quotient(numerator, denominator):
    """The quotient, 0 where the numerator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=numerator != 0.0)


def solve_exact(B, g, radius):
    """A global solution of the subproblem.

    With B = U diag(λ) Uᵀ, λ ascending, and a = Uᵀg the solution is s = −U(a/(λ + σ)) for the
    σ ≥ max(0, −λ_min) at which ‖s‖ = Δ, or σ = 0 where that s is short enough. The search is for
    τ = σ + λ_min, so that the digits of λ_i + σ = (λ_i − λ_min) + τ are kept close to −λ_min.
    """
    eigenvalues, U = np.linalg.eigh(B)
    lowest, largest = eigenvalues[0], np.max(np.abs(eigenvalues))
    gaps = eigenvalues - lowest
    a = U.T @ g
    in_lowest = gaps <= NEAR_ZERO * largest
    definite = lowest > NEAR_ZERO * largest
    if not definite and np.linalg.norm(a[in_lowest]) <= NOT_SEEN * np.linalg.norm(a):
        sign = -1.0 if a[0] > 0.0 else 1.0
        a = np.where(in_lowest, 0.0, a)
        c = quotient(a, gaps)  # the minimum-norm solution of (B − λ_min I)s = −g
        rest = radius**2 - c @ c
        if rest >= 0.0:  # the hard case
            if lowest < -NEAR_ZERO * largest:  # z u_min up to the boundary
                c[0] = -sign * np.sqrt(rest)
            return -U @ c
    if lowest > 0.0:
        c = quotient(a, eigenvalues)
        if np.linalg.norm(c) <= radius:  # the minimum lies inside
            return -U @ c
    return -U @ quotient(a, gaps + boundary_shift(a, gaps, max(lowest, 0.0), radius))


def boundary_shift(a, gaps, low, radius):
    """The τ > low with ‖a/(gaps + τ)‖ = Δ: Newton on 1/‖·‖ − 1/Δ, or bisection out of bounds."""
    high = np.linalg.norm(a) / radius
    tau = max(low, np.max(np.abs(a) / radius - gaps))
    for _ in range(200):
        c = quotient(a, gaps + tau)
        norm = np.linalg.norm(c)
        if abs(norm - radius) <= 2.0 * np.finfo(float).eps * radius:
            break
        low, high = (tau, high) if norm > radius else (low, tau)
        slope = np.sum(quotient(c**2, gaps + tau))
        proposal = tau + (norm - radius) / radius * norm**2 / slope
        if not low < proposal < high:
            proposal = 0.5 * (low + high)
        if proposal in (low, high):  # no number between the two
            break
        tau = proposal
    return tau


def line_ends(z, d, radius):
    """The two τ with ‖z + τd‖ = Δ for a z inside, the negative one first."""
    dd, zd, inside = d @ d, z @ d, radius**2 - z @ z
    root = np.sqrt(zd**2 + dd * inside)
    if zd >= 0.0:
        return -(zd + root) / dd, inside / (zd + root)
    return inside / (zd - root), (root - zd) / dd


def solve_cg(B, g, radius, products):
    """Conjugate gradients from 0 up to the boundary, with at most `products` products B d."""
    z, r, d = np.zeros_like(g), g, -g
    goal = CG_TOLERANCE * np.linalg.norm(g)
    if not np.any(g):
        return z
    for _ in range(products):
        Bd = B @ d
        if not d @ Bd > 0.0:  # the better end of the line through z
            ends = [z + tau * d for tau in line_ends(z, d, radius)]
            return min(ends, key=lambda s: model(B, g, s))
        alpha = (r @ r) / (d @ Bd)
        z_next = z + alpha * d
        if np.linalg.norm(z_next) >= radius:
            return z + line_ends(z, d, radius)[1] * d
        r_next = r + alpha * Bd
        z = z_next
        if np.linalg.norm(r_next) <= goal:
            return z
        d = -r_next + (r_next @ r_next) / (r @ r) * d
        r = r_next
    return z
