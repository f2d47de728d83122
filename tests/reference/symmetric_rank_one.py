"""L-SR1, by trust region and by line search, SR1-N and MoSR1, step by step on flat float64 vectors.

A state is an immutable record; a step returns a new one. Counts start from 0. The formulas are
those of sections 6 and 7 of the algorithms; the numbers in the comments are the lines of the two
listings of "L-SR1: A Second Order Optimization Method for Deep Learning" (2017), T for the trust
region and S for the line search.
"""

from dataclasses import dataclass, replace

import numpy as np

from .adaptive import is_finite, quiet
from .quasi_newton import SUFFICIENT_DECREASE, TRIALS, nesterov_momentum, value_at, xi
from .symmetric_rank_one_memory import cleared, hessian, inverse_hessian, with_pair
from .trust_region import (
    ACCEPT,
    clip_radius,
    model,
    next_radius,
    reduction_ratio,
    solve_cg,
    solve_exact,
)

METHODS = ("lsr1", "lsr1_search", "sr1n", "mosr1")
INITIAL_RADII = {"lsr1": 0.0, "lsr1_search": 0.0, "sr1n": 1.0, "mosr1": 1.0}


@dataclass(frozen=True)
class SymmetricRankOneState:
    """What the methods remember between steps.

    Attributes:
      k: steps taken, the refused and the rejected ones included and the skipped ones left out.
      w: the iterate.
      v: the velocity; 0 but for SR1-N and MoSR1.
      params: the point at which the caller takes the next gradient, w + μv for SR1-N, else w.
      s_list: steps of the stored pairs, scaled to norm 1, oldest first; empty if dense.
      y_list: gradient differences of the stored pairs, scaled alike, oldest first.
      B: the dense matrix, `None` while it has seen no pair.
      gamma: γ of B0 = γI; 1 for the line search.
      radius: Δ; 0 before the first step of L-SR1, which sets it, and for the line search.
      since_rejection: c, the steps of SR1-N and MoSR1 since the last rejected or refused one.
      waiting: (s, raw gradient) of a pair that waits for its second gradient, or `None`.
      g_prev: the raw gradient of the last step, or `None`; used by MoSR1.
      lambda_prev: the step size from which the next line search starts, before it is doubled.
      stored: pairs that passed the tests.
      refused: pairs that failed one of them.
      skipped: steps whose gradient was not finite when it was handed over.
      refused_steps: steps that could not be computed from a finite gradient.
      rejected_steps: steps of a trust region whose trial point was not taken.
      searches_failed: line searches none of whose trials passed.
      alpha: the step size of a line search; for a trust region 1, or 0 where w stayed.
    """

    k: int
    w: np.ndarray
    v: np.ndarray
    params: np.ndarray
    s_list: list
    y_list: list
    B: np.ndarray | None
    gamma: float
    radius: float
    since_rejection: int
    waiting: tuple | None
    g_prev: np.ndarray | None
    lambda_prev: float
    stored: int
    refused: int
    skipped: int
    refused_steps: int
    rejected_steps: int
    searches_failed: int
    alpha: float


def init(w, method, initial_radius=None):
    """The state before the first step at `w`; `None` takes the radius of `INITIAL_RADII`."""
    w = np.array(w, dtype=np.float64)
    return SymmetricRankOneState(
        k=0,
        w=w,
        v=np.zeros_like(w),
        params=w.copy(),
        s_list=[],
        y_list=[],
        B=None,
        gamma=1.0,
        radius=INITIAL_RADII[method] if initial_radius is None else initial_radius,
        since_rejection=0,
        waiting=None,
        g_prev=None,
        lambda_prev=1.0,
        stored=0,
        refused=0,
        skipped=0,
        refused_steps=0,
        rejected_steps=0,
        searches_failed=0,
        alpha=0.0,
    )


def refuse(state):
    """The state after a refused step: the iterate stays, with v = 0 and no pair."""
    return replace(
        cleared(state),
        v=np.zeros_like(state.v),
        params=state.w,
        since_rejection=0,
        alpha=0.0,
        refused_steps=state.refused_steps + 1,
    )


