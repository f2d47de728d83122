"""Any optimizer on one vector in place of many arrays, with its states read as before."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from naqopt import _checks, _closures, _tree
from naqopt._tree import Tree

# A layout is a tree like the params with a `Slot` for every array. Slots have no leaves, so a
# layout adds nothing to compile, donate or save, and keeps the params' structure visible to what
# rewrites a state's containers (flax.nnx). The layout of a leafless tree is that tree itself, which
# is what `optax.tree.map_params` asks of its placeholder.


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one array in the vectors.

    Attributes:
      shape: the array's shape.
      dtype: the name of the array's dtype, which is that of its vector in the dict of them.
    """

    shape: tuple[int, ...]
    dtype: str


class FlattenState(NamedTuple):
    """State of `naqopt.flatten`.

    Attributes:
      inner_state: the state of the transformation inside, whose params are the vectors.
      layout: where each array is in them.
    """

    inner_state: optax.OptState
    layout: Tree


def _is_slot(node: Any) -> bool:
    return isinstance(node, Slot)


def _layout(params: Tree) -> Tree:
    """Returns the layout of params."""
    return jax.tree.map(lambda x: Slot(x.shape, x.dtype.name), params)


def shapes(layout: Tree) -> Tree:
    """Returns shapes and dtypes of the params that a layout was made for."""
    return jax.tree.map(
        lambda slot: jax.ShapeDtypeStruct(slot.shape, slot.dtype), layout, is_leaf=_is_slot
    )


def to_vectors(layout: Tree, tree: Tree) -> Tree:
    """Returns a dict of a vector for each dtype that the params have; a leafless tree as it is.

    Gradients may be wider than their params: the vectors have the dtypes of the tree.
    """
    groups: dict[str, list[jax.Array]] = {}
    slots = jax.tree.leaves(layout, is_leaf=_is_slot)
    for slot, leaf in zip(slots, jax.tree.leaves(tree), strict=True):
        groups.setdefault(slot.dtype, []).append(leaf)

    def concatenate(leaves: list[jax.Array]) -> jax.Array:
        # Of dtypes, not of arrays, among which weakly typed ones would not count.
        dtype = _tree.common_dtype(*(x.dtype for x in leaves))
        vector = jnp.concatenate([x.astype(dtype).reshape(-1) for x in leaves])
        # XLA would put the arrays together anew in everything that reads the vector.
        return _tree.together(vector)[0] if len(leaves) > 1 else vector

    return {name: concatenate(leaves) for name, leaves in groups.items()} if groups else tree


def from_vectors(layout: Tree, vectors: Tree) -> Tree:
    """Returns the tree, in the dtypes of the vectors; holes where a whole vector is masked."""
    slots, structure = jax.tree.flatten(layout, is_leaf=_is_slot)
    if not slots:
        return vectors

    def cut(vector: Any, group: list[Slot]) -> list[Any]:
        if isinstance(vector, optax.MaskedNode):
            return [vector] * len(group)
        parts = _split(vector, [math.prod(slot.shape) for slot in group])
        return [part.reshape(slot.shape) for part, slot in zip(parts, group, strict=True)]

    arrays = {
        name: iter(cut(vectors[name], [slot for slot in slots if slot.dtype == name]))
        for name in dict.fromkeys(slot.dtype for slot in slots)
    }
    return jax.tree.unflatten(structure, [next(arrays[slot.dtype]) for slot in slots])


