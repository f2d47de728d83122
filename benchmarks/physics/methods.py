"""The methods by name: ours, and other libraries', each by its own defaults where not said.

When the points change each keeps its dense matrix, by what its library offers for that, and our
L-SR1 its pairs; the other libraries' limited memories, which cannot be told, begin anew, and Adam
goes on.
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
from scipy import optimize

import naqopt
from benchmarks.physics.runs import Loss, Minimiser, Points, Recorder
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
      make: the minimiser of a loss, for a recorder.
      ours: whether it is one of this library's.
      rate: whether it needs a learning rate, and then runs without a warm start by Adam.
    """

    label: str
    make: Callable[..., Minimiser]
    ours: bool = False
    rate: bool = False


def _steps(
    make: Callable[[], optax.GradientTransformation],
    reuse: bool,
    renew: Callable[[Any], Any] | None,
    loss: Loss,
    recorder: Recorder,
) -> Minimiser:
    """Steps an Optax transformation, whose state may have value and gradient for the next step.

    None for `renew` begins with a fresh state.
    """
    del recorder
    tx = optax.with_extra_args_support(make())

    @jax.jit
    def advance(params: jax.Array, state: Any, points: Points) -> Any:
        descent = Descent(tx, lambda params: loss(params, points), reuse)

        def step(carry: Any, _: Any) -> Any:
            return descent.step(*carry)[:2], None

        return jax.lax.scan(step, (params, state), length=_STEPS_BETWEEN_CHECKS)[0]

    def renewed(state: Any, params: jax.Array) -> Any:
        return tx.init(params) if renew is None else renew(state)

    return Minimiser(tx.init, renewed, advance)


def _adam(loss: Loss, recorder: Recorder, rate: float) -> Minimiser:
    schedule = optax.cosine_decay_schedule(rate, recorder.budget)
    return _steps(lambda: optax.adam(schedule), False, lambda state: state, loss, recorder)


class _Memory(NamedTuple):
    """Between blocks: what is carried over, and whether the method has come to its end."""

    kept: Any
    ended: bool = False


def _scipy(method: str, loss: Loss, recorder: Recorder, **options: Any) -> Minimiser:
    value_and_grad = jax.jit(jax.value_and_grad(loss))

    def stop(intermediate_result: Any) -> None:
        del intermediate_result
        if recorder.block_done:
            raise StopIteration

    def advance(params: jax.Array, memory: _Memory, points: Points) -> Any:
        if memory.ended:
            return params, memory

        def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
            value, grad = jax.device_get(value_and_grad(point, points))
            return float(value), grad

        limits = {"maxiter": recorder.budget, "gtol": 0.0, **options}
        if memory.kept is not None:
            limits["hess_inv0"] = memory.kept
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optimize.minimize(
                evaluate, np.asarray(params), jac=True, method=method, callback=stop, options=limits
            )
        kept = _positive_definite(found.hess_inv) if method == "BFGS" else None
        return jnp.asarray(found.x), _Memory(kept, ended=True)

    def renew(memory: _Memory, params: jax.Array) -> _Memory:
        del params
        return _Memory(memory.kept)

    return Minimiser(lambda params: _Memory(None), renew, advance)


def _positive_definite(matrix: np.ndarray) -> np.ndarray | None:
    """Returns the symmetric part, as SciPy checks it; None where it is not positive definite."""
    symmetric = (matrix + matrix.T) / 2
    try:
        np.linalg.cholesky(symmetric)
    except np.linalg.LinAlgError:
        return None
    return symmetric


