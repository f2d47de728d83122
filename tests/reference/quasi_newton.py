"""BFGS, NAQ, MoQ, mNAQ and the online oBFGS, oNAQ, oMoQ, step by step on flat float64 vectors.

A state is an immutable record; a step returns a new one. Counts start from 0, so the step about
to be taken is number `k + 1` of the listings, which count from 1. The numbers in the comments are
the lines of the published listings "oBFGS", "oNAQ" and "Stochastic MoQ" (B, N and M); the full
batch methods differ from them by the line search in place of the normalisation.
"""

from dataclasses import dataclass, replace

import numpy as np

from .searches import armijo, explicit_step, two_way
from .two_loop import two_loop
from .vectors import is_finite, leave, norm, normalized, push, quiet, skip

FULL_BATCH_MIN_CURVATURE = 1e-8
MOMENTUM_DAMPING = 1e-5  # γ of the momentum recursion


@dataclass(frozen=True)
class Rules:
    """What tells the methods apart.

    Attributes:
      looks_ahead: the caller's gradient is that of the look-ahead point w + μv.
      extrapolates: the gradient there is (1 + μ)∇E(w_k) − μ∇E(w_{k−1}).
      waits: the pair of a step is formed when the next gradient arrives.
      online: mini-batches; no line search, a normalised direction and damping in place of ξ.
    """

    looks_ahead: bool
    extrapolates: bool
    waits: bool
    online: bool


METHODS = {
    "bfgs": Rules(looks_ahead=False, extrapolates=False, waits=True, online=False),
    "naq": Rules(looks_ahead=True, extrapolates=False, waits=False, online=False),
    "moq": Rules(looks_ahead=False, extrapolates=True, waits=True, online=False),
    "mnaq": Rules(looks_ahead=True, extrapolates=False, waits=False, online=False),
    "obfgs": Rules(looks_ahead=False, extrapolates=False, waits=False, online=True),
    "onaq": Rules(looks_ahead=True, extrapolates=False, waits=False, online=True),
    "omoq": Rules(looks_ahead=False, extrapolates=True, waits=True, online=True),
}


@dataclass(frozen=True)
class QuasiNewtonState:
    """What the methods remember between steps.

    Attributes:
      k: steps taken, the refused ones included and the skipped ones left out.
      w: the iterate.
      v: the velocity.
      params: the point at which the caller takes the next gradient, w + μv or w.
      s_list: steps of the stored pairs, oldest first, at most `memory_size`; empty if dense.
      y_list: gradient differences of the stored pairs, oldest first; empty if dense.
      H: the dense matrix, `None` while it has seen no pair.
      waiting: (s, raw ĝ) of a pair that waits for its second gradient, or `None`.
      g_prev: the raw gradient of the last step, or `None`.
      updates_prev: the same gradient, clipped, or `None`.
      losses: the known ones of the last iterates, oldest first, at most `restart_window`.
      lipschitz: Lip of mNAQ.
      alpha: the last step size, the learning rate included; 0 at a refused step.
      stored: pairs that passed the test.
      refused: pairs that failed it.
      skipped: steps whose gradient was not finite when it was handed over.
      skipped_in_a_row: the last of them, since a step that was taken or a bad point that was left.
      left: points that were left since no gradient there was finite.
      refused_steps: steps on which something computed from a finite gradient was not finite.
      searches_failed: line searches none of whose trials passed.
      momentum_restarts: look-ahead points above all the known losses.
      by_pair: whether γ of the next first pair is that pair's, whatever is given: after a refusal.
    """

    k: int
    w: np.ndarray
    v: np.ndarray
    params: np.ndarray
    s_list: list
    y_list: list
    H: np.ndarray | None
    waiting: tuple | None
    g_prev: np.ndarray | None
    updates_prev: np.ndarray | None
    losses: list
    lipschitz: float
    alpha: float
    stored: int
    refused: int
    skipped: int
    skipped_in_a_row: int
    left: int
    refused_steps: int
    searches_failed: int
    momentum_restarts: int
    by_pair: bool = False


