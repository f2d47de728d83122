"""A point where the gradient stays NaN is left, and what is chained in front is judged.

Batches that are bad now and then skip their steps (`test_faults`); here the params stand where no
gradient is finite any more.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import (
    EACH_ROW,
    FEW_IN_CI,
    ROWS,
    STEPS,
    batch,
    each,
    init_params,
    own_state,
    plain_run,
    states_of_plain_run,
    step,
    total_loss,
    transformation,
    update,
    value_and_gradient,
)
from states import flat

import naqopt
from naqopt.state import MOST_SKIPPED

NOTHING_BEHIND = ("obfgs", "lsr1")  # whose every step ends where a gradient was finite


def skip(tx, params, state, k, times=1):
    """Steps whose gradient is NaN."""
    value, grads = value_and_gradient(params, batch(k))
    nan = jax.tree.map(lambda g: g * jnp.nan, grads)
    for _ in range(times):
        updates, state = update(tx, nan, state, params, batch(k), value, nan)
        params = optax.apply_updates(params, updates)
    return params, state


def where_it_leads(row, points):
    """To the anchor, the snapshot, the look-ahead point's iterate, or the iterate before."""
    params, state = points[-1]
    own = own_state(state)
    if hasattr(own, "anchor"):
        return own.anchor
    if hasattr(own, "snapshot_params"):
        return own.snapshot_params
    if row.lookahead:
        return naqopt.eval_params(state, params)
    return points[-2][0]


@pytest.mark.parametrize("steps", [2, 7])
@EACH_ROW
def test_a_point_where_the_gradient_stays_nan_is_left(row, steps):
    tx = transformation(row)
    points = states_of_plain_run(row, steps)
    params, state = points[-1]
    if row.rejects and row.gradients == 1:  # the last accepted step is what is taken back
        while points[-2][0]["gain"] == params["gain"]:
            points.pop(-2)
    there, waiting = skip(tx, params, state, steps, MOST_SKIPPED - 1)
    chex.assert_trees_all_equal(there, params)
    info = naqopt.diagnostics(waiting)
    assert (info["skipped_in_a_row"], info["bad_points_left"]) == (MOST_SKIPPED - 1, 0)
    # One good gradient in between, and it is counted anew.
    _, went_on = step(tx, params, waiting, batch(steps))
    assert naqopt.diagnostics(went_on)["skipped_in_a_row"] == 0

    there, left = skip(tx, params, waiting, steps)
    info = naqopt.diagnostics(left)
    if row.name in NOTHING_BEHIND:
        chex.assert_trees_all_equal(there, params)
        assert info["bad_points_left"] == 0
        assert info["skipped_in_a_row"] == MOST_SKIPPED
        chex.assert_trees_all_equal(left.curvature, waiting.curvature)  # the pairs stay too
        return
    assert (info["skipped_in_a_row"], info["bad_points_left"]) == (0, 1)
    assert info["steps_skipped"] == MOST_SKIPPED
    np.testing.assert_allclose(flat(there), flat(where_it_leads(row, points)), 1e-5, 1e-6)
    moved = any(np.any(there[name] != params[name]) for name in params)
    assert moved or naqopt.diagnostics(state)["momentum_restarts"] > 0
    chex.assert_trees_all_equal(naqopt.eval_params(left, there), there)

    # And training goes on from there.
    params, state, losses = there, left, []
    for k in range(steps, steps + STEPS):
        params, state = step(tx, params, state, batch(k))
        losses.append(total_loss(naqopt.eval_params(state, params)))
    reached = min(losses)  # adaQN's last cycle may be one that is taken back
    undisturbed = total_loss(naqopt.eval_params(*plain_run(row)[1::-1]))
    assert reached < max(2 * undisturbed, 0.3 * total_loss(init_params()))


@EACH_ROW
def test_a_start_where_the_gradient_is_nan_is_not_left(row):
    tx, params = transformation(row), init_params()
    there, state = skip(tx, params, tx.init(params), 0, MOST_SKIPPED + 1)
    chex.assert_trees_all_equal(there, params)
    info = naqopt.diagnostics(state)
    assert info["bad_points_left"] == 0
    assert info["skipped_in_a_row"] == info["steps_skipped"] == MOST_SKIPPED + 1