def _split(vector: jax.Array, sizes: list[int]) -> list[jax.Array]:
    """Returns the parts of a vector, one after the other.

    XLA compiles equal kernels once, but slices at two places are not equal: a hundred parts would
    be a hundred kernels, and what reads them as many. Here the places are numbers that it cannot
    know beforehand.
    """
    if len(sizes) == 1:
        return [vector]
    if not sum(sizes):  # whose places nothing can tell
        return list(lax.split(vector, sizes))

    @jax.custom_batching.custom_vmap
    def parts(vector: jax.Array) -> list[jax.Array]:
        # Nor is the vector to be computed anew in each of its parts.
        (vector,) = _tree.together(vector)
        zero = ((vector[0] > 0) & (vector[0] < 0)).astype(jnp.int32)
        places = _tree.together(*(zero + place for place in np.cumsum([0, *sizes[:-1]]).tolist()))
        return [
            lax.dynamic_slice(vector, (place,), (size,), allow_negative_indices=False)
            for place, size in zip(places, sizes, strict=True)
        ]

    @parts.def_vmap
    def _parts_of_each(axis_size: int, batched: list[bool], vectors: jax.Array) -> Any:
        del axis_size, batched
        return lax.split(vectors, sizes, 1), [True] * len(sizes)

    @jax.custom_jvp
    def split(vector: jax.Array) -> list[jax.Array]:
        return parts(vector)

    @split.defjvp
    def _split_jvp(primals: Any, tangents: Any) -> Any:
        # A split transposes to one concatenation. A slice of its own for each array would transpose
        # to as many vectors of full length, padded with zeros and added up.
        (tangent,) = tangents
        return split(*primals), list(lax.split(tangent, sizes))

    return split(vector)


def _checked(params: Tree) -> Tree:
    """Returns the params as arrays, or raises where they cannot be one vector."""
    params = _checks.params("flatten", params)
    for path, leaf in jax.tree.leaves_with_path(params):
        if _is_sharded(leaf):
            raise ValueError(
                f"naqopt.flatten: `params{jax.tree_util.keystr(path)}` is sharded over a mesh "
                "of devices, and the vector would gather it on every one of them. Leave flatten "
                "out: the optimizers of this library keep everything where the params are."
            )
    return params


