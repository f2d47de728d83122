"""L-SR1, by trust region and by line search, SR1-N and MoSR1, step by step on flat float64 vectors.

A state is an immutable record; a step returns a new one. Counts start from 0. The formulas are
those of sections 6 and 7 of the algorithms; the numbers in the comments are the lines of the two
listings of "L-SR1: A Second Order Optimization Method for Deep Learning" (2017), T for the trust
region and S for the line search.
"""

from dataclasses import dataclass, replace

import numpy as np

from .quasi_newton import nesterov_momentum, value_at, xi
from .searches import armijo
from .symmetric_rank_one_memory import begun, cleared, hessian, inverse_hessian, with_pair
from .trust_region import (
    DEFAULT_RULE,
    MIN_RADIUS,
    RadiusRule,
    clip_radius,
    model,
    next_radius,
    reduction_ratio,
    solve_cg,
    solve_exact,
)
from .vectors import is_finite, leave, norm, normalized, quiet, skip

METHODS = ("lsr1", "lsr1_search", "sr1n", "mosr1")
LARGER = 16.0  # times γ, where a step of MoSR1 without a pair was rejected and left none


@dataclass(frozen=True)
class Settings:
    """What the arguments of a step say, see there, with the defaults filled in."""

    memory_size: int | None
    momentum: object
    solver: str
    convergence_term: bool
    initial_scale: float | None
    initial_radius: float | None
    rule: RadiusRule


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
      gamma: γ of B0 = γI and of H0 = I/γ.
      radius: Δ; 0 before a first gradient has set it, and for the line search.
      since_rejection: c, the steps of SR1-N and MoSR1 since the last rejected or refused one.
      waiting: (s, raw gradient) of a pair that waits for its second gradient, or `None`.
      g_prev: the raw gradient of the last step, or `None`; used by MoSR1.
      updates_prev: the same gradient, clipped, or `None`.
      lambda_prev: the step size from which the next line search starts, before it is doubled.
      stored: pairs that passed the tests.
      refused: pairs that failed one of them.
      skipped: steps whose gradient was not finite when it was handed over.
      skipped_in_a_row: the last of them, since a step that was taken or a bad point that was left.
      left: points that were left since no gradient there was finite.
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
    updates_prev: np.ndarray | None
    lambda_prev: float
    stored: int
    refused: int
    skipped: int
    skipped_in_a_row: int
    left: int
    refused_steps: int
    rejected_steps: int
    searches_failed: int
    alpha: float


