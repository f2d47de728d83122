"""`naqopt.forget_loss`: a loss that changes while the curvature is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import types

import naqopt
from naqopt.state import find_states

DRAW = np.random.default_rng(3)
FIRST, SECOND = (
    factor @ factor.T + np.eye(6) for factor in (DRAW.normal(size=(6, 6)) for _ in range(2))
)
CALLS = {
    "bfgs": naqopt.bfgs,
    "bfgs, store_grad": lambda: naqopt.bfgs(store_grad=True),
    "ssbroyden": naqopt.ssbroyden,
    "naq": lambda: naqopt.naq(linesearch=naqopt.wolfe()),
    "moq": naqopt.moq,
    "moq without restarts": lambda: naqopt.moq(restart_window=None),
    "mnaq": naqopt.mnaq,
    "omoq": lambda: naqopt.omoq(naqopt.schedules.inverse_sqrt(0.1)),
    "multi_batch_omoq": lambda: naqopt.multi_batch_omoq(naqopt.schedules.inverse_sqrt(0.1)),
    "lsr1": lambda: naqopt.lsr1(store_grad=True),
    "sr1n": naqopt.sr1n,
    "mosr1": naqopt.mosr1,
}
# What knows nothing of the loss; all else in a state does.
KEPT = (
    "count",
    "since_rejection",
    "momentum",
    "velocity",
    "curvature",
    "radius",
    "info",
)


def loss(params, hessian):
    vector = jnp.concatenate([params["a"], params["b"]])
    return 0.5 * vector @ hessian @ vector + 0.1 * jnp.sum(vector**4) - vector[0]


def start():
    return {"a": jnp.asarray([1.0, -1.0]), "b": jnp.asarray([0.5, 2.0, -1.5, 0.3])}


def stepper(tx, loss=loss):
    @jax.jit
    def step(params, state, hessian):
        def value_fn(params):
            return loss(params, hessian)

        value, grad = jax.value_and_grad(value_fn)(params)
        closures = {"value_fn": value_fn, "part_grads": (grad, grad, grad)}
        updates, state = tx.update(grad, state, params, value=value, grad=grad, **closures)
        return optax.apply_updates(params, updates), state

    return step


def run(step, params, state, hessian, steps):
    for _ in range(steps):
        params, state = step(params, state, hessian)
    return params, state


@pytest.mark.parametrize("name", CALLS)
def test_the_next_steps_are_those_of_a_fresh_state_with_the_old_curvature(name, x64):
    tx = CALLS[name]()
    step = stepper(tx)
    params, state = run(step, start(), tx.init(start()), FIRST, 5)
    forgotten = jax.jit(naqopt.forget_loss)(state)
    assert types(forgotten) == types(state)
    fresh = tx.init(start())
    kept = {field: getattr(state, field) for field in KEPT if hasattr(state, field)}
    if name.startswith(("moq", "omoq", "multi", "mosr1")):  # what they extrapolate from is gone
        del kept["velocity"]
    if name == "mnaq":  # the pair's Lipschitz constant is a curvature
        kept["step_length"] = state.step_length
    expected = fresh._replace(**kept)
    for _ in range(3):
        params_after, forgotten = step(params, forgotten, SECOND)
        params, expected = step(params, expected, SECOND)
        jax.tree.map(np.testing.assert_array_equal, params_after, params)


@pytest.mark.parametrize("make", [naqopt.bfgs, naqopt.moq, naqopt.lsr1, naqopt.mosr1])
def test_every_pair_is_of_one_loss(make, x64):
    """Of quadratic functions y = A s, with the matrix of before or of after."""
    tx = make()
    step = stepper(tx, lambda params, hessian: 0.5 * params @ hessian @ params + 1)
    start = jnp.asarray([1.0, -1.0, 0.5, 2.0, -1.5, 0.3])
    params, state = run(step, start, tx.init(start), FIRST, 4)
    _, state = run(step, params, naqopt.forget_loss(state), SECOND, 4)
    ring = state.curvature
    wrong = [
        min(np.linalg.norm(y - hessian @ s) for hessian in (FIRST, SECOND)) / np.linalg.norm(s)
        for s, y in zip(np.asarray(ring.s), np.asarray(ring.y), strict=True)
        if np.any(s)
    ]
    assert len(wrong) >= 4
    np.testing.assert_allclose(wrong, 0, atol=1e-9)


@pytest.mark.parametrize("name", ["bfgs, store_grad", "ssbroyden", "lsr1"])
def test_a_stored_gradient_is_not_served(name, x64):
    tx = CALLS[name]()
    params, state = run(stepper(tx), start(), tx.init(start()), FIRST, 4)

    def value_fn(params):
        return loss(params, SECOND)

    expected = jax.value_and_grad(value_fn)(params)
    stale = optax.value_and_grad_from_state(value_fn)(params, state=state)
    assert abs(stale[0] - expected[0]) > 0.01
    found = optax.value_and_grad_from_state(value_fn)(params, state=naqopt.forget_loss(state))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    "wrap",
    [
        naqopt.flatten,
        lambda tx: optax.chain(optax.identity(), tx),
        lambda tx: optax.masked(tx, {"a": True, "b": True}),
    ],
    ids=["flatten", "chain", "masked"],
)
def test_states_are_found_inside_wrappers(wrap):
    tx = wrap(naqopt.ssbroyden())
    _, state = run(stepper(tx), start(), tx.init(start()), FIRST, 3)
    (before,) = find_states(state)
    assert np.isfinite(before.state.stored.value)
    assert before.state.pending.waits
    forgotten = naqopt.forget_loss(state)
    assert types(forgotten) == types(state)
    (after,) = find_states(forgotten)
    assert np.isinf(after.state.stored.value)
    assert not after.state.pending.waits
    assert np.isinf(after.state.step_length.previous_loss)


@pytest.mark.parametrize(
    "tx", [optax.adam(0.1), naqopt.asnaq(), naqopt.svr_naq(0.1)], ids=["adam", "asnaq", "svr_naq"]
)
def test_a_state_without_a_loss_is_told_what_to_do(tx):
    with pytest.raises(ValueError, match=r"naqopt\.snapshot\(state, params, full_grad\)"):
        naqopt.forget_loss(tx.init(start()))
