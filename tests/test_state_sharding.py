"""`naqopt.state_sharding`, and the collectives of a sharded direction."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from meshes import expected_shardings, mesh_of, replicated, sharded_params
from optimizer_table import (
    ROWS,
    batch,
    each,
    init_params,
    states_of_plain_run,
    take_step,
    transformation,
    types,
)

import naqopt
from naqopt.curvature import lbfgs, pairs

EACH_TREE_ROW = each([row for row in ROWS if not row.flat])
AXIS_TYPES = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])


def assert_equivalent(found, expected, state):
    chex.assert_trees_all_equal_structs(found, expected, state)
    for (path, a), b, leaf in zip(
        jax.tree.leaves_with_path(found),
        jax.tree.leaves(expected),
        jax.tree.leaves(state),
        strict=True,
    ):
        assert a.is_equivalent_to(b, leaf.ndim), (jax.tree_util.keystr(path), a, b)


@EACH_TREE_ROW
@AXIS_TYPES
def test_states_are_sharded_as_the_params(row, axis_type):
    tx, mesh = transformation(row), mesh_of(axis_type)
    params = sharded_params(mesh)
    found = naqopt.state_sharding(tx, params)
    state = jax.eval_shape(tx.init, init_params())
    assert_equivalent(found, expected_shardings(tx, state, mesh), state)
    assert {sharding.mesh for sharding in jax.tree.leaves(found)} == {mesh}
    # Shapes do as well as params.
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    assert naqopt.state_sharding(tx, shapes) == found


def masked_bias(tx):
    return optax.masked(tx, {"bias": False, "gain": True, "weight": True})


def partitioned(tx):
    labels = {"bias": "frozen", "gain": "own", "weight": "trained"}
    return optax.partition(
        {"trained": tx, "own": optax.adam(0.1), "frozen": optax.set_to_zero(), "nobody": tx}, labels
    )


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "masked": masked_bias,
    "partition": partitioned,
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        naqopt.onaq, static_args=("memory_size", "history_dtype")
    )(learning_rate=0.1, memory_size=3),
    "inner chain": lambda tx: optax.chain(partitioned(optax.chain(optax.trace(0.5), tx))),
    "adam": lambda tx: optax.adam(0.1),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@AXIS_TYPES
def test_wrapped_states_are_where_an_eager_init_puts_them(wrapper, axis_type):
    tx, mesh = WRAPPERS[wrapper](naqopt.onaq(0.1, memory_size=3)), mesh_of(axis_type)
    with jax.set_mesh(mesh):
        params = sharded_params(mesh)
        eager = tx.init(params)
        shardings = naqopt.state_sharding(tx, params)
        jitted = jax.jit(tx.init, out_shardings=shardings)(params)
        moved = jax.device_put(tx.init(init_params()), shardings)
    on_mesh = jax.tree.map(
        lambda x: (
            NamedSharding(mesh, PartitionSpec()) if x.sharding.is_fully_replicated else x.sharding
        ),
        eager,
    )
    assert_equivalent(shardings, on_mesh, eager)
    assert not all(x.is_fully_replicated for x in jax.tree.leaves(shardings))
    for state in (jitted, moved):
        assert_equivalent(jax.tree.map(lambda x: x.sharding, state), shardings, eager)
        chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(eager))


def test_a_mesh_of_two_axes_and_shardings_over_both():
    mesh = jax.make_mesh(
        (2, 4), ("data", "model"), (AxisType.Auto, AxisType.Explicit), devices=jax.devices()[:8]
    )
    specs = {
        "bias": PartitionSpec(("data", "model")),
        "gain": PartitionSpec(),
        "weight": PartitionSpec("model", "data"),
    }
    params = {
        name: jax.device_put(x, NamedSharding(mesh, specs[name]))
        for name, x in init_params().items()
    }
    shardings = naqopt.state_sharding(naqopt.asnaq(memory_size=2, fisher_size=3), params)
    for name, spec in specs.items():
        assert shardings.velocity[name].spec == spec
        assert shardings.memory.fisher.gradients[name].spec == PartitionSpec(None, *spec)
    assert shardings.count.mesh == mesh


@pytest.mark.parametrize("tx", [naqopt.omoq(), naqopt.flatten(naqopt.omoq())], ids=["", "flatten"])
def test_one_device(tx):
    device = jax.devices()[1]
    params = jax.device_put(init_params(), device)
    shardings = naqopt.state_sharding(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert all(x.sharding.device_set == {device} for x in jax.tree.leaves(state))
    arrays = jax.tree.map(np.asarray, init_params())
    state = jax.device_put(tx.init(arrays), naqopt.state_sharding(tx, arrays))
    assert types(state) == types(tx.init(init_params()))
    assert jax.tree.leaves(naqopt.state_sharding(tx, {}))


@AXIS_TYPES
def test_flatten_takes_replicated_params_and_says_so_of_others(axis_type):
    mesh = mesh_of(axis_type)
    inner = naqopt.onaq(0.1, memory_size=2)
    labels = {"bias": "tree", "gain": "flat", "weight": "tree"}
    mixed = optax.partition({"tree": inner, "flat": naqopt.flatten(inner)}, labels)
    shardings = naqopt.state_sharding(mixed, sharded_params(mesh))
    assert not all(x.is_fully_replicated for x in jax.tree.leaves(shardings))
    for tx in (naqopt.flatten(inner), optax.chain(optax.clip(1.0), naqopt.flatten(inner))):
        shardings = naqopt.state_sharding(tx, replicated(init_params(), mesh))
        assert all(x.is_fully_replicated for x in jax.tree.leaves(shardings))
        with pytest.raises(ValueError, match=r"is sharded over a mesh .* Leave flatten out"):
            naqopt.state_sharding(tx, sharded_params(mesh))


@each(ROWS, ("bfgs", "asnaq", "sr1n", "onaq_flat"))
def test_a_checkpoint_is_taken_up_on_another_layout_of_devices(row, tmp_path):
    """Bit for bit: written by one device, read by eight, and by four what eight have written."""
    tx = transformation(row)
    params, state = states_of_plain_run(row, 5)[-1]
    saved = {"params": params, "state": state}
    for number, count in enumerate((8, 4)):
        mesh = mesh_of(AxisType.Auto, count)
        at = replicated(init_params(), mesh) if row.flat else sharded_params(mesh)
        shapes = jax.eval_shape(lambda p: {"params": p, "state": tx.init(p)}, at)
        shardings = {
            "params": jax.tree.map(lambda x: x.sharding, at),
            "state": naqopt.state_sharding(tx, at),
        }
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / f"{number}", saved)
            checkpointer.wait_until_finished()
            saved = checkpointer.restore(tmp_path / f"{number}", abstract)
        assert_equivalent(jax.tree.map(lambda x: x.sharding, saved), shardings, shapes)
        found = jax.device_get(saved)
        chex.assert_trees_all_equal(found, jax.device_get({"params": params, "state": state}))
    # And training goes on there.
    jax.block_until_ready(
        jax.jit(lambda p, s, b: take_step(tx, p, s, b)[:2])(
            saved["params"], saved["state"], replicated(batch(5), mesh)
        )
    )


# Mistakes.


def test_params_that_are_not_on_one_mesh():
    tx, params = naqopt.onaq(), init_params()
    other = mesh_of(AxisType.Auto, 4)
    mixed = sharded_params(mesh_of(AxisType.Auto)) | {"gain": replicated(params["gain"], other)}
    with pytest.raises(ValueError, match=r"`params\['bias'\]` is on Mesh.*`params\['gain'\]` on"):
        naqopt.state_sharding(tx, mixed)
    apart = {
        name: jax.device_put(x, jax.devices()[i]) for i, (name, x) in enumerate(params.items())
    }
    with pytest.raises(ValueError, match=r"Put all params on one mesh: jax.device_put"):
        naqopt.state_sharding(tx, apart)


def test_what_is_no_transformation():
    for tx in (naqopt.onaq, init_params()):
        with pytest.raises(TypeError, match=r"`tx` must be a gradient transformation; call"):
            naqopt.state_sharding(tx, init_params())


# Collectives.


def collectives(compiled):
    """How many all-reduces the program has, and whether any collective is within a loop."""
    text = compiled.as_text()
    computations = dict(
        re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    )
    within_loops = set()
    waiting = set(re.findall(r"(?:body|condition)=%?([\w.\-]+)", text))
    while waiting:
        name = waiting.pop()
        within_loops.add(name)
        called = re.findall(
            r"(?:to_apply|calls|body|condition|branch_computations)=\{?%?([\w.\-]+)",
            computations[name],
        )
        waiting |= set(called) - within_loops
    kinds = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    looped = [kind for name in within_loops for kind in re.findall(kinds, computations[name])]
    return re.findall(kinds, text), looped


def with_shardings(tx, params):
    """The shapes of a state, sharded."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        naqopt.state_sharding(tx, params),
    )


