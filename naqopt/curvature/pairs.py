"""A ring of curvature pairs (s, y) with the triangle of products that the two-loop recursion needs.

The papers also write (p, q). Beside the pairs themselves, 2 m copies of the parameters, the ring
keeps the numbers s_iᵀy_j for all j newer than i (and j = i), so that storing a pair costs one pass
over S and the recursion needs no product between stored vectors.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from naqopt import _history, _tree
from naqopt._tree import Scalar, Tree


class Pairs(NamedTuple):
    """The stored pairs, by slot.

    Attributes:
      s: history of differences of points, leaves of shape `(m, *leaf.shape)`.
      y: history of differences of gradients, or of Fisher products, like s.
      products: (m, m) numbers s_iᵀy_j by slot; valid where j is not older than i.
      scales: (m,) numbers s_iᵀy_i / y_iᵀy_i by slot, from which γ of H0 = γ I is made.
      size: how many pairs are stored, at most m.
      next: the slot that the next pair goes to.
    """

    s: Tree
    y: Tree
    products: jax.Array
    scales: jax.Array
    size: jax.Array
    next: jax.Array


def init(params: Tree, memory_size: int, dtype: Any = None) -> Pairs:
    """Returns a ring for `memory_size` pairs of the shapes of params, empty."""
    scalars = _tree.scalar_dtype(params)
    return Pairs(
        s=_history.empty(params, memory_size, dtype),
        y=_history.empty(params, memory_size, dtype),
        products=jnp.zeros((memory_size, memory_size), scalars),
        scales=jnp.zeros((memory_size,), scalars),
        size=jnp.zeros((), jnp.int32),
        next=jnp.zeros((), jnp.int32),
    )


def memory_size(pairs: Pairs) -> int:
    """Returns m, the number of slots."""
    return pairs.products.shape[0]


def newest_first(pairs: Pairs) -> jax.Array:
    """Returns the slots from the newest pair to the oldest, the empty ones last."""
    return _history.ages(pairs.next, memory_size(pairs))


def _filled(pairs: Pairs) -> jax.Array:
    """Returns by slot whether it holds a pair."""
    # The map from ages to slots is its own inverse, so that this gives the ages by slot.
    return newest_first(pairs) < pairs.size


def inverse_curvatures(pairs: Pairs) -> jax.Array:
    """Returns ρ_i = 1 / s_iᵀy_i by slot, 0 for an empty slot."""
    filled = _filled(pairs)
    return jnp.where(filled, 1 / jnp.where(filled, _tree.diagonal(pairs.products), 1), 0)


def newest_scale(pairs: Pairs) -> Scalar:
    """Returns sᵀy / yᵀy of the newest pair (Nocedal and Wright 7.20)."""
    return pairs.scales[newest_first(pairs)[0]]


def mean_scale(pairs: Pairs) -> Scalar:
    """Returns the mean of sᵀy / yᵀy over the stored pairs (SVR-NAQ Eq. 15)."""
    total = jnp.sum(jnp.where(_filled(pairs), pairs.scales, 0))
    return total / jnp.maximum(pairs.size, 1).astype(total.dtype)


class Products(NamedTuple):
    """The numbers by which a new pair (s, y) is judged and stored.

    Attributes:
      old_s_new_y: (m,) numbers s_iᵀy for the stored s_i, by slot.
      sy: sᵀy.
      yy: yᵀy.
      ss: sᵀs.
    """

    old_s_new_y: jax.Array
    sy: Scalar
    yy: Scalar
    ss: Scalar


def products(pairs: Pairs, s: Tree, y: Tree) -> Products:
    """Returns the products of a new pair, as rounded to the ring's dtype: one pass over S."""
    s, y = _tree.cast_as(pairs.s, s), _tree.cast_as(pairs.y, y)
    dtype = pairs.products.dtype
    sy, yy, ss = (x.astype(dtype) for x in _tree.dots((s, y), (y, y), (s, s)))
    return Products(_history.dot(pairs.s, y).astype(dtype), sy, yy, ss)


def is_usable(new: Products) -> Scalar:
    """Returns whether the pair is finite and sᵀy is positive with a finite reciprocal.

    Whether the curvature is *large enough* is for each algorithm to say.
    """
    finite = jnp.isfinite(new.ss) & jnp.isfinite(new.yy) & jnp.all(jnp.isfinite(new.old_s_new_y))
    return finite & jnp.isfinite(new.sy) & (new.sy >= jnp.finfo(new.sy.dtype).tiny)


def smallest_cosine(dtype: Any) -> float:
    """Returns c of the test sᵀy > c ‖s‖ ‖y‖, which has no units: what rounding may make of 0."""
    return 1e-8 if dtype == jnp.float64 else 1e-6


def is_curved(sy: Scalar, ss: Scalar, yy: Scalar, min_curvature: Any = None) -> Scalar:
    """Returns whether the cosine between s and y is above c; `min_curvature` None for ours."""
    c = smallest_cosine(sy.dtype) if min_curvature is None else min_curvature
    return sy > c * (jnp.sqrt(ss) * jnp.sqrt(yy))


def store(pairs: Pairs, s: Tree, y: Tree, new: Products, accept: Scalar) -> Pairs:
    """Stores (s, y) over the oldest pair where `accept` holds; otherwise changes nothing.

    The caller's `accept` must imply `is_usable`.
    """
    m = memory_size(pairs)
    here = (np.arange(m, dtype=np.int32) == pairs.next) & accept
    # Column `here` holds s_iᵀy_new; row `here` keeps numbers of the overwritten pair, which are
    # read for no pair: all the others are older than the new one.
    column = jnp.where(here, new.sy, new.old_s_new_y)
    scale = new.sy / jnp.maximum(new.yy, jnp.finfo(new.yy.dtype).tiny)
    return Pairs(
        s=_history.set_row(pairs.s, pairs.next, s, accept),
        y=_history.set_row(pairs.y, pairs.next, y, accept),
        products=jnp.where(here[None, :], column[:, None], pairs.products),
        scales=jnp.where(here, scale, pairs.scales),
        size=jnp.minimum(pairs.size + accept.astype(jnp.int32), m),
        next=_history.advance(pairs.next, accept, m),
    )


def clear(pairs: Pairs, condition: Scalar) -> Pairs:
    """Forgets all pairs where the condition holds; the slots are not touched, only not counted."""
    return pairs._replace(size=jnp.where(condition, 0, pairs.size))
