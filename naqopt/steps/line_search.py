"""Step lengths along a direction: Optax's line searches, and mNAQ's explicit step.

A step length is a `StepLength`, three pure functions with one number, or none, between steps.
What `choose` is asked and what it answers are a `Line` and a `Choice`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from naqopt import _tree
from naqopt._tree import Scalar, Tree
from naqopt.steps.armijo import ArmijoInfo, first_sufficient
from naqopt.steps.wolfe import WolfeState


class Line(NamedTuple):
    """The line ŵ + α d along which a step length is sought.

    Attributes:
      loss: E of a point in at least float32.
      point: ŵ, in at least float32.
      direction: d, in the dtypes of the point.
      loss_at_point: E(ŵ), asked for only where it is needed.
      gradient: the raw gradient at ŵ, or its extrapolation.
      unscaled: whether the length of d means nothing, as no pair is known.
    """

    loss: Callable[[Tree], jax.Array]
    point: Tree
    direction: Tree
    loss_at_point: Callable[[], Scalar]
    gradient: Tree
    unscaled: Scalar


class Choice(NamedTuple):
    """The step length found.

    Attributes:
      alpha: α; 0 with `failed` where no trial lay below E(ŵ), which refuses the step; None for 1.
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
      init: from a dtype to the number that is kept between steps, a `PreviousLoss` where it is
        the loss's.
      choose: from that number and a line to a choice and the next number.
      learn: from that number, a curvature pair and whether it was stored to the next number.
      needs_loss: whether `choose` evaluates the loss.
    """

    init: Callable[[Any], Any]
    choose: Callable[[Any, Line], tuple[Choice, Any]]
    learn: Callable[[Any, Tree, Tree, Scalar], Any] = lambda number, s, y, stored: number
    needs_loss: bool = True


class PreviousLoss(NamedTuple):
    """What a search keeps that compares its loss with the last one's.

    Attributes:
      previous_loss: E where the last search began; infinite where unknown.
    """

    previous_loss: jax.Array

    def unknown(self) -> "PreviousLoss":
        """Returns that nothing is known."""
        return PreviousLoss(jnp.full_like(self.previous_loss, jnp.inf))


def fixed() -> StepLength:
    """Returns the step length α = 1: the learning rate alone, with which d is scaled, decides."""

    def choose(number: None, line: Line) -> tuple[Choice, None]:
        return Choice(None, jnp.zeros((), jnp.int32), jnp.zeros((), bool)), number

    return StepLength(lambda dtype: None, choose, needs_loss=False)


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

    Of the search's state one number is kept, and `init` is called afresh: the step length, for
    searches that start from their last one, or what `naqopt.wolfe` makes its first trial of. After
    a failure the next search starts anew.
    """

    def choose(kept_number: Any, line: Line) -> tuple[Choice, Any]:
        (last,) = jax.tree.leaves(kept_number)
        zero: Any = jnp.zeros_like(last)
        kept = linesearch.init(zero)
        remembered, unknown = _memory(kept)
        by_values = kept.grad is None
        is_ours = isinstance(kept.info, ArmijoInfo) or isinstance(kept, WolfeState)
        lengthens = {"unscaled": line.unscaled} if is_ours else {}
        seen = _seen_as_number(line, zero) if by_values else _seen_as_params(line, zero)

        def loss(position: Any) -> Scalar:
            value = line.loss(seen.point_at(position)).astype(last.dtype)
            return jnp.where(jnp.isfinite(value), value, jnp.inf)  # such a trial fails

        start = line.loss_at_point().astype(last.dtype)
        _, state = linesearch.update(
            seen.direction,
            linesearch.init(seen.start)._replace(**{remembered: last}),
            seen.start,
            value=start,
            grad=seen.gradient,
            value_fn=loss,
            **lengthens,
        )
        found: Any = state
        alpha, value = found.learning_rate, found.value
        failed = ~(found.info.decrease_error <= 0)
        # What is not sufficient is taken if it lies below E(ŵ), be that infinite.
        lower = jnp.isfinite(value) & ~(value >= start)
        usable = jnp.isfinite(alpha) & (~failed | lower)
        choice = Choice(
            jnp.where(usable, alpha, 0).astype(last.dtype),
            jnp.asarray(found.info.num_linesearch_steps, jnp.int32),
            failed,
            value,
            None if found.grad is None else found.grad[1],
        )
        number = jnp.where(failed, unknown, getattr(found, remembered)).astype(last.dtype)
        return choice, jax.tree.map(lambda _: number, kept_number)

    def init(dtype: Any) -> Any:
        # Its shape alone, as what else it holds is infinite, of which `jax_debug_infs` would warn.
        begun = jax.eval_shape(linesearch.init, jnp.zeros((), dtype))
        number = jnp.full((), _memory(begun)[1], dtype)
        return PreviousLoss(number) if isinstance(begun, WolfeState) else number

    return StepLength(init, choose)


def _memory(state: Any) -> tuple[str, float]:
    """Returns what of a search's state is kept between steps, and what it is at first."""
    return ("previous_value", jnp.inf) if isinstance(state, WolfeState) else ("learning_rate", 1.0)


def explicit() -> StepLength:
    r"""Returns mNAQ's step length: a single trial, and a formula where it fails.

    α = 1 where E(ŵ + d) ≤ E(ŵ) + η ĝᵀd with η = 1e-3; otherwise, with δ = 1e-4 (1e-7 where ‖d‖ >
    1000) and Lip = 100 ‖y‖/‖s‖ of the pair stored last (1 before the first)::

        α = −δ ĝᵀd / (Lip ‖d‖²)

    Where that is so short that ŵ + α d is ŵ in the params' rounding, and no pair tells how long d
    should be, the step is searched for as other methods search for their first: refused, it would
    be the same again for ever.
    """

    def choose(lipschitz: Scalar, line: Line) -> tuple[Choice, Scalar]:
        dtype, d = lipschitz.dtype, line.direction
        slope = _tree.dot(line.gradient, d).astype(dtype)
        squared = _tree.squared_norm(d).astype(dtype)
        trial = line.loss(_tree.add(line.point, d)).astype(dtype)
        sufficient = trial <= line.loss_at_point().astype(dtype) + 1e-3 * slope
        delta = jnp.where(squared > 1e6, 1e-7, 1e-4)
        formula = -delta * slope / (lipschitz * jnp.where(squared > 0, squared, 1))
        alpha = jnp.where(sufficient & jnp.isfinite(trial), 1, formula).astype(dtype)

        there = _tree.add(line.point, _tree.scale(alpha, d))
        vanishes = line.unscaled & (slope < 0) & _tree.is_zero(_tree.subtract(there, line.point))
        found = first_sufficient(
            lambda alpha: line.loss(_tree.add(line.point, _tree.scale(alpha, d))).astype(dtype),
            line.loss_at_point().astype(dtype),
            slope,
            jnp.ones((), bool),
            vanishes,
        )
        alpha = jnp.where(vanishes, found.alpha, alpha)
        failed = vanishes & ~found.sufficient
        return Choice(alpha, 1 + found.trials, failed), lipschitz

    def learn(lipschitz: Scalar, s: Tree, y: Tree, stored: Scalar) -> Scalar:
        squared_s = _tree.squared_norm(s)
        usable = stored & (squared_s > 0)  # it underflows where s is short
        ratio = _tree.squared_norm(y) / jnp.where(usable, squared_s, 1)
        return jnp.where(usable, 100 * jnp.sqrt(ratio), lipschitz).astype(lipschitz.dtype)

    return StepLength(lambda dtype: jnp.ones((), dtype), choose, learn)
