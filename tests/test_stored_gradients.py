"""`optax.value_and_grad_from_state` under every wrapper: what it finds is of now, or it says so.

Of states without `store_grad` it finds nothing (tests/test_common.py).
"""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from optimizer_table import FEW_IN_CI, ROWS, batch, init_params, regression_loss
from optimizer_table import transformation as made

import naqopt

CALLS = {
    "bfgs": naqopt.bfgs(memory_size=2, store_grad=True),
    "lsr1": naqopt.lsr1(memory_size=2, store_grad=True),
    "ssbroyden": naqopt.ssbroyden(),  # which stores it by default
}
LABELS = {"bias": "frozen", "gain": "trained", "weight": "trained"}
CLIP = optax.clip_by_global_norm(0.1)
RIGHT = {
    "chain": lambda tx: optax.chain(CLIP, tx),
    "decay": lambda tx: optax.chain(CLIP, optax.add_decayed_weights(1e-2), tx),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 5),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "nested": lambda tx: optax.apply_if_finite(optax.chain(CLIP, optax.chain(tx)), 5),
    "identity behind": lambda tx: optax.chain(tx, optax.identity()),
}
# A part of the gradient, or one vector, is no gradient of the params: it is refused.
REFUSED = {
    "masked": lambda tx: optax.masked(tx, {name: x == "trained" for name, x in LABELS.items()}),
    "partition": lambda tx: optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, LABELS),
    "two of them": lambda tx: optax.partition({"trained": tx, "frozen": tx}, LABELS),
    "flatten": naqopt.flatten,
}


def loss(params):
    return regression_loss(params, batch(0))


fresh = jax.jit(jax.value_and_grad(loss))


def from_state(params, state):
    return optax.value_and_grad_from_state(loss)(params, state=state)


def each(wrappers):
    """Every call in every wrapper; one of each in CI."""
    return pytest.mark.parametrize(
        ("name", "wrapper"),
        [
            pytest.param(
                name,
                wrapper,
                marks=[] if (name, wrapper) == ("bfgs", "chain") else [pytest.mark.slow],
            )
            for name in CALLS
            for wrapper in wrappers
            if name == "bfgs" or wrapper in ("chain", "MultiSteps", "apply_if_finite", "masked")
        ],
    )


@each(RIGHT)
def test_what_is_found_is_of_the_params_of_now(name, wrapper):
    """On each of some steps, those included that a gradient that is not finite has skipped."""
    tx, params = RIGHT[wrapper](CALLS[name]), init_params()
    state = tx.init(params)

    @jax.jit
    def step(params, state, factor):
        value, grads = from_state(params, state)
        grads = jax.tree.map(lambda g: factor * g, grads)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state

    for k in range(9):
        params, state = step(params, state, jnp.nan if k == 4 else 1.0)
        found, expected = from_state(params, state), fresh(params)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    stored = optax.tree.get(state, "value")
    assert jnp.isfinite(stored)  # so that it was found, and not computed anew
    chex.assert_trees_all_close(stored, expected[0], rtol=1e-5)


@each(REFUSED)
def test_what_is_not_of_all_params_is_refused(name, wrapper):
    tx, params = REFUSED[wrapper](CALLS[name]), init_params()
    state = jax.eval_shape(tx.init, params)
    with pytest.raises((TypeError, ValueError, KeyError)):
        jax.eval_shape(from_state, params, state)


@pytest.mark.parametrize("wrapper", [*RIGHT, *REFUSED])
@pytest.mark.parametrize("name", FEW_IN_CI)
def test_nothing_is_found_where_nothing_is_stored(name, wrapper):
    (row,) = (row for row in ROWS if row.name == name)
    wrap = {**RIGHT, **REFUSED}[wrapper]
    state = jax.eval_shape(wrap(made(row)).init, init_params())
    for field in ("value", "grad"):
        assert optax.tree.get_all_with_path(state, field) == []
