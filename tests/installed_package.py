"""A smoke test of the installed package: each public call, a few jitted steps on a quadratic.

It needs nothing but naqopt and what that depends on, and takes none of it from a checkout:
`make smoke-oldest` and `make smoke-newest` run it in environments of their own.
"""

import functools
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import naqopt

STEPS = 12
CURVATURES = jnp.array([1.0, 2.0, 5.0, 10.0, 20.0, 50.0])
# Examples in pairs on both sides of 1, so that the loss of all of them is lowest there.
EXAMPLES = 1 + jnp.concatenate([sign * jnp.linspace(-0.1, 0.1, 12) for sign in (1.0, -1.0)])


def loss_fn(params: dict[str, jax.Array], batch: jax.Array) -> jax.Array:
    """The mean over examples x of ½ Σ h_i (w_i − x)²."""
    w = jnp.concatenate([params["kernel"].reshape(-1), params["bias"]])
    return 0.5 * jnp.mean(jnp.sum(CURVATURES * (w - batch[:, None]) ** 2, axis=1))


def first_params() -> dict[str, jax.Array]:
    """The start, where the loss is some 44."""
    return {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}


# By the way the loop calls them. Rates are those that suit the quadratic.
ON_ALL_EXAMPLES = {
    "bfgs": naqopt.bfgs(),
    "bfgs, dense": naqopt.bfgs(memory_size=None, linesearch=naqopt.wolfe(), store_grad=True),
    "naq": naqopt.naq(linesearch=naqopt.armijo()),
    "moq": naqopt.moq(),
    "mnaq": naqopt.mnaq(momentum=naqopt.schedules.nesterov_momentum()),
    "ssbroyden": naqopt.ssbroyden(),
    "ssbfgs": naqopt.ssbfgs(),
    "lsr1": naqopt.lsr1(radius_rule=naqopt.RadiusRule()),
    "sr1n": naqopt.sr1n(),
    "mosr1": naqopt.mosr1(),
}
ON_BATCHES = {
    "obfgs": naqopt.obfgs(naqopt.schedules.harmonic(0.5, 10)),
    "onaq": naqopt.onaq(naqopt.schedules.inverse_sqrt(0.5)),
    "onaq, flattened": naqopt.flatten(naqopt.onaq(naqopt.schedules.inverse_sqrt(0.5))),
    "onaq, chained": optax.chain(optax.clip_by_global_norm(100.0), naqopt.onaq(0.3)),
    "omoq": naqopt.omoq(naqopt.schedules.inverse_sqrt(0.5)),
    "adaqn": naqopt.adaqn(1.0, fisher_size=5, cycle_length=2),
    "asnaq": naqopt.asnaq(1.0, fisher_size=5, cycle_length=2),
}
WITH_SNAPSHOTS = {
    "svrg": naqopt.svrg(0.02),
    "svrg2": naqopt.svrg2(0.02),
    "svr_naq": naqopt.svr_naq(0.2),
}
IN_PARTS = {"multi_batch_omoq": naqopt.multi_batch_omoq(0.3)}


@functools.partial(jax.jit, static_argnums=0)
def step(
    tx: optax.GradientTransformationExtraArgs, params: Any, state: Any, batch: jax.Array
) -> tuple[Any, Any]:
    """One step, as the README has it."""
    loss = functools.partial(loss_fn, batch=batch)
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
    return optax.apply_updates(params, updates), state


@functools.partial(jax.jit, static_argnums=0)
def step_in_parts(
    tx: optax.GradientTransformationExtraArgs, params: Any, state: Any, parts: jax.Array
) -> tuple[Any, Any]:
    """One step on a batch in three parts."""
    part_grads = tuple(jax.grad(loss_fn)(params, EXAMPLES[part]) for part in parts)
    grads = jax.tree.map(lambda *gradients: sum(gradients) / 3, *part_grads)
    updates, state = tx.update(grads, state, params, part_grads=part_grads)
    return optax.apply_updates(params, updates), state


def train(name: str, tx: optax.GradientTransformationExtraArgs) -> tuple[Any, Any]:
    """Returns params and state after the steps."""
    params = first_params()
    state = tx.init(params)
    if name in IN_PARTS:
        for parts in naqopt.sliding_batches(jnp.arange(24), 2)[:STEPS]:
            params, state = step_in_parts(tx, params, state, parts)
        return params, state
    for count in range(STEPS):
        if name in WITH_SNAPSHOTS and count % 6 == 0:
            iterate = naqopt.eval_params(state, params)
            full_grad = naqopt.full_gradient(loss_fn, iterate, EXAMPLES.reshape(2, 12))
            state = naqopt.snapshot(state, params, full_grad)
        batch = EXAMPLES if name in ON_ALL_EXAMPLES else EXAMPLES.reshape(6, 4)[count % 6]
        params, state = step(tx, params, state, batch)
    return params, state


def check(name: str, tx: optax.GradientTransformationExtraArgs) -> None:
    """Trains, and asserts that the loss falls and that the state can be read."""
    params, state = train(name, tx)
    first = float(loss_fn(first_params(), EXAMPLES))
    last = float(loss_fn(naqopt.eval_params(state, params), EXAMPLES))
    found = naqopt.diagnostics(state)
    skipped = sum(int(value) for key, value in found.items() if key.endswith("steps_skipped"))
    print(f"{name:20} loss {first:.1f} -> {last:.3g}")
    assert last < 0.2 * first, f"{name} does not lower the loss"
    assert skipped == 0, f"{name} skips steps: {found}"
    shardings = jax.tree.structure(naqopt.state_sharding(tx, params))
    assert shardings == jax.tree.structure(state), f"state_sharding of {name}"
    naqopt.check_saved_state(state, jax.eval_shape(tx.init, params))
    if name == "naq":
        learnt = naqopt.inverse_hessian(naqopt.forget_loss(state))
        assert isinstance(learnt, naqopt.InverseHessian)
        positive = jax.tree.map(lambda x: bool(jnp.all(x > 0)), learnt.diagonal())
        assert jax.tree.all(positive), "the inverse Hessian is not positive"


def check_where_it_is() -> None:
    """Asserts that the package is the installed one and that all its public names are used here."""
    place = Path(naqopt.__file__).resolve()
    assert place.is_relative_to(Path(sys.prefix).resolve()), f"naqopt is read from {place}"
    assert naqopt.__version__ == importlib.metadata.version("naqopt")
    assert (place.parent / "py.typed").exists()
    used = set(re.findall(r"naqopt\.(\w+)", Path(__file__).read_text(encoding="utf-8")))
    assert set(naqopt.__all__) <= used, f"not tried: {sorted(set(naqopt.__all__) - used)}"


def main() -> None:
    """Checks everything, and prints a line for each optimizer."""
    packages = ("naqopt", "jax", "jaxlib", "optax", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"Python {sys.version.split()[0]}, {versions}", flush=True)
    check_where_it_is()
    for name, tx in (ON_ALL_EXAMPLES | ON_BATCHES | WITH_SNAPSHOTS | IN_PARTS).items():
        check(name, tx)
    print("All public calls work.")


if __name__ == "__main__":
    main()
