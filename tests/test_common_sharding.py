"""Every optimizer of `optimizer_table.ROWS` on eight devices, and in and out of a checkpoint."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from meshes import SPECS, expected_shardings, mesh_of, replicated, sharded_params
from optimizer_table import (
    EACH_ROW_FEW_IN_CI,
    FEW_IN_CI,
    ROWS,
    STEPS,
    after,
    batch,
    each,
    init_params,
    plain_run,
    states_of_plain_run,
    step,
    take_step,
    transformation,
)

import naqopt

EACH_TREE_ROW = each([row for row in ROWS if not row.flat], FEW_IN_CI)
EACH_FLAT_ROW = each([row for row in ROWS if row.flat])


def assert_sharded_as_params(tx, params, state, mesh):
    shardings = expected_shardings(tx, state, mesh)
    for (path, leaf), expected in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(shardings), strict=True
    ):
        # What has no sharded axis may also sit on one device, from where jit takes it anywhere.
        one_device = leaf.sharding.is_fully_replicated and expected.is_fully_replicated
        assert one_device or leaf.sharding.is_equivalent_to(expected, leaf.ndim), (
            jax.tree_util.keystr(path),
            leaf.sharding,
        )
    for name, leaf in params.items():
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, SPECS[name]), leaf.ndim)


def types(tree):
    return jax.tree.map(jax.typeof, tree)


def train(tx, params, state, mesh, steps=10):
    """Trains on the mesh; checks types and shardings; returns params and the number of traces."""
    traces = []

    @jax.jit
    def one_step(params, state, batch):
        traces.append(None)
        return take_step(tx, params, state, batch)[:2]

    assert_sharded_as_params(tx, params, state, mesh)
    for k in range(steps):
        before = types((params, state))
        # Eight devices share the threads of a few cores: steps in flight together may starve.
        params, state = jax.block_until_ready(one_step(params, state, replicated(batch(k), mesh)))
        assert_sharded_as_params(tx, params, state, mesh)
        # Scalars that init made outside of any mesh enter it with the first step.
        if k > 0:
            assert types((params, state)) == before
    assert types(naqopt.eval_params(state, params)) == types(params)
    return jax.device_get(params), len(traces)


def assert_trained_as_on_one_device(row, params):
    close = {"rtol": 1e-4 * row.rounding, "atol": 1e-5 * row.rounding}
    chex.assert_trees_all_close(params, after(plain_run(row)[2], 10), **close)


@EACH_TREE_ROW
@pytest.mark.parametrize("case", ["eager_init", "jitted_init", "eager_init_with_set_mesh"])
def test_automatic_mesh(row, case):
    """Params sharded over eight devices train as those on one."""
    tx, mesh = transformation(row), mesh_of(AxisType.Auto)
    params = sharded_params(mesh)
    with jax.set_mesh(mesh) if case == "eager_init_with_set_mesh" else contextlib.nullcontext():
        init = tx.init
        if case == "jitted_init":
            # A compiled init does not read the params, so that it has to be told where they are.
            init = jax.jit(tx.init, out_shardings=naqopt.state_sharding(tx, params))
        params, traces = train(tx, params, init(params), mesh)
    # Eagerly made scalars enter the mesh with the first step, which costs Optax's own optimizers a
    # second trace too.
    assert traces == (2 if case == "eager_init" else 1)
    assert_trained_as_on_one_device(row, params)


@EACH_TREE_ROW
@pytest.mark.parametrize("jitted_init", [False, True], ids=["eager_init", "jitted_init"])
def test_explicit_mesh(row, jitted_init):
    """Nothing has to be told: the sharding is part of the params' type and so of the state's."""
    tx, mesh = transformation(row), mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = sharded_params(mesh)
        state = (jax.jit(tx.init) if jitted_init else tx.init)(params)
        abstract = jax.eval_shape(tx.init, params)
        for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
            assert leaf.sharding.is_fully_replicated or jax.typeof(leaf) == jax.typeof(shape)
        params, traces = train(tx, params, state, mesh)
    assert traces == 1
    assert_trained_as_on_one_device(row, params)


@EACH_FLAT_ROW
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_params_are_no_vector(row, axis_type):
    """Said whenever it is seen: of concrete params, and of the types of an explicit mesh."""
    tx, mesh = transformation(row), mesh_of(axis_type)
    state = tx.init(init_params())

    def one_step(params):
        return take_step(tx, params, state, batch(0))

    calls = [tx.init, one_step]
    if axis_type == AxisType.Explicit:
        calls += [jax.jit(call) for call in calls]
    with jax.set_mesh(mesh):
        params = sharded_params(mesh)
        for call in calls:
            with pytest.raises(ValueError, match=r"is sharded over a mesh .* Leave flatten out"):
                call(params)


@EACH_FLAT_ROW
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_replicated_params_are_trained_as_a_vector(row, axis_type):
    """The batch may be sharded."""
    tx, mesh = transformation(row), mesh_of(axis_type)
    with jax.set_mesh(mesh):
        params = replicated(init_params(), mesh)
        state = jax.jit(tx.init)(params)
        one_step = jax.jit(lambda *args: take_step(tx, *args)[:2])
        for k in range(10):
            examples = jax.device_put(batch(k), NamedSharding(mesh, PartitionSpec("x")))
            params, state = jax.block_until_ready(one_step(params, state, examples))
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves((params, state)))
    assert_trained_as_on_one_device(row, jax.device_get(params))


@EACH_ROW_FEW_IN_CI
def test_a_checkpoint_keeps_every_bit_and_training_goes_on_as_if_uninterrupted(row, tmp_path):
    tx, half = transformation(row), STEPS // 2 + 1  # within a cycle
    points = states_of_plain_run(row, STEPS)
    saved = dict(zip(("params", "state"), points[half], strict=True))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", saved)
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(lambda p: {"params": p, "state": tx.init(p)}, init_params())
        restored = checkpointer.restore(tmp_path / "step", abstract)
    chex.assert_trees_all_equal_structs(restored, saved)
    chex.assert_trees_all_equal(restored, saved)
    assert types(restored) == types(saved)
    params, state = restored["params"], restored["state"]
    for k in range(half, STEPS):
        params, state = step(tx, params, state, batch(k))
    chex.assert_trees_all_equal((params, state), points[-1])


@pytest.mark.parametrize(
    "factory",
    [
        naqopt.bfgs,
        pytest.param(naqopt.naq, marks=pytest.mark.slow),
        pytest.param(naqopt.moq, marks=pytest.mark.slow),
    ],
)
def test_averaged_gradients_reach_a_search_that_differentiates(factory):
    """In `shard_map`, where a gradient behind the back of `grad_fn` differs on every device."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices("cpu")[:4])
    zoom = optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")
    tx = factory(linesearch=zoom)
    draw = np.random.default_rng(0)
    matrix = draw.normal(size=(64, 6)).astype(np.float32)
    targets = matrix @ draw.normal(size=6).astype(np.float32)

    def local_step(params, state, matrix, targets):
        def loss(p):
            return jnp.mean((matrix @ p - targets) ** 2)

        def value_fn(p):
            return jax.lax.pmean(loss(p), "x")

        def grad_fn(p):
            return jax.lax.pmean(jax.grad(loss)(p), "x")

        grads = grad_fn(params)
        updates, state = tx.update(
            grads,
            state,
            params,
            value=value_fn(params),
            grad=grads,
            value_fn=value_fn,
            grad_fn=grad_fn,
        )
        return optax.apply_updates(params, updates), state

    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec("x"), PartitionSpec("x"))
    step = jax.jit(
        jax.shard_map(
            local_step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )
    )
    params = jnp.zeros(6)
    state = tx.init(params)
    for _ in range(15):
        params, state = jax.block_until_ready(step(params, state, matrix, targets))
    iterate = naqopt.eval_params(state, params)
    assert np.mean((matrix @ iterate - targets) ** 2) < 1e-6
