"""Linear algebra on pytrees of parameters and on histories of them.

A *history* is a tree whose leaves carry one extra leading axis: row i of every leaf together is the
i-th stored tree. Products contract whole leaves without flattening them, so that sharded parameters
stay where they are, and accumulate in at least float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Tree = Any
Scalar = jax.Array


def accumulation_dtype(*dtypes: Any) -> Any:
    """Returns the widest of the dtypes, and at least float32."""
    return jnp.result_type(jnp.float32, *dtypes)


def scalar_dtype(tree: Tree) -> Any:
    """Returns the dtype of sums over all of a tree: at least float32."""
    return accumulation_dtype(*(leaf.dtype for leaf in jax.tree.leaves(tree)))


def is_empty(tree: Tree) -> bool:
    """Returns whether a tree has no leaf (an unused label of `optax.partition`)."""
    return not jax.tree.leaves(tree)


def widen(tree: Tree) -> Tree:
    """Returns the tree in at least float32."""
    return jax.tree.map(lambda x: x.astype(accumulation_dtype(x.dtype)), tree)


def zeros(tree: Tree) -> Tree:
    """Returns zeros of the tree's shapes in at least float32, sharded as the tree is."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=accumulation_dtype(x.dtype)), tree)


def empty_history(tree: Tree, length: int, dtype: Any = None) -> Tree:
    """Returns a history of `length` zero rows, each leaf sharded as the tree's leaf is."""

    def rows(x: jax.Array) -> jax.Array:
        row = jnp.zeros_like(x, dtype=dtype or accumulation_dtype(x.dtype))
        return jnp.broadcast_to(row, (length, *row.shape))

    return jax.tree.map(rows, tree)


def _replicated(ndim: int, *operands: jax.Array) -> NamedSharding | None:
    """The sharding of a sum over sharded axes, which an explicit mesh wants to be told."""
    for operand in operands:
        mesh = jax.typeof(operand).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return NamedSharding(mesh, PartitionSpec(*[None] * ndim))
    return None


def _contract(a: jax.Array, b: jax.Array) -> jax.Array:
    """Contracts all axes of b with the last axes of a."""
    dtype = accumulation_dtype(a.dtype, b.dtype)
    lead = a.ndim - b.ndim
    axes = (tuple(range(lead, a.ndim)), tuple(range(b.ndim)))
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        dimension_numbers=(axes, ((), ())),
        # The default would multiply float32 numbers in bfloat16 on a TPU.
        precision=lax.Precision.HIGHEST,
        out_sharding=_replicated(lead, a, b),
    )


def _total(summands: list[jax.Array], shape: tuple[int, ...] = ()) -> jax.Array:
    """Sums what the leaves contribute; a leafless tree contributes float32 zeros."""
    return sum(summands[1:], summands[0]) if summands else jnp.zeros(shape, jnp.float32)


def dot(a: Tree, b: Tree) -> Scalar:
    """Returns aᵀb over all leaves."""
    return _total(jax.tree.leaves(jax.tree.map(_contract, a, b)))


def squared_norm(tree: Tree) -> Scalar:
    """Returns ‖tree‖² over all leaves."""
    return dot(tree, tree)


def history_dot(history: Tree, tree: Tree) -> jax.Array:
    """Returns the vector of row_iᵀ tree, one number a row: one pass over the history."""
    rows = [leaf.shape[0] for leaf in jax.tree.leaves(history)]
    products = jax.tree.leaves(jax.tree.map(_contract, history, tree))
    return _total(products, (rows[0],) if rows else (0,))


def history_sum(coefficients: jax.Array, history: Tree) -> Tree:
    """Returns Σ_i coefficients_i row_i.

    Written out, the sum fuses with what surrounds it and reads the history once, where a product
    `coefficients @ leaf` takes up to half as long again on a CPU.
    """

    def combine(rows: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(rows.dtype)
        c = coefficients.astype(dtype)
        return _total([c[i] * rows[i].astype(dtype) for i in range(rows.shape[0])])

    return jax.tree.map(combine, history)


def history_combine(coefficients: jax.Array, history: Tree) -> Tree:
    """Returns Σ_i coefficients_i row_i as a product, for histories too long to write out."""

    def combine(rows: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(rows.dtype)
        return jnp.tensordot(
            coefficients.astype(dtype), rows.astype(dtype), axes=1, precision=lax.Precision.HIGHEST
        )

    return jax.tree.map(combine, history)


def set_row(history: Tree, index: Scalar, row: Tree, accept: Scalar) -> Tree:
    """Writes one row, in the history's dtype, where `accept` holds.

    A refused row is sent past the end and dropped there. A `where` over the history would copy it,
    and one over the slot takes a copy of the params more.
    """

    def write(rows: jax.Array, new: jax.Array) -> jax.Array:
        slot = jnp.where(accept, index, rows.shape[0])
        return rows.at[slot].set(cast_to(rows.dtype, new), mode="drop")

    return jax.tree.map(write, history, row)


def row_like(history: Tree) -> Tree:
    """Returns the shapes and dtypes of one row of a history."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), history)


def ravel(tree: Tree) -> jax.Array:
    """Returns all leaves one after the other as a vector, the same on every device."""
    dtype = scalar_dtype(tree)

    def flat(x: jax.Array) -> jax.Array:
        sharding = _replicated(x.ndim, x)
        x = x if sharding is None else jax.sharding.reshard(x, sharding)
        return x.astype(dtype).reshape(-1)

    return jnp.concatenate([flat(x) for x in jax.tree.leaves(tree)])


def shard_like(like: jax.Array, x: jax.Array) -> jax.Array:
    """Returns x sharded as another array of its shape, where an explicit mesh wants to be told."""
    return (
        x
        if _replicated(x.ndim, like) is None
        else jax.sharding.reshard(x, jax.typeof(like).sharding)
    )


def where(condition: Scalar, a: Tree, b: Tree) -> Tree:
    """Returns a where the condition holds and b elsewhere, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def scale(c: Scalar, tree: Tree) -> Tree:
    """Returns c times the tree, in the tree's dtypes."""
    return jax.tree.map(lambda x: c.astype(x.dtype) * x, tree)


def add(a: Tree, b: Tree) -> Tree:
    """Returns a + b in the dtypes of b: the wide b decides where a holds narrow params."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype) + y, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """Returns a − b in the dtypes of a; 0 where both are the same infinity (a mask, say)."""

    def difference(x: jax.Array, y: jax.Array) -> jax.Array:
        y = y.astype(x.dtype)
        return jnp.where(x == y, 0, x - y)

    return jax.tree.map(difference, a, b)


def cast_to(dtype: Any, x: jax.Array) -> jax.Array:
    """Returns the array in another dtype; what a narrower one cannot hold saturates."""
    largest = float(jnp.finfo(dtype).max)
    if largest < float(jnp.finfo(x.dtype).max):
        x = jnp.clip(x, -largest, largest)
    return x.astype(dtype)


def cast_as(like: Tree, tree: Tree) -> Tree:
    """Returns the tree in the dtypes of `like`; what a narrower one cannot hold saturates."""
    return jax.tree.map(lambda x, y: cast_to(x.dtype, y), like, tree)
