"""The solvers by name, and how each kind is run to the one stopping rule.

A run ends where ‖∇f‖₂ ≤ `TOLERANCE` at the solver's iterate (at the look-ahead point for NAQ and
mNAQ, whose gradients are taken there), or fails after `LIMIT` evaluations. A loss with its gradient
is one evaluation and a loss alone is one too; they are counted as they run. Every solver has its
own defaults, and float64.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
from scipy import optimize

import naqopt
from benchmarks.functions.problems import Function
from benchmarks.training.evaluations import Counter
from benchmarks.training.full_batches import Descent

TOLERANCE = 1e-6
LIMIT = 5000
STEPS_BETWEEN_CHECKS = 100
Functions = Sequence[Function]
Carry = tuple[jax.Array, Any, jax.Array, jax.Array]


class Result(NamedTuple):
    """Where a run ended.

    Attributes:
      point: the last iterate.
      loss: f there.
      gradient: ∇f there.
      iterations: the steps taken.
      losses: evaluations of f alone.
      gradients: evaluations of f and ∇f.
    """

    point: np.ndarray
    loss: float
    gradient: np.ndarray
    iterations: int
    losses: int
    gradients: int

    @property
    def evaluations(self) -> int:
        """What a run costs."""
        return self.losses + self.gradients

    @property
    def gradient_norm(self) -> float:
        """‖∇f‖₂."""
        with np.errstate(over="ignore"):
            return float(np.linalg.norm(self.gradient))


class Program(Protocol):
    """A solver, compiled for several functions of one dimension."""

    def solve(self, index: int, start: np.ndarray) -> Result:
        """Minimises the function of this index."""


class OptaxProgram:
    """An Optax transformation in a compiled loop."""

    def __init__(
        self,
        tx: optax.GradientTransformation,
        functions: Functions,
        reuse: bool = False,
    ):
        """Prepares the loop.

        Args:
          tx: the transformation.
          functions: what it may be asked to minimise.
          reuse: whether its state holds the value and gradient at the new point.
        """
        self.tx = optax.with_extra_args_support(tx)
        self.counter = Counter()
        self.loss = self.counter.loss(functions)
        self.reuse = reuse
        self.begin = jax.jit(self._begin)
        self.advance = jax.jit(self._advance)

    def solve(self, index: int, start: np.ndarray) -> Result:
        """Minimises the function of this index."""
        self.counter.reset()
        carry, iterations = self.begin(start, index), 0
        while self._unfinished(carry) and iterations < LIMIT and self._spent() < LIMIT:
            carry, steps = self.advance(carry, index, STEPS_BETWEEN_CHECKS)
            iterations += int(steps)
        self._spent()
        point, _, loss, gradient = jax.device_get(carry)
        counter = self.counter
        return Result(point, float(loss), gradient, iterations, counter.losses, counter.gradients)

    def path(self, index: int, start: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the iterates of such a run (w, and not the look-ahead points) one by one."""
        self.counter.reset()
        carry = self.begin(start, index)
        yield start
        while self._unfinished(carry) and self._spent() < LIMIT:
            carry, _ = self.advance(carry, index, 1)
            yield np.asarray(naqopt.eval_params(carry[1], carry[0]))

    def _spent(self) -> int:
        """Waits until everything is counted."""
        jax.effects_barrier()
        return self.counter.evaluations

    def _begin(self, start: jax.Array, index: jax.Array) -> Carry:
        return start, self.tx.init(start), *jax.value_and_grad(self.loss)(start, index)

    @staticmethod
    def _unfinished(carry: Carry) -> jax.Array:
        norm = jnp.linalg.norm(carry[3])
        return (norm > TOLERANCE) & jnp.isfinite(norm)

    def _advance(self, carry: Carry, index: jax.Array, steps: jax.Array) -> tuple[Carry, jax.Array]:
        """Takes so many steps, or as many as it takes to the end."""
        descent = Descent(self.tx, functools.partial(self.loss, index=index), self.reuse)

        def step(carry_and_count: tuple[Carry, jax.Array]) -> tuple[Carry, jax.Array]:
            (point, state, value, grad), count = carry_and_count
            point, state = descent.move(point, state, value, grad)
            return (point, state, *descent.value_and_grad(point, state)), count + 1

        def unfinished(carry_and_count: tuple[Carry, jax.Array]) -> jax.Array:
            carry, count = carry_and_count
            return (count < steps) & self._unfinished(carry)

        return jax.lax.while_loop(unfinished, step, (carry, jnp.zeros((), jnp.int32)))


