"""The papers' step sizes and momenta as Optax schedules.

The papers count steps from 1; Optax hands a schedule 0 first. Every schedule here adds the 1.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from naqopt import _checks

Momentum = float | Callable[[jax.Array], Any]


def inverse_sqrt(initial: float) -> optax.Schedule:
    r"""The step sizes of online NAQ and MoQ, :math:`\alpha_k = \alpha_0 / \sqrt{k}`.

    Args:
      initial: α_0 ≥ 0, the first step size; the papers take 1.

    Returns:
      A schedule of the number of steps taken before, k − 1.

    Raises:
      ValueError: if α_0 is negative or not finite.

    Example:
      >>> import naqopt
      >>> schedule = naqopt.schedules.inverse_sqrt(1.0)
      >>> [round(float(schedule(count)), 4) for count in (0, 1, 3)]
      [1.0, 0.7071, 0.5]

    References:
      Indrapriyadarsini et al., *A Stochastic Quasi-Newton Method with Nesterov's Accelerated
      Gradient*, ECML-PKDD 2019.
    """
    _checks.number("schedules.inverse_sqrt", "initial", initial, low=0)

    def schedule(count: Any) -> jax.Array:
        return initial * jax.lax.rsqrt(_number(count))

    return schedule


def harmonic(initial: float, tau: float) -> optax.Schedule:
    r"""The step sizes of online BFGS, :math:`\alpha_k = \alpha_0 \tau / (\tau + k)`.

    Args:
      initial: α_0 ≥ 0, what the step size would be at k = 0; Schraudolph et al. take b/(b + 2) for
        batches of b.
      tau: τ > 0, the steps after which it has halved; the authors of oNAQ take 10.

    Returns:
      A schedule of the number of steps taken before, k − 1.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> import naqopt
      >>> schedule = naqopt.schedules.harmonic(1.0, 10)
      >>> [round(float(schedule(count)), 4) for count in (0, 9, 89)]
      [0.9091, 0.5, 0.1]

    References:
      Schraudolph, Yu and Günter, *A Stochastic Quasi-Newton Method for Online Convex Optimization*,
      AISTATS 2007.
    """
    _checks.number("schedules.harmonic", "initial", initial, low=0)
    _checks.number("schedules.harmonic", "tau", tau, low=_checks.SMALLEST)

    def schedule(count: Any) -> jax.Array:
        return jnp.asarray(initial * tau / (tau + _number(count)), jnp.result_type(float))

    return schedule


def nesterov_momentum(cap: float = 0.95) -> Callable[[Any], jax.Array]:
    r"""The growing momentum of amNAQ, LNAQ, LMoQ and SR1-N.

    From :math:`\theta_0 = 1` and with :math:`\gamma = 10^{-5}`,

    .. math::
      \theta_{k+1}^2 = (1 - \theta_{k+1})\,\theta_k^2 + \gamma\,\theta_{k+1}, \qquad
      \mu_k = \min\left(\frac{\theta_k (1 - \theta_k)}{\theta_k^2 + \theta_{k+1}},
      \mu_{max}\right)

    Args:
      cap: μ_max in [0, 1) (default: the papers'). Without it μ would end at 0.994.

    Returns:
      A schedule of the number of steps taken before, to be handed to `momentum` (and named static
      under `optax.inject_hyperparams`, which would shift it by a step).

    Raises:
      ValueError: if the cap is out of range.

    Example:
      >>> import naqopt
      >>> schedule = naqopt.schedules.nesterov_momentum()
      >>> [round(float(schedule(count)), 4) for count in (0, 1, 2, 3, 56)]
      [0.0, 0.2817, 0.434, 0.5311, 0.95]

    References:
      Indrapriyadarsini et al., *A Neural Network Approach to Analog Circuit Design Optimization
      using Nesterov's Accelerated Quasi-Newton Method*, ISCAS 2020.
    """
    _checks.number("schedules.nesterov_momentum", "cap", cap, 0, 1, high_open=True)
    gamma, theta, momenta = 1e-5, 1.0, [0.0]  # μ_0 = 0, as θ_0 = 1
    # The recursion has no closed form, so its values are tabulated until they stand still.
    while momenta[-1] < cap and (len(momenta) == 1 or momenta[-1] - momenta[-2] > 1e-9):
        theta = _next_theta(theta, gamma)
        momenta.append(min(theta * (1 - theta) / (theta**2 + _next_theta(theta, gamma)), cap))
    table = np.array(momenta)

    def schedule(count: Any) -> jax.Array:
        return jnp.asarray(table)[jnp.minimum(count, len(table) - 1)]

    return schedule


def _number(count: Any) -> jax.Array:
    """Returns k of the count from 0; not as an integer, which a saturated count would overflow."""
    return jnp.asarray(count, jnp.result_type(float)) + 1


def _next_theta(theta: float, gamma: float) -> float:
    """Solves θ⁺² = (1 − θ⁺) θ² + γ θ⁺ for θ⁺."""
    difference = gamma - theta**2
    return (difference + math.sqrt(difference**2 + 4 * theta**2)) / 2


def evaluate(
    name: str, value: float | Callable[[jax.Array], Any], count: jax.Array, dtype: Any
) -> jax.Array:
    """Returns a number, or a schedule of the 0-based count, as a scalar."""
    number = jnp.asarray(value(count) if callable(value) else value, dtype)
    if number.shape != ():
        raise ValueError(f"naqopt: `{name}` must give one number, got shape {number.shape}.")
    return number
