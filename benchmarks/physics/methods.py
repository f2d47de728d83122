"""The methods by name: ours, and other libraries', each by its own defaults where not said."""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
import optimistix
from scipy import optimize

import naqopt
from benchmarks.physics.runs import Loss, Recorder
from benchmarks.training.full_batches import Descent

# Its import would turn 64-bit numbers on for everything.
os.environ.setdefault("SSBROYDEN_ENABLE_X64", "0")
import ssbroyden_optimistix

_STEPS_BETWEEN_CHECKS = 25
ADAM_RATES = (0.001, 0.00316, 0.01)


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      label: its name in tables and plots.
      run: minimises a loss from a start, until the recorder's budget is spent or it stops.
      ours: whether it is one of this library's.
      rate: whether it needs a learning rate, and then runs without a warm start by Adam.
    """

    label: str
    run: Callable[..., None]
    ours: bool = False
    rate: bool = False


def _steps(
    make: Callable[[], optax.GradientTransformation],
    reuse: bool,
    loss: Loss,
    start: jax.Array,
    recorder: Recorder,
) -> None:
    """Steps an Optax transformation, whose state may have value and gradient for the next step."""
    tx = optax.with_extra_args_support(make())
    descent = Descent(tx, loss, reuse)

    @jax.jit
    def advance(params: jax.Array, state: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            return descent.step(*carry)[:2], None

        return jax.lax.scan(step, (params, state), length=_STEPS_BETWEEN_CHECKS)[0]

    carry = start, tx.init(start)
    before = -1
    # A method that stands still may take no gradient at all.
    while not recorder.done and recorder.evaluations > before:
        before = recorder.evaluations
        carry = jax.block_until_ready(advance(*carry))


def _adam(loss: Loss, start: jax.Array, recorder: Recorder, rate: float) -> None:
    schedule = optax.cosine_decay_schedule(rate, recorder.budget)
    _steps(lambda: optax.adam(schedule), False, loss, start, recorder)


def _scipy(method: str, loss: Loss, start: jax.Array, recorder: Recorder, **options: Any) -> None:
    value_and_grad = jax.jit(jax.value_and_grad(loss))

    def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = jax.device_get(value_and_grad(point))
        return float(value), grad

    def stop(intermediate_result: Any) -> None:
        del intermediate_result
        if recorder.done:
            raise StopIteration

    limits = {"maxiter": recorder.budget, "gtol": 0.0, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimize.minimize(
            evaluate, np.asarray(start), jac=True, method=method, callback=stop, options=limits
        )


def _optimistix(
    solver: Callable[..., Any], loss: Loss, start: jax.Array, recorder: Recorder
) -> None:
    solution = optimistix.minimise(
        lambda point, _: loss(point),
        solver(rtol=0.0, atol=0.0),
        start,
        max_steps=recorder.budget,
        throw=False,
    )
    jax.block_until_ready(solution.value)


def _ours(
    label: str, make: Callable[[], optax.GradientTransformation], reuse: bool = True
) -> Method:
    return Method(label, functools.partial(_steps, make, reuse), ours=True)


def _bfgs(initial_scale: float | None) -> optax.GradientTransformation:
    return naqopt.bfgs(
        memory_size=None,
        linesearch=naqopt.wolfe(),
        store_grad=True,
        initial_scale=initial_scale,
    )


def _momentum(update: str, momentum: float = 0.5) -> optax.GradientTransformation:
    return naqopt.naq(momentum=momentum, memory_size=None, linesearch=naqopt.wolfe(), update=update)


METHODS: Mapping[str, Method] = {
    "ssbroyden": _ours("SSBroyden", naqopt.ssbroyden),
    "ssbfgs": _ours("SSBFGS", naqopt.ssbfgs),
    "bfgs": _ours("BFGS from the identity", lambda: _bfgs(1.0)),
    "bfgs-first-pair": _ours("BFGS from the first pair's γ", lambda: _bfgs(None)),
    "ssbroyden-naq": _ours("SSBroyden, μ 0.5", lambda: _momentum("ssbroyden"), reuse=False),
    "naq": _ours("NAQ, μ 0.5", lambda: _momentum("bfgs"), reuse=False),
    "lsr1": _ours("L-SR1, m 30", lambda: naqopt.lsr1(memory_size=30, store_grad=True)),
    "peer-ssbroyden": Method(
        "ssbroyden-optimistix",
        functools.partial(_optimistix, ssbroyden_optimistix.SSBroyden),
    ),
    "scipy-bfgs": Method("SciPy BFGS", functools.partial(_scipy, "BFGS")),
    "optimistix-bfgs": Method("Optimistix BFGS", functools.partial(_optimistix, optimistix.BFGS)),
    "optax-lbfgs": Method("optax.lbfgs", functools.partial(_steps, optax.lbfgs, True)),
    "scipy-lbfgs": Method(
        "SciPy L-BFGS-B",
        functools.partial(_scipy, "L-BFGS-B", ftol=0.0, maxfun=10**9),
    ),
    "adam": Method("Adam, cosine decay, tuned", _adam, rate=True),
}
