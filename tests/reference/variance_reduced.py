"""SVRG, SVRG+II, SVR-NAQ and SVR-LNAQ, step by step on flat float64 vectors.

A state is an immutable record; a step or a snapshot returns a new one. Counts start from 0, so the
step about to be taken is number `k + 1` of the paper, which counts from 1. The comments name the
equations of "A Stochastic Variance Reduced Nesterov's Accelerated Quasi-Newton Method" (2019) and
the sections of the algorithms; the formulas are those of section 5.
"""

from dataclasses import dataclass, replace

import numpy as np

from .quasi_newton import (
    inverse_hessian_product,
    inverse_sqrt,
    is_curved,
    to_direction,
    value_at,
)
from .vectors import is_finite, leave, norm, push, quiet, skip

MIN_CURVATURE = 1e-8  # c of the pair test, 0.4
LEARNING_RATES = {"svrg": 0.025, "svrg2": 0.025, "svr_naq": inverse_sqrt(1.0)}  # Eq. 14
METHODS = tuple(LEARNING_RATES)


@dataclass(frozen=True)
class VarianceReducedState:
    """What the methods remember between steps.

    Attributes:
      k: steps taken, the refused ones included and the skipped ones left out.
      w: the iterate.
      v: the velocity; 0 but for SVR-NAQ.
      params: the point at which the caller takes the next gradient, w + μv or w.
      s_list: differences of the snapshots of the stored pairs, oldest first; empty if dense.
      y_list: differences of their full gradients, oldest first; empty if dense.
      H: the dense matrix, `None` while it has seen no pair.
      snapshots: snapshots that were accepted.
      w_snapshot: the last of them, w̃, or `None`.
      full_grad: the full gradient there, Ω, or `None`.
      alpha: the step size of the last step taken; 0 at a refused step.
      stored: pairs that passed the test.
      refused: pairs that failed it.
      skipped: steps whose gradient was not finite when it was handed over.
      skipped_in_a_row: the last of them, since a step that was taken or a bad point that was left.
      left: points that were left since no gradient there was finite.
      refused_steps: steps on which something computed from a finite gradient was not finite.
      refused_snapshots: snapshots whose full gradient was not finite.
      plain_steps: steps taken before the first snapshot, the refused ones included.
    """

    k: int
    w: np.ndarray
    v: np.ndarray
    params: np.ndarray
    s_list: list
    y_list: list
    H: np.ndarray | None
    snapshots: int
    w_snapshot: np.ndarray | None
    full_grad: np.ndarray | None
    alpha: float
    stored: int
    refused: int
    skipped: int
    skipped_in_a_row: int
    left: int
    refused_steps: int
    refused_snapshots: int
    plain_steps: int


def init(w):
    """The state before the first step at `w`, without a snapshot."""
    w = np.array(w, dtype=np.float64)
    return VarianceReducedState(
        k=0,
        w=w,
        v=np.zeros_like(w),
        params=w.copy(),
        s_list=[],
        y_list=[],
        H=None,
        snapshots=0,
        w_snapshot=None,
        full_grad=None,
        alpha=0.0,
        stored=0,
        refused=0,
        skipped=0,
        skipped_in_a_row=0,
        left=0,
        refused_steps=0,
        refused_snapshots=0,
        plain_steps=0,
    )


def with_pair(state, s, y, memory_size):
    """The state after the pair (s, y) is stored or refused."""
    if not is_curved(s, y, MIN_CURVATURE):  # 0.4: finite and sᵀy > c‖s‖‖y‖
        return replace(state, refused=state.refused + 1)
    state = replace(state, stored=state.stored + 1)
    if memory_size is not None:  # SVR-LNAQ: "the last m curvature pairs"
        return replace(
            state,
            s_list=push(state.s_list, s, memory_size),
            y_list=push(state.y_list, y, memory_size),
        )
    identity = np.eye(s.size)
    H = state.H
    if H is None:  # 0.3: before the first update H = (sᵀy/yᵀy)I
        H = s @ y / norm(y) / norm(y) * identity
    rho = 1.0 / (s @ y)
    left = identity - rho * np.outer(s, y)
    # Eq. 5 and 11: H⁺ = (I − ρsyᵀ) H (I − ρysᵀ) + ρssᵀ
    return replace(state, H=left @ H @ left.T + rho * np.outer(s, s))


