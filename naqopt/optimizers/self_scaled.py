"""The self-scaled updates of Broyden's class, for scientific losses to high accuracy."""

from typing import Any

import optax

from naqopt import _checks
from naqopt.curvature.broyden import SSBFGS, SSBROYDEN
from naqopt.optimizers.full_batch import searching
from naqopt.steps.wolfe import wolfe


def ssbroyden(
    *,
    linesearch: optax.GradientTransformationExtraArgs = wolfe(),  # noqa: B008
    store_grad: bool = True,
    initial_scale: float | str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Self-scaled Broyden: the dense matrix of `naqopt.bfgs` by another update.

    .. math::
      H^+ = \frac1\tau \left[ H - \frac{H y\, y^\top H}{y^\top H y} + \phi\, (y^\top H y)\,
      v v^\top \right] + \rho\, s s^\top, \qquad v = \rho s - \frac{H y}{y^\top H y}, \qquad
      \rho = \frac{1}{s^\top y}

    with :math:`\tau \le 1` and :math:`\phi \ge 0` from :math:`b = \rho\, s^\top B s` and
    :math:`h = \rho\, y^\top H y`, see `naqopt.curvature.broyden`. Where the matrix expects more
    curvature along the step than there was (:math:`b > 1`), all of it is scaled, and not that one
    direction alone: what it has not seen lately is not left behind. For BFGS
    :math:`\tau = \phi = 1`.

    Args:
      linesearch: one of Optax's line searches, which should end with the Wolfe conditions: after a
        step without :math:`s^\top y > 0` there is no update (default: by measuring, as its first
        trials are mostly taken).
      store_grad: whether value and gradient at the new params, which the search has computed, are
        kept in the state, where `optax.value_and_grad_from_state` finds them. For deterministic
        losses alone.
      initial_scale: as in `naqopt.bfgs`.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.bfgs`'s, and survives the
      same.

    Raises:
      ValueError: by `init` for a dense matrix of more than 4 GiB; by `update` for a missing
        `value_fn` or `params`, a loss that is no scalar, or params of another structure than init
        had.
      TypeError: for a `linesearch` that is none, and complex or integer params.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p - jnp.array([1.0, -2.0])) ** 4) + jnp.prod(p) ** 2
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.ssbroyden()
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(20):
      ...   params, state = step(params, state)
      >>> print(f"{jnp.linalg.norm(jax.grad(loss)(params)):.3f}")
      0.000

    References:
      Al-Baali, *Numerical experience with a class of self-scaling quasi-Newton algorithms*, Journal
      of Optimization Theory and Applications 96, 1998.
      Urbán, Stefanou and Pons, *Unveiling the optimization process of physics informed neural
      networks*, 2024 (`arXiv:2405.04230 <https://arxiv.org/abs/2405.04230>`_).

    Costs a gradient a trial of the search, the last of which with `store_grad` serves the next step
    too, and two products with the matrix and a pass to change it: d² numbers. Made for float64: y
    is a difference of gradients. With momentum take `naqopt.naq(memory_size=None,
    update="ssbroyden")`. Not for mini-batches, and not for more than some ten thousand params.
    """
    return _dense("ssbroyden", SSBROYDEN, linesearch, store_grad, initial_scale)


def ssbfgs(
    *,
    linesearch: optax.GradientTransformationExtraArgs = wolfe(),  # noqa: B008
    store_grad: bool = True,
    initial_scale: float | str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Self-scaled BFGS (Al-Baali): BFGS whose old matrix is divided by :math:`\tau`.

    .. math::
      H^+ = \frac1\tau \left[ H - \frac{H y\, y^\top H}{y^\top H y} + (y^\top H y)\, v v^\top
      \right] + \rho\, s s^\top, \qquad
      \tau = \min\left(1, \frac{s^\top y}{s^\top B s}\right)

    All else is as in `naqopt.ssbroyden`.

    Args:
      linesearch: as in `naqopt.ssbroyden`.
      store_grad: as in `naqopt.ssbroyden`.
      initial_scale: as in `naqopt.bfgs`.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.bfgs`'s.

    Raises:
      ValueError: as `naqopt.ssbroyden`.
      TypeError: as `naqopt.ssbroyden`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum(jnp.cosh(p) * jnp.array([1.0, 100.0]))
      >>> params = jnp.array([1.0, 2.0])
      >>> tx = naqopt.ssbfgs()
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(20):
      ...   params, state = step(params, state)
      >>> print(f"{loss(params):.3f}")
      101.000

    References:
      Al-Baali, *Numerical experience with a class of self-scaling quasi-Newton algorithms*, Journal
      of Optimization Theory and Applications 96, 1998.

    Costs what `naqopt.ssbroyden` costs, and is not for what that is not for.
    """
    return _dense("ssbfgs", SSBFGS, linesearch, store_grad, initial_scale)


def _dense(
    optimizer: str, update: str, linesearch: Any, store_grad: Any, initial_scale: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns the dense `naqopt.bfgs` by another update, whose messages name the call."""
    _checks.flag(optimizer, "store_grad", store_grad)
    if linesearch is None:
        raise ValueError(
            f"naqopt.{optimizer}: `linesearch` is None, so nothing decides how far to step. Give "
            f"one: naqopt.{optimizer}(linesearch=naqopt.wolfe())."
        )
    return searching(
        optimizer,
        learning_rate=None,
        momentum=None,
        memory_size=None,
        linesearch=linesearch,
        convergence_term=False,
        history_dtype=None,
        two_gradients=False,
        store_grad=store_grad,
        update=update,
        initial_scale=1.0 if initial_scale is None else initial_scale,
    )