@pytest.mark.parametrize(("m", "copies"), [(4, 1), (10, 1), (4, 7)])
def test_a_direction_takes_two_reductions_and_none_in_a_loop(m, copies):
    """However many pairs there are and however many arrays: S g, then Y r."""
    mesh = mesh_of(AxisType.Auto)
    params = [sharded_params(mesh) for _ in range(copies)]
    holder = optax.GradientTransformation(lambda p: pairs.init(p, m), lambda *_: None)
    ring, gamma = with_shardings(holder, params), replicated(jnp.ones(()), mesh)
    compiled = jax.jit(lbfgs.two_loop).lower(ring, params, gamma).compile()
    assert collectives(compiled) == (["all-reduce"] * 2, [])
    by_pairs = jax.jit(lbfgs.two_loop_by_pairs).lower(ring, params, gamma).compile()
    assert collectives(by_pairs)[1]  # the other form has them in its loops, which is seen


@pytest.mark.parametrize(
    "name",
    ["multi_batch_omoq", *(pytest.param(n, marks=pytest.mark.slow) for n in ("omoq", "onaq"))],
)
def test_a_step_on_large_arrays_sums_and_gathers_nothing(name):
    """Sums of arrays of up to 65,536 numbers are compiled otherwise: of each 8 numbers travel."""
    mesh, tx = mesh_of(AxisType.Auto), getattr(naqopt, name)()
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    params = [jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=sharding) for _ in range(3)]

    def loss(p):
        return sum(jnp.sum(jnp.square(jnp.tanh(x) - 1)) for x in p)

    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        closures = {"value_fn": loss, "part_grads": (grads, grads, grads)}
        updates, state = tx.update(grads, state, params, value=value, grad=grads, **closures)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step).lower(params, with_shardings(tx, params)).compile()
    found, looped = collectives(compiled)
    assert set(found) == {"all-reduce"}
    assert len(found) <= 5
    assert looped == []