def _optimistix(make: Callable[..., Any], loss: Loss, recorder: Recorder) -> Minimiser:
    """Drives a solver by its own steps, one a trial of its line search."""
    del recorder
    solver = make(rtol=0.0, atol=0.0)
    # (function, y, args, options, state, tags) are what the steps of a solver take.
    options: dict[str, Any] = {}
    tags: frozenset[object] = frozenset()

    def function(params: jax.Array, points: Points) -> tuple[jax.Array, None]:
        return loss(params, points), None

    def init(params: jax.Array) -> Any:
        shape = jax.ShapeDtypeStruct((), params.dtype)
        return solver.init(function, params, None, options, shape, None, tags)

    def renew(state: Any, params: jax.Array) -> Any:
        """A fresh state but for the matrix; its first step, of no length, leaves that as it is."""
        fresh = init(params)
        info = eqx.tree_at(lambda info: info.hessian_inv, fresh.f_info, state.f_info.hessian_inv)
        return dataclasses.replace(
            fresh, f_info=info, hessian_update_state=state.hessian_update_state
        )

    @eqx.filter_jit
    def advance(params: jax.Array, state: Any, points: Points) -> Any:
        arrays, static = eqx.partition(state, eqx.is_array)

        def step(carry: Any) -> Any:
            number, params, arrays = carry
            state = eqx.combine(arrays, static)
            params, state, _ = solver.step(function, params, points, options, state, tags)
            return number + 1, params, eqx.filter(state, eqx.is_array)

        def goes_on(carry: Any) -> Any:
            number, params, arrays = carry
            state = eqx.combine(arrays, static)
            ended, _ = solver.terminate(function, params, points, options, state, tags)
            return (number < _STEPS_BETWEEN_CHECKS) & ~ended

        _, params, arrays = jax.lax.while_loop(goes_on, step, (0, params, arrays))
        return params, eqx.combine(arrays, static)

    return Minimiser(init, renew, advance)


def _ours(
    label: str, make: Callable[[], optax.GradientTransformation], reuse: bool = True
) -> Method:
    steps = functools.partial(_steps, make, reuse, naqopt.forget_loss)
    return Method(label, steps, ours=True)


def _bfgs(
    initial_scale: float | str | None, linesearch: Callable[..., Any] = naqopt.wolfe
) -> optax.GradientTransformation:
    return naqopt.bfgs(
        memory_size=None,
        linesearch=linesearch(),
        store_grad=linesearch is naqopt.wolfe,  # armijo's searches compute no gradient
        initial_scale=initial_scale,
    )


def _first_pair(label: str, make: Callable[..., optax.GradientTransformation]) -> Method:
    make = functools.partial(make, initial_scale="first_pair")
    return _ours(f"{label} from the first pair's γ", make)


def _armijo(initial_scale: float | str | None) -> Method:
    label = "the first pair's γ" if initial_scale == "first_pair" else "the identity"
    make = functools.partial(_bfgs, initial_scale, naqopt.armijo)
    return _ours(f"BFGS from {label}, Armijo", make, reuse=False)


def _momentum(update: str, momentum: float = 0.5) -> optax.GradientTransformation:
    return naqopt.naq(momentum=momentum, memory_size=None, linesearch=naqopt.wolfe(), update=update)


METHODS: Mapping[str, Method] = {
    "ssbroyden": _ours("SSBroyden", naqopt.ssbroyden),
    "ssbfgs": _ours("SSBFGS", naqopt.ssbfgs),
    "bfgs": _ours("BFGS from the identity", lambda: _bfgs(1.0)),
    "bfgs-first-pair": _ours("BFGS from the first pair's γ", lambda: _bfgs("first_pair")),
    "ssbroyden-first-pair": _first_pair("SSBroyden", naqopt.ssbroyden),
    "ssbfgs-first-pair": _first_pair("SSBFGS", naqopt.ssbfgs),
    "bfgs-armijo": _armijo(1.0),
    "bfgs-first-pair-armijo": _armijo("first_pair"),
    "ssbroyden-naq": _ours("SSBroyden, μ 0.5", lambda: _momentum("ssbroyden"), reuse=False),
    "naq": _ours("NAQ, μ 0.5", lambda: _momentum("bfgs"), reuse=False),
    "lsr1": _ours("L-SR1, m 30", lambda: naqopt.lsr1(memory_size=30, store_grad=True)),
    "peer-ssbroyden": Method(
        "ssbroyden-optimistix",
        functools.partial(_optimistix, ssbroyden_optimistix.SSBroyden),
    ),
    "scipy-bfgs": Method("SciPy BFGS", functools.partial(_scipy, "BFGS")),
    "optimistix-bfgs": Method("Optimistix BFGS", functools.partial(_optimistix, optimistix.BFGS)),
    "optax-lbfgs": Method("optax.lbfgs", functools.partial(_steps, optax.lbfgs, True, None)),
    "scipy-lbfgs": Method(
        "SciPy L-BFGS-B",
        functools.partial(_scipy, "L-BFGS-B", ftol=0.0, maxfun=10**9),
    ),
    "adam": Method("Adam, cosine decay, tuned", _adam, rate=True),
}
