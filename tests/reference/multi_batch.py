"""Multi-batch oMoQ, step by step on flat float64 vectors, with the state of `quasi_newton`.

The listing is that of "Stochastic MoQ" (M, lines as printed) but for line 13. A batch X_k has three
parts X_k^(1), X_k^(2), X_k^(3), and X_{k+1}^(3) = X_k^(2) = X_{k-1}^(1) = Ω, so that

y = ∇E(w_{k+1}; Ω) − {(1 + μ)∇E(w_k; Ω) − μ∇E(w_{k−1}; Ω)}

is of one Ω. In the state `waiting` holds s and what stands in braces, `g_prev` the gradient
∇E(w_{k−1}; X_{k−1}^(1)) while the next batch still has that part, and `updates_prev` that of the
last whole batch, clipped.
"""

from dataclasses import replace

import numpy as np

from .quasi_newton import inverse_hessian_product, refuse, to_direction, value_at, with_pair
from .vectors import is_finite, leave, quiet, skip


@quiet
def step(
    state,
    grads,
    *,
    memory_size,
    learning_rate,
    momentum,
    damping=1.0,
    normalize=True,
    min_curvature=1e-8,
    clip=None,
):
    """One step; returns the new state.

    Args:
      state: a `QuasiNewtonState`, left as it is.
      grads: the gradients of the loss on X_k^(1), X_k^(2) and X_k^(3), functions of a point.
      memory_size: m, the pairs kept; `None` is the dense matrix.
      learning_rate: a number or a function of the count of steps from 0.
      momentum: μ, likewise.
      damping: λ.
      normalize: whether the direction has norm 1.
      min_curvature: c of the pair test.
      clip: what is done to the whole batch's gradient before the direction is computed from it.
    """
    k, w, v = state.k, state.w, state.v
    first, second, third = (grad(w) for grad in grads)
    whole = (first + second + third) / 3.0  # ∇E(w_k, X_k)
    g = whole if clip is None else clip(whole)
    if not all(is_finite(x) for x in (first, second, third, whole, g)):
        # The step is skipped. The next batch has neither the part that the pair waits for, nor that
        # of which ∇E(w_{k−1}; ·) is known.
        state, leaves = skip(replace(state, waiting=None, g_prev=None))
        if not leaves:
            return state
        back = replace(refuse(state), refused_steps=state.refused_steps, alpha=state.alpha)
        w = state.w - state.v  # to the iterate before
        return leave(back, w=w, params=w, g_prev=None, updates_prev=None)
    state = replace(state, skipped_in_a_row=0)

    if state.waiting is not None:  # M 13, of step k − 1: Ω = X_k^(3)
        s, g_hat_omega = state.waiting
        eps = third - g_hat_omega
        state = with_pair(state, s, eps, eps + damping * s, memory_size, min_curvature, False)

    mu = value_at(momentum, k)
    if state.updates_prev is None:  # w_{−1} := w_0, where v_0 = 0
        g_hat, g_hat_omega = g, second
    else:
        g_hat = (1.0 + mu) * g - mu * state.updates_prev  # M 4
        g_hat_omega = None
        if state.g_prev is not None:  # Ω = X_k^(2) = X_{k−1}^(1)
            g_hat_omega = (1.0 + mu) * second - mu * state.g_prev
    state = replace(state, k=k + 1, g_prev=first, updates_prev=g)  # M 9

    d = to_direction(inverse_hessian_product(state, g_hat, True), g_hat, normalize)  # M 5-6
    alpha = value_at(learning_rate, k)  # M 3
    if not np.isfinite(alpha):
        return refuse(state)
    v_next = mu * v + alpha * d  # M 7
    w_next = w + v_next  # M 8
    s = w_next - (w + mu * v)  # M 12
    waiting = None if g_hat_omega is None else (s, g_hat_omega)
    return replace(state, w=w_next, v=v_next, params=w_next, waiting=waiting, alpha=alpha)
