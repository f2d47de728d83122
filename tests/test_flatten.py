"""What `naqopt.flatten` hands on and gives back; the common tests train two flattened rows."""

import copy
import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import (
    ROWS,
    batch,
    each,
    enable_x64,
    init_params,
    plain_run,
    regression_loss,
    run,
    stacked_batches,
    take_step,
    transformation,
)

import naqopt
from naqopt.flatten import from_vectors, shapes, to_vectors

BY_NAME = {row.name: row for row in ROWS}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
MIXED = {"bias": "bfloat16", "gain": "float32", "weight": "float32"}


@functools.cache
def flattened(row):
    return naqopt.flatten(transformation(row))


def test_a_state_is_made_of_shapes_alone():
    """As Optax's own optimizers make one."""
    params = init_params()
    tx = naqopt.flatten(naqopt.onaq())
    state = tx.init(jax.eval_shape(lambda: params))
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


# The same training.


@each(
    [
        BY_NAME[name]
        for name in ("asnaq", "bfgs", "onaq", "multi_batch_omoq", "svr_naq", "sr1n", "naq_dense")
    ]
)
def test_one_row_of_each_family_trains_as_on_the_arrays(row):
    """In float64, where sums in another order are the same to many digits; snapshots included."""
    with enable_x64():
        params = init_params(dtypes="float64")
        batches = jax.tree.map(lambda x: x.astype(np.float64), stacked_batches())
        expected, expected_state, _ = run(transformation(row), params, batches)
        trained, state, _ = run(flattened(row), params, batches)
        chex.assert_trees_all_close(trained, expected, rtol=1e-7 * row.rounding)
        chex.assert_trees_all_close(
            naqopt.eval_params(state, trained),
            naqopt.eval_params(expected_state, expected),
            rtol=1e-7 * row.rounding,
        )
        # Of a direction before normalisation little is left where the pairs are nearly parallel.
        found, wanted = naqopt.diagnostics(state), naqopt.diagnostics(expected_state)
        chex.assert_trees_all_close(found, wanted, rtol=1e-4)
        sizes = {x.shape for x in jax.tree.leaves(state) if x.ndim}
        small = row.arguments["memory_size"], row.arguments.get("fisher_size"), 1  # the last loss
        assert all(shape[-1] == 41 or set(shape) <= set(small) for shape in sizes)


def test_a_part_of_the_params_with_snapshots():
    """The full gradient and the params are pruned, and what is masked comes back as it is."""
    row = BY_NAME["svr_naq"]
    labels = {"bias": "frozen", "gain": "trained", "weight": "trained"}

    def partition(tx):
        transforms = {"trained": tx, "frozen": optax.set_to_zero(), "nobody": tx}
        return optax.partition(transforms, labels)

    ends = []
    for tx in (transformation(row), flattened(row)):
        params, state, _ = run(partition(tx), init_params(), stacked_batches())
        iterate = naqopt.eval_params(state, params)
        assert iterate["bias"] is params["bias"]
        info = naqopt.diagnostics(state)
        trained = {key.split("/")[-1]: x for key, x in info.items() if "trained" in key}
        assert trained["pairs_stored"] > 0
        ends.append((params, iterate, trained["pairs_stored"]))
    chex.assert_trees_all_close(*ends, **CLOSE)


INSIDE = {
    "inject_hyperparams": optax.inject_hyperparams(
        naqopt.onaq, static_args=("memory_size", "history_dtype")
    )(**BY_NAME["onaq"].arguments),
    "apply_if_finite": optax.apply_if_finite(transformation(BY_NAME["onaq"]), 3),
    "chain": optax.chain(optax.clip_by_global_norm(1e6), transformation(BY_NAME["onaq"])),
    "masked": optax.masked(transformation(BY_NAME["onaq"]), {"float32": True}),
    "flatten": flattened(BY_NAME["onaq"]),
    "partition": optax.partition({"ours": transformation(BY_NAME["onaq"])}, {"float32": "ours"}),
    # Which is a GradientTransformation: what is called with it is not handed on of itself.
    "MultiSteps": optax.GradientTransformationExtraArgs(
        *optax.MultiSteps(transformation(BY_NAME["onaq"]), 1).gradient_transformation()
    ),
    "decay": optax.chain(optax.add_decayed_weights(0.0), transformation(BY_NAME["onaq"])),
    "schedule": transformation(BY_NAME["onaq"], learning_rate=lambda count: 0.2 + 0 * count),
}
IN_CI = ("inject_hyperparams", "apply_if_finite", "chain", "masked", "flatten")