class _StopsByGradient:
    """Ends an Optimistix quasi-Newton solver by the norm of the gradient."""

    def terminate(self, fn, y, args, options, state, tags):
        """Whether ‖∇f‖₂ ≤ `TOLERANCE`; before the first step there is no gradient yet."""
        small = optimistix.two_norm(state.f_info.grad) <= TOLERANCE
        return small & ~state.first_step, state.result


class _BFGS(_StopsByGradient, optimistix.BFGS):
    pass


class _LBFGS(_StopsByGradient, optimistix.LBFGS):
    pass


class OptimistixProgram:
    """An Optimistix quasi-Newton solver; it evaluates once in a step."""

    def __init__(self, solver: type[optimistix.AbstractMinimiser], functions: Functions):
        """Prepares the loop of a solver that may be asked to minimise these functions."""
        self.counter = Counter()
        loss = self.counter.loss(functions)

        @jax.jit
        def minimise(index: jax.Array, start: jax.Array) -> tuple[Any, ...]:
            solution = optimistix.minimise(
                loss, solver(rtol=0.0, atol=0.0), start, index, max_steps=LIMIT, throw=False
            )
            information = solution.state.f_info
            return solution.value, information.f, information.grad, solution.stats["num_steps"]

        self.minimise = minimise

    def solve(self, index: int, start: np.ndarray) -> Result:
        """Minimises the function of this index."""
        self.counter.reset()
        point, loss, gradient, steps = jax.device_get(self.minimise(index, start))
        jax.effects_barrier()
        counter = self.counter
        return Result(point, float(loss), gradient, int(steps), counter.losses, counter.gradients)


class ScipyProgram:
    """A method of `scipy.optimize.minimize`, with its own tests of convergence off."""

    def __init__(self, method: str, functions: Functions, **options: Any):
        """Prepares a method that may be asked to minimise these functions."""
        self.method, self.options = method, options
        self.counter = Counter()
        self.value_and_grad = jax.jit(jax.value_and_grad(self.counter.loss(functions)))

    def solve(self, index: int, start: np.ndarray) -> Result:
        """Minimises the function of this index."""
        self.counter.reset()
        gradients = {}

        def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = jax.device_get(self.value_and_grad(point, index))
            gradients[point.tobytes()] = gradient
            return float(value), gradient

        def stop(intermediate_result: optimize.OptimizeResult) -> None:
            jax.effects_barrier()
            norm = np.linalg.norm(gradients[intermediate_result.x.tobytes()])
            if norm <= TOLERANCE or self.counter.evaluations >= LIMIT:
                raise StopIteration

        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # overflow on the way
            found = optimize.minimize(
                evaluate,
                start,
                jac=True,
                method=self.method,
                callback=stop,
                options={"maxiter": LIMIT, "gtol": 0.0, **self.options},
            )
        jax.effects_barrier()
        gradient, counter = gradients[found.x.tobytes()], self.counter
        return Result(
            found.x, float(found.fun), gradient, found.nit, counter.losses, counter.gradients
        )


@dataclasses.dataclass(frozen=True)
class Solver:
    """A row of the table.

    Attributes:
      label: its name in tables and plots.
      prepare: from functions and the options to the program.
      options: what differs from its defaults, as plain JSON.
      dense: whether it keeps a dense matrix instead of pairs.
      ours: whether it is one of this library's.
    """

    label: str
    prepare: Callable[..., Program]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dense: bool = False
    ours: bool = False

    def program(self, functions: Functions) -> Program:
        """Returns the solver, ready for these functions."""
        return self.prepare(functions, **self.options)


