"""20,000 steps on noisy data, 2³¹ by the counters, and 10⁶ by the sum of squares.

Nothing drifts, overflows or comes to a stop.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import (
    EACH_ROW,
    batch,
    init_params,
    jitted_take_due_snapshot,
    own_state,
    part_gradients,
    regression_loss,
    stacked_batches,
    states_of_plain_run,
    step,
    take_due_snapshot,
    total_loss,
    transformation,
    types,
    update,
    value_and_gradient,
)

import naqopt

STEPS = 20_000
LAST = 1000  # steps on which the loss on all data is looked at


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@EACH_ROW
def test_twenty_thousand_steps(row, dtype):
    tx = row.factory(**row.arguments)
    inputs, targets = jax.tree.map(jnp.asarray, stacked_batches())

    @jax.jit
    def run(params, state):
        def body(carry, k):
            params, state = carry
            batch = inputs[k % len(inputs)], targets[k % len(targets)]

            def batch_loss(p, batch):
                return regression_loss(jax.tree.map(lambda x: x.astype(jnp.float32), p), batch)

            def loss(p):
                return batch_loss(p, batch)

            state = take_due_snapshot(state, params, batch_loss)
            grads = jax.grad(loss)(params)
            parts = part_gradients(state, params, batch, batch_loss)
            updates, state = tx.update(grads, state, params, value_fn=loss, **parts)
            params = optax.apply_updates(params, updates)
            total = jax.lax.cond(
                k >= STEPS - LAST,
                lambda: total_of(naqopt.eval_params(state, params)),
                lambda: jnp.zeros(()),
            )
            return (params, state), total

        return jax.lax.scan(body, (params, state), jnp.arange(STEPS))

    def total_of(params):
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return regression_loss(params, (inputs, targets))

    params = init_params(dtypes=jnp.dtype(dtype))
    (params, state), losses = run(params, tx.init(params))
    assert np.all(np.isfinite(losses))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    state = own_state(state)
    assert int(state.count) == STEPS
    events = state.info.pairs_stored + state.info.pairs_refused + state.info.restorations
    if row.pairs_formed is not None:
        assert int(events) == row.pairs_formed(STEPS)
    else:
        # The last pair may still wait, and a refused or rejected step may form none. Nor does one
        # that leads back from the look-ahead point, where momentum begins anew.
        info = state.info
        without = info.steps_refused + info.steps_rejected
        if row.gradients == 2:
            without += info.momentum_restarts
        assert int(events) >= STEPS - 1 - int(without)
    final = np.median(losses[-LAST:])
    if row.searches and (dtype == "bfloat16" or row.name == "ssbroyden_dense"):
        # With 8 bits a line search may soon find no decrease, and the run stands still. The same
        # where the matrix is scaled by the noise of other batches: it is for full batches.
        bound = 1.1 * total_loss(init_params())
        if row.name == "moq" and final >= bound:
            # Its momentum goes on where searches fail. Whether it comes to that is rounding.
            pytest.xfail("MoQ runs away where its line searches fail in bfloat16")
        assert final < bound
    else:
        assert final < 0.5 * total_loss(init_params())
        # Variance-reduced methods come to rest at a minimum, where there is nothing to store.
        enough = 20 if row.full_gradients(STEPS) else 100
        assert int(state.info.pairs_stored) > enough or row.pairs_formed(STEPS) == 0


# What counts, by the names of the states' fields, and what has to be left alone: indices into
# rings and numbers of the last step.
COUNTERS = {
    "count",
    "since_rejection",
    "snapshots",
    "pairs_stored",
    "pairs_refused",
    "restorations",
    "steps_skipped",
    "skipped_in_a_row",
    "bad_points_left",
    "steps_uphill",
    "steps_refused",
    "searches_failed",
    "snapshots_refused",
    "steps_without_snapshot",
    "steps_rejected",
    "momentum_restarts",
}
NOT_COUNTERS = {"size", "next", "search_trials", "pairs_in_memory"}
MOST = np.iinfo(np.int32).max


def integers(state):
    """The integers of a state by the path to them."""
    return {
        jax.tree_util.keystr(path): int(leaf)
        for path, leaf in jax.tree.leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.integer)
    }


@jax.jit
def nearly_full(state):
    """The state with every counter two short of its most."""

    def put(path, leaf):
        name = getattr(path[-1], "name", None)
        if not jnp.issubdtype(leaf.dtype, jnp.integer) or name in NOT_COUNTERS:
            return leaf
        assert name in COUNTERS, path
        return jnp.full_like(leaf, MOST - 2)

    return jax.tree_util.tree_map_with_path(put, state)


@pytest.mark.slow
@EACH_ROW
def test_counters_stop_at_their_most(row):
    """After 2³¹ steps, that is; schedules and cycles then stay where they are."""
    tx = transformation(row)
    params, state = states_of_plain_run(row, 7)[-1]
    state = nearly_full(state)
    kinds, before = types((params, state)), integers(state)
    counted = [path for path, number in before.items() if number == MOST - 2]
    assert len(counted) >= 14
    for k in range(4):
        params, state = step(tx, params, state, batch(k))
    assert types((params, state)) == kinds
    assert int(own_state(state).count) == MOST
    for k in range(4):  # the first of which the most skips in a row leave
        value, grads = value_and_gradient(params, batch(k))
        nan = jax.tree.map(lambda g: g * jnp.nan, grads)
        state = jitted_take_due_snapshot(state, params)
        updates, state = update(tx, nan, state, params, batch(k), value, nan)
        params = optax.apply_updates(params, updates)
    assert int(own_state(state).count) == MOST
    assert int(naqopt.diagnostics(state)["steps_skipped"]) == MOST
    after = integers(state)
    anew = ("since_rejection", "skipped_in_a_row")
    for path in counted:
        assert after[path] >= before[path] or path.endswith(anew), path
        assert after[path] >= 0, path
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((params, state)))


# G of adaQN and aSNAQ


def accumulated(tx):
    """Median length of a step and of H g after 10³, 2·10⁴ and 10⁶ steps on a noisy quadratic.

    50 parameters, curvatures from 1 to 30, a minimum that is drawn anew, N(0, 1), at every step. G
    grows by the same on every step, so that what it is after 10⁶ is 50 times what it is after
    2·10⁴; the pairs are formed with it for 200 cycles more.
    """
    curvature = jnp.geomspace(1.0, 30.0, 50)

    @jax.jit
    def train(carry, keys):
        def body(carry, key):
            params, state = carry
            centre = jax.random.normal(key, (50,))
            loss = lambda p: 0.5 * jnp.sum(curvature * (p - centre) ** 2)  # noqa: E731
            value, grad = jax.value_and_grad(loss)(params)
            closures = {"value": value, "grad": grad, "value_fn": loss}
            updates, new = tx.update(grad, state, params, **closures)
            after = optax.apply_updates(params, updates)
            iterates = naqopt.eval_params(state, params), naqopt.eval_params(new, after)
            length = jnp.linalg.norm(iterates[1] - iterates[0])
            return (after, new), (length, new.info.direction_norm)

        carry, numbers = jax.lax.scan(body, carry, keys)
        return carry, jnp.stack([jnp.median(x[-1000:]) for x in numbers])

    params = jnp.zeros(50)
    carry, medians = (params, tx.init(params)), []
    for seed, (steps, times) in enumerate([(1_000, 1), (19_000, 1), (1_000, 50)]):
        params, state = carry
        grown = times * state.memory.accumulator
        state = state._replace(memory=state.memory._replace(accumulator=grown))
        carry, found = train((params, state), jax.random.split(jax.random.key(seed + 1), steps))
        medians.append(np.asarray(found))
    return np.transpose(medians)


@pytest.mark.slow
def test_what_a_million_squares_make_of_a_step():
    """The figures of the two docstrings."""
    lengths, _ = accumulated(naqopt.adaqn())
    np.testing.assert_allclose(lengths, [4.1e-3, 1.4e-3, 1.2e-3], rtol=0.1)
    lengths, _ = accumulated(naqopt.adaqn(accumulator_decay=0.9))
    np.testing.assert_allclose(lengths, [7.4e-2, 7.4e-2, 7.2e-2], rtol=0.1)
    lengths, directions = accumulated(naqopt.asnaq())
    np.testing.assert_allclose(lengths, [3.8e-2, 3.9e-2, 3.1e-2], rtol=0.15)
    np.testing.assert_allclose(directions, [0.42, 0.083, 0.066], rtol=0.15)


def test_without_pairs_a_step_of_adaqn_falls_as_the_root_and_one_of_asnaq_does_not():
    grad = {"w": jnp.array([3.0, -4.0])}
    loss = lambda p: jnp.sum(p["w"] ** 2)  # noqa: E731
    for tx, factor in ((naqopt.adaqn(0.1), 1e-3), (naqopt.asnaq(0.1, min_momentum=0.0), 1.0)):
        params = {"w": jnp.zeros(2)}
        state = tx.init(params)
        sizes = []
        for total in (1e2, 1e8):
            memory = state.memory._replace(accumulator={"w": jnp.full(2, total)})
            updates, _ = tx.update(grad, state._replace(memory=memory), params, value_fn=loss)
            sizes.append(float(jnp.linalg.norm(updates["w"])))
        np.testing.assert_allclose(sizes[1] / sizes[0], factor, rtol=0.15)