@pytest.mark.filterwarnings("ignore:.*optax.MultiSteps stands around:UserWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[] if x in IN_CI else [pytest.mark.slow]) for x in INSIDE]
)
def test_wrappers_inside(name):
    expected, expected_state, _ = plain_run(BY_NAME["onaq"])
    params, state, _ = run(naqopt.flatten(INSIDE[name]), init_params(), stacked_batches())
    chex.assert_trees_all_close(params, expected, **CLOSE)
    iterate = naqopt.eval_params(state, params)
    chex.assert_trees_all_close(iterate, naqopt.eval_params(expected_state, expected), **CLOSE)
    found, wanted = naqopt.diagnostics(state), naqopt.diagnostics(expected_state)
    chex.assert_trees_all_close(found, wanted, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asnaq", "bfgs", "onaq", "omoq", "sr1n", "svr_naq"])
def test_clipping_and_decay_in_front(name):
    """Around the vector or around the arrays, in front of either: one training."""
    row = BY_NAME[name]
    front = optax.clip_by_global_norm(0.5), optax.add_decayed_weights(1e-3)
    with enable_x64():
        params = init_params(dtypes="float64")
        batches = jax.tree.map(lambda x: x.astype(np.float64), stacked_batches())
        ends = [
            run(tx, params, batches)[:2]
            for tx in (
                optax.chain(*front, transformation(row)),
                optax.chain(*front, flattened(row)),
                naqopt.flatten(optax.chain(*front, transformation(row))),
            )
        ]
        plain, _, _ = run(transformation(row), params, batches)
        iterates = [naqopt.eval_params(state, params) for params, state in ends]
        for iterate in iterates[1:]:
            chex.assert_trees_all_close(iterate, iterates[0], rtol=1e-7 * row.rounding)
        assert not np.allclose(plain["weight"], ends[0][0]["weight"], rtol=1e-4)


def test_an_optimizer_for_each_dtype_inside():
    """The vectors are the leaves that a partition inside has labels for."""
    transforms = {"float32": transformation(BY_NAME["onaq"]), "bfloat16": optax.set_to_zero()}
    tx = naqopt.flatten(optax.partition(transforms, {"float32": "float32", "bfloat16": "bfloat16"}))
    start = init_params(dtypes=MIXED)
    params, state, _ = run(tx, start, stacked_batches())
    iterate = naqopt.eval_params(state, params)
    chex.assert_trees_all_equal(params["bias"], start["bias"])
    chex.assert_trees_all_equal(iterate["bias"], start["bias"])
    assert np.any(iterate["weight"] != params["weight"])
    assert jax.tree.map(lambda x: x.dtype.name, iterate) == MIXED


@pytest.mark.parametrize("inner", [optax.adam(0.1), optax.lbfgs()], ids=["adam", "lbfgs"])
def test_optimizers_of_optax(inner):
    params, batches = init_params(), jax.tree.map(lambda x: x[:5], stacked_batches())
    expected, _, _ = run(optax.with_extra_args_support(inner), params, batches)
    chex.assert_trees_all_close(run(naqopt.flatten(inner), params, batches)[0], expected, **CLOSE)


def test_params_need_not_be_given_where_they_are_not_needed():
    tx, grads = naqopt.flatten(optax.sgd(0.5)), init_params()
    updates, _ = tx.update(grads, tx.init(grads))
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.5 * g, grads))


# What goes in and what comes out.


def spy(seen):
    """A transformation that notes its arguments and returns the negative of its updates."""

    def update(updates, state, params=None, **extra_args):
        seen.append({"updates": updates, "params": params, **extra_args})
        return jax.tree.map(jnp.negative, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: {"copy": params}, update)


def shape_and_dtype(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype.name), tree)


