"""Step lengths along a direction: Optax's line searches, and mNAQ's explicit step.

A step length is a `StepLength`, three pure functions with one number between steps. What `choose`
is asked and what it answers are a `Line` and a `Choice`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from naqopt import _tree
from naqopt._tree import Scalar, Tree
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

    init: Callable[[Any], Scalar | None]
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


class ArmijoInfo(NamedTuple):
    """How a search ended, named as Optax's searches name it.

    Attributes:
      num_linesearch_steps: how many points the loss was evaluated at.
      decrease_error: 0 where the condition was met, infinite where it was not.
    """

    num_linesearch_steps: jax.Array
    decrease_error: jax.Array


_SUFFICIENT = 1e-3  # η
_TRIALS = 14
_LONGER, _SHORTER = 4, 1 / 16  # of a direction whose length means nothing


def armijo() -> optax.GradientTransformationExtraArgs:
    r"""The papers' line search: the first of 14 step lengths that lowers the loss enough.

    The first :math:`\alpha` of :math:`1, \tfrac12, \tfrac14, \ldots` with

    .. math::
      E(\hat w + \alpha d) \le E(\hat w) + 10^{-3}\, \alpha\, \hat g^\top d

    Where none of the 14 satisfies it, the one with the lowest loss if that lies below
    :math:`E(\hat w)`, and 0 otherwise. (The authors' code takes the last whatever it is: with a
    gradient of the wrong sign the loss then rises at every step.)

    While an optimizer of this library knows no curvature pair, the length of its direction means
    nothing, and the search is also allowed to lengthen: as long as the loss falls further, and by
    half of what the slope promises, :math:`\alpha` is 4, 16, ...; and it shortens by sixteenths.

    Returns:
      An `optax.GradientTransformationExtraArgs`, for the argument `linesearch` of `naqopt.bfgs`,
      `naqopt.naq` and `naqopt.moq`, and, as any search of Optax's, behind any direction. Its state
      is an `optax.ScaleByBacktrackingLinesearchState`.

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

    def init(params: optax.Params) -> optax.ScaleByBacktrackingLinesearchState:
        dtype = _tree.scalar_dtype(params)
        return optax.ScaleByBacktrackingLinesearchState(
            learning_rate=jnp.ones((), dtype),
            value=jnp.full((), jnp.inf, dtype),
            grad=None,
            info=ArmijoInfo(jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, dtype)),
        )

    def update(
        updates: optax.Updates,
        state: optax.ScaleByBacktrackingLinesearchState,
        params: optax.Params,
        *,
        value: Any,
        grad: optax.Updates,
        value_fn: Callable[[optax.Params], jax.Array],
        unscaled: Scalar | bool = False,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.ScaleByBacktrackingLinesearchState]:
        del extra_args
        dtype = jnp.asarray(state.learning_rate).dtype
        # Uphill, which a direction that is not the gradient's own can lead, nothing is sufficient
        # but a decrease.
        slope = jnp.minimum(_tree.dot(grad, updates).astype(dtype), 0)
        start = jnp.asarray(value, dtype)

        def loss(alpha: Scalar) -> Scalar:
            there = value_fn(_tree.add_scaled(params, alpha, updates))
            return jnp.asarray(there, dtype)

        found = _first_sufficient(loss, start, slope, jnp.asarray(unscaled))
        new = optax.ScaleByBacktrackingLinesearchState(
            learning_rate=found.alpha,
            value=found.loss,
            grad=None,
            info=ArmijoInfo(found.trials, jnp.where(found.sufficient, 0, jnp.inf).astype(dtype)),
        )
        return _tree.scale(found.alpha, updates), new

    return optax.GradientTransformationExtraArgs(init, update)


class _Trial(NamedTuple):
    """Where a search along a line stands.

    Attributes:
      trials: points at which the loss was evaluated.
      next: the step length to try.
      alpha: the best so far, 0 at first.
      loss: E there.
      sufficient: whether it is a sufficient one, not only the lowest.
      lengthens: whether longer ones are tried.
      done: whether the search is over.
    """

    trials: Scalar
    next: Scalar
    alpha: Scalar
    loss: Scalar
    sufficient: Scalar
    lengthens: Scalar
    done: Scalar


def _first_sufficient(
    loss: Callable[[Scalar], Scalar], start: Scalar, slope: Scalar, unscaled: Scalar
) -> _Trial:
    """Returns the first step length that satisfies the condition, or the lowest, or 0."""
    sound = jnp.isfinite(start)
    factor = jnp.where(unscaled, _SHORTER, 0.5).astype(start.dtype)

    def body(at: _Trial) -> _Trial:
        alpha, trials = at.next, at.trials + 1
        there = loss(alpha)
        there = jnp.where(jnp.isfinite(there), there, jnp.inf)  # such a trial fails
        finite = there < jnp.inf
        promised = alpha * slope
        enough = finite & sound & (there <= start + _SUFFICIENT * promised)
        longer = at.lengthens & (there <= start + 0.5 * promised) & (there < at.loss)
        # While it lengthens a trial that does not suffice ends it, if one before it did.
        ends = enough & ~longer & ~at.sufficient
        takes = longer | ends | (~at.sufficient & (there < at.loss))
        return _Trial(
            trials=trials,
            next=alpha * jnp.where(longer, _LONGER, factor).astype(alpha.dtype),
            alpha=jnp.where(takes, alpha, at.alpha),
            loss=jnp.where(takes, there, at.loss),
            sufficient=at.sufficient | longer | ends,
            lengthens=longer,
            done=ends | (at.sufficient & ~longer),
        )

    first = _Trial(
        trials=jnp.zeros((), jnp.int32),
        next=jnp.ones_like(start),
        alpha=jnp.zeros_like(start),
        loss=jnp.where(jnp.isnan(start), jnp.inf, start),
        sufficient=jnp.zeros((), bool),
        lengthens=unscaled & (slope < 0) & sound,
        done=jnp.zeros((), bool),
    )
    return lax.while_loop(lambda at: ~at.done & (at.trials < _TRIALS), body, first)


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
    a failure the next search starts from 1.
    """

    def choose(kept_number: Any, line: Line) -> tuple[Choice, Any]:
        (last,) = jax.tree.leaves(kept_number)
        zero: Any = jnp.zeros_like(last)
        kept = linesearch.init(zero)
        remembered, unknown = _memory(kept)
        by_values = kept.grad is None
        lengthens = {"unscaled": line.unscaled} if isinstance(kept.info, ArmijoInfo) else {}
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
        begun = linesearch.init(jnp.zeros((), dtype))
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
