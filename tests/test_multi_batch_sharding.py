"""Multi-batch oMoQ in data parallel, on simulated devices: the trajectory of one device."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from meshes import mesh_of, replicated, sharded_params
from optimizer_table import init_params, regression_loss, stacked_batches

import naqopt

STEPS, PART_SIZE = 16, 16
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def transformation(memory_size=3):
    return naqopt.multi_batch_omoq(0.2, momentum=0.5, memory_size=memory_size)


def batches():
    """The examples of each step, of shape (3, PART_SIZE, ...), newest part first."""
    inputs, targets = (x.reshape(-1, x.shape[-1]) for x in stacked_batches())
    rows = naqopt.sliding_batches(np.random.default_rng(0).permutation(len(inputs)), PART_SIZE)
    return [(inputs[np.asarray(r)], targets[np.asarray(r)]) for r in rows[:STEPS]]


def mean(part_grads):
    return jax.tree.map(lambda *g: sum(g) / 3, *part_grads)


def apply(tx, params, state, part_grads):
    updates, state = tx.update(mean(part_grads), state, params, part_grads=part_grads)
    return optax.apply_updates(params, updates), state


def step(tx, params, state, batch):
    """Part by part."""
    parts = [jax.tree.map(lambda x: x[i], batch) for i in range(3)]  # noqa: B023
    part_grads = tuple(jax.grad(regression_loss)(params, part) for part in parts)
    return apply(tx, params, state, part_grads)


def together(tx, params, state, batch):
    """All parts at once, so that each may be on a device of its own."""
    grads = jax.vmap(jax.grad(regression_loss), (None, 0))(params, batch)
    part_grads = tuple(jax.tree.map(lambda g: g[i], grads) for i in range(3))  # noqa: B023
    return apply(tx, params, state, part_grads)


def varying(tree, axis):
    """The tree as one that varies over the devices.

    The gradient with respect to params that do not is summed over them.
    """
    if hasattr(jax.lax, "pcast"):
        return jax.tree.map(lambda p: jax.lax.pcast(p, axis, to="varying"), tree)
    return jax.tree.map(lambda p: jax.lax.pvary(p, axis), tree)


def run(one_step, params, state, place=lambda batch: batch):
    one_step = jax.jit(one_step)
    for batch in batches():
        # Devices share the threads of a few cores: steps in flight together may starve.
        params, state = jax.block_until_ready(one_step(params, state, place(batch)))
    return jax.device_get(params), naqopt.diagnostics(state)


@functools.cache
def on_one_device(memory_size=3):
    tx = transformation(memory_size)
    return run(functools.partial(step, tx), init_params(), tx.init(init_params()))


def assert_same(found, expected):
    chex.assert_trees_all_close(found[0], expected[0], **CLOSE)
    chex.assert_trees_all_close(found[1], expected[1], rtol=1e-3)


def test_the_run_stores_pairs_and_learns():
    params, info = on_one_device()
    assert info["pairs_stored"] == STEPS - 1
    whole = stacked_batches()
    assert regression_loss(params, whole) < 0.3 * regression_loss(init_params(), whole)


@pytest.mark.parametrize("memory_size", [3, None])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_jit_with_the_examples_of_each_part_sharded(axis_type, memory_size):
    tx, mesh = transformation(memory_size), mesh_of(axis_type)
    with jax.set_mesh(mesh):
        params = replicated(init_params(), mesh)
        spread = NamedSharding(mesh, PartitionSpec(None, "x"))
        found = run(
            functools.partial(step, tx),
            params,
            jax.jit(tx.init)(params),
            lambda batch: jax.device_put(batch, spread),
        )
    assert_same(found, on_one_device(memory_size))


def test_jit_with_sharded_params_and_examples():
    tx, mesh = transformation(), mesh_of(AxisType.Auto)
    params = sharded_params(mesh)
    state = jax.jit(tx.init, out_shardings=naqopt.state_sharding(tx, params))(params)
    spread = NamedSharding(mesh, PartitionSpec(None, "x"))
    found = run(
        functools.partial(step, tx), params, state, lambda batch: jax.device_put(batch, spread)
    )
    assert_same(found, on_one_device())


def test_jit_with_one_part_on_each_device():
    tx, mesh = transformation(), mesh_of(AxisType.Auto, 3, "part")
    params = replicated(init_params(), mesh)
    one_each = NamedSharding(mesh, PartitionSpec("part"))
    found = run(
        functools.partial(together, tx),
        params,
        jax.jit(tx.init)(params),
        lambda batch: jax.device_put(batch, one_each),
    )
    assert_same(found, on_one_device())


def test_shard_map_with_one_part_on_each_device():
    """What travels is one sum of three gradients, to which a device adds its part's."""
    tx, mesh = transformation(), mesh_of(AxisType.Auto, 3, "part")

    def local_step(params, state, batch):
        part = jax.tree.map(lambda x: x[0], batch)
        grads = jax.grad(regression_loss)(varying(params, "part"), part)
        here = jax.lax.axis_index("part")
        of_parts = [jax.tree.map(lambda g: jnp.where(here == i, g, 0), grads) for i in range(3)]  # noqa: B023
        return apply(tx, params, state, tuple(jax.lax.psum(of_parts, "part")))

    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec("part"))
    sharded = jax.shard_map(local_step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    assert_same(run(sharded, init_params(), tx.init(init_params())), on_one_device())


def test_shard_map_with_the_examples_of_each_part_spread():
    tx, mesh = transformation(), mesh_of(AxisType.Auto)

    def local_step(params, state, batch):
        parts = [jax.tree.map(lambda x: x[i], batch) for i in range(3)]  # noqa: B023
        grads = [jax.grad(regression_loss)(varying(params, "x"), part) for part in parts]
        return apply(tx, params, state, tuple(jax.lax.pmean(grads, "x")))

    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec(None, "x"))
    sharded = jax.shard_map(local_step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    assert_same(run(sharded, init_params(), tx.init(init_params())), on_one_device())
