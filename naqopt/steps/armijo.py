"""The papers' line search: the first sufficient decrease, by values of the loss alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from naqopt import _tree
from naqopt._tree import Scalar


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

        found = first_sufficient(loss, start, slope, jnp.asarray(unscaled), jnp.ones((), bool))
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


def first_sufficient(
    loss: Callable[[Scalar], Scalar],
    start: Scalar,
    slope: Scalar,
    unscaled: Scalar,
    begins: Scalar,
) -> _Trial:
    """Returns the first step length that satisfies the condition, or the lowest, or 0.

    Args:
      loss: E along the line.
      start: E at its beginning.
      slope: there, at most 0.
      unscaled: whether the length of the direction means nothing.
      begins: whether to search at all; otherwise it is 0 without a trial.
    """
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
        done=~begins,
    )
    return lax.while_loop(lambda at: ~at.done & (at.trials < _TRIALS), body, first)
