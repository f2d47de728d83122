"""One run of a method on a loss: every evaluation is counted, whoever asks for it.

What counts is the lowest loss at which a gradient was taken so far, and the error there. The clock
starts with the first evaluation, so that what is compiled before it does not count.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Loss = Callable[[jax.Array], jax.Array]


class Recorder:
    """Counts evaluations and keeps the best point at some of them.

    Attributes:
      budget: gradients.
      gradients: taken so far.
      losses: evaluations of the loss alone.
      points: best points, one for each of `curve`.
      curve: by column, gradients, losses, seconds and lowest loss at marks at equal distances of
        the logarithm.
    """

    def __init__(self, budget: int, marks: int = 30):
        self.budget = budget
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
        """Whether the budget is spent."""
        jax.effects_barrier()
        return self.gradients >= self.budget

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

        return lambda point: mark(loss(point), jax.lax.stop_gradient(point))

    def finish(self) -> None:
        """Keeps the end of a run that has not used its budget up."""
        jax.effects_barrier()
        if self.curve["gradients"][-1:] != [min(self.gradients, self.budget)]:
            self._keep()

    def _evaluated(self) -> None:
        if self._started is None:
            self._started = time.perf_counter()
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
            time.perf_counter() - self._started,
            value,
        )
        for column, number in zip(self.curve.values(), row, strict=True):
            column.append(number)
        self.points.append(point)


def run(
    method: Callable[[Loss, jax.Array, Recorder], None], loss: Loss, start: jax.Array, budget: int
) -> Recorder:
    """Returns what a method made of so many gradients."""
    recorder = Recorder(budget)
    method(recorder.counted(loss), jnp.asarray(start), recorder)
    recorder.finish()
    return recorder