def init(w):
    """The state before the first step at `w`; with v = 0 that is also the look-ahead point."""
    w = np.array(w, dtype=np.float64)
    return QuasiNewtonState(
        k=0,
        w=w,
        v=np.zeros_like(w),
        params=w.copy(),
        s_list=[],
        y_list=[],
        H=None,
        waiting=None,
        g_prev=None,
        updates_prev=None,
        losses=[],
        lipschitz=1.0,
        alpha=0.0,
        stored=0,
        refused=0,
        skipped=0,
        skipped_in_a_row=0,
        left=0,
        refused_steps=0,
        searches_failed=0,
        momentum_restarts=0,
    )


def inverse_sqrt(alpha):
    """α/√k, k the count of steps from 1."""
    return lambda count: alpha / np.sqrt(count + 1)


def harmonic(alpha, tau):
    """ατ/(τ + k), k the count of steps from 1."""
    return lambda count: alpha * tau / (tau + count + 1)


def nesterov_momentum(cap=0.95):
    """The momentum of amNAQ as a function of the count of steps from 0."""

    def momentum(count):
        theta = 1.0  # θ_0 = 1
        for _ in range(count):
            theta = next_theta(theta)
        # μ_k = min(θ_k(1 − θ_k)/(θ_k² + θ_{k+1}), μ_max)
        return min(theta * (1.0 - theta) / (theta**2 + next_theta(theta)), cap)

    return momentum


def next_theta(theta):
    """The positive root of θ² = (1 − θ)θ_k² + γθ."""
    b = MOMENTUM_DAMPING - theta**2
    return (b + np.sqrt(b**2 + 4.0 * theta**2)) / 2.0


def xi(s, eps, g_hat):
    """ξ = ω‖ĝ‖ + max(−εᵀs/‖s‖², 0) of the global-convergence term."""
    omega = 2.0 if norm(g_hat) > 0.1 else 100.0
    length = norm(s)
    return omega * norm(g_hat) + (max(-(eps @ s) / length / length, 0.0) if length else 0.0)


def is_curved(s, y, min_curvature):
    """The pair test sᵀy > c‖s‖‖y‖, for finite vectors, with an sᵀy that can be divided by."""
    product = s @ y
    finite = is_finite(s) and is_finite(y) and np.isfinite(product)
    cosine = finite and product > min_curvature * norm(s) * norm(y)
    return bool(cosine and product >= np.finfo(np.float64).tiny)


def with_pair(
    state, s, eps, y, memory_size, min_curvature, first_scale_by_eps, initial_scale="first_pair"
):
    """The state after the pair (s, y) is stored or refused; ε is y without its term in s."""
    if not is_curved(s, y, min_curvature):
        state = replace(state, refused=state.refused + 1)
        if is_finite(s) and np.any(s) and y @ y == 0.0:  # too short a step to change the gradient
            state = replace(state, s_list=[], y_list=[], H=None, by_pair=False)
        return state
    state = replace(
        state,
        stored=state.stored + 1,
        lipschitz=100.0 * norm(y) / norm(s),  # Lip = 100‖y‖/‖s‖
    )
    if memory_size is not None:
        return replace(
            state,
            s_list=push(state.s_list, s, memory_size),
            y_list=push(state.y_list, y, memory_size),
        )
    identity = np.eye(s.size)
    H = state.H
    given = initial_scale != "first_pair" and not state.by_pair
    if H is None and given:  # before the first update H = γI
        H = initial_scale * identity
    elif H is None:  # or (sᵀy/yᵀy)I
        numerator = s @ eps if first_scale_by_eps and s @ eps > 0.0 else s @ y
        H = numerator / norm(y) / norm(y) * identity
    rho = 1.0 / (s @ y)
    # B 12, N 12, M 14: H⁺ = (I − ρsyᵀ) H (I − ρysᵀ) + ρssᵀ
    H = (identity - rho * np.outer(s, y)) @ H @ (identity - rho * np.outer(y, s)) + rho * np.outer(
        s, s
    )
    return replace(state, H=H, by_pair=False)


def has_pair(state):
    """Whether H is made of a pair."""
    return state.H is not None or bool(state.s_list)


