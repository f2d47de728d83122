"""Every optimizer of `optimizer_table.ROWS` inside the wrappers of Optax, and in Flax."""

import functools
import inspect
import math

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
    EACH_ROW_WITH_SIZES,
    SHAPES,
    STEPS,
    after,
    batch,
    init_params,
    merge,
    plain_run,
    regression_loss,
    run,
    stacked_batches,
    states_of_plain_run,
    step,
    take_due_snapshot,
    take_step,
    total_loss,
    transformation,
    update,
    value_and_gradient,
)

import naqopt

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def assert_same_training(row, actual, expected):
    """Both are params and state; the states may be wrapped differently."""
    (params, state), (expected_params, expected_state) = actual, expected
    close = {name: row.rounding * tolerance for name, tolerance in CLOSE.items()}
    chex.assert_trees_all_close(params, expected_params, **close)
    iterate = naqopt.eval_params(state, params)
    chex.assert_trees_all_close(
        iterate, naqopt.eval_params(expected_state, expected_params), **close
    )
    found, wanted = naqopt.diagnostics(state), naqopt.diagnostics(expected_state)
    # A direction's length before normalisation is large and not what is compared here.
    chex.assert_trees_all_close(found, wanted, rtol=1e-2, atol=1e-4)


def without(tree, name):
    return {key: leaf for key, leaf in tree.items() if key != name}


# MultiSteps, apply_if_finite


# Of one batch in all mini-steps the mix that is warned of (tests/test_multi_steps.py) is none.
@pytest.mark.filterwarnings("ignore:.*optax.MultiSteps stands around:UserWarning")
@EACH_ROW_FEW_IN_CI
def test_multi_steps(row):
    """Two mini-steps on one batch are one step on it; the first of them does nothing."""
    tx = optax.MultiSteps(transformation(row), every_k_schedule=2).gradient_transformation()
    params = init_params()
    state = tx.init(params)
    points = states_of_plain_run(row, 7)
    for k in range(7):
        value, grads = value_and_gradient(params, batch(k))
        updates, half_way = update(tx, grads, state, params, batch(k), value, grads)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
        chex.assert_trees_all_equal(half_way.inner_opt_state, state.inner_opt_state)
        params, state = step(tx, params, half_way, batch(k))
        assert state.gradient_step == k + 1
        assert_same_training(row, (params, state), points[k + 1])


@EACH_ROW_FEW_IN_CI
def test_apply_if_finite(row):
    tx, params = optax.apply_if_finite(transformation(row), 3), init_params()
    state = tx.init(params)
    points = states_of_plain_run(row, 7)
    for k in range(7):
        value, grads = value_and_gradient(params, batch(k))
        bad = jax.tree.map(lambda g: g * jnp.nan, grads)
        updates, rejected = update(tx, bad, state, params, batch(k), value, bad)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
        chex.assert_trees_all_equal(rejected.inner_state, state.inner_state)
        assert rejected.notfinite_count == 1
        params, state = step(tx, params, rejected, batch(k))
        assert_same_training(row, (params, state), points[k + 1])


# inject_hyperparams


def injected(row, **arguments):
    factory = optax.inject_hyperparams(row.factory, static_args=row.static_args)
    return factory(**{**row.arguments, **arguments})


@EACH_ROW
def test_inject_hyperparams(row):
    """Injected numbers train as written ones do, and can be changed in the state."""
    tx, params = injected(row), init_params()
    state = tx.init(params)
    points = states_of_plain_run(row, 8)
    for k in range(8):
        params, state = step(tx, params, state, batch(k))
        assert_same_training(row, (params, state), points[k + 1])
    traced = {name for name, x in row.arguments.items() if isinstance(x, float)}
    traced -= set(row.static_args)
    assert traced <= set(state.hyperparams)
    if not traced:
        return  # L-SR1 has no number to inject
    name = "learning_rate" if "learning_rate" in traced else sorted(traced)[0]
    changed = state._replace(hyperparams={**state.hyperparams, name: state.hyperparams[name] / 2})
    as_usual, halved = (params, state), (params, changed)
    for k in range(8, 14):  # after a rejected step the momentum is 0, whatever it is
        as_usual, halved = (step(tx, *point, batch(k)) for point in (as_usual, halved))
    difference = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), as_usual[0], halved[0])
    assert max(jax.tree.leaves(difference)) > 1e-4