@quiet
def take_snapshot(state, full_grad, *, method, memory_size=4):
    """A snapshot at the iterate, at the end of an epoch; returns the new state.

    Args:
      state: a `VarianceReducedState`, left as it is.
      full_grad: Ω, the gradient over all the data at `state.w` (not at the look-ahead point).
      method: one of `METHODS`.
      memory_size: m, the pairs kept; `None` is the dense matrix.
    """
    full_grad = np.array(full_grad, dtype=np.float64)
    if not is_finite(full_grad):
        return replace(state, refused_snapshots=state.refused_snapshots + 1)
    new = replace(
        state, snapshots=state.snapshots + 1, w_snapshot=state.w, full_grad=full_grad
    )  # w̃ = w, Ω = ∇E(w̃)
    if state.snapshots == 0 or method == "svrg":
        return new
    s = state.w - state.w_snapshot  # Eq. 6, 13: s = w̃_new − w̃_old
    y = full_grad - state.full_grad  # Eq. 7, 13: y = Ω_new − Ω_old
    return with_pair(new, s, y, memory_size)


@quiet
def step(
    state,
    grad,
    *,
    method,
    learning_rate=None,
    momentum=0.9,
    warmup_learning_rate=0.025,
    clip=None,
):
    """One step of a method, section 5 of the algorithms; returns the new state.

    Args:
      state: a `VarianceReducedState`, left as it is.
      grad: the gradient of this step's batch as a function of a point; the first call of a step
        is the caller's, at `state.params`, and the second one, if any, at `state.w_snapshot`.
      method: one of `METHODS`.
      learning_rate: α, a number or a function of the count of steps from 0; `None` takes that of
        `LEARNING_RATES`. In SVR-NAQ the rate from the second snapshot on.
      momentum: μ of SVR-NAQ, a number or a function of the count of steps from 0.
      warmup_learning_rate: α of SVR-NAQ before the second snapshot.
      clip: what is done to the caller's gradient before the direction is computed from it.
    """
    k, w, v = state.k, state.w, state.v
    # "SVR-NAQ is pre-trained by SVRG" until there are two snapshots to make a pair of
    accelerated = method == "svr_naq" and state.snapshots >= 2
    plain = state.snapshots == 0

    r = grad(state.params)  # ∇E(w; X), or ∇E(w + μv; X) at the look-ahead point
    g = r if clip is None else clip(r)
    if not (is_finite(r) and is_finite(g)):  # 0.0: the step is skipped
        state, leaves = skip(state)
        if leaves and not plain:  # to w̃, as after a refused step
            there = {"w": state.w_snapshot, "params": state.w_snapshot, "v": np.zeros_like(v)}
            state = leave(state, **there, s_list=[], y_list=[], H=None)
        return state
    state = replace(state, skipped_in_a_row=0)

    G, refused = g, False
    if not plain:  # Eq. 12: G(z) = ∇E(z; X) − ∇E(w̃; X) + Ω
        r_snapshot = grad(state.w_snapshot)
        G = g - r_snapshot + state.full_grad
        refused = not (is_finite(r_snapshot) and is_finite(G))

    # Eq. 15: the γ of H0 is the mean of sᵀy/yᵀy; 1 without a pair, which SVRG never has
    product = inverse_hessian_product(state, G, online=True)
    d = to_direction(product, G, accelerated)  # Eq. 8: d = −H G; SVR-NAQ: d ← d/‖d‖
    if method == "svr_naq" and not accelerated:
        alpha = warmup_learning_rate
    else:  # Eq. 14: α_k = α_0/√k, k counting all steps
        rate = LEARNING_RATES[method] if learning_rate is None else learning_rate
        alpha = value_at(rate, k)
    # So long a step that its square is no number leaves no loss either.
    refused = refused or not np.isfinite((alpha * d) @ (alpha * d))
    state = replace(state, k=k + 1, plain_steps=state.plain_steps + plain)

    if refused:  # 0.0: the iterate stays, with v = 0; the snapshot stays too
        # "H fixed in the epoch", whose pairs are of snapshots: a batch's gradient leaves it as it
        # is, and only a step that is not finite though G is speaks against it.
        forgotten = {"s_list": [], "y_list": [], "H": None} if is_finite(G) else {}
        return replace(
            state,
            v=np.zeros_like(v),
            params=w,
            alpha=0.0,
            refused_steps=state.refused_steps + 1,
            **forgotten,
        )
    if not accelerated:
        w_next = w + alpha * d  # w⁺ = w − αG or w⁺ = w − αHG
        return replace(state, w=w_next, params=w_next, alpha=alpha)
    v_next = value_at(momentum, k) * v + alpha * d  # Eq. 9: v⁺ = μv + α_k d
    w_next = w + v_next  # Eq. 2: w⁺ = w + v⁺
    ahead = value_at(momentum, k + 1) * v_next
    return replace(state, w=w_next, v=v_next, params=w_next + ahead, alpha=alpha)
