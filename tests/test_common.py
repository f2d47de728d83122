"""What every optimizer has to do by itself; `optimizer_table.ROWS` is the table of them.

Dtypes, wrappers, and devices and memory, have test files of their own.
"""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import (
    EACH_ROW,
    EACH_ROW_FEW_IN_CI,
    EACH_ROW_WITH_LEARNING_RATE,
    ROWS,
    STEPS,
    after,
    assert_finite,
    batch,
    init_params,
    own_state,
    plain_run,
    regression_loss,
    run,
    skipped,
    stacked_batches,
    states_of_plain_run,
    step,
    take_step,
    total_loss,
    transformation,
    types,
    update,
    value_and_gradient,
)

import naqopt


@EACH_ROW
def test_training_lowers_the_loss_and_exercises_the_rings(row):
    params, state, _ = plain_run(row)
    assert total_loss(naqopt.eval_params(state, params)) < 0.1 * total_loss(init_params())
    assert_finite((params, state))
    info = naqopt.diagnostics(state)
    # Were the table's sizes too large, many tests here would pass without testing much.
    assert info["pairs_stored"] > (row.arguments.get("memory_size", -1) or 0)
    assert info["steps_skipped"] == 0


@EACH_ROW
def test_the_iterate_is_behind_the_params_of_a_lookahead_method_only(row):
    params, state, _ = plain_run(row)
    ahead = jax.tree.map(
        lambda p, w: float(jnp.max(jnp.abs(p - w))), params, naqopt.eval_params(state, params)
    )
    assert (max(jax.tree.leaves(ahead)) > 1e-3) == row.lookahead


@EACH_ROW
def test_foreign_extra_arguments_are_ignored(row):
    tx, params = transformation(row), init_params()

    def program(**extra_args):
        trace = jax.make_jaxpr(lambda p, s, b: take_step(tx, p, s, b, **extra_args))
        return str(trace(params, tx.init(params), batch(0)))

    foreign = {"temperature": jnp.ones(()), "model": object(), "mask": {"a": 1}}
    assert program(**foreign) == program()


@EACH_ROW
def test_the_second_call_does_not_compile_again(row):
    """From an eager or a jitted init, over the end of a cycle, with params and state donated."""
    tx, traces = transformation(row), []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def donating_step(params, state, batch):
        traces.append(None)
        return take_step(tx, params, state, batch)[:2]

    for init in (tx.init, jax.jit(tx.init)):
        params = init_params()
        state = init(params)
        first = jax.tree.leaves((params, state))
        for k in range(8):
            params, state = donating_step(params, state, batch(k))
        assert len(traces) == 1
        assert all(leaf.is_deleted() for leaf in first)
        chex.assert_trees_all_close(params, after(plain_run(row)[2], 8), rtol=1e-4, atol=1e-5)


@EACH_ROW
def test_init_and_abstract_init_agree_and_no_two_buffers_are_shared(row):
    tx, params = transformation(row), init_params()
    abstract = jax.eval_shape(tx.init, params)
    for init in (tx.init, jax.jit(tx.init)):
        state = init(params)
        assert types(state) == types(abstract)
        buffers = collections.Counter(
            leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))
        )
        assert max(buffers.values()) == 1


@EACH_ROW_WITH_LEARNING_RATE
def test_a_schedule_is_the_constant_it_returns(row):
    """As long as it returns that one, and another afterwards."""
    rate, half = row.arguments["learning_rate"], STEPS // 2
    schedule = optax.piecewise_constant_schedule(rate, {half: 0.0})
    tx = transformation(row, learning_rate=schedule)
    _, state, path = run(tx, init_params(), stacked_batches())
    expected = plain_run(row)[2]
    chex.assert_trees_all_close(after(path, half), after(expected, half), rtol=1e-5, atol=1e-6)
    assert naqopt.diagnostics(state)["step_size"] == 0
    assert naqopt.diagnostics(plain_run(row)[1])["step_size"] > 0


@EACH_ROW_FEW_IN_CI
def test_eager_equals_jitted(row):
    tx, params = transformation(row), init_params()
    state = tx.init(params)
    for k in range(7):
        params, state, _ = take_step(tx, params, state, batch(k))
    chex.assert_trees_all_close(params, after(plain_run(row)[2], 7), rtol=1e-4, atol=1e-5)