def test_vectors_are_grouped_by_the_dtypes_of_the_params():
    """Wide gradients of narrow params stay wide, in the vector of the narrow params."""
    params = init_params(dtypes=MIXED)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    seen = []
    tx = naqopt.flatten(spy(seen))
    state = tx.init(params)
    narrow = {"bfloat16": ((8,), "bfloat16"), "float32": ((33,), "float32")}
    assert shape_and_dtype(state.inner_state["copy"]) == narrow
    np.testing.assert_array_equal(
        state.inner_state["copy"]["float32"], [1.0, *params["weight"].reshape(-1)]
    )
    twice = jax.tree.map(lambda x: 2 * x, wide)
    closures = {"grad": wide, "part_grads": (wide, twice, wide)}
    closures["grad_fn"] = lambda p: jax.tree.map(jnp.square, p)
    updates, new_state = tx.update(wide, state, params, **closures)
    assert shape_and_dtype(seen[0]["params"]) == narrow
    for name in ("updates", "grad"):
        assert shape_and_dtype(seen[0][name]) == {**narrow, "bfloat16": ((8,), "float32")}
    for part, factor in zip(seen[0]["part_grads"], (1, 2, 1), strict=True):
        expected = jax.tree.map(lambda x: factor * x, seen[0]["updates"])  # noqa: B023
        chex.assert_trees_all_equal(part, expected)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.negative, wide))
    squared = seen[0]["grad_fn"](seen[0]["params"])
    chex.assert_trees_all_equal(squared, jax.tree.map(jnp.square, seen[0]["params"]))
    chex.assert_trees_all_equal_structs(new_state, state)


def test_only_what_was_given_is_handed_on():
    params, seen, foreign = init_params(), [], object()
    tx = naqopt.flatten(spy(seen))
    state = tx.init(params)
    tx.update(params, state)
    assert seen[-1]["params"] is None
    assert set(seen[-1]) == {"updates", "params"}
    given = {"value": 3.0, "grad": None, "value_fn": None, "grad_fn": 1, "model": foreign}
    tx.update(params, state, params, **given)
    assert {name: seen[-1][name] for name in given} == given

    def value_fn(params, scale):
        return scale * jnp.sum(params["bias"])

    for name in ("value_fn", "monitor_fn"):
        tx.update(params, state, params, **{name: value_fn})
        value = seen[-1][name](seen[-1]["params"], scale=2.0)
        np.testing.assert_allclose(value, value_fn(params, 2.0))


def test_extra_arguments_of_the_loss_reach_it_through_the_searches_of_optax():
    def value_fn(params, scale):
        return scale * regression_loss(params, batch(0))

    params, results = init_params(), []
    value, grads = jax.value_and_grad(value_fn)(params, 2.0)
    for tx in (optax.lbfgs(), naqopt.flatten(optax.lbfgs())):
        extra = {"value": value, "grad": grads, "value_fn": value_fn, "scale": 2.0}
        results.append(tx.update(grads, tx.init(params), params, **extra)[0])
    chex.assert_trees_all_close(*results, **CLOSE)