def inverse_hessian_product(state, g, online):
    """The product H g: dense, two-loop, or γg while there is no pair."""
    if state.H is not None:
        return state.H @ g
    if state.s_list:
        pairs = zip(state.s_list, state.y_list, strict=True)
        ratios = [s @ y / norm(y) / norm(y) for s, y in pairs]  # sᵀy/yᵀy
        gamma = np.mean(ratios) if online else ratios[-1]
        return two_loop(state.s_list, state.y_list, g, gamma)
    return g if online else normalized(g)  # γ = 1, or 1/‖ĝ‖


def to_direction(product, g, normalize):
    """The direction −H g, normalised where asked for, or −g/‖g‖ where H g is not finite."""
    if not is_finite(product):
        product, normalize = g, True
    return -normalized(product) if normalize else -product


def overshoots(losses, loss, w_hat):
    """Whether E(ŵ) is not finite or above the known losses, of which there is at least one."""
    if not losses:
        return False
    value = loss(w_hat)
    return not (np.isfinite(value) and value <= max(losses))


def restart(state):
    """The state in which the momentum starts anew, at w and with the pairs there are."""
    return replace(
        state,
        v=np.zeros_like(state.v),
        params=state.w,
        losses=[],
        alpha=0.0,
        momentum_restarts=state.momentum_restarts + 1,
    )


def refuse(state):
    """The state after a refused step: w stays, with v = 0, so that the look-ahead point is w."""
    return replace(
        state,
        v=np.zeros_like(state.v),
        params=state.w,
        s_list=[],
        y_list=[],
        H=None,
        waiting=None,
        losses=[],
        alpha=0.0,
        refused_steps=state.refused_steps + 1,
        by_pair=True,
    )


def step_size(state, loss, w_hat, d, slope, method, search):
    """The step size along d, and whether a search, if there is one, had a trial that passed."""
    if METHODS[method].online:
        return 1.0, True
    if method == "mnaq":
        alpha = explicit_step(loss, w_hat, d, slope, state.lipschitz)
        moves = np.any(w_hat + alpha * d - w_hat)
        # What vanishes in rounding would be refused for ever where no pair tells the length of d.
        if has_pair(state) or moves or not slope < 0.0:
            return alpha, True
        return two_way(loss, w_hat, d, slope)
    if search is None:
        search = armijo if has_pair(state) else two_way
    return search(loss, w_hat, d, min(slope, 0.0))  # uphill nothing but a decrease suffices


def value_at(schedule, count):
    """A number, or what a function of the count of steps says."""
    return schedule(count) if callable(schedule) else schedule


