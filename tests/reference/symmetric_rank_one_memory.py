"""The pairs and the matrices of the symmetric-rank-one methods, as plain dense algebra.

A memory is limited, pairs from which the matrix is formed anew, or dense, a matrix that is
updated. Of a pair (s, y), scaled to ‖s‖ = 1, B is updated by B⁺ = B + rrᵀ/(rᵀs) with r = y − Bs;
the inverse H comes from the same formulas with s and y exchanged.
"""

from dataclasses import replace

import numpy as np

from .adaptive import is_finite, push, quiet

MIN_ANGLE = 1e-8  # of the test |sᵀr| ≥ c‖s‖‖r‖
NEGLIGIBLE = 1e-12  # a squared difference, as a share of the squares
SINGULAR = 1e-12  # an eigenvalue of M⁻¹, as a share of the largest product it is made of
MIN_SCALE, MAX_SCALE = 1e-3, 1e3  # of γ


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
    """H of a state of the line search: the dual formula with H0 = I."""
    return compact(state.y_list, state.s_list, 1.0, state.w.size)


def scale(s, y):
    """γ = yᵀy/sᵀy within its bounds, for sᵀy > 0."""
    return float(np.clip((y @ y) / (s @ y), MIN_SCALE, MAX_SCALE))


def differs(a, b):
    """Whether ‖a − b‖² is more than a negligible share of ‖a‖² + ‖b‖²."""
    return (a - b) @ (a - b) > NEGLIGIBLE * (a @ a + b @ b)


def is_update(matrix, s, y):
    """Whether r = y − Bs is finite and |sᵀr| ≥ 1e-8 ‖s‖‖r‖ is not 0."""
    r = y - matrix @ s
    bound = MIN_ANGLE * np.linalg.norm(s) * np.linalg.norm(r)
    return bool(is_finite(r) and s @ r != 0.0 and abs(s @ r) >= bound)


@quiet
def with_pair(state, s, y, memory_size, inverse=False):
    """The state after the pair (s, y) is stored or refused.

    Args:
      state: a `SymmetricRankOneState`, left as it is.
      s: the step.
      y: the gradient difference, ξs included.
      memory_size: m, the pairs kept; `None` is the dense matrix.
      inverse: whether the pairs are tested and dropped for H with H0 = I instead of B.
    """
    refused = replace(state, refused=state.refused + 1)
    norm = np.linalg.norm(s)
    if not (is_finite(s) and is_finite(y) and norm > 0.0):
        return refused
    s, y = s / norm, y / norm
    if memory_size is None:
        return with_dense_pair(state, s, y, refused)
    if inverse:
        passes = is_update(inverse_hessian(state), y, s) and differs(s, y)
    else:
        passes = is_update(hessian(state), s, y) and differs(y, state.gamma * s)
    if not passes:
        return refused
    s_list, y_list = push(state.s_list, s, memory_size), push(state.y_list, y, memory_size)
    gamma = state.gamma
    if not inverse:  # of the newest pair with sᵀy > 0; the last one where there is none
        pairs = zip(s_list, y_list, strict=True)
        gamma = ([gamma] + [scale(s, y) for s, y in pairs if s @ y > 0.0])[-1]
    while s_list and (
        is_singular(y_list, s_list, 1.0) if inverse else is_singular(s_list, y_list, gamma)
    ):
        s_list, y_list = s_list[1:], y_list[1:]
    return replace(state, s_list=s_list, y_list=y_list, gamma=gamma, stored=state.stored + 1)


def with_dense_pair(state, s, y, refused):
    """The same for the dense matrix, which is I before its first pair.

    The first pair is tested by that I; it sets B = γI, to which it is then added unless γI already
    explains it.
    """
    first = state.B is None
    B, gamma = np.eye(s.size) if first else state.B, state.gamma
    if not (is_update(B, s, y) and differs(y, B @ s)):
        return refused
    if first:
        gamma = scale(s, y) if s @ y > 0.0 else 1.0
        B = gamma * np.eye(s.size)
    r = y - B @ s
    if is_update(B, s, y) and differs(y, B @ s):
        B = B + np.outer(r, r) / (r @ s)
    return replace(state, B=B, gamma=gamma, stored=state.stored + 1)


def cleared(state):
    """The state with an empty memory, γ = 1, and no pair that waits."""
    return replace(state, s_list=[], y_list=[], B=None, gamma=1.0, waiting=None)
