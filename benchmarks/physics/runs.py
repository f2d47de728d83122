"""One run of a method on a loss: every evaluation is counted, whoever asks for it.

A run is made of blocks of gradients, each with points of its own. What counts is the lowest loss at
which a gradient was taken in the block so far, and the error there. The clock starts with the first
evaluation, so that what is compiled before it does not count.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Points = Mapping[str, Any]
Loss = Callable[[jax.Array, Points], jax.Array]


class Recorder:
    """Counts evaluations and keeps the best point at some of them.

    Attributes:
      budget: gradients.
      block: gradients until the points change.
      seconds: of the processor, which other processes do not lengthen much, after which a run
        ends, whatever is left of the budget.
      gradients: taken so far.
      losses: evaluations of the loss alone.
      points: best points, one for each of `curve`.
      curve: by column, gradients, losses, seconds and lowest loss at marks at equal distances of
        the logarithm.
    """

    def __init__(
        self,
        budget: int,
        marks: int = 30,
        block: int | None = None,
        seconds: float = math.inf,
    ):
        self.budget, self.block, self.seconds = budget, block or budget, seconds
        self._block_end = 0
        self.gradients = self.evaluations = 0
        self.curve: dict[str, list[float]] = {
            name: [] for name in ("gradients", "losses", "seconds", "loss")
        }
        self.points: list[np.ndarray] = []
        self._marks = sorted({round(x) for x in np.geomspace(10, budget, marks)})
        self._started: float | None = None
        self._best = (np.inf, np.zeros(0))

    @property
    def losses(self) -> int:
        """Evaluations of the loss alone."""
        return self.evaluations - self.gradients

    @property
    def done(self) -> bool:
        """Whether the budget, or the time, is spent."""
        jax.effects_barrier()
        started = math.inf if self._started is None else self._started
        late = time.process_time() - started > self.seconds
        return self.gradients >= self.budget or late

    @property
    def block_done(self) -> bool:
        """Whether it is time for other points."""
        jax.effects_barrier()
        return self.done or self.gradients >= self._block_end

    def begin_block(self) -> None:
        """Lets the best point be one of the points to come."""
        jax.effects_barrier()
        self._block_end = self.gradients + self.block
        self._best = (np.inf, self._best[1])

    def counted(self, loss: Loss) -> Loss:
        """Returns the loss, which tells of its evaluations."""

        @jax.custom_jvp
        def mark(value: jax.Array, point: jax.Array) -> jax.Array:
            jax.debug.callback(self._evaluated)
            return value

        @mark.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            # The gradient runs the transpose of the derivative, also under `jax.linearize`.
            tangent = jax.custom_derivatives.linear_call(
                lambda _, tangent: tangent, transposed, primals, tangents[0]
            )
            return mark(*primals), tangent

        def transposed(primals: Any, cotangent: jax.Array) -> jax.Array:
            jax.debug.callback(self._differentiated, *primals)
            return cotangent

        return lambda point, points: mark(loss(point, points), jax.lax.stop_gradient(point))

    def finish(self) -> None:
        """Keeps the end of a run that has not used its budget up."""
        jax.effects_barrier()
        # The time can end between new points and the first gradient there.
        if np.isfinite(self._best[0]) and self.curve["gradients"][-1:] != [
            min(self.gradients, self.budget)
        ]:
            self._keep()

    def _evaluated(self) -> None:
        if self._started is None:
            self._started = time.process_time()
        self.evaluations += 1

    def _differentiated(self, value: Any, point: Any) -> None:
        self.gradients += 1
        if self.gradients > self.budget:
            return
        if float(value) < self._best[0]:
            self._best = float(value), np.array(point)
        if self._marks and self.gradients >= self._marks[0]:
            self._marks.pop(0)
            self._keep()

    def _keep(self) -> None:
        assert self._started is not None
        value, point = self._best
        row = (
            min(self.gradients, self.budget),
            self.losses,
            time.process_time() - self._started,
            value,
        )
        for column, number in zip(self.curve.values(), row, strict=True):
            column.append(number)
        self.points.append(point)


class Minimiser(NamedTuple):
    """A method at work on one loss.

    Attributes:
      init: from the params to its memory.
      renew: from its memory and the params to its memory for other points.
      advance: from params, memory and points to params and memory some steps later.
    """

    init: Callable[[jax.Array], Any]
    renew: Callable[[Any, jax.Array], Any]
    advance: Callable[[jax.Array, Any, Points], tuple[jax.Array, Any]]


def run(
    method: Callable[[Loss, Recorder], Minimiser],
    loss: Loss,
    start: jax.Array,
    draw: Callable[[jax.Array, int], Points],
    budget: int,
    block: int | None = None,
    marks: int = 30,
    seconds: float = math.inf,
) -> Recorder:
    """Returns what a method made of so many gradients.

    Args:
      method: makes the minimiser of a loss.
      loss: from params and points to a number.
      start: the params to begin with.
      draw: from the params and the number of the block to its points.
      budget: gradients.
      block: gradients until the points change; None for never.
      marks: how many points of the curve.
      seconds: of the processor, after which it ends.
    """
    recorder = Recorder(budget, marks, block, seconds)
    minimiser = method(recorder.counted(loss), recorder)
    params, memory = jnp.asarray(start), None
    for number in itertools.count():
        points = draw(params, number)
        memory = minimiser.init(params) if number == 0 else minimiser.renew(memory, params)
        recorder.begin_block()
        before = -1
        # A method that stands still may take no gradient at all.
        while not recorder.block_done and recorder.evaluations > before:
            before = recorder.evaluations
            params, memory = jax.block_until_ready(minimiser.advance(params, memory, points))
        if recorder.done or not block:
            break
    recorder.finish()
    return recorder