@EACH_ROW_WITH_LEARNING_RATE
def test_inject_hyperparams_with_a_schedule_and_donation(row):
    rate = row.arguments["learning_rate"]
    tx = injected(row, learning_rate=optax.piecewise_constant_schedule(rate, {6: 0.0}))
    step_and_donate = jax.jit(functools.partial(take_step, tx), donate_argnums=(0, 1))
    for init in (tx.init, jax.jit(tx.init)):
        params = init_params()
        state = init(params)
        for k in range(7):
            # Of two leaves in one buffer the second could not be donated.
            params, state, _ = step_and_donate(params, state, batch(k))
            if k == 5:
                chex.assert_trees_all_close(params, after(plain_run(row)[2], 6), **CLOSE)
        assert state.hyperparams["learning_rate"] == 0
        assert naqopt.diagnostics(state)["step_size"] == 0


@EACH_ROW_WITH_SIZES
def test_inject_hyperparams_without_static_args_says_what_to_name(row):
    tx = optax.inject_hyperparams(row.factory)(**row.arguments)
    with pytest.raises(TypeError, match="static_args"):
        tx.init(init_params())


# masked, partition

TRAINED = {"bias": False, "gain": True, "weight": True}
FROZEN_BIAS = np.asarray(init_params()["bias"])


def loss_without_bias(params, batch):
    return regression_loss({**params, "bias": FROZEN_BIAS}, batch)


@functools.cache
def run_without_bias(row):
    params = without(init_params(), "bias")
    return run(transformation(row), params, stacked_batches(), loss=loss_without_bias)


@EACH_ROW_FEW_IN_CI
@pytest.mark.parametrize("mask_extra_args", [False, True], ids=["", "mask_compatible_extra_args"])
def test_partition_with_frozen_leaves(row, mask_extra_args):
    """The trained leaves move as if they were all; `grad` comes whole, or pruned by Optax."""
    labels = {name: "trained" if TRAINED[name] else "frozen" for name in SHAPES}
    transforms = {
        "trained": transformation(row),
        "frozen": optax.set_to_zero(),
        "nobody": transformation(row),  # gets a tree without leaves
    }
    tx = optax.partition(transforms, labels, mask_compatible_extra_args=mask_extra_args)
    params, state, _ = run(tx, init_params(), stacked_batches())
    chex.assert_trees_all_equal(params["bias"], FROZEN_BIAS)
    expected, expected_state, _ = run_without_bias(row)
    chex.assert_trees_all_close(without(params, "bias"), expected, **CLOSE)
    chex.assert_trees_all_close(
        without(naqopt.eval_params(state, params), "bias"),
        naqopt.eval_params(expected_state, expected),
        **CLOSE,
    )
    info = naqopt.diagnostics(state)
    for name, value in naqopt.diagnostics(expected_state).items():
        if name == "steps_uphill":  # looked at where something stands in front, as here
            continue
        (trained,) = [x for key, x in info.items() if key.endswith(f"/{name}") and "trained" in key]
        np.testing.assert_allclose(trained, value, rtol=1e-2, atol=1e-4)
    assert total_loss(params) < 0.5 * total_loss(init_params())


@EACH_ROW_FEW_IN_CI
def test_partition_of_the_params_between_two(row):
    labels = {"bias": "first", "gain": "second", "weight": "second"}
    tx = optax.partition({"first": transformation(row), "second": transformation(row)}, labels)
    params, state, _ = run(tx, init_params(), stacked_batches())
    info = naqopt.diagnostics(state)
    for label in ("first", "second"):
        steps = [x for key, x in info.items() if label in key and key.endswith("direction_norm")]
        assert len(steps) == 1
        assert steps[0] > 0
    iterate = naqopt.eval_params(state, params)
    assert total_loss(iterate) < 0.5 * total_loss(init_params())
    # A momentum that has just begun anew leads nowhere yet; without one there is nothing to rest.
    stops = sum(x for key, x in info.items() if key.endswith(("restarts", "steps_refused")))
    rests = row.lookahead and stops > 0
    for name, start in init_params().items():
        assert not np.array_equal(params[name], start)
        assert np.array_equal(iterate[name], params[name]) != row.lookahead or rests


