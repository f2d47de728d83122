"""The table's params on simulated devices, and how states have to be sharded there."""

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec
from optimizer_table import init_params

SPECS = {"bias": PartitionSpec("x"), "gain": PartitionSpec(), "weight": PartitionSpec(None, "x")}


def mesh_of(axis_type, count=8, name="x"):
    return jax.make_mesh((count,), (name,), (axis_type,), devices=jax.devices("cpu")[:count])


def sharded_params(mesh):
    return {
        name: jax.device_put(x, NamedSharding(mesh, SPECS[name]))
        for name, x in init_params().items()
    }


def replicated(tree, mesh):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def expected_shardings(tx, state, mesh):
    """The sharding of every leaf: a param's, with the axis of a history before it unsharded."""

    def of_param(leaf, param, spec):
        history = [None] * (leaf.ndim - param.ndim)
        return NamedSharding(mesh, PartitionSpec(*history, *spec))

    return optax.tree.map_params(
        tx,
        of_param,
        state,
        init_params(),
        SPECS,
        transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
    )