def solve(B, g, radius, solver, memory_size):
    """The step of the subproblem by the solver of this name, NaN where B or g is not finite."""
    if not (is_finite(g) and np.all(np.isfinite(B))):
        return np.full_like(g, np.nan)
    if solver == "exact":
        return solve_exact(B, g, radius)
    products = 2 * g.size if memory_size is None else 2 * memory_size + 2
    return solve_cg(B, g, radius, products)


def backtrack(loss, w, d, slope, start):
    """The step size of the first trial start, start/2, … that passes, and whether one did."""
    value = loss(w)
    for trial in range(TRIALS):
        size = start * 0.5**trial
        trial_value = loss(w + size * d)
        # f(w + λd) ≤ f(w) + ηλgᵀd
        if np.isfinite(trial_value) and trial_value <= value + SUFFICIENT_DECREASE * size * slope:
            return size, True
    return (size if np.isfinite(trial_value) else 0.0), False


@quiet
def step(
    state,
    loss,
    grad,
    *,
    method,
    memory_size,
    momentum=None,
    solver=None,
    clip=None,
):
    """One step of a method, sections 6 and 7 of the algorithms; returns the new state.

    Args:
      state: a `SymmetricRankOneState`, left as it is.
      loss: the loss of this step's batch as a function of a point.
      grad: its gradient; the first call of a step is the caller's, at `state.params`, and the
        second one, if any, that at the trial point of L-SR1 or SR1-N.
      method: one of `METHODS`.
      memory_size: m, the pairs kept; `None` is the dense matrix, of SR1-N and MoSR1 only.
      momentum: μ of SR1-N and MoSR1, a number or a function of the count of steps since the last
        rejection; `None` takes the schedule of 0.6 with the cap 0.95.
      solver: "exact" or "cg"; `None` takes "exact" for L-SR1 and "cg" for SR1-N and MoSR1.
      clip: what is done to the caller's gradient before the direction is computed from it.
    """
    r = grad(state.params)
    g = r if clip is None else clip(r)
    if not (is_finite(r) and is_finite(g)):  # 0.0: the step is skipped
        return replace(state, skipped=state.skipped + 1)
    state = replace(state, k=state.k + 1)
    momentum = nesterov_momentum(0.95) if momentum is None else momentum
    if method == "lsr1_search":
        return search_step(state, loss, r, g, memory_size)
    if method == "lsr1":
        return trust_region_step(state, loss, grad, r, g, memory_size, solver or "exact")
    if method == "sr1n":
        return nesterov_step(state, loss, grad, r, g, memory_size, momentum, solver or "cg")
    return momentum_step(state, loss, r, g, memory_size, momentum, solver or "cg")


def trust_region_step(state, loss, grad, r, g, memory_size, solver):
    """L-SR1 by trust region, whose count is already advanced."""
    w = state.w
    if not np.any(g):
        return state
    if state.radius == 0.0:  # Δ_0 = ‖∇f(w_0)‖
        state = replace(state, radius=clip_radius(np.linalg.norm(r)))
    B = hessian(state)
    s = solve(B, g, state.radius, solver, memory_size)  # T 4, 7
    if not is_finite(s):
        return refuse(state)
    value, trial_value, r_trial = loss(w), loss(w + s), grad(w + s)
    ratio = 0.0
    if np.isfinite(value) and np.isfinite(trial_value) and is_finite(r_trial):
        ratio = reduction_ratio(value, trial_value, -model(B, r, s))  # T 10, 11
        state = with_pair(state, s, r_trial - r, memory_size)  # T 12, 26 to 40
    accepted = ratio > ACCEPT
    w_next = w + s if accepted else w  # T 13 to 17
    return replace(
        state,
        w=w_next,
        params=w_next,
        radius=next_radius(state.radius, ratio, np.linalg.norm(s)),  # T 18 to 25
        rejected_steps=state.rejected_steps + (not accepted),
        alpha=float(accepted),
    )