def test_arrays_that_are_all_empty():
    tx = naqopt.flatten(naqopt.omoq(memory_size=2))
    params = {"a": jnp.zeros((0, 3)), "b": jnp.zeros(0)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_empty_scalar_and_weakly_typed_leaves():
    params = {"a": jnp.zeros((0, 3)), "b": jnp.asarray(2.0), "c": jnp.ones((2, 1, 3))}
    state = naqopt.flatten(optax.identity()).init(params)
    vectors = to_vectors(state.layout, params)
    np.testing.assert_array_equal(vectors["float32"], [2.0, *[1.0] * 6])
    assert not vectors["float32"].weak_type
    chex.assert_trees_all_equal(from_vectors(state.layout, vectors), params)
    assert jax.tree.structure(shapes(state.layout)) == jax.tree.structure(params)


def test_the_gradient_by_a_vector_is_one_concatenation():
    """Of slices it would be a sum of as many padded vectors of full length as there are arrays."""
    params = [jnp.ones((i + 2, 3)) for i in range(20)]
    tx = naqopt.flatten(naqopt.onaq())
    layout = tx.init(params).layout

    def loss(vectors):
        return sum(jnp.sum(jnp.sin(x)) for x in from_vectors(layout, vectors))

    vectors = to_vectors(layout, params)
    program = str(jax.make_jaxpr(jax.grad(loss))(vectors))
    assert program.count("concatenate[") == 1
    lowered = jax.jit(jax.grad(loss)).lower(vectors)
    for text in (program, lowered.as_text(), lowered.compile().as_text()):
        assert "pad[" not in text
        assert "stablehlo.pad" not in text
        assert " pad(" not in text


def test_the_program_hardly_depends_on_the_number_of_arrays():
    def instructions(tx, count):
        params = [jnp.ones(7) for _ in range(count)]

        def step(params, state):
            def loss(p):
                return sum(jnp.sum(jnp.cos(x)) for x in p)

            grads = jax.grad(loss)(params)
            return tx.update(grads, state, params, grad=grads, value_fn=loss)

        return str(jax.make_jaxpr(step)(params, tx.init(params))).count("\n")

    tx = naqopt.onaq()
    arrays, vectors = (
        instructions(tx, 20) - instructions(tx, 10) for tx in (tx, naqopt.flatten(tx))
    )
    assert vectors < arrays / 5


def test_equal_parts_of_a_vector_are_equal_kernels():
    """Slices at places that the compiler knew would be a kernel for each."""
    params = [jnp.ones(7) for _ in range(20)]
    layout = naqopt.flatten(naqopt.onaq()).init(params).layout

    def doubled(vectors):
        return [2 * x for x in from_vectors(layout, vectors)]

    vectors = to_vectors(layout, params)
    text = jax.jit(doubled).lower(vectors).compile().as_text()
    assert text.count(" dynamic-slice(") == 20
    assert text.count(" slice(") <= 1


def test_runs_side_by_side_are_those_one_by_one():
    tx = naqopt.flatten(naqopt.onaq(0.1))
    starts = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([1.0, -2.0])}

    def run(params):
        def loss(p):
            return jnp.sum(jnp.square(p["w"] - 1)) + jnp.square(p["b"] + 2)

        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
            params = optax.apply_updates(params, updates)
        return naqopt.eval_params(state, params)

    found, alone = jax.jit(jax.vmap(run))(starts), jax.lax.map(run, starts)
    chex.assert_trees_all_close(found, alone, rtol=1e-5)


def test_a_state_is_copied_and_pickled():
    params = init_params(dtypes=MIXED)
    state = naqopt.flatten(naqopt.onaq()).init(params)
    for twin in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        chex.assert_trees_all_equal_structs(twin, state)
        chex.assert_trees_all_equal(twin, state)
    assert len(jax.tree.leaves(state.layout)) == 0
    assert jax.jit(lambda state: state)(state).layout == state.layout


def test_map_params_maps_the_vectors():
    tx = optax.chain(optax.clip(1.0), naqopt.flatten(naqopt.onaq(memory_size=2)))
    _, state, _ = run(tx, init_params(), stacked_batches())
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, state)
    own, before = doubled[1].inner_state, state[1].inner_state
    chex.assert_trees_all_equal(own.velocity["float32"], 2 * before.velocity["float32"])
    chex.assert_trees_all_equal(own.curvature.s["float32"], 2 * before.curvature.s["float32"])
    chex.assert_trees_all_equal(own.info, before.info)
    assert doubled[1].layout == state[1].layout
    with pytest.raises(ValueError, match="float32"):
        optax.tree.map_params(tx, lambda x, y: x, state, init_params())


# Mistakes.

FLAT = naqopt.flatten(naqopt.onaq(memory_size=2))


def update(tx=FLAT, updates=None, params=None, **extra_args):
    """Traces an update of the table's params, with what is given in place of the right thing."""
    right = init_params()
    updates, params = (right if x is None else x for x in (updates, params))
    return jax.eval_shape(lambda: tx.update(updates, tx.init(right), params, **extra_args))


def loss(p):
    return regression_loss(p, batch(0))


