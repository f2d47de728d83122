"""adaQN and aSNAQ, step by step on flat float64 vectors.

A state is an immutable record; a step returns a new one. All counters and `k` start from 0, so
the step about to be taken is number `k + 1` of the listings, which count from 1.
"""

from dataclasses import dataclass

import numpy as np

from .two_loop import two_loop
from .vectors import is_finite, leave, normalized, push, quiet, skip


@dataclass(frozen=True)
class AdaqnState:
    """What adaQN remembers between steps.

    Attributes:
      k: steps taken, the skipped ones left out.
      t: completed cycles that set the anchor.
      w: the iterate.
      w_sum: sum of the iterates of the running cycle.
      w_anchor: the average that the next one is judged against, w_o.
      accumulator: the accumulated squares of the gradients, G.
      s_list: steps of the stored pairs, oldest first, at most `memory_size`.
      y_list: gradient differences of the stored pairs, oldest first.
      fisher: gradients, oldest first, at most `fisher_size`: the FIFO F.
      stored: pairs that passed the test.
      refused: pairs that failed it.
      restorations: cycles whose average was judged worse than the anchor.
      skipped: steps whose gradient was not finite when it was handed over.
      skipped_in_a_row: the last of them, since a step that was taken or a bad point that was left.
      left: points that were left since no gradient there was finite.
      refused_steps: steps on which something computed from a finite gradient was not finite.
    """

    k: int
    t: int
    w: np.ndarray
    w_sum: np.ndarray
    w_anchor: np.ndarray
    accumulator: np.ndarray
    s_list: list
    y_list: list
    fisher: list
    stored: int
    refused: int
    restorations: int
    skipped: int
    skipped_in_a_row: int
    left: int
    refused_steps: int

    @property
    def params(self):
        """The point at which the caller takes the gradient: the iterate."""
        return self.w


@dataclass(frozen=True)
class AsnaqState:
    """What aSNAQ remembers between steps.

    Attributes:
      k: steps taken, the skipped ones left out.
      t: completed cycles that set the anchors.
      w: the iterate.
      v: the velocity.
      w_sum: sum of the iterates of the running cycle.
      v_sum: sum of the velocities of the running cycle.
      w_anchor: the average iterate that the next one is judged against, w_o.
      v_anchor: the average velocity that belongs to it, v_o.
      momentum: μ of the look-ahead point and of the next step.
      step_scale: c, the factor of the step size that the back-off moves.
      accumulator: the accumulated squares of the gradients, G.
      s_list: steps of the stored pairs, oldest first, at most `memory_size`.
      y_list: gradient differences of the stored pairs, oldest first.
      fisher: gradients, oldest first, at most `fisher_size`: the FIFO F.
      stored: pairs that passed the test.
      refused: pairs that failed it.
      restorations: cycles whose average was judged worse than the anchor.
      skipped: steps whose gradient was not finite when it was handed over.
      skipped_in_a_row: the last of them, since a step that was taken or a bad point that was left.
      left: points that were left since no gradient there was finite.
      refused_steps: steps on which something computed from a finite gradient was not finite.
    """

    k: int
    t: int
    w: np.ndarray
    v: np.ndarray
    w_sum: np.ndarray
    v_sum: np.ndarray
    w_anchor: np.ndarray
    v_anchor: np.ndarray
    momentum: float
    step_scale: float
    accumulator: np.ndarray
    s_list: list
    y_list: list
    fisher: list
    stored: int
    refused: int
    restorations: int
    skipped: int
    skipped_in_a_row: int
    left: int
    refused_steps: int

    @property
    def params(self):
        """The point at which the caller takes the gradient: the look-ahead point w + μv."""
        return self.w + self.momentum * self.v


def adaqn_init(w):
    """The state of adaQN before its first step at `w`."""
    w = np.array(w, dtype=np.float64)
    return AdaqnState(
        k=0,
        t=0,
        w=w,
        w_sum=np.zeros_like(w),
        w_anchor=w.copy(),
        accumulator=np.zeros_like(w),
        s_list=[],
        y_list=[],
        fisher=[],
        stored=0,
        refused=0,
        restorations=0,
        skipped=0,
        skipped_in_a_row=0,
        left=0,
        refused_steps=0,
    )