@quiet
def step(
    state,
    loss,
    grad,
    *,
    method,
    memory_size,
    learning_rate=1.0,
    momentum=0.0,
    convergence_term=False,
    damping=1.0,
    normalize=True,
    min_curvature=FULL_BATCH_MIN_CURVATURE,
    restart_window=None,
    search=None,
    clip=None,
    initial_scale="first_pair",
):
    """One step of a method, sections 3 and 4 of the algorithms; returns the new state.

    Args:
      state: a `QuasiNewtonState`, left as it is.
      loss: the loss of this step's batch as a function of a point.
      grad: its gradient; the first call of a step is the caller's, at `state.params`.
      method: a key of `METHODS`.
      memory_size: m, the pairs kept; `None` is the dense matrix.
      learning_rate: a number or a function of the count of steps from 0.
      momentum: μ, a number or a function of the count of steps from 0; 0 for BFGS and oBFGS.
      convergence_term: whether y has the term ξs; mNAQ has it always, the online ones never.
      damping: λ of the online methods' y.
      normalize: whether the online methods' direction has norm 1.
      min_curvature: c of the pair test.
      restart_window: M, the known losses with which NAQ, MoQ and mNAQ compare E(ŵ); `None`: none.
      search: the line search of BFGS, NAQ and MoQ, a function like `armijo`; `None` takes `two_way`
        while there is no pair, and then `armijo`.
      clip: what is done to the caller's gradient before the direction is computed from it.
      initial_scale: γ of the dense matrix before its first update, or "first_pair".
    """
    rules = METHODS[method]
    k, w, v = state.k, state.w, state.v
    mu = value_at(momentum, k)
    w_hat = w + mu * v  # ŵ = w + μv; B: μ = 0

    r = grad(state.params)  # B 3: ∇E(w); N 3: ∇E(ŵ); M 1: ∇E(w)
    g = r if clip is None else clip(r)
    if not (is_finite(r) and is_finite(g)):  # the step is skipped
        state, leaves = skip(state)
        if not leaves or (rules.online and not rules.waits and not rules.looks_ahead):
            return state  # oBFGS: the gradient was finite where its last step ended
        move = np.zeros_like(w)  # N: from ŵ back to w
        if rules.extrapolates:
            move = v  # M: to the iterate before
        elif rules.waits and state.waiting is not None:
            move, _ = state.waiting
        left = replace(refuse(state), refused_steps=state.refused_steps, alpha=state.alpha)
        back = w - move
        return leave(left, w=back, params=back, g_prev=None, updates_prev=None)
    state = replace(state, skipped_in_a_row=0)

    def store(state, s, r_hat, r_next):
        eps = r_next - r_hat
        if rules.online:
            y = eps + damping * s  # B 11, N 11, M 13: y = ∇E₂ − ∇E₁ + λs
        elif convergence_term or method == "mnaq":
            y = eps + xi(s, eps, r_hat) * s  # y = ε + ξs
        else:
            y = eps
        plain = method == "mnaq"
        return with_pair(state, s, eps, y, memory_size, min_curvature, plain, initial_scale)

    if state.waiting is not None:  # M 11: ∇E₂ = ∇E(w_{k+1}; X_{k+1}) is this step's gradient
        state = store(state, *state.waiting, r)

    if overshoots(state.losses, loss, w_hat):
        state = restart(state)
        if rules.looks_ahead:  # a step back to w, and no more
            return replace(state, k=k + 1)
        v, mu, w_hat = state.v, 0.0, w  # v = 0: ŵ = w, and the gradients are those of w

    r_prev = r if state.g_prev is None else state.g_prev  # ∇E(w_{−1}) := ∇E(w_0)
    g_prev = g if state.updates_prev is None else state.updates_prev
    state = replace(state, k=k + 1, g_prev=r, updates_prev=g)  # M 9: store ∇E(w_k; X_k)
    r_hat, g_hat = r, g
    if rules.extrapolates:  # M 4: ∇E₁ = (1 + μ)∇E(w_k) − μ∇E(w_{k−1}), each kind by itself
        r_hat, g_hat = (1.0 + mu) * r - mu * r_prev, (1.0 + mu) * g - mu * g_prev

    product = inverse_hessian_product(state, g_hat, rules.online)
    d = to_direction(product, g_hat, rules.online and normalize)  # B 4-5, N 4-5, M 5-6: d = −Hĝ
    scale = value_at(learning_rate, k)  # B 6, N 6, M 3
    d = scale * d
    alpha, passed = step_size(state, loss, w_hat, d, r_hat @ d, method, search)
    state = replace(state, searches_failed=state.searches_failed + (not passed))

    v_next = mu * v + alpha * d  # B 7, N 7, M 7: v⁺ = μv + αd
    w_next = w + v_next  # B 8, N 8, M 8: w⁺ = w + v⁺
    s = w_next - w_hat  # B 10, N 10, M 12: s = w⁺ − ŵ
    vanishes = np.any(alpha * d) and not np.any(s) and not rules.online
    if vanishes or not (is_finite(d) and np.isfinite(alpha)) or (alpha == 0.0 and not passed):
        return refuse(state)
    if rules.waits:
        state = replace(state, waiting=(s, r_hat))
    else:
        r_next = grad(w_next)  # B 9, N 9: ∇E₂ = ∇E(w⁺), the same batch
        known = [*state.losses, loss(w_hat)] if restart_window is not None else []
        value = loss(w_next) if known else 0.0  # may be higher after mNAQ's step
        rises = bool(known) and not (np.isfinite(value) and value <= np.max(known))
        if not is_finite(r_next) or rises:
            return refuse(state)
        state = store(state, s, r_hat, r_next)
    if restart_window is not None:
        value = loss(w_next)
        losses = push(state.losses, value, restart_window) if np.isfinite(value) else state.losses
        state = replace(state, losses=losses)
    ahead = value_at(momentum, k + 1) * v_next if rules.looks_ahead else 0.0
    return replace(state, w=w_next, v=v_next, params=w_next + ahead, alpha=scale * alpha)