@pytest.mark.parametrize("name", ["params", "updates", "grad"])
def test_other_trees_than_those_of_init(name):
    right = init_params()
    reshaped = {**right, "weight": right["weight"].reshape(8, 4)}
    remedy = "call tx.init" if name == "params" else "pass what jax.grad"
    message = rf"naqopt.flatten: `{name}\['weight'\]` has shape \(8, 4\).*\(4, 8\) there; {remedy}"
    with pytest.raises(ValueError, match=message):
        update(**{"value_fn": loss, name: reshaped})
    message = f"naqopt.flatten: `{name}` has another structure .* given to init; {remedy}"
    with pytest.raises(ValueError, match=message):
        update(**{"value_fn": loss, name: {"weight": right["weight"]}})


def test_a_grad_fn_of_another_structure():
    with pytest.raises(ValueError, match=r"naqopt.flatten: `grad_fn\(params\)` has another struct"):
        update(grad_fn=lambda p: {"weight": p["weight"]})


def test_the_optimizer_inside_says_what_it_lacks():
    with pytest.raises(ValueError, match=r"naqopt.onaq: `value_fn` is missing"):
        update()
    with pytest.raises(TypeError, match=r"naqopt.onaq: `value_fn` must be a function .* got float"):
        update(value_fn=1.0)
    with pytest.raises(ValueError, match=r"naqopt.onaq: `value_fn` must return a scalar"):
        update(value_fn=lambda p: p["bias"])
    with pytest.raises(ValueError, match=r"naqopt.onaq: `params` is missing"):
        FLAT.update(init_params(), FLAT.init(init_params()), value_fn=loss)


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_params_that_are_no_real_floating_numbers(dtype):
    bad = {**init_params(), "bias": jnp.zeros(8, dtype)}
    with pytest.raises(TypeError, match=rf"naqopt.flatten: `params\['bias'\]` has dtype {dtype}"):
        FLAT.init(bad)
    with pytest.raises(TypeError, match=rf"naqopt.flatten: `params\['bias'\]` has dtype {dtype}"):
        update(params=bad)
    with pytest.raises(ValueError, match=r"naqopt.flatten: `params` is missing"):
        FLAT.init(None)


@pytest.mark.parametrize(
    "tx", [naqopt.onaq, optax.adam, 0.1, None], ids=["call", "peer", "number", "None"]
)
def test_what_is_no_transformation(tx):
    message = r"naqopt.flatten: `tx` must be a gradient transformation, .* naqopt.flatten\(naqopt"
    with pytest.raises(TypeError, match=message):
        naqopt.flatten(tx)


def test_what_reads_the_state_knows_its_mistakes():
    right = init_params()
    state = FLAT.init(right)
    with pytest.raises(ValueError, match="arguments are swapped"):
        naqopt.eval_params(right, state)
    with pytest.raises(ValueError, match="`params` are not the params that this state was made"):
        naqopt.eval_params(state, {**right, "weight": right["bias"]})
    several = jax.vmap(FLAT.init)(jax.tree.map(lambda x: jnp.stack([x, x]), right))
    with pytest.raises(ValueError, match=r"jax.vmap\(naqopt.eval_params\)"):
        naqopt.eval_params(several, right)
    with pytest.raises(ValueError, match=r"holds no state of naqopt.svrg"):
        naqopt.snapshot(state, right, right)
    state = naqopt.flatten(naqopt.svrg()).init(right)
    with pytest.raises(ValueError, match="arguments are swapped"):
        naqopt.snapshot(right, state, right)
    with pytest.raises(ValueError, match=r"`full_grad\['weight'\]` has shape \(8,\)"):
        naqopt.snapshot(state, right, {**right, "weight": right["bias"]})
    with pytest.raises(TypeError, match=r"`full_grad\['bias'\]` has dtype bfloat16"):
        naqopt.snapshot(state, right, {**right, "bias": right["bias"].astype(jnp.bfloat16)})


def test_stored_gradients_are_not_served_as_vectors():
    """An error and not a wrong tree, as the docstring has it."""
    tx, params = naqopt.flatten(naqopt.bfgs(store_grad=True)), init_params()
    state = take_step(tx, params, tx.init(params), batch(0))[1]
    with pytest.raises(TypeError, match="same pytree structure"):
        optax.value_and_grad_from_state(loss)(params, state=state)
