"""Linear algebra on histories of pytrees.

A *history* is a tree whose leaves carry one extra leading axis: row i of every leaf together is the
i-th stored tree, and the rows are a ring. A product is a pass over the history, which is most of
what a step with a limited memory costs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from naqopt import _tree
from naqopt._tree import Scalar, Tree


def empty(tree: Tree, length: int, dtype: Any = None) -> Tree:
    """Returns a history of `length` zero rows, each leaf sharded as the tree's leaf is."""

    def rows(x: jax.Array) -> jax.Array:
        row = jnp.zeros_like(x, dtype=dtype or _tree.accumulation_dtype(x.dtype))
        return jnp.broadcast_to(row, (length, *row.shape))

    return jax.tree.map(rows, tree)


# Up to how many numbers a product with a leaf's history is left to what compiles fastest. On a CPU
# a matrix-vector product takes 8 to 14 ms to compile, for every shape and place anew.
_SMALL_HISTORY = 2**18
# Up to how many terms a sum over the history of a larger leaf is written out.
_MOST_TERMS = 16


def _contract(rows: jax.Array, x: jax.Array) -> jax.Array:
    """Contracts all axes of x with the last axes of the rows of a history."""
    dtype = _tree.accumulation_dtype(rows.dtype, x.dtype)
    rows, x = rows.astype(dtype), x.astype(dtype)
    if rows.size <= _SMALL_HISTORY:
        return jnp.sum(rows * x[None], tuple(range(1, rows.ndim)))
    axes = (tuple(range(1, rows.ndim)), tuple(range(x.ndim)))
    return lax.dot_general(
        rows,
        x,
        dimension_numbers=(axes, ((), ())),
        # The default would multiply float32 numbers in bfloat16 on a TPU.
        precision=lax.Precision.HIGHEST,
        out_sharding=_tree.replicated(1, rows, x),
    )


def _combine_leaf(coefficients: jax.Array, halves: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns Σ_i coefficients_i rows_i of a leaf; `halves` are the coefficients in two rows.

    Written out, the sum fuses with what surrounds it and reads the history once, where a product
    takes up to half as long again on a CPU; but it takes m times as long to compile. In a small
    leaf it is a product with a matrix of two rows, which on a CPU is not compiled but called.
    """
    dtype = _tree.accumulation_dtype(rows.dtype)
    rows, m = rows.astype(dtype), len(rows)
    if rows.size > _SMALL_HISTORY and m <= _MOST_TERMS:
        c = coefficients.astype(dtype)
        return sum([c[i] * rows[i] for i in range(1, m)], c[0] * rows[0])
    left = coefficients if rows.size > _SMALL_HISTORY else halves
    contracted = (((left.ndim - 1,), (0,)), ((), ()))
    product = lax.dot_general(
        left.astype(dtype), rows, dimension_numbers=contracted, precision=lax.Precision.HIGHEST
    )
    return product if product.ndim < rows.ndim else product[0] + product[1]


def dot(history: Tree, tree: Tree) -> jax.Array:
    """Returns the vector of row_iᵀ tree, one number a row: one pass over the history."""
    pairs = zip(jax.tree.leaves(history), jax.tree.leaves(tree), strict=True)
    products = [[_contract(rows, x)] for rows, x in pairs]
    return _tree.total(products)[0] if products else jnp.zeros((0,), jnp.float32)


def dots(history: Tree, a: Tree, b: Tree) -> tuple[jax.Array, jax.Array]:
    """Returns what `dot` does of two trees, in one pass over the history."""

    def contract(rows: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        if rows.size <= _SMALL_HISTORY:
            return jnp.stack([_contract(rows, x), _contract(rows, y)], -1)
        axes = (tuple(range(1, rows.ndim)), tuple(range(x.ndim)))
        # Two columns behind: two rows in front take twice as long on a CPU.
        return lax.dot_general(
            rows,
            jnp.stack([x, y], -1).astype(rows.dtype),
            dimension_numbers=(axes, ((), ())),
            precision=lax.Precision.HIGHEST,
            out_sharding=_tree.replicated(2, rows, x),
        )

    leaves = zip(*map(jax.tree.leaves, (history, a, b)), strict=True)
    products = _tree.total([[contract(*leaf)] for leaf in leaves])[0]
    return products[:, 0], products[:, 1]


def combine(coefficients: jax.Array, history: Tree) -> Tree:
    """Returns Σ_i coefficients_i row_i."""
    first = np.arange(len(coefficients)) < len(coefficients) // 2
    halves = jnp.stack([jnp.where(first, coefficients, 0), jnp.where(first, 0, coefficients)])
    return jax.tree.map(functools.partial(_combine_leaf, coefficients, halves), history)


def ages(next_slot: Scalar, slots: int) -> jax.Array:
    """Returns by slot of a ring how many rows are newer than its own.

    Read the other way round, it gives the slots from the newest row to the oldest.
    """
    behind = next_slot - 1 - np.arange(slots, dtype=np.int32)
    return jnp.where(behind < 0, behind + slots, behind)


def advance(next_slot: Scalar, moved: Scalar, slots: int) -> Scalar:
    """Returns the slot after the next one of a ring where `moved`, and the next one elsewhere."""
    after = next_slot + moved.astype(jnp.int32)
    return jnp.where(after == slots, 0, after)


def set_row(history: Tree, index: Scalar, row: Tree, accept: Scalar) -> Tree:
    """Writes one row, in the history's dtype, where `accept` holds.

    A refused row is sent past the end and dropped there. A `where` over the history would copy it,
    and one over the slot takes a copy of the params more.
    """

    def write(rows: jax.Array, new: jax.Array) -> jax.Array:
        slot = lax.select(accept, index, jnp.full_like(index, len(rows)))
        return lax.scatter(
            rows,
            slot[None],
            _tree.cast_to(rows.dtype, new),
            lax.ScatterDimensionNumbers(tuple(range(new.ndim)), (0,), (0,)),
            indices_are_sorted=True,
            unique_indices=True,
            mode=lax.GatherScatterMode.FILL_OR_DROP,
        )

    return jax.tree.map(write, history, row)


def row_like(history: Tree) -> Tree:
    """Returns the shapes and dtypes of one row of a history."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), history)
