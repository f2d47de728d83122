"""How a method is run from a start until it has left a saddle point, its evaluations counted."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import naqopt
from benchmarks.functions.saddles import Function, Problem
from benchmarks.training.evaluations import Counter
from benchmarks.training.full_batches import Descent

LIMIT = 2000  # steps, after which a run has not left
RATES = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-6, 7))


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
      label: the call.
      build: from the learning rate, which is used where `tuned`, to the transformation.
      tuned: whether its rate is the best of `RATES` on each problem.
      reuse: whether its state holds the value and gradient at the new params.
    """

    label: str
    build: Callable[[Any], optax.GradientTransformation]
    tuned: bool = False
    reuse: bool = False

    def on(self, loss: Function, learning_rate: Any) -> Descent:
        """Returns the method on a loss."""
        tx = optax.with_extra_args_support(self.build(learning_rate))
        return Descent(tx, loss, self.reuse)


class Run(NamedTuple):
    """What became of a run.

    Attributes:
      steps: how many it took.
      loss: E at the last iterate.
      gradients: evaluations of E and ∇E together.
      losses: evaluations of E alone.
      points: the iterates, (steps + 1, d).
    """

    steps: int
    loss: float
    gradients: int
    losses: int
    points: np.ndarray


class _Carry(NamedTuple):
    """What a step hands to the next; `loss` is E at the iterate."""

    params: jax.Array
    state: Any
    loss: jax.Array
    points: jax.Array
    count: jax.Array


def _walk(
    descent: Descent,
    observed: Function,
    start: jax.Array,
    level: jax.Array,
    limit: jax.Array,
    room: int,
) -> _Carry:
    """Takes steps until E at the iterate is below the level, at most `limit` of them.

    Args:
      descent: the method on the loss that it is given.
      observed: the loss for E at the iterate.
      start: the first params.
      level: of E.
      limit: of the steps.
      room: for so many points of the path.
    """

    def unfinished(carry: _Carry) -> jax.Array:
        ends = (carry.loss < level) | ~jnp.isfinite(carry.loss)
        return (carry.count < limit) & ~ends

    def step(carry: _Carry) -> _Carry:
        params, state, _ = descent.step(carry.params, carry.state)
        iterate = naqopt.eval_params(state, params)
        points = carry.points.at[carry.count + 1].set(iterate, mode="drop")
        return _Carry(params, state, observed(iterate), points, carry.count + 1)

    points = jnp.zeros((room, len(start)), start.dtype).at[0].set(start)
    count = jnp.zeros((), jnp.int32)
    begin = _Carry(start, descent.tx.init(start), observed(start), points, count)
    return jax.lax.while_loop(unfinished, step, begin)


class Program:
    """A method, compiled for several problems of one dimension."""

    def __init__(self, method: Method, problems: Sequence[Problem]):
        """Prepares the loop."""
        self.counter = Counter()
        functions = [problem.function for problem in problems]
        counted = self.counter.loss(functions)

        @jax.jit
        def walk(index, rate, start, level, limit) -> tuple[jax.Array, ...]:
            descent = method.on(functools.partial(counted, index=index), rate)
            observed = functools.partial(jax.lax.switch, index, functions)
            found = _walk(descent, observed, start, level, limit, LIMIT + 1)
            return found.count, found.loss, found.points

        self.walk = walk

    def run(
        self, index: int, start: np.ndarray, level: float, rate: float, limit: int = LIMIT
    ) -> Run:
        """Runs on the problem of this index until E is below the level.

        Args:
          index: of the problem.
          start: the first params.
          level: of E.
          rate: the learning rate, for a method that is tuned.
          limit: how many steps at most.
        """
        self.counter.reset()
        count, loss, points = jax.device_get(self.walk(index, rate, start, level, limit))
        jax.effects_barrier()
        counter = self.counter
        taken = int(count)
        return Run(taken, float(loss), counter.gradients, counter.losses, points[: taken + 1])


def tune(
    method: Method, problem: Problem, starts: np.ndarray, level: float
) -> dict[str, tuple[float, int]]:
    """Returns by rate the median of the steps until a run has left, and how many runs did."""

    @jax.jit
    def walk(rate, start):
        descent = method.on(problem.function, rate)
        found = _walk(descent, problem.function, start, level, LIMIT, 1)
        return jnp.where(found.loss < level, found.count, jnp.inf)

    each_start = jax.vmap(walk, in_axes=(None, 0))
    steps = jax.vmap(each_start, in_axes=(0, None))(jnp.array(RATES), starts)
    left = np.isfinite(steps).sum(axis=1)
    medians = np.median(steps, axis=1)
    return {
        f"{rate:g}": (float(median), int(count))
        for rate, median, count in zip(RATES, medians, left, strict=True)
    }


def best(tried: Mapping[str, tuple[float, int]]) -> float:
    """Returns the rate of the fewest steps, then of the most runs that left, then the lowest."""
    return min((median, -left, float(rate)) for rate, (median, left) in tried.items())[2]