@EACH_ROW_FEW_IN_CI
def test_masked(row):
    """What is masked out moves by its raw gradients: Optax's rule, hence set_to_zero above."""
    tx, params = optax.masked(transformation(row), TRAINED), init_params()
    state = take_due_snapshot(tx.init(params), params)
    value, grads = value_and_gradient(params, batch(0))
    updates, state = update(tx, grads, state, params, batch(0), value, grads)
    chex.assert_trees_all_equal(updates["bias"], grads["bias"])
    expected = after(run_without_bias(row)[2], 1)
    params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(without(params, "bias"), expected, **CLOSE)
    iterate = naqopt.eval_params(state, params)
    chex.assert_trees_all_equal(iterate["bias"], params["bias"])
    # Variance-reduced methods look ahead from their second snapshot on.
    lookahead = row.lookahead and row.full_gradients(STEPS) == 0
    assert np.array_equal(iterate["weight"], params["weight"]) != lookahead
    assert naqopt.diagnostics(state)["step_size"] > 0


def test_the_merge_recipe_fills_what_is_masked():
    params = init_params()
    masked = {**params, "bias": optax.MaskedNode()}
    other = jax.tree.map(lambda x: x + 1, params)
    chex.assert_trees_all_equal(merge(masked, other), {**params, "bias": other["bias"]})


# chain, map_params

VECTOR = {"vector": (sum(math.prod(shape) for shape in SHAPES.values()),)}


@EACH_ROW
def test_clipping_in_front_acts_on_the_direction_and_not_on_the_curvature(row):
    tx, params = transformation(row), init_params()
    # Clipped coordinate by coordinate, as a normalised direction would hide a shorter gradient.
    clipped = optax.chain(optax.clip(0.01), tx)
    slopes = jax.tree.map(lambda x: 0.1 + x, init_params(1))

    def linear_loss(p):
        return sum(jnp.sum(p[name] * slope) for name, slope in slopes.items())

    @functools.partial(jax.jit, static_argnums=0)
    def first_step(tx, updates, raw):
        closures = {"value_fn": linear_loss, "part_grads": (raw, raw, raw)}
        return tx.update(updates, tx.init(params), params, grad=raw, **closures)

    plain, plain_state = first_step(tx, slopes, slopes)
    in_chain, (_, chain_state) = first_step(clipped, slopes, slopes)
    small = jax.tree.map(lambda x: jnp.clip(x, -0.01, 0.01), slopes)
    by_hand, hand_state = first_step(tx, small, slopes)
    chex.assert_trees_all_close((in_chain, chain_state), (by_hand, hand_state), rtol=1e-6)
    difference = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), plain, in_chain)
    assert max(jax.tree.leaves(difference)) > 1e-3
    if row.raw_statistics is not None:
        statistics, expected = row.raw_statistics(chain_state), row.raw_statistics(plain_state)
        chex.assert_trees_all_close(statistics, expected, rtol=1e-6)
        assert any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(expected))


@EACH_ROW_FEW_IN_CI
def test_chain_trains(row):
    """With a bound that never binds, exactly as without; eval_params looks into the chain."""
    tx = optax.chain(optax.clip_by_global_norm(1e6), transformation(row), optax.identity())
    params, state, _ = run(tx, init_params(), stacked_batches())
    assert_same_training(row, (params, state), plain_run(row)[:2])


