"""Where an optimizer's state goes on a mesh of devices: where its params are."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from naqopt._tree import Tree


def state_sharding(tx: optax.GradientTransformation, params: optax.Params) -> Tree:
    """The shardings of an optimizer's state, from those of the params.

    What is shaped like the params (velocity, stored gradients) is sharded as they are; so are the
    rows of a history (pairs, a Fisher ring, a dense matrix), whose first axis is not sharded; and
    all else is the same on every device. On an explicit mesh `jax.jit(tx.init)` finds this by
    itself. On an automatic one, and for a state that comes from elsewhere, it has to be told::

      shardings = naqopt.state_sharding(tx, params)
      state = jax.jit(tx.init, out_shardings=shardings)(params)  # or
      state = jax.device_put(state, shardings)

    and so has Orbax, whose checkpoint may be of another layout of devices::

      abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params), shardings)

    Args:
      tx: any optimizer of this library or of Optax, wrapped or not. Of Optax's it tells what their
        own `init` does on an explicit mesh.
      params: the params, or `jax.ShapeDtypeStruct`s with `sharding`. Those on a mesh are all on the
        same one, whose axes may be automatic or explicit; others count as being the same on each of
        its devices.

    Returns:
      A tree like `tx.init(params)` with a `jax.sharding.NamedSharding` for every array; where no
      param is on a mesh, with the sharding of the one device that they are on.

    Raises:
      ValueError: if the params are on several meshes, on several devices one by one, or in a way
        that is not named; and as `tx.init` does, which for `naqopt.flatten` is for params that are
        sharded at all.
      TypeError: if `tx` is no transformation.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt
      >>> from jax.sharding import AxisType, NamedSharding, PartitionSpec
      >>> mesh = jax.make_mesh((1,), ("x",), (AxisType.Auto,), devices=jax.devices()[:1])
      >>> params = jax.device_put(jnp.zeros((8, 2)), NamedSharding(mesh, PartitionSpec("x")))
      >>> shardings = naqopt.state_sharding(naqopt.onaq(), params)
      >>> for sharding in (shardings.velocity, shardings.curvature.s, shardings.count):
      ...   print(tuple(sharding.spec))
      ('x', None)
      (None, 'x', None)
      ()

    Costs a trace of `tx.init`; nothing is allocated.
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            "naqopt.state_sharding: `tx` must be a gradient transformation; call "
            f"naqopt.state_sharding(naqopt.onaq(0.1), params). Got {tx!r}."
        )
    place = _place(params)
    if not isinstance(place, NamedSharding):
        return jax.tree.map(lambda _: place, jax.eval_shape(tx.init, params))

    # As if all axes were explicit: shardings are part of types then, and `init` itself is asked.
    mesh = place.mesh
    explicit = AbstractMesh(
        mesh.axis_sizes, mesh.axis_names, (AxisType.Explicit,) * len(mesh.axis_names)
    )

    def typed(param: Any, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = getattr(param, "sharding", None)
        spec = sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
        return jax.ShapeDtypeStruct(
            shape.shape,
            shape.dtype,
            sharding=NamedSharding(explicit, spec),
            weak_type=shape.weak_type,
        )

    shapes = jax.eval_shape(lambda p: p, params)
    with jax.sharding.use_abstract_mesh(explicit):
        state = jax.eval_shape(tx.init, jax.tree.map(typed, params, shapes))
    return jax.tree.map(lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), state)


def _place(params: Tree) -> Sharding:
    """Returns where what has no axis of the params goes: to all of their mesh, or their device."""
    meshes: dict[Any, str] = {}
    devices: dict[Sharding, str] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name, sharding = jax.tree_util.keystr(path), getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding):
            meshes.setdefault(sharding.mesh, name)
        elif isinstance(sharding, SingleDeviceSharding):
            devices.setdefault(sharding, name)
        elif sharding is not None:
            raise ValueError(
                f"naqopt.state_sharding: `params{name}` has the sharding {sharding}, which names "
                "no axes of a mesh. Put it there by jax.device_put(params, "
                "jax.sharding.NamedSharding(mesh, spec)), or by `out_shardings` of what made it."
            )
    found: dict[Any, str] = meshes or devices
    if len(found) > 1:
        (first, name), (second, other) = list(found.items())[:2]
        raise ValueError(
            f"naqopt.state_sharding: `params{name}` is on {first} and `params{other}` on {second}. "
            "Put all params on one mesh: jax.device_put(params, jax.sharding.NamedSharding(mesh, "
            "spec))."
        )
    if meshes:
        return NamedSharding(next(iter(meshes)), PartitionSpec())
    return next(iter(devices), jnp.zeros(()).sharding)
