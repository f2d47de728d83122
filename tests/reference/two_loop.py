"""The L-BFGS direction, by the two-loop recursion and by the dense matrix it stands for."""

import numpy as np


def two_loop(s_list, y_list, g, h0):
    """Algorithm 1 with the plus sign: the product `H g`; the caller negates it.

    Args:
      s_list: steps, oldest first.
      y_list: gradient differences, oldest first.
      g: the vector to multiply.
      h0: the diagonal of `H0`, a number or a vector.
    """
    tau = len(s_list)  # 1: τ = length(S)
    eta = g  # 2: η = g
    sigma = [0.0] * tau
    for i in reversed(range(tau)):  # 3: for i = τ, …, 2, 1
        sigma[i] = (s_list[i] @ eta) / (y_list[i] @ s_list[i])  # 4: σ_i = sᵀη / yᵀs
        eta = eta - sigma[i] * y_list[i]  # 5: η = η − σ_i y_i
    eta = h0 * eta  # 7: η = H0 η
    for i in range(tau):  # 8: for i = 1, 2, …, τ
        beta = (y_list[i] @ eta) / (y_list[i] @ s_list[i])  # 9: β = yᵀη / yᵀs
        eta = eta + (sigma[i] - beta) * s_list[i]  # 10: PLUS; the paper prints a minus
    return eta  # 12: d = −η is left to the caller


def dense_bfgs(s_list, y_list, h0):
    """The dense matrix `H` that `two_loop` multiplies by, built from `diag(h0)`.

    Args:
      s_list: steps, oldest first; at least one, unless `h0` is a vector.
      y_list: gradient differences, oldest first.
      h0: the diagonal of `H0`, a number or a vector.
    """
    size = np.size(h0) if not s_list else s_list[0].size
    identity = np.eye(size)
    H = h0 * identity
    for s, y in zip(s_list, y_list, strict=True):
        rho = 1.0 / (s @ y)
        left = identity - rho * np.outer(s, y)
        H = left @ H @ left.T + rho * np.outer(s, s)  # (I − ρsyᵀ) H (I − ρysᵀ) + ρssᵀ
    return H