# Options that are objects, by the names that they have in the table and in the results.
_PARTS: Mapping[Any, Callable[[], Any]] = {
    "nesterov_momentum": naqopt.schedules.nesterov_momentum,
    # The search that `optax.lbfgs` has by default.
    "zoom": functools.partial(
        optax.scale_by_zoom_linesearch, max_linesearch_steps=20, initial_guess_strategy="one"
    ),
    "backtracking": functools.partial(
        optax.scale_by_backtracking_linesearch, max_backtracking_steps=20, store_grad=True
    ),
}


def _transformation(
    factory: Callable[..., optax.GradientTransformation],
    functions: Functions,
    *,
    reuse: bool = False,
    **options: Any,
) -> Program:
    """Returns the program of a transformation, some of whose options are names of parts."""
    named = {name: _PARTS[x]() if x in _PARTS else x for name, x in options.items()}
    return OptaxProgram(factory(**named), functions, reuse)


def ours(label: str, factory: Callable[..., Any], **options: Any) -> Solver:
    """Returns a row of this library, of a dense matrix if so asked."""
    dense = options.get("memory_size", 10) is None
    prepare = functools.partial(_transformation, factory)
    return Solver(label if dense else f"L{label}", prepare, options, dense, ours=True)


def _peer(label: str, kind: Callable[..., Program], what: Any, **options: Any) -> Solver:
    """Returns a row of another library."""
    return Solver(label, functools.partial(kind, what), options)


def _dense(solver: Solver) -> Solver:
    return dataclasses.replace(solver, dense=True)


SOLVERS: Mapping[str, Solver] = {
    "bfgs": ours("BFGS", naqopt.bfgs),
    "bfgs-zoom": ours("BFGS, zoom", naqopt.bfgs, linesearch="zoom", store_grad=True, reuse=True),
    "naq": ours("NAQ", naqopt.naq),
    "naq-zoom": ours("NAQ, zoom", naqopt.naq, linesearch="zoom"),
    "naq-rising": ours("NAQ, rising μ", naqopt.naq, momentum="nesterov_momentum"),
    "naq-term": ours("NAQ, ξ", naqopt.naq, convergence_term=True),
    "naq-unchecked": ours("NAQ, no restarts", naqopt.naq, restart_window=None),
    "moq": ours("MoQ", naqopt.moq),
    "moq-term": ours("MoQ, ξ", naqopt.moq, convergence_term=True),
    "mnaq": ours("mNAQ", naqopt.mnaq),
    "amnaq": ours("amNAQ", naqopt.mnaq, momentum="nesterov_momentum"),
    "bfgs-dense": ours("BFGS", naqopt.bfgs, memory_size=None),
    "naq-dense": ours("NAQ", naqopt.naq, memory_size=None),
    "naq-rising-dense": ours(
        "NAQ, rising μ", naqopt.naq, momentum="nesterov_momentum", memory_size=None
    ),
    "moq-dense": ours("MoQ", naqopt.moq, memory_size=None),
    "mnaq-dense": ours("mNAQ", naqopt.mnaq, memory_size=None),
    "amnaq-dense": ours("amNAQ", naqopt.mnaq, momentum="nesterov_momentum", memory_size=None),
    "optax": _peer("Optax L-BFGS, zoom", _transformation, optax.lbfgs, reuse=True),
    "optax-backtracking": _peer(
        "Optax L-BFGS, backtracking",
        _transformation,
        optax.lbfgs,
        linesearch="backtracking",
        reuse=True,
    ),
    "optimistix": _peer("Optimistix L-BFGS", OptimistixProgram, _LBFGS),
    "scipy": _peer("SciPy L-BFGS-B", ScipyProgram, "L-BFGS-B", ftol=0.0, maxfun=LIMIT),
    "optimistix-dense": _dense(_peer("Optimistix BFGS", OptimistixProgram, _BFGS)),
    "scipy-dense": _dense(_peer("SciPy BFGS", ScipyProgram, "BFGS")),
}