def init(w, method, initial_radius=1.0, initial_scale=None):
    """The state before the first step at `w`.

    Args:
      w: the first iterate.
      method: one of `METHODS`.
      initial_radius: Δ_0; `None` takes the norm of the first gradient that is not 0.
      initial_scale: γ where it is fixed; `None` starts from 1, which no step is made with.
    """
    search = method == "lsr1_search"
    w = np.array(w, dtype=np.float64)
    return SymmetricRankOneState(
        k=0,
        w=w,
        v=np.zeros_like(w),
        params=w.copy(),
        s_list=[],
        y_list=[],
        B=None,
        gamma=1.0 if initial_scale is None else initial_scale,
        radius=0.0 if search or initial_radius is None else initial_radius,
        since_rejection=0,
        waiting=None,
        g_prev=None,
        updates_prev=None,
        lambda_prev=1.0,
        stored=0,
        refused=0,
        skipped=0,
        skipped_in_a_row=0,
        left=0,
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


def solve(B, g, radius, settings):
    """The step of the subproblem, NaN where B or g is not finite.

    A large g is divided by a power of two, and B with it, so that no square overflows.
    """
    if not (is_finite(g) and is_finite(B)):
        return np.full_like(g, np.nan)
    exponent = max(np.frexp(np.max(np.abs(g)))[1], 0)
    B, g = np.ldexp(B, -exponent), np.ldexp(g, -exponent)
    if settings.solver == "exact":
        return solve_exact(B, g, radius)
    size = settings.memory_size
    return solve_cg(B, g, radius, 2 * g.size if size is None else 2 * size + 2)


def vanishes(w, s):
    """Whether a step is lost in the rounding of the point."""
    return not np.any((w + s) - w)


def begun_anew(state, s, settings):
    """The state with the first radius, where a step without a pair vanished by its radius."""
    if state.s_list or state.B is not None or not is_finite(s):
        return state
    radius = settings.initial_radius
    return replace(state, radius=0.0 if radius is None else radius)


def with_radius(state, r):
    """The state with Δ_0 = ‖∇f(w_0)‖ where no radius was given."""
    return replace(state, radius=clip_radius(norm(r))) if state.radius == 0.0 else state


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
    convergence_term=False,
    initial_scale=None,
    initial_radius=1.0,
    radius_rule=DEFAULT_RULE,
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
      convergence_term: whether y of SR1-N and MoSR1 has the term ξs.
      initial_scale: γ where it is fixed, then `init`'s; `None` follows the pairs.
      initial_radius: Δ_0, `init`'s, to which a step that vanishes without a pair returns.
      radius_rule: what becomes of trial points and of Δ.
      clip: what is done to the caller's gradient before the direction is computed from it.
    """
    r = grad(state.params)
    g = r if clip is None else clip(r)
    if not (is_finite(r) and is_finite(g)):  # 0.0: the step is skipped
        state, leaves = skip(state)
        if not leaves or method == "lsr1":  # whose gradient was finite where its last step ended
            return state
        return leave_point(state, method, initial_scale, radius_rule)
    state = replace(state, k=state.k + 1, skipped_in_a_row=0)
    settings = Settings(
        memory_size=memory_size,
        momentum=nesterov_momentum(0.95) if momentum is None else momentum,
        solver=solver or ("exact" if method == "lsr1" else "cg"),
        convergence_term=convergence_term,
        initial_scale=initial_scale,
        initial_radius=initial_radius,
        rule=radius_rule,
    )
    if method == "lsr1_search":
        return search_step(state, loss, r, g, settings)
    if method == "lsr1":
        return trust_region_step(state, loss, grad, r, g, settings)
    if method == "sr1n":
        return nesterov_step(state, loss, grad, r, g, settings)
    return momentum_step(state, loss, r, g, settings)


def leave_point(state, method, initial_scale, rule):
    """The state at w, for a look-ahead method, or at the iterate before, with a smaller radius."""
    move = np.zeros_like(state.w)
    if method == "mosr1":
        move = state.v
    elif method == "lsr1_search" and state.waiting is not None:
        move, _ = state.waiting
    left = replace(refuse(state), refused_steps=state.refused_steps, alpha=state.alpha)
    if method == "mosr1" and initial_scale is None:
        left = replace(left, gamma=0.0)
    if state.radius > 0.0:
        left = replace(left, radius=max(rule.shrink * state.radius, MIN_RADIUS))
    back = state.w - move
    return leave(left, w=back, params=back, g_prev=None, updates_prev=None)


def store(state, s, r_hat, r_next, settings, convergence_term=False):
    """The state after the pair of the step s from r̂ = ∇E(ŵ) is stored or refused."""
    y = eps = r_next - r_hat
    if convergence_term:
        y = eps + xi(s, eps, r_hat) * s  # y = ε + ξs
    return with_pair(state, s, y, settings.memory_size, initial_scale=settings.initial_scale)


def trust_region_step(state, loss, grad, r, g, settings):
    """L-SR1 by trust region, whose count is already advanced."""
    w = state.w
    if not np.any(g):
        return state
    state = begun(with_radius(state, r), g, settings.initial_scale)
    B = hessian(state)
    s = solve(B, g, state.radius, settings)  # T 4, 7
    if not is_finite(s) or vanishes(w, s):
        return refuse(begun_anew(state, s, settings))
    value, trial_value, r_trial = loss(w), loss(w + s), grad(w + s)
    ratio = 0.0
    if np.isfinite(value) and np.isfinite(trial_value) and is_finite(r_trial):
        ratio = reduction_ratio(value, trial_value, -model(B, r, s))  # T 10, 11
        state = store(state, s, r, r_trial, settings)  # T 12, 26 to 40
    accepted = ratio > settings.rule.accept
    w_next = w + s if accepted else w  # T 13 to 17
    return replace(
        state,
        w=w_next,
        params=w_next,
        radius=next_radius(state.radius, ratio, norm(s), settings.rule),  # T 18 to 25
        rejected_steps=state.rejected_steps + (not accepted),
        alpha=float(accepted),
    )


def search_step(state, loss, r, g, settings):
    """L-SR1 by line search, whose count is already advanced."""
    w = state.w
    if state.waiting is not None:
        s, r_before = state.waiting
        fixed = settings.initial_scale
        state = with_pair(state, s, r - r_before, settings.memory_size, True, fixed)
        state = replace(state, waiting=None)
    begins = replace(state, radius=1.0)  # without a pair H0 g has length 1
    begins = begun(begins, g, settings.initial_scale) if np.any(g) else begins
    product = inverse_hessian(begins) @ g
    if not is_finite(product):
        d = -normalized(g)
    elif g @ product <= 0.0:  # H may be indefinite
        d = -g / begins.gamma  # −H0 g
    else:
        d = -product  # S 4, 7
    start = min(1.0, 2.0 * state.lambda_prev)
    alpha, passed = armijo(loss, w, d, r @ d, start)  # λ_0, λ_0/2, …
    state = replace(
        state,
        lambda_prev=alpha if passed else 1.0,
        searches_failed=state.searches_failed + (not passed),
    )
    w_next = w + alpha * d
    s = w_next - w
    if alpha == 0.0 or (np.any(alpha * d) and not np.any(s)):
        return refuse(state)
    return replace(state, w=w_next, params=w_next, waiting=(s, r), alpha=alpha)


def momentum_at(momentum, count):
    """μ of the step after so many since the last rejection, with which it begins again: θ = 1."""
    return value_at(momentum, count) if count else 0.0


def nesterov_step(state, loss, grad, r, g, settings):
    """SR1-N, whose count is already advanced; r and g are gradients at ŵ = w + μv."""
    w_hat, momentum = state.params, settings.momentum
    mu = momentum_at(momentum, state.since_rejection)
    if not np.any(g):
        if not np.isfinite(loss(w_hat)):
            state = rejected(state)
            return replace(state, params=state.w)
        return moved(state, w_hat, mu * state.v, momentum)  # s = 0: the momentum goes on
    state = begun(with_radius(state, r), g, settings.initial_scale)
    B = hessian(state)
    s = solve(B, g, state.radius, settings)
    if not is_finite(s) or vanishes(w_hat, s):
        return refuse(begun_anew(state, s, settings))
    value, trial_value, r_trial = loss(w_hat), loss(w_hat + s), grad(w_hat + s)
    ratio = 0.0
    if np.isfinite(value) and np.isfinite(trial_value) and is_finite(r_trial):
        ratio = reduction_ratio(value, trial_value, -model(B, r, s))
        state = store(state, s, r, r_trial, settings, settings.convergence_term)
    radius = next_radius(state.radius, ratio, norm(s), settings.rule)
    state = replace(state, radius=radius)
    if ratio > settings.rule.accept:  # w⁺ = ŵ + s, v⁺ = μv + s
        return moved(state, w_hat + s, mu * state.v + s, momentum)
    state = rejected(state)
    return replace(state, params=state.w)


def momentum_step(state, loss, r, g, settings):
    """MoSR1, whose count is already advanced; r and g are gradients at w."""
    if state.waiting is not None:
        state = store(state, *state.waiting, r, settings, settings.convergence_term)
    r_last = r if state.g_prev is None else state.g_prev  # ∇E(w_{−1}) := ∇E(w_0)
    g_last = g if state.updates_prev is None else state.updates_prev
    state = replace(state, waiting=None, g_prev=r, updates_prev=g)
    mu = momentum_at(settings.momentum, state.since_rejection)
    w_hat = state.w + mu * state.v
    g_hat = (1.0 + mu) * g - mu * g_last  # each kind by itself
    r_hat = (1.0 + mu) * r - mu * r_last
    if not np.any(g_hat):
        if not np.isfinite(loss(w_hat)):
            return rejected(state)
        return replace(moved(state, w_hat, mu * state.v, 0.0), params=w_hat)
    before = state.gamma
    state = begun(with_radius(state, r), g_hat, settings.initial_scale)
    known = state.s_list or state.B is not None or settings.initial_scale is not None
    if not known and state.since_rejection == 0 and state.k > 1:
        state = replace(state, gamma=max(LARGER * before, state.gamma))
    B = hessian(state)
    s = solve(B, g_hat, state.radius, settings)
    if not is_finite(s) or vanishes(w_hat, s):
        state = refuse(begun_anew(state, s, settings))
        return state if settings.initial_scale is not None else replace(state, gamma=0.0)
    ratio = reduction_ratio(loss(w_hat), loss(w_hat + s), -model(B, r_hat, s))
    known = state.s_list or state.B is not None
    accepted = ratio > settings.rule.accept
    if accepted or known:  # without a pair a rejection, which leaves none, blames γ and not Δ
        state = replace(state, radius=next_radius(state.radius, ratio, norm(s), settings.rule))
    if not accepted:
        return rejected(state)
    state = replace(state, waiting=(s, r_hat))
    return replace(moved(state, w_hat + s, mu * state.v + s, 0.0), params=w_hat + s)


def moved(state, w, v, momentum):
    """The state at a new iterate, and the look-ahead point from there."""
    count = state.since_rejection + 1
    params = w + momentum_at(momentum, count) * v
    return replace(state, w=w, v=v, params=params, since_rejection=count, alpha=1.0)


def rejected(state):
    """The state after a rejected step, in which the momentum starts anew."""
    return replace(state, since_rejection=0, rejected_steps=state.rejected_steps + 1, alpha=0.0)
