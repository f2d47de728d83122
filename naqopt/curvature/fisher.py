"""A ring of gradients and the product with the accumulated Fisher information matrix.

The matrix is the mean of the outer products g_i g_iᵀ of the stored gradients (aSNAQ Eq. 9). It is
never formed: with the gradients as the rows of F, its product with s is `Fᵀ(F s)/|F|`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from naqopt import _history, _tree
from naqopt._tree import Scalar, Tree


class Fisher(NamedTuple):
    """The stored gradients, first in first out.

    Attributes:
      gradients: history of gradients, leaves of shape `(m_F, *leaf.shape)`.
      size: `|F|`, how many are stored, at most m_F.
      next: the slot that the next gradient goes to.
    """

    gradients: Tree
    size: jax.Array
    next: jax.Array


def init(params: Tree, fisher_size: int, dtype: Any = None) -> Fisher:
    """Returns a ring for `fisher_size` gradients of the shapes of params, empty."""
    return Fisher(
        gradients=_history.empty(params, fisher_size, dtype),
        size=jnp.zeros((), jnp.int32),
        next=jnp.zeros((), jnp.int32),
    )


def push(fisher: Fisher, gradient: Tree, fisher_size: int, accept: Scalar) -> Fisher:
    """Stores the gradient over the oldest where `accept` holds; otherwise changes nothing.

    What a narrower dtype of the ring cannot hold saturates there.
    """
    moved = accept.astype(jnp.int32)
    return Fisher(
        gradients=_history.set_row(fisher.gradients, fisher.next, gradient, accept),
        size=jnp.minimum(fisher.size + moved, fisher_size),
        next=_history.advance(fisher.next, accept, fisher_size),
    )


@partial(jax.jit, static_argnames="block_size")
def product(fisher: Fisher, s: Tree, block_size: int | None = None) -> Tree:
    """Returns `Fᵀ(F s)/|F|` (aSNAQ Eq. 9), and 0 while no gradient is stored.

    A scan over blocks of rows. All rows as one block are the measured choice (m_F = 100 on a CPU):
    1.3 to 2.2 times as fast as any smaller block, and without the copies of `block_size` rows that
    a loop over smaller ones makes.

    Args:
      fisher: the stored gradients.
      s: a tree like one gradient.
      block_size: rows a block; None for all of them.

    Returns:
      A tree like s in at least float32.
    """
    rows = jax.tree.leaves(fisher.gradients)
    if not rows:
        return s
    length = rows[0].shape[0]
    block_size = min(block_size or length, length)
    # The ring fills its slots in order, so the first |F| hold gradients.
    slots = jnp.arange(length, dtype=jnp.int32)
    size = jnp.maximum(fisher.size, 1).astype(_tree.scalar_dtype(s))
    weights = jnp.where(slots < fisher.size, 1 / size, 0)

    def add_block(total: Tree, block: Scalar) -> tuple[Tree, None]:
        # The last block is moved back to fit; rows that an earlier block had are weighted 0.
        start = jnp.minimum(block * block_size, length - block_size)

        def take(x: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(x, start, block_size)

        fresh = take(slots) >= block * block_size
        f = jax.tree.map(take, fisher.gradients)
        c = _history.dot(f, s) * jnp.where(fresh, take(weights), 0)  # F s / |F|
        return _tree.add(_history.combine(c, f), total), None  # + Fᵀ c

    blocks = jnp.arange(-(-length // block_size), dtype=jnp.int32)
    total, _ = lax.scan(add_block, _tree.zeros(s), blocks)  # in the dtypes of zeros(s)
    return total


def clear(fisher: Fisher, condition: Scalar) -> Fisher:
    """Forgets all gradients where the condition holds; the slots themselves are not touched."""
    return fisher._replace(
        size=jnp.where(condition, 0, fisher.size), next=jnp.where(condition, 0, fisher.next)
    )