def asnaq_init(w, min_momentum):
    """The state of aSNAQ before its first step at `w`."""
    w = np.array(w, dtype=np.float64)
    return AsnaqState(
        k=0,
        t=0,
        w=w,
        v=np.zeros_like(w),
        w_sum=np.zeros_like(w),
        v_sum=np.zeros_like(w),
        w_anchor=w.copy(),
        v_anchor=np.zeros_like(w),
        momentum=float(min_momentum),
        step_scale=1.0,
        accumulator=np.zeros_like(w),
        s_list=[],
        y_list=[],
        fisher=[],
        stored=0,
        refused=0,
        restorations=0,
        skipped=0,
        skipped_in_a_row=0,
        left=0,
        refused_steps=0,
    )


def accumulate(accumulator, gradient, decay):
    """The new G: G + g², or the RMS form βG + (1 − β)g²; the largest number where it overflows."""
    if decay is None:
        total = accumulator + gradient**2
    else:
        total = decay * accumulator + (1.0 - decay) * gradient**2
    return np.minimum(total, np.finfo(np.float64).max)


def is_summable(gradient):
    """Whether the sum of g² is a number: G could not hold it, and H would be 0 from then on."""
    return is_finite(gradient) and np.isfinite(gradient @ gradient)


def fisher_product(fisher, s):
    """The product Fᵀ(F s)/|F|, and 0 for an empty F."""
    if not fisher:
        return np.zeros_like(s)
    F = np.stack(fisher)
    return F.T @ (F @ s) / len(fisher)


def is_worse(new, old, max_increase):
    """Not E_n ≤ E_o + (γ − 1)|E_o|; an E_n that is not finite is worse, a bad E_o alone is not."""
    if not np.isfinite(new):
        return True
    return bool(np.isfinite(old) and not new <= old + (max_increase - 1.0) * abs(old))


def is_curved(s, y, min_curvature):
    """The pair test sᵀy > c yᵀy, for finite vectors, with an sᵀy that can be divided by."""
    finite = is_finite(s) and is_finite(y)
    return bool(finite and s @ y > min_curvature * (y @ y) and s @ y >= np.finfo(np.float64).tiny)


def normalized_direction(hessian_gradient, gradient):
    """The direction −Hg/‖Hg‖; −g/‖g‖ where Hg is not finite; 0 where the norm is 0."""
    return -normalized(hessian_gradient if is_finite(hessian_gradient) else gradient)