def search_step(state, loss, r, g, memory_size):
    """L-SR1 by line search, whose count is already advanced."""
    w = state.w
    if state.waiting is not None:
        s, r_before = state.waiting
        state = with_pair(state, s, r - r_before, memory_size, inverse=True)
        state = replace(state, waiting=None)
    product = inverse_hessian(state) @ g
    if not is_finite(product):
        d = -g / np.linalg.norm(g)
    elif g @ product <= 0.0:  # H may be indefinite
        d = -g
    else:
        d = -product  # S 4, 7
    start = min(1.0, 2.0 * state.lambda_prev)
    alpha, passed = backtrack(loss, w, d, r @ d, start)
    state = replace(
        state,
        lambda_prev=alpha if passed else 1.0,
        searches_failed=state.searches_failed + (not passed),
    )
    if alpha == 0.0:
        return refuse(state)
    w_next = w + alpha * d
    return replace(state, w=w_next, params=w_next, waiting=(w_next - w, r), alpha=alpha)


def nesterov_step(state, loss, grad, r, g, memory_size, momentum, solver):
    """SR1-N, whose count is already advanced; r and g are gradients at ŵ = w + μv."""
    w_hat = state.params
    mu = value_at(momentum, state.since_rejection)
    if not np.any(g):  # s = 0 is no step, and the momentum goes on
        return moved(state, w_hat, mu * state.v, momentum)
    B = hessian(state)
    s = solve(B, g, state.radius, solver, memory_size)
    if not is_finite(s):
        return refuse(state)
    value, trial_value, r_trial = loss(w_hat), loss(w_hat + s), grad(w_hat + s)
    ratio = 0.0
    if np.isfinite(value) and np.isfinite(trial_value) and is_finite(r_trial):
        ratio = reduction_ratio(value, trial_value, -model(B, r, s))
        eps = r_trial - r
        state = with_pair(state, s, eps + xi(s, eps, r) * s, memory_size)  # y = ε + ξs
    state = replace(state, radius=next_radius(state.radius, ratio, np.linalg.norm(s)))
    if ratio > ACCEPT:  # w⁺ = ŵ + s, v⁺ = μv + s
        return moved(state, w_hat + s, mu * state.v + s, momentum)
    state = rejected(state)
    return replace(state, params=state.w + value_at(momentum, 0) * state.v)


def momentum_step(state, loss, r, g, memory_size, momentum, solver):
    """MoSR1, whose count is already advanced; r and g are gradients at w."""
    if state.waiting is not None:
        s, r_before = state.waiting
        eps = r - r_before
        state = with_pair(state, s, eps + xi(s, eps, r_before) * s, memory_size)
    r_last = r if state.g_prev is None else state.g_prev  # ∇E(w_{−1}) := ∇E(w_0)
    state = replace(state, waiting=None, g_prev=r)
    mu = value_at(momentum, state.since_rejection)
    w_hat = state.w + mu * state.v
    g_hat = g + mu * (r - r_last)
    r_hat = (1.0 + mu) * r - mu * r_last
    if not np.any(g_hat):
        return replace(moved(state, w_hat, mu * state.v, 0.0), params=w_hat)
    B = hessian(state)
    s = solve(B, g_hat, state.radius, solver, memory_size)
    if not is_finite(s):
        return refuse(state)
    ratio = reduction_ratio(loss(w_hat), loss(w_hat + s), -model(B, r_hat, s))
    state = replace(state, radius=next_radius(state.radius, ratio, np.linalg.norm(s)))
    if not ratio > ACCEPT:
        return rejected(state)
    state = replace(state, waiting=(s, r_hat))
    return replace(moved(state, w_hat + s, mu * state.v + s, 0.0), params=w_hat + s)


def moved(state, w, v, momentum):
    """The state at a new iterate, and the look-ahead point from there."""
    count = state.since_rejection + 1
    params = w + value_at(momentum, count) * v
    return replace(state, w=w, v=v, params=params, since_rejection=count, alpha=1.0)


def rejected(state):
    """The state after a rejected step, in which the momentum starts anew."""
    return replace(state, since_rejection=0, rejected_steps=state.rejected_steps + 1, alpha=0.0)