@EACH_ROW
def test_map_params(row):
    """It finds every leaf that is shaped like a param, alone or in a history, with its name.

    Of a flattened optimizer the params are one vector, and there are no names.
    """
    tx = transformation(row)
    _, state, _ = plain_run(row)
    names = {name: name for name in SHAPES}
    shapes, rest_trees = (VECTOR, ()) if row.flat else (SHAPES, (names,))
    if row.flat:
        with pytest.raises(ValueError, match="float32"):
            optax.tree.map_params(tx, lambda leaf, name: leaf, state, names)
    found = []

    def see(leaf, name="vector"):
        shape = shapes[name]
        assert leaf.shape[leaf.ndim - len(shape) :] == shape
        assert leaf.ndim - len(shape) in (0, 1)
        found.append(leaf)
        return leaf

    rest = []
    mapped = optax.tree.map_params(
        tx, see, state, *rest_trees, transform_non_params=lambda x: rest.append(x) or x
    )
    chex.assert_trees_all_equal(mapped, state)
    assert len(found) + len(rest) == len(jax.tree.leaves(state))
    assert found
    assert len(found) % len(shapes) == 0
    # What is left has no axis of the params: scalars, products of pairs, and the last losses.
    window = inspect.signature(row.factory).parameters.get("restart_window")
    sizes = {row.arguments.get("memory_size"), window and window.default}
    assert all(set(x.shape) <= sizes for x in rest)


# Flax


@EACH_ROW_FEW_IN_CI
def test_flax_nnx(row):
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(4, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.output = nnx.Linear(8, 8, rngs=rngs)

        def __call__(self, inputs):
            return self.output(jnp.tanh(self.norm(self.hidden(inputs))))

    def model_loss(model, batch):
        inputs, targets = batch
        return jnp.mean(jnp.square(model(inputs) - targets))

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, transformation(row), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, batch):
        graphdef, _, rest = nnx.split(model, nnx.Param, ...)

        def value_fn(p):
            return model_loss(nnx.merge(graphdef, p, rest, copy=True), batch)

        value, grads = nnx.value_and_grad(model_loss)(model, batch)
        parts = (grads, grads, grads)
        optimizer.update(model, grads, value=value, grad=grads, value_fn=value_fn, part_grads=parts)
        return value

    # BatchNorm's averages move by the caller's own evaluation and not by the optimizer's.
    once = nnx.clone(model)
    once(batch(0)[0])

    def due_snapshot():
        """As users of Flax take one: the state out of the optimizer, and back into it."""
        graphdef, trained, rest = nnx.split(model, nnx.Param, ...)

        def loss(p, examples):
            return model_loss(nnx.merge(graphdef, p, rest, copy=True), examples)

        state = nnx.as_pure(optimizer.opt_state)
        state = take_due_snapshot(state, nnx.as_pure(trained), loss)
        nnx.update(optimizer.opt_state, nnx.state(state))

    losses = [float(train_step(model, optimizer, batch(0)))]
    np.testing.assert_allclose(model.norm.mean[...], once.norm.mean[...], rtol=1e-5)
    for k in range(1, STEPS):
        due_snapshot()
        losses.append(float(train_step(model, optimizer, batch(k))))
    assert np.mean(losses[-4:]) < 0.5 * losses[0]

    state = nnx.as_pure(optimizer.opt_state)
    assert naqopt.diagnostics(state)["pairs_stored"] > 0 or row.pairs_formed(STEPS) == 0
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    iterate = naqopt.eval_params(state, params)
    same = jax.tree.leaves(jax.tree.map(np.array_equal, params, iterate))
    assert all(same) != row.lookahead
    nnx.update(model, iterate)
    chex.assert_trees_all_equal(nnx.as_pure(nnx.state(model, nnx.Param)), iterate)


@EACH_ROW_FEW_IN_CI
def test_flax_linen(row):
    linen = pytest.importorskip("flax.linen")
    model = linen.Sequential([linen.Dense(8), jnp.tanh, linen.Dense(8)])
    variables = model.init(jax.random.key(0), batch(0)[0])

    def model_loss(variables, batch):
        inputs, targets = batch
        return jnp.mean(jnp.square(model.apply(variables, inputs) - targets))

    trained, state, _ = run(transformation(row), variables, stacked_batches(), loss=model_loss)
    everything = stacked_batches()
    iterate = naqopt.eval_params(state, trained)
    assert model_loss(iterate, everything) < 0.5 * model_loss(variables, everything)