@quiet
def adaqn_step(
    state,
    loss,
    grad,
    *,
    learning_rate,
    memory_size,
    fisher_size,
    cycle_length,
    max_increase,
    eps,
    min_curvature=1e-4,
    accumulator_decay=None,
    monitor=None,
    transform=None,
):
    """One step of adaQN, section 1 of the algorithms; returns the new state.

    Args:
      state: an `AdaqnState`, left as it is.
      loss: the loss of this step's batch as a function of the iterate.
      grad: its gradient.
      learning_rate: α, a number or a function of the count of steps from 0.
      memory_size: m_L, the pairs kept.
      fisher_size: m_F, the gradients kept.
      cycle_length: L.
      max_increase: γ of the check.
      eps: ε of H0.
      min_curvature: c of the pair test.
      accumulator_decay: β of the RMS form of G; `None` sums.
      monitor: E_M, the loss of the monitoring set; `None` takes `loss`.
      transform: what is done to the gradient before the direction is computed from it.
    """
    k, t, w, w_o, w_s = state.k, state.t, state.w, state.w_anchor, state.w_sum
    S, Y, F, G = state.s_list, state.y_list, state.fisher, state.accumulator
    stored, refused, restorations = state.stored, state.refused, state.restorations
    refused_steps = state.refused_steps
    alpha = learning_rate(k) if callable(learning_rate) else learning_rate
    E_M = loss if monitor is None else monitor

    g = grad(w)  # g = g(w; X)
    updates = g if transform is None else transform(g)
    if not (is_summable(g) and is_finite(updates)):  # 0.0: the step is skipped
        state, leaves = skip(state)
        if leaves:  # to w_o, as if this cycle had stood there so far
            there = {"w": w_o, "w_sum": k % cycle_length * w_o}
            state = leave(state, **there, s_list=[], y_list=[])
        return state
    F = push(F, g, fisher_size)  # push g into the FIFO F
    G = accumulate(G, g, accumulator_decay)  # G ← G + g², before H0 is used
    Hg = two_loop(S, Y, updates, 1.0 / np.sqrt(G + eps))  # two-loop, H0 = 1/√(G + ε)
    if is_finite(Hg):
        w_next = w - alpha * Hg  # w⁺ = w − α H g
    else:  # 0.0: the step is refused
        w_next, S, Y, refused_steps = w, [], [], refused_steps + 1
    w_s = w_s + w_next  # w_s += w⁺

    if (k + 1) % cycle_length == 0:  # every L steps:
        w_n = w_s / cycle_length  # w_n = w_s/L
        w_s = np.zeros_like(w)  # w_s = 0
        if t == 0:  # first cycle:
            w_o, t = w_n, t + 1  # w_o = w_n
        elif is_worse(E_M(w_n), E_M(w_o), max_increase):  # later: if worse(E_M(w_n), E_M(w_o)):
            S, Y, F = [], [], []  # clear (S,Y) and F
            w_next = w_o  # w⁺ = w_o
            restorations += 1
        else:
            s = w_n - w_o  # s = w_n − w_o
            y = fisher_product(F, s)  # y = Fᵀ(F s)/|F|
            if is_curved(s, y, min_curvature):  # if sᵀy > c yᵀy:
                S, Y = push(S, s, memory_size), push(Y, y, memory_size)  # store (s,y)
                w_o, t = w_n, t + 1  # w_o = w_n, only with a stored pair
                stored += 1
            else:
                refused += 1

    return AdaqnState(
        k=k + 1,
        t=t,
        w=w_next,
        w_sum=w_s,
        w_anchor=w_o,
        accumulator=G,
        s_list=S,
        y_list=Y,
        fisher=F,
        stored=stored,
        refused=refused,
        restorations=restorations,
        skipped=state.skipped,
        skipped_in_a_row=0,
        left=state.left,
        refused_steps=refused_steps,
    )


