"""Step lengths along a direction: Optax's line searches, and mNAQ's explicit step.

A step length is a `StepLength`, three pure functions with one number between steps. What `choose`
is asked and what it answers are a `Line` and a `Choice`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from naqopt import _tree
from naqopt._tree import Scalar, Tree


class Line(NamedTuple):
    """The line ŵ + α d along which a step length is sought.

    Attributes:
      loss: E of a point in at least float32.
      point: ŵ, in at least float32.
      direction: d, in the dtypes of the point.
      loss_at_point: E(ŵ), asked for only where it is needed.
      gradient: the raw gradient at ŵ, or its extrapolation.
    """

    loss: Callable[[Tree], jax.Array]
    point: Tree
    direction: Tree
    loss_at_point: Callable[[], Scalar]
    gradient: Tree


class Choice(NamedTuple):
    """The step length found.

    Attributes:
      alpha: α; 0 with `failed` where every trial failed, which refuses the step; None for 1.
      trials: how many points the loss was evaluated at.
      failed: whether the search ended without sufficient decrease.
      loss: E(ŵ + α d) where the search knows it.
      gradient: ∇E(ŵ + α d), raw, where the search has computed it.
    """

    alpha: Scalar | None
    trials: Scalar
    failed: Scalar
    loss: Scalar | None = None
    gradient: Tree | None = None


class StepLength(NamedTuple):
    """How a step length is found.

    Attributes:
      init: from a dtype to the number that is kept between steps.
      choose: from that number and a line to a choice and the next number.
      learn: from that number, a curvature pair and whether it was stored to the next number.
      needs_loss: whether `choose` evaluates the loss.
    """

    init: Callable[[Any], Scalar | None]
    choose: Callable[[Any, Line], tuple[Choice, Any]]
    learn: Callable[[Any, Tree, Tree, Scalar], Any] = lambda number, s, y, stored: number
    needs_loss: bool = True


def fixed() -> StepLength:
    """Returns the step length α = 1: the learning rate alone, with which d is scaled, decides."""

    def choose(number: None, line: Line) -> tuple[Choice, None]:
        return Choice(None, jnp.zeros((), jnp.int32), jnp.zeros((), bool)), number

    return StepLength(lambda dtype: None, choose, needs_loss=False)


def armijo() -> optax.GradientTransformationExtraArgs:
    r"""The papers' line search: Optax's backtracking search, set to their constants.

    The first :math:`\alpha` of :math:`1, \tfrac12, \tfrac14, \ldots` (14 trials) with

    .. math::
      E(\hat w + \alpha d) \le E(\hat w) + 10^{-3}\, \alpha\, \hat g^\top d

    and the last of them where none satisfies it.

    Returns:
      An `optax.scale_by_backtracking_linesearch`, for the argument `linesearch` of `naqopt.bfgs`,
      `naqopt.naq` and `naqopt.moq`, and, as any search of Optax's, for `optax.lbfgs` too.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum(p**4)
      >>> tx = optax.chain(optax.sgd(1.0), naqopt.armijo())
      >>> params = jnp.array([1.0])
      >>> value, grad = jax.value_and_grad(loss)(params)
      >>> updates, state = tx.update(
      ...   grad, tx.init(params), params, value=value, grad=grad, value_fn=loss)
      >>> print(optax.apply_updates(params, updates))
      [0.]

    References:
      Indrapriyadarsini et al., *Implementation of a modified Nesterov's Accelerated quasi-Newton
      method on Tensorflow*, ICMLA 2018.

    Costs a loss a trial, 1 at least. Not for losses whose noise hides the decrease: in float32 the
    condition cannot be met any more once the gradient is about the square root of the rounding.
    """
    return optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=13, slope_rtol=1e-3, decrease_factor=0.5, increase_factor=math.inf
    )


class _Seen(NamedTuple):
    """A line as one of Optax's searches is shown it."""

    start: Any
    direction: Any
    gradient: Any
    point_at: Callable[[Any], Tree]