@EACH_ROW_FEW_IN_CI
def test_vmap_over_seeds_equals_a_loop(row, x64):
    """In float64, as a search or a trust region that branches otherwise makes much of rounding."""
    train = functools.partial(run, transformation(row))
    seeds = [init_params(seed, jnp.float64) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    together = jax.vmap(train, in_axes=(0, None))(stacked, stacked_batches())
    for i, params in enumerate(seeds):
        alone = train(params, stacked_batches())
        one = jax.tree.map(lambda x: x[i], together)  # noqa: B023
        tolerance = 1e-7 * row.rounding
        chex.assert_trees_all_close(one, alone, rtol=tolerance, atol=tolerance)


@EACH_ROW
def test_a_zero_gradient_moves_nothing(row):
    """Where all params are 0 every derivative of the loss is."""
    start = jax.tree.map(jnp.zeros_like, init_params())
    params, state, _ = run(transformation(row), start, stacked_batches())
    chex.assert_trees_all_equal(params, start)
    chex.assert_trees_all_equal(naqopt.eval_params(state, params), start)
    assert_finite(state)


def spoil(grads, name, value):
    """The gradients with one coordinate spoilt."""
    leaf = grads[name]
    return {**grads, name: leaf.at[(0,) * leaf.ndim].set(value)}


@EACH_ROW
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_moves_the_counters_of_skips_only(row, value):
    tx = transformation(row)
    for k, (params, state) in enumerate(states_of_plain_run(row, 7)):
        loss, grads = value_and_gradient(params, batch(k))
        bad = spoil(grads, ["weight", "bias", "gain"][k % 3], value)
        # Both as without transformations in front, or only one where one hides or makes the fault.
        for updates, raw in [(bad, bad), (grads, bad), (bad, grads)]:
            result, new_state = update(tx, updates, state, params, batch(k), loss, raw)
            chex.assert_trees_all_equal(result, jax.tree.map(jnp.zeros_like, params))
            chex.assert_trees_all_equal(new_state, skipped(row, state))


@EACH_ROW
def test_a_huge_gradient_is_finite_though_its_square_is_not(row):
    """Where the method sums squares of it, its square must be finite too, which that of 1e18 is."""
    tx = transformation(row)
    sums_squares = row.restores and row.gradients == 1
    params, state = states_of_plain_run(row, 2)[-1]
    loss, grads = value_and_gradient(params, batch(2))
    huge = spoil(grads, "weight", 1e18 if sums_squares else 1e30)
    updates, new_state = update(tx, huge, state, params, batch(2), loss, huge)
    assert own_state(new_state).info.steps_skipped == 0
    assert_finite((updates, new_state))


@EACH_ROW
def test_training_survives_a_loss_that_is_nan_for_one_step(row):
    """At any step of a cycle, with the caller's gradient as it should be."""
    tx = transformation(row)
    for k, (params, state) in enumerate(states_of_plain_run(row, 9)):
        value, grads = value_and_gradient(params, batch(k))
        inputs, targets = batch(k)
        nan_batch = (inputs * np.float32(np.nan), targets)
        updates, state = update(tx, grads, state, params, nan_batch, value, grads)
        params = optax.apply_updates(params, updates)
        assert_finite((params, state, naqopt.eval_params(state, params)))
        for later in range(k + 1, STEPS + 9):
            params, state = step(tx, params, state, batch(later))
        assert_finite((params, state))
        assert total_loss(naqopt.eval_params(state, params)) < 0.2 * total_loss(init_params())


@EACH_ROW
def test_evaluations_are_as_many_as_the_paper_counts(row):
    """Counted when they run, under jit, and not when they are traced."""
    counts = collections.Counter()

    def count(kind):
        jax.debug.callback(lambda: counts.update([kind]))

    @jax.custom_vjp
    def counted(value):
        count("losses")
        return value

    def forward(value):
        count("gradients")
        return value, None

    def backward(_, cotangent):
        count("backward")
        return (cotangent,)

    counted.defvjp(forward, backward)

    def counting_loss(params, batch):
        return counted(regression_loss(params, batch))

    run(transformation(row), init_params(), stacked_batches(), loss=counting_loss)
    jax.effects_barrier()
    # Those of the parts beside the whole batch's are the caller's.
    gradients = STEPS * (row.gradients + 3 * row.has_parts) + row.full_gradients(STEPS)
    trials = sum(
        int(own_state(state).info.search_trials) for _, state in states_of_plain_run(row, STEPS)
    )
    losses = row.losses(STEPS) + trials
    expected = {"gradients": gradients, "backward": gradients, "losses": losses}
    assert counts == {kind: count for kind, count in expected.items() if count}


@EACH_ROW
def test_the_step_lowers_for_every_platform(row):
    tx, params = transformation(row), init_params()
    exported = jax.export.export(
        jax.jit(functools.partial(take_step, tx)), platforms=["cpu", "cuda", "tpu"]
    )(params, tx.init(params), batch(0))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert len(exported.out_avals) == len(jax.tree.leaves((params, tx.init(params), params)))


@EACH_ROW
def test_none_in_place_of_a_leaf_is_left_alone(row):
    """As Equinox leaves it of what is not trained."""
    params = {**init_params(), "not_trained": None, "nested": {"neither": None}}
    params, state, _ = run(transformation(row), params, stacked_batches())
    assert params.pop("not_trained") is None
    assert params.pop("nested") == {"neither": None}
    chex.assert_trees_all_close(params, plain_run(row)[0], rtol=1e-4, atol=1e-5)
    assert_finite(state)


@EACH_ROW
def test_a_leafless_tree_is_trained_to_itself(row):
    """`optax.partition` hands one to the optimizer of a label that no leaf has."""
    tx = transformation(row)
    tree = {"a": optax.MaskedNode(), "b": None}
    state = tx.init(tree)
    updates, new_state = tx.update(tree, state, tree, value_fn=lambda p: jnp.zeros(()))
    assert updates == tree
    assert types(new_state) == types(state)


@EACH_ROW
def test_no_field_is_called_value_or_grad(row):
    """`optax.value_and_grad_from_state` would take them for this step's."""
    _, state, _ = plain_run(row)
    for name in ("value", "grad"):
        assert optax.tree.get_all_with_path(state, name) == []
    # The search finds what there is.
    assert len(optax.tree.get_all_with_path(state, "steps_skipped")) == 1


def test_names_of_rows_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)