@quiet
def asnaq_step(
    state,
    loss,
    grad,
    *,
    learning_rate,
    min_momentum,
    max_momentum,
    momentum_factor,
    memory_size,
    fisher_size,
    cycle_length,
    max_increase,
    eps,
    min_curvature=1e-4,
    accumulator_decay=None,
    single_gradient=False,
    backoff=1.0,
    transform=None,
):
    """One step of aSNAQ, section 2 of the algorithms and Algorithm 2 of the paper.

    The numbers in the comments are the lines of the paper's Algorithm 2.

    Args:
      state: an `AsnaqState`, left as it is.
      loss: the loss of this step's batch as a function of a point.
      grad: its gradient.
      learning_rate: α, a number or a function of the count of steps from 0.
      min_momentum: μ_min.
      max_momentum: μ_max.
      momentum_factor: φ.
      memory_size: m_L, the pairs kept.
      fisher_size: m_F, the gradients kept.
      cycle_length: L.
      max_increase: γ of the check.
      eps: ε of H0.
      min_curvature: c of the pair test.
      accumulator_decay: β of the RMS form of G; `None` sums.
      single_gradient: whether F and G take the look-ahead gradient, so that one is enough.
      backoff: the factor of the step size at a restoration; 1 leaves it alone.
      transform: what is done to the gradient before the direction is computed from it.
    """
    k, t, mu, c = state.k, state.t, state.momentum, state.step_scale
    w, w_o, w_s = state.w, state.w_anchor, state.w_sum
    v, v_o, v_s = state.v, state.v_anchor, state.v_sum
    S, Y, F, G = state.s_list, state.y_list, state.fisher, state.accumulator
    stored, refused, restorations = state.stored, state.refused, state.restorations
    refused_steps = state.refused_steps
    alpha = (learning_rate(k) if callable(learning_rate) else learning_rate) * c

    g_hat = grad(w + mu * v)  # 2: ĝ = g(w + μv; X)
    updates = g_hat if transform is None else transform(g_hat)
    usable = is_summable(g_hat) if single_gradient else is_finite(g_hat)
    if not (usable and is_finite(updates)):  # 0.0: the step is skipped
        state, leaves = skip(state)
        if leaves:  # to w_o, as if this cycle had stood there so far
            still = np.zeros_like(v)
            there = {"w": w_o, "v": still, "w_sum": k % cycle_length * w_o, "v_sum": still}
            state = leave(state, **there, s_list=[], y_list=[])
        return state
    Hg = two_loop(S, Y, updates, 1.0 / np.sqrt(G + eps))  # 3: two-loop, H0 = 1/√(G + ε)
    d = normalized_direction(Hg, updates)  # 4: d ← d/‖d‖
    v_next = mu * v + alpha * d  # 5: v⁺ = μv + αd
    w_next = w + v_next  # 6: w⁺ = w + v⁺
    g_next = g_hat if single_gradient else grad(w_next)  # 7: g⁺ = g(w⁺; X), the same batch
    if is_summable(g_next):
        F = push(F, g_next, fisher_size)  # 7: push g⁺ into F
        G = accumulate(G, g_next, accumulator_decay)  # (8): G ← G + g⁺²
    else:  # 0.0: the step is refused
        w_next, v_next = w, np.zeros_like(v)
        S, Y, refused_steps = [], [], refused_steps + 1
    w_s = w_s + w_next  # 8: w_s += w⁺
    v_s = v_s + v_next  # 9: v_s += v⁺

    if (k + 1) % cycle_length == 0:  # 10: every L steps
        w_n, v_n = w_s / cycle_length, v_s / cycle_length  # 11: w_n = w_s/L, v_n = v_s/L
        w_s, v_s = np.zeros_like(w), np.zeros_like(v)  # 12: both sums = 0
        if t == 0:  # 13: first cycle
            w_o, v_o, t = w_n, v_n, t + 1  # 27, 28: w_o, v_o = w_n, v_n
        elif is_worse(loss(w_n), loss(w_o), max_increase):  # 14: worse(E(w_n; X), E(w_o; X))
            S, Y, F = [], [], []  # 15: clear (S,Y) and F
            w_next, v_next = w_o, v_o  # 16: w⁺, v⁺ = w_o, v_o
            mu = max(mu / momentum_factor, min_momentum)  # 17: μ = max(μ/φ, μ_min)
            c = max(c * backoff, 0.01)  # c ← max(c·backoff, 0.01)
            restorations += 1
        else:
            s = w_n - w_o  # 20: s = w_n − w_o
            y = fisher_product(F, s)  # 21: y = Fᵀ(F s)/|F|
            mu = min(mu * momentum_factor, max_momentum)  # 22: μ = min(μφ, μ_max)
            c = min(c / backoff, 1.0)  # c ← min(c/backoff, 1)
            if is_curved(s, y, min_curvature):  # 23: if sᵀy > c yᵀy
                S, Y = push(S, s, memory_size), push(Y, y, memory_size)  # 24: store (s,y)
                stored += 1
            else:
                refused += 1
            w_o, v_o, t = w_n, v_n, t + 1  # 27, 28: w_o, v_o = w_n, v_n

    return AsnaqState(
        k=k + 1,  # 30: k always advances
        t=t,
        w=w_next,
        v=v_next,
        w_sum=w_s,
        v_sum=v_s,
        w_anchor=w_o,
        v_anchor=v_o,
        momentum=mu,
        step_scale=c,
        accumulator=G,
        s_list=S,
        y_list=Y,
        fisher=F,
        stored=stored,
        refused=refused,
        restorations=restorations,
        skipped=state.skipped,
        skipped_in_a_row=0,
        left=state.left,
        refused_steps=refused_steps,
    )
