"""A search for the strong Wolfe conditions: Optax's, begun where quasi-Newton codes begin it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from naqopt import _checks, _tree
from naqopt._tree import Scalar
from naqopt.steps.armijo import first_sufficient

_NOISE = 1e-6  # of a loss, relative to it: Hager's and Zhang's ε, and Optax's


class WolfeState(NamedTuple):
    """State of `naqopt.wolfe`, named as Optax's searches name theirs.

    Attributes:
      learning_rate: α of the last search.
      value: the loss at its end.
      grad: the gradient there.
      info: `optax.ZoomLinesearchInfo`.
      previous_value: the loss where it began; infinite before the first.
    """

    learning_rate: Any
    value: Any
    grad: Any
    info: Any
    previous_value: Any


def wolfe(max_linesearch_steps: int = 20) -> optax.GradientTransformationExtraArgs:
    r"""A line search for the strong Wolfe conditions, for dense quasi-Newton methods.

    Optax's zoom search, whose first trial is that of SciPy's and other quasi-Newton codes: the
    minimum of the parabola with the slope of now along which the loss would fall by as much as in
    the last step,

    .. math::
      \alpha = \min\left(1, 2.02\, \frac{E(w) - E(w_{prev})}{\nabla E(w)^\top d}\right)

    so that an initial matrix that is too large costs no trials, and one near the true one gets
    :math:`\alpha = 1`. While an optimizer of this library knows no curvature, at the start and
    behind a refused step, the length of its direction means nothing: then the first trial is what
    `naqopt.armijo` finds, which takes losses alone, as 20 trials need not be enough to come down to
    the :math:`10^{-9}` times the length that a stiff loss asks for.

    Near a minimum losses differ by less than their rounding. There slopes decide, by the
    approximate conditions of Hager and Zhang: :math:`E` may rise by :math:`10^{-6} |E|` (float32:
    :math:`3 \cdot 10^{-4} |E|`) if the slope says that it falls. So a run goes on to the rounding
    of the gradient.

    Args:
      max_linesearch_steps: trials at most behind the first one's, ≥ 1 (default: that of
        `optax.lbfgs`).

    Returns:
      An `optax.GradientTransformationExtraArgs`, for the argument `linesearch` of `naqopt.bfgs`,
      `naqopt.naq`, `naqopt.moq`, `naqopt.lsr1`, `naqopt.ssbroyden` and `naqopt.ssbfgs`, and, as any
      search of Optax's, behind any direction.

    Raises:
      ValueError: if `max_linesearch_steps` is below 1.
      TypeError: if it is no int.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum(p**4)
      >>> tx = optax.chain(optax.sgd(0.1), naqopt.wolfe())
      >>> params = jnp.array([1.0])
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...   value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
      ...   updates, state = tx.update(
      ...     grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   params = optax.apply_updates(params, updates)
      >>> print(f"{params[0]:.2f}")
      0.46

    References:
      Nocedal and Wright, *Numerical Optimization*, second edition, Section 3.5 and Equation 3.60;
      Hager and Zhang, *A new conjugate gradient method with guaranteed descent and an efficient
      line search*, SIAM Journal on Optimization 16(1), 2005.

    Costs a loss and its gradient a trial, of which one is the rule; the last one's serve the next
    step where the optimizer keeps them (`store_grad`). Not for noisy losses.
    """
    steps = _checks.size("wolfe", "max_linesearch_steps", max_linesearch_steps)

    def zoom(dtype: Any) -> optax.GradientTransformationExtraArgs:
        wide = jnp.promote_types(dtype, jnp.float32)
        return optax.scale_by_zoom_linesearch(
            steps,
            initial_guess_strategy="keep",
            approx_dec_rtol=max(_NOISE, float(jnp.finfo(wide).eps) ** 0.5),
        )

    def init(params: optax.Params) -> WolfeState:
        begun: Any = zoom(_tree.scalar_dtype(params)).init(params)
        unknown = jnp.full_like(begun.learning_rate, jnp.inf)
        return WolfeState(begun.learning_rate, begun.value, begun.grad, begun.info, unknown)

    def update(
        updates: optax.Updates,
        state: WolfeState,
        params: optax.Params,
        *,
        value: Any,
        grad: optax.Updates,
        value_fn: Callable[[optax.Params], Any],
        unscaled: Scalar | bool = False,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WolfeState]:
        del extra_args
        start = jnp.asarray(value).astype(jnp.asarray(state.value).dtype)
        slope = _tree.dot(grad, updates).astype(start.dtype)
        alpha = first_trial(start, state.previous_value, slope)
        trials = jnp.zeros((), jnp.int32)
        if unscaled is not False:

            def loss(alpha: Scalar) -> Scalar:
                there = value_fn(_tree.add_scaled(params, alpha, updates))
                return jnp.asarray(there, start.dtype)

            always = jnp.ones((), bool)
            crude = first_sufficient(
                loss, start, jnp.minimum(slope, 0), always, jnp.asarray(unscaled)
            )
            alpha, trials = jnp.where(crude.alpha > 0, crude.alpha, alpha), crude.trials
        begun = optax.ScaleByZoomLinesearchState(alpha, state.value, state.grad, state.info)
        updates, state_of_zoom = zoom(start.dtype).update(
            updates, begun, params, value=value, grad=grad, value_fn=value_fn
        )
        found: Any = state_of_zoom
        info = found.info._replace(num_linesearch_steps=found.info.num_linesearch_steps + trials)
        return updates, WolfeState(found.learning_rate, found.value, found.grad, info, start)

    return optax.GradientTransformationExtraArgs(init, update)


def first_trial(value: Scalar, previous: Scalar, slope: Scalar) -> Scalar:
    """Returns 2.02 (E − E_prev)/slope where that is positive and below 1, and 1 elsewhere."""
    falls = (value < previous) & jnp.isfinite(previous) & (slope < 0)
    change = jnp.where(falls, 2.02 * (value - previous), -1)
    alpha = change / jnp.where(falls, slope, -1)
    return jnp.where(jnp.isfinite(alpha) & (alpha > 0), jnp.minimum(1, alpha), 1)