def _is_sharded(x: Any) -> bool:
    """Returns whether an array is spread over devices, as far as can be seen while tracing."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x.sharding is not None and not x.sharding.is_fully_replicated
    # An explicit mesh shows in the type, and be it of one device: it would want to be told how each
    # array's shape and the vector's go together.
    if any(axis is not None for axis in jax.typeof(x).sharding.spec):
        return True
    return not isinstance(x, jax.core.Tracer) and not x.sharding.is_fully_replicated


def _arguments(layout: Tree, extra_args: dict[str, Any]) -> dict[str, Any]:
    """Returns extra arguments with those translated that speak of the params."""
    like = shapes(layout)

    def trees(name: str, grad: Tree) -> Tree:
        grad = _checks.gradients("flatten", name, grad)
        return to_vectors(layout, _closures.pruned("flatten", name, grad, like))

    def parts(name: str, grads: Any) -> Any:
        if not isinstance(grads, (tuple, list)):
            return grads  # the optimizer inside says what is wrong
        return tuple(trees(f"{name}[{i}]", grad) for i, grad in enumerate(grads))

    # Of the loss's signature Optax's line searches take which extra arguments to hand it.
    def loss(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        del name

        @functools.wraps(function)
        def of_vectors(vectors: Tree, *args: Any, **kwargs: Any) -> Any:
            return function(from_vectors(layout, vectors), *args, **kwargs)

        return of_vectors

    def gradient(name: str, function: Callable[..., Tree]) -> Callable[..., Tree]:
        @functools.wraps(function)
        def of_vectors(vectors: Tree, *args: Any, **kwargs: Any) -> Tree:
            result = function(from_vectors(layout, vectors), *args, **kwargs)
            result = _checks.gradients("flatten", f"{name}(params)", result)
            _checks.same_structure("flatten", f"{name}(params)", result, like)
            return to_vectors(layout, result)

        return of_vectors

    of_trees = {"grad": trees, "part_grads": parts}
    of_functions = {"value_fn": loss, "monitor_fn": loss, "grad_fn": gradient}

    def translated(name: str, argument: Any) -> Any:
        # What is missing or no function stays so: the optimizer inside says what is wrong.
        if name in of_trees and argument is not None:
            return of_trees[name](name, argument)
        if name in of_functions and callable(argument):
            return of_functions[name](name, argument)
        return argument

    return {name: translated(name, argument) for name, argument in extra_args.items()}


def flatten(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Hands an optimizer one vector in place of many arrays: less to compile and to launch.

    Params, updates, `grad` and `part_grads` go to the optimizer as one vector for each dtype among
    the params, and the functions `value_fn`, `grad_fn` and `monitor_fn` come to it as functions of
    those. What comes back is shaped as the params again. Sums run in another order; else nothing
    changes.

    **When to take it:** on one device, for params of many small arrays. An optimizer of this
    library has dozens of operations for every array, each compiled, and launched by itself on a
    GPU; of one vector neither depends on how many arrays there were. **When not:** for params
    that are sharded, which the vector would gather on every device, and for few large arrays, where
    it gains nothing and costs a copy.

    Args:
      tx: any optimizer of this library or of Optax, a chain too. What treats arrays one by one
        inside (`optax.scale_by_trust_ratio`, `optax.clip_by_block_rms`, masks by name) sees the
        vectors: chain it outside.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `tx` is; other extra arguments go
      to `tx` as they are. `naqopt.eval_params`, `naqopt.snapshot` and `naqopt.diagnostics` take its
      state as they take that of `tx`. Two functions of Optax do not see through it:
      `optax.tree.map_params` maps over the vectors and takes no further trees, and
      `optax.value_and_grad_from_state` would find the gradient as vectors and raises, so that
      `store_grad` is of no use inside.

    Raises:
      TypeError: if `tx` is no transformation; by `init` and `update` for complex or integer params.
      ValueError: by `init` and `update` if the params are seen to be sharded over devices,
        which under `jax.jit` they are on an explicit mesh only; by `update` for params, updates or
        gradients of another structure or other shapes than init was given.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p["w"] - 1.0) ** 2) + (p["b"] + 2.0) ** 2
      >>> params = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(())}
      >>> tx = naqopt.flatten(naqopt.onaq(naqopt.schedules.inverse_sqrt(0.3)))
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(loss)(params)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...   params, state = step(params, state)
      >>> iterate = naqopt.eval_params(state, params)
      >>> print(f"{loss(iterate):.3f}", iterate["w"].shape)
      0.000 (2, 3)

    Costs a copy of the params, of every gradient and of the updates a step, and nothing between
    steps. Under `optax.inject_hyperparams` put it outside,
    `naqopt.flatten(optax.inject_hyperparams(naqopt.onaq)(0.1))`.
    """
    if not isinstance(tx, optax.GradientTransformation):
        name = getattr(tx, "__name__", None)
        found = repr(tx) if name is None else f"the function {name}"
        raise TypeError(
            "naqopt.flatten: `tx` must be a gradient transformation, the result of a call such as "
            f"naqopt.flatten(naqopt.onaq(0.1)), got {found}."
        )
    inner = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> FlattenState:
        params = _checked(params)
        layout = _layout(params)
        vectors = functools.partial(to_vectors, layout)
        # Of shapes alone Optax's `init` makes a state too.
        has_shapes = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
        held = jax.eval_shape(vectors, params) if has_shapes else vectors(params)
        return FlattenState(inner.init(held), layout)

    def update(
        updates: optax.Updates,
        state: FlattenState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, FlattenState]:
        layout = state.layout
        like = shapes(layout)
        if params is not None:
            params = _checked(params)
            _checks.same_structure("flatten", "params", params, like)
            params = to_vectors(layout, params)
        arrays = _checks.gradients("flatten", "updates", updates)
        _checks.same_structure("flatten", "updates", arrays, like)
        vectors = to_vectors(layout, arrays)
        translated = _arguments(layout, extra_args)
        if _closures.same_leaves(extra_args.get("grad"), updates):
            translated["grad"] = vectors  # the optimizer inside sees that nothing has changed it
        vectors, inner_state = inner.update(vectors, state.inner_state, params, **translated)
        return from_vectors(layout, vectors), FlattenState(inner_state, layout)

    return optax.GradientTransformationExtraArgs(init, update)
