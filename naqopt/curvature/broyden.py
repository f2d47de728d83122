r"""The updates of Broyden's class, self-scaled or not, as numbers θ, φ and τ.

With :math:`\rho = 1/s^\top y`, :math:`h = \rho\, y^\top H y`, :math:`b = \rho\, s^\top B s`,
:math:`a = h b - 1` and d parameters

.. math::
  H^+ = \frac1\tau \left[ H - \frac{H y\, y^\top H}{y^\top H y} + \phi\, (y^\top H y)\, v v^\top
  \right] + \rho\, s s^\top, \qquad v = \rho s - \frac{H y}{y^\top H y}, \qquad
  \phi = \frac{1 - \theta}{1 + a \theta}

============= =====================================================================================
update        θ and τ
============= =====================================================================================
``bfgs``      θ = 0, τ = 1
``dfp``       θ = 1, τ = 1
``ssbfgs``    θ = 0, τ = min(1, 1/b)
``ssbroyden`` θ = max(θ⁻, min(θ⁺, (1 − b)/b)) with ρ⁻ = min(1, h (1 − c)), c = √(a/(1 + a)),
              θ⁻ = (ρ⁻ − 1)/a, θ⁺ = 1/ρ⁻; with σ = 1 + aθ and ρ_k = min(1, 1/b)
              τ = min(ρ_k σ^(1/(1 − d)), σ) where θ ≤ 0, else ρ_k min(σ^(1/(1 − d)), 1/θ)
============= =====================================================================================

References:
  Al-Baali, *Numerical experience with a class of self-scaling quasi-Newton algorithms*, Journal of
  Optimization Theory and Applications 96, 1998.
  Urbán, Stefanou and Pons, *Unveiling the optimization process of physics informed neural
  networks*, 2024 (`arXiv:2405.04230 <https://arxiv.org/abs/2405.04230>`_).
"""

from typing import NamedTuple

import jax.numpy as jnp

from naqopt._tree import Scalar

BFGS, DFP, SSBFGS, SSBROYDEN = "bfgs", "dfp", "ssbfgs", "ssbroyden"
UPDATES = (BFGS, DFP, SSBFGS, SSBROYDEN)
SELF_SCALED = (SSBFGS, SSBROYDEN)


class Coefficients(NamedTuple):
    """The numbers of an update.

    Attributes:
      phi: φ, 1 for BFGS and 0 for DFP.
      tau: τ, by which the old matrix is divided; in (0, 1].
    """

    phi: Scalar
    tau: Scalar


def coefficients(update: str, h: Scalar, b: Scalar, d: int) -> Coefficients:
    """Returns φ and τ.

    Args:
      update: one of `UPDATES`.
      h: yᵀHy / sᵀy.
      b: sᵀBs / sᵀy, at least 0; only the self-scaled updates look at it.
      d: the number of parameters.
    """
    one = jnp.ones_like(h)
    if update == BFGS:
        return Coefficients(one, one)
    if update == DFP:
        return Coefficients(jnp.zeros_like(h), one)
    rho_k = 1 / jnp.maximum(1, b)
    if update == SSBFGS:
        return Coefficients(one, rho_k)
    # At least 0, (sᵀy)² being at most yᵀHy sᵀBs, but not in rounding, and from a = −1e-16 the
    # formulas would make θ⁻ = 1e8 and τ = 1e-8. With a ≥ 0 they keep φ ≥ 0 and τ in (0, 1], so that
    # H⁺ is positive definite whatever the errors of a and b.
    a = jnp.maximum(h * b - 1, 0)
    c = jnp.sqrt(a / (1 + a))
    # ρ⁻ = min(1, h(1 − c)) without the difference: 1 − c = 1/((1 + a)(1 + c)) and 1 + a = hb.
    reach = b * (1 + c)
    rho_minus = 1 / jnp.maximum(1, reach)
    theta_plus = jnp.maximum(1, reach)
    # As a → 0 it falls without bound, or decides nothing.
    theta_minus = jnp.where(a > 0, (rho_minus - 1) / jnp.where(a > 0, a, 1), -jnp.inf)
    # As b → 0 it grows past θ⁺, which is 1 below b = ½.
    wanted = jnp.where(b > 0.5, (1 - b) / jnp.where(b > 0.5, b, 1), theta_plus)
    theta = jnp.maximum(theta_minus, jnp.minimum(theta_plus, wanted))
    sigma = jnp.maximum(1 + a * theta, rho_minus)  # which it is not below but by rounding
    root = sigma ** (1 / (1 - d)) if d > 1 else one  # of one parameter a = 0
    positive = theta > 0
    tau = jnp.where(
        positive,
        rho_k * jnp.minimum(root, 1 / jnp.where(positive, theta, 1)),
        jnp.minimum(rho_k * root, sigma),
    )
    return Coefficients((1 - theta) / sigma, tau)