def test_a_run_that_fell_into_a_bad_region_gets_out_of_it():
    """The square root's gradient is NaN beneath 0, whither one step of the first batches leads."""

    def loss(p, shift):
        return jnp.sum((p - shift) ** 2) + 0 * jnp.sum(jnp.sqrt(p))

    tx = naqopt.omoq(0.5, momentum=0.5)

    @jax.jit
    def train(params, state, shift):
        grads = jax.grad(loss)(params, shift)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.array([0.3, 0.3])
    state = tx.init(params)
    params, state = train(params, state, -1.0)
    assert not np.all(np.isfinite(jax.grad(loss)(params, 1.0)))
    for _ in range(40):
        params, state = train(params, state, 1.0)
    assert naqopt.diagnostics(state)["bad_points_left"] == 1
    np.testing.assert_allclose(params, 1, atol=0.3)


# Weight decay in front of what a loss judges.

JUDGED = [row for row in ROWS if row.searches or row.rejects or row.restores or row.name == "mnaq"]
NOT_JUDGED = ["obfgs", "onaq", "omoq", "svrg", "svrg2", "svr_naq"]


@functools.cache
def decayed(name, in_front, decay=2.0):
    """The share of steps that led uphill, and how far above the least loss the run ended."""
    row = next(row for row in ROWS if row.name == name)
    rates = {
        "adaqn": {"learning_rate": 0.3},
        "svrg": {"learning_rate": 0.1},
        "svr_naq": {"warmup_learning_rate": 0.1},
    }
    tx, steps = transformation(row, **rates.get(name, {})), 400 if name == "adaqn" else 120
    if in_front:
        tx = optax.chain(optax.add_decayed_weights(decay), tx)
    curvature, best = jnp.array([1.0, 3.0, 10.0]), jnp.array([1.0, -2.0, 3.0])

    def plain(p):
        return 0.5 * jnp.sum(curvature * (p - best) ** 2)

    def whole(p):
        return plain(p) + 0.5 * decay * jnp.sum(p**2)

    loss = plain if in_front else whole

    def body(carry, _):
        params, state = carry
        if hasattr(own_state(state), "take_snapshot"):
            iterate = naqopt.eval_params(state, params)
            state = naqopt.snapshot(state, params, jax.grad(loss)(iterate))
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run():
        start = jnp.zeros(3)
        (params, state), _ = jax.lax.scan(body, (start, tx.init(start)), length=steps)
        return naqopt.eval_params(state, params), naqopt.diagnostics(state)["steps_uphill"]

    end, uphill = run()
    least = whole(curvature * best / (curvature + decay))
    return float(uphill / steps), float((whole(end) - least) / (whole(jnp.zeros(3)) - least))


@each([row for row in JUDGED if not row.flat], FEW_IN_CI)
def test_decay_in_front_of_what_a_loss_judges_is_told(row):
    name = row.name
    uphill, above = decayed(name, in_front=True)
    uphill_in_loss, above_in_loss = decayed(name, in_front=False)
    assert uphill > 0.2
    assert uphill_in_loss == 0
    assert above_in_loss < 0.01
    # A cycle's mean may be as low for all that, and a dense model knows the curvature anyway.
    assert above > above_in_loss or "asnaq" in name or name in ("adaqn", "sr1n", "sr1n_dense")


@pytest.mark.parametrize("name", NOT_JUDGED)
def test_decay_in_front_of_what_nothing_judges_is_right(name):
    uphill, above = decayed(name, in_front=True)
    assert uphill == 0
    assert above < 0.01


def test_clipping_in_front_leads_nowhere_uphill():
    tx = optax.chain(optax.clip_by_global_norm(0.1), naqopt.bfgs(memory_size=2))
    params = init_params()
    state = tx.init(params)
    for k in range(5):
        params, state = step(tx, params, state, batch(k))
    assert naqopt.diagnostics(state)["steps_uphill"] == 0
