"""One run of the experiment, compiled: until the gradient vanishes, or for all iterations."""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import naqopt
from benchmarks.models.function_fit import Params, Points, Task, error
from benchmarks.reports import records
from benchmarks.training.fit import Method
from benchmarks.training.full_batches import Descent

CONVERGED, ALL_ITERATIONS = "converged", "all iterations"
MARKS_PER_DECADE = 10
NOT_YET = -1


class _Carry(NamedTuple):
    params: Params
    state: Any
    iterations: jax.Array
    gradient_norm: jax.Array
    to_target: jax.Array  # the iterations that it took, or NOT_YET


class Runner:
    """Runs one method from any seed and at any learning rate, compiling once.

    Runs go one after the other, so that a `lax.cond` in an optimizer takes one branch and their
    time is their own. It is the processor's, which other processes do not lengthen much.

    Attributes:
      task: what is fitted.
      method: the line of the table.
      tolerance: a run ends after the step whose gradient had a norm of at most this.
      max_iterations: and after so many steps at the latest.
      target_error: after how many steps the error, where the gradient is taken, is at most this is
        recorded; None for no such record.
      compile_seconds: tracing and compiling, None before the first run.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        tolerance: float,
        max_iterations: int,
        target_error: float | None = None,
    ):
        self.task = task
        self.method = method
        self.tolerance = 0.0 if method.first_order else tolerance
        self.max_iterations = max_iterations
        self.target_error = target_error
        self.compile_seconds: float | None = None
        self._advance: Any = None
        with self._precision():
            self._train = task.train()
            self._test = task.test()
        self._error = jax.jit(error)

    def run(self, seed: int, learning_rate: float | None = None) -> dict[str, Any]:
        """Returns what is recorded of a run, plain JSON."""
        with self._precision():
            return self._run(seed, jnp.asarray(learning_rate or 0.0))

    def _precision(self) -> Any:
        return jax.enable_x64(self.method.bits == 64)

    def _run(self, seed: int, learning_rate: jax.Array) -> dict[str, Any]:
        params = self.task.start(seed)
        state = self.method.transformation(learning_rate).init(params)
        carry = _Carry(params, state, *map(jnp.asarray, (0, math.inf, NOT_YET)))
        self._compile(carry, learning_rate)
        seconds, marks, errors = 0.0, [0], [self._evaluate(carry, self._train)]
        for mark in _marks(self.max_iterations):
            started = time.process_time()
            carry = jax.block_until_ready(self._advance(carry, jnp.asarray(mark), learning_rate))
            seconds += time.process_time() - started
            marks.append(carry.iterations.item())
            errors.append(self._evaluate(carry, self._train))
            if marks[-1] < mark:
                break
        diagnostics = naqopt.diagnostics(carry.state) if self.method.ours else {}
        return {
            "seed": seed,
            "status": self._status(carry, errors[-1]),
            "iterations": marks[-1],
            **self._to_target(carry),
            "seconds": records.rounded(seconds),
            "gradient_norm": records.rounded(carry.gradient_norm.item()),
            "train_error": errors[-1],
            "test_error": self._evaluate(carry, self._test),
            "diagnostics": {name: records.rounded(x.item()) for name, x in diagnostics.items()},
            "curve": {"iterations": marks, "train_error": errors},
            "params": [x.tolist() for x in naqopt.eval_params(carry.state, carry.params)],
        }

    def _to_target(self, carry: _Carry) -> dict[str, int | None]:
        if self.target_error is None:
            return {}
        iterations = carry.to_target.item()
        return {"to_target": None if iterations == NOT_YET else iterations}

    def _status(self, carry: _Carry, error: float | None) -> str:
        if error is None:
            return records.DIVERGED
        return CONVERGED if carry.gradient_norm.item() <= self.tolerance else ALL_ITERATIONS

    def _compile(self, carry: _Carry, learning_rate: jax.Array) -> None:
        if self._advance is None:
            started = time.perf_counter()
            advance = jax.jit(self._advance_to)
            self._advance = advance.lower(carry, jnp.asarray(0), learning_rate).compile()
            self.compile_seconds = time.perf_counter() - started

    def _advance_to(self, carry: _Carry, mark: jax.Array, learning_rate: jax.Array) -> _Carry:
        """Goes on to an iteration, or to the end of the run."""
        descent = Descent(
            self.method.transformation(learning_rate),
            lambda params: error(params, self._train),
            self.method.reuse,
        )
        target = -math.inf if self.target_error is None else self.target_error

        def goes_on(carry: _Carry) -> jax.Array:
            # False for a gradient that is not a number, too.
            return (carry.iterations < mark) & (carry.gradient_norm > self.tolerance)

        def step(carry: _Carry) -> _Carry:
            value, grads = descent.value_and_grad(carry.params, carry.state)
            params, state = descent.move(carry.params, carry.state, value, grads)
            first_time = (carry.to_target == NOT_YET) & (value <= target)
            return _Carry(
                params,
                state,
                carry.iterations + 1,
                optax.tree.norm(grads),
                jnp.where(first_time, carry.iterations, carry.to_target),
            )

        return jax.lax.while_loop(goes_on, step, carry)

    def _evaluate(self, carry: _Carry, given: Points) -> float | None:
        """Returns the error at the iterate."""
        params = naqopt.eval_params(carry.state, carry.params)
        return records.rounded(self._error(params, given).item())


def _marks(last: int) -> Iterator[int]:
    """Yields the iterations whose errors are recorded, at equal distances of the logarithm."""
    mark, power = 0, 0
    while mark < last:
        following = min(round(10 ** (power / MARKS_PER_DECADE)), last)
        if following > mark:
            mark = following
            yield mark
        power += 1