def _seen_as_number(line: Line, zero: Scalar) -> _Seen:
    """A function of α, for a search by values: no trees to copy and none to multiply."""
    slope = _tree.dot(line.gradient, line.direction).astype(zero.dtype)

    def point_at(alpha: Scalar) -> Tree:
        return _tree.add(line.point, _tree.scale(alpha, line.direction))

    return _Seen(zero, jnp.ones_like(zero), slope, point_at)


def _seen_as_params(line: Line, zero: Scalar) -> _Seen:
    """A function of the params, for a search that computes gradients, which can be used then.

    Optax's searches compute in the dtype of the first leaf: a number in front, which does not move,
    makes that the widest one.
    """
    return _Seen(
        (zero, line.point), (zero, line.direction), (zero, line.gradient), lambda pair: pair[1]
    )


def search(linesearch: optax.GradientTransformationExtraArgs) -> StepLength:
    """Returns the step length that one of Optax's line searches finds.

    Of the search's state only the step length is kept, for searches that start from their last one,
    and `init` is called afresh. After a failure the next search starts from 1.
    """

    def choose(last: Scalar, line: Line) -> tuple[Choice, Scalar]:
        zero: Any = jnp.zeros_like(last)
        by_values = linesearch.init(zero).grad is None
        seen = _seen_as_number(line, zero) if by_values else _seen_as_params(line, zero)

        def loss(position: Any) -> Scalar:
            value = line.loss(seen.point_at(position)).astype(last.dtype)
            return jnp.where(jnp.isfinite(value), value, jnp.inf)  # such a trial fails

        _, state = linesearch.update(
            seen.direction,
            linesearch.init(seen.start)._replace(learning_rate=last),
            seen.start,
            value=line.loss_at_point().astype(last.dtype),
            grad=seen.gradient,
            value_fn=loss,
        )
        found: Any = state
        alpha = jnp.where(jnp.isfinite(found.learning_rate), found.learning_rate, 0).astype(
            last.dtype
        )
        failed = ~(found.info.decrease_error <= 0)
        choice = Choice(
            alpha,
            jnp.asarray(found.info.num_linesearch_steps, jnp.int32),
            failed,
            found.value,
            None if found.grad is None else found.grad[1],
        )
        return choice, jnp.where(failed, 1, alpha).astype(last.dtype)

    return StepLength(lambda dtype: jnp.ones((), dtype), choose)


def explicit() -> StepLength:
    r"""Returns mNAQ's step length: a single trial, and a formula where it fails.

    α = 1 where E(ŵ + d) ≤ E(ŵ) + η ĝᵀd with η = 1e-3; otherwise, with δ = 1e-4 (1e-7 where ‖d‖ >
    1000) and Lip = 100 ‖y‖/‖s‖ of the pair stored last (1 before the first)::

        α = −δ ĝᵀd / (Lip ‖d‖²)
    """

    def choose(lipschitz: Scalar, line: Line) -> tuple[Choice, Scalar]:
        dtype, d = lipschitz.dtype, line.direction
        slope = _tree.dot(line.gradient, d).astype(dtype)
        squared = _tree.squared_norm(d).astype(dtype)
        trial = line.loss(_tree.add(line.point, d)).astype(dtype)
        sufficient = trial <= line.loss_at_point().astype(dtype) + 1e-3 * slope
        delta = jnp.where(squared > 1e6, 1e-7, 1e-4)
        formula = -delta * slope / (lipschitz * jnp.where(squared > 0, squared, 1))
        one_trial, failed = jnp.ones((), jnp.int32), jnp.zeros((), bool)
        alpha = jnp.where(sufficient & jnp.isfinite(trial), 1, formula).astype(dtype)
        return Choice(alpha, one_trial, failed), lipschitz

    def learn(lipschitz: Scalar, s: Tree, y: Tree, stored: Scalar) -> Scalar:
        squared_s = _tree.squared_norm(s)
        usable = stored & (squared_s > 0)  # it underflows where s is short
        ratio = _tree.squared_norm(y) / jnp.where(usable, squared_s, 1)
        return jnp.where(usable, 100 * jnp.sqrt(ratio), lipschitz).astype(lipschitz.dtype)

    return StepLength(lambda dtype: jnp.ones((), dtype), choose, learn)
