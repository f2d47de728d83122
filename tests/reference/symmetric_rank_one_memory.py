"""The pairs and the matrices of the symmetric-rank-one methods, as plain dense algebra.

A memory is limited, pairs from which the matrix is formed anew, or dense, a matrix that is
updated. Of a pair (s, y), scaled to ‖s‖ = 1, B is updated by B⁺ = B + rrᵀ/(rᵀs) with r = y − Bs;
the inverse H comes from the same formulas with s and y exchanged and 1/γ in place of γ.
"""

from dataclasses import replace

import numpy as np

from .vectors import is_finite, norm, push, quiet

MIN_ANGLE = 1e-8  # of the test |sᵀr| ≥ c‖s‖‖r‖
NEGLIGIBLE = 1e-12  # a squared difference, as a share of the squares
SINGULAR = 1e-12  # an eigenvalue of M⁻¹, as a share of the largest product it is made of
INITIAL_FACTOR = 0.5  # of sᵀy/sᵀs in γ; with 1 the pair of the largest makes M⁻¹ singular


def small_matrix(s_list, y_list, gamma):
    """M⁻¹ = D + L + Lᵀ − γSᵀS, and the largest |s_iᵀy_j| and γ|s_iᵀs_j|; L strictly below D."""
    S, Y = np.stack(s_list, axis=1), np.stack(y_list, axis=1)
    SY, SS = S.T @ Y, gamma * (S.T @ S)
    lower = np.tril(SY, -1)
    return np.diag(np.diag(SY)) + lower + lower.T - SS, np.max(np.abs([SY, SS]))


def is_singular(s_list, y_list, gamma):
    """Whether M⁻¹ has an eigenvalue that is nothing but rounding."""
    matrix, largest = small_matrix(s_list, y_list, gamma)
    if not np.all(np.isfinite(matrix)):
        return True
    return bool(np.min(np.abs(np.linalg.eigvalsh(matrix))) <= SINGULAR * largest)


def compact(s_list, y_list, gamma, size):
    """B = γI + ΨMΨᵀ with Ψ = Y − γS, a dense matrix; γI without a pair."""
    B = gamma * np.eye(size)
    if not s_list:
        return B
    Psi = np.stack(y_list, axis=1) - gamma * np.stack(s_list, axis=1)
    B = B + Psi @ np.linalg.solve(small_matrix(s_list, y_list, gamma)[0], Psi.T)
    return (B + B.T) / 2.0


def hessian(state):
    """B of a state."""
    if state.B is not None:
        return state.B
    return compact(state.s_list, state.y_list, state.gamma, state.w.size)


def inverse_hessian(state):
    """H of a state of the line search: the dual formula with H0 = I/γ."""
    return compact(state.y_list, state.s_list, 1.0 / state.gamma, state.w.size)


def scale(s_list, y_list, last, of=max):
    """γ = ½ max sᵀy/sᵀs over the pairs with sᵀy > 0; the last one where there is none.

    A line search's is ½ `of` these numbers' mean.
    """
    curvatures = [(s @ y) / (s @ s) for s, y in zip(s_list, y_list, strict=True) if s @ y > 0.0]
    return float(INITIAL_FACTOR * of(curvatures)) if curvatures else last


def begun(state, g, initial_scale):
    """The state with which a step is made: without a pair γ = ‖ĝ‖/Δ leads to the boundary."""
    if state.s_list or state.B is not None or initial_scale is not None:
        return state
    return replace(state, gamma=norm(g) / state.radius)


def first_scale(state, s, y, initial_scale):
    """γ with which a line search tests a pair: the first one's own, ‖y‖/‖s‖ where sᵀy ≤ 0."""
    if state.s_list or initial_scale is not None or not np.any(y):
        return state.gamma
    return scale([s], [y], norm(y) / norm(s))


def differs(a, b):
    """Whether ‖a − b‖² is more than a negligible share of ‖a‖² + ‖b‖²."""
    return norm(a - b) > np.sqrt(NEGLIGIBLE) * np.hypot(norm(a), norm(b))


def is_update(matrix, s, y):
    """Whether r = y − Bs is finite and |sᵀr| ≥ 1e-8 ‖s‖‖r‖ is finite and not 0."""
    r = y - matrix @ s
    bound = MIN_ANGLE * norm(s) * norm(r)
    return bool(is_finite(r) and np.isfinite(s @ r) and s @ r != 0.0 and abs(s @ r) >= bound)


@quiet
def with_pair(state, s, y, memory_size, inverse=False, initial_scale=None):
    """The state after the pair (s, y) is stored or refused.

    Args:
      state: a `SymmetricRankOneState`, left as it is.
      s: the step.
      y: the gradient difference, ξs included.
      memory_size: m, the pairs kept; `None` is the dense matrix.
      inverse: whether the pairs are tested and dropped for H with H0 = I/γ instead of B.
      initial_scale: γ where it is fixed, which is then that of the state; `None` follows the pairs.
    """
    refused = replace(state, refused=state.refused + 1)
    length = norm(s)
    if not (is_finite(s) and is_finite(y) and length > 0.0):
        return refused
    s, y = s / length, y / length
    if not is_finite(y):
        return refused
    if memory_size is None:
        return with_dense_pair(state, s, y, refused, initial_scale)
    gamma = state.gamma
    if inverse:
        gamma = first_scale(state, s, y, initial_scale)
        H = inverse_hessian(replace(state, gamma=gamma))
        passes = is_update(H, y, s) and differs(s, y / gamma)
    else:
        passes = is_update(hessian(state), s, y) and differs(y, gamma * s)
    if not passes:
        return refused
    s_list, y_list = push(state.s_list, s, memory_size), push(state.y_list, y, memory_size)
    if initial_scale is None:
        gamma = scale(s_list, y_list, gamma, np.mean if inverse else max)
    while s_list and (
        is_singular(y_list, s_list, 1.0 / gamma) if inverse else is_singular(s_list, y_list, gamma)
    ):
        s_list, y_list = s_list[1:], y_list[1:]
    return replace(state, s_list=s_list, y_list=y_list, gamma=gamma, stored=state.stored + 1)


def with_dense_pair(state, s, y, refused, initial_scale):
    """The same for the dense matrix, which is γI, with the first γ, before its first pair.

    The first pair is tested by that γI; it sets B = γI anew, to which it is then added unless this
    γI already explains it.
    """
    first = state.B is None
    B, gamma = hessian(state), state.gamma
    if not (is_update(B, s, y) and differs(y, B @ s)):
        return refused
    if first and initial_scale is None:
        gamma = scale([s], [y], gamma)
        B = gamma * np.eye(s.size)
    r = y - B @ s
    if is_update(B, s, y) and differs(y, B @ s):
        B = B + np.outer(r, r) / (r @ s)
    return replace(state, B=B, gamma=gamma, stored=state.stored + 1)


def cleared(state):
    """The state with an empty memory and no pair that waits."""
    return replace(state, s_list=[], y_list=[], B=None, waiting=None)
