"""The dense inverse Hessian of BFGS, d × d numbers.

The matrix is kept as a history of d rows, each a tree like the params: row i is that of the i-th
coordinate in the order of `jax.tree.leaves`. Products come out as trees, and a sharded parameter's
columns stay where the parameter is.

References:
  Nocedal and Wright, *Numerical Optimization*, second edition, Equation 6.17.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from naqopt import _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature import Curvature
from naqopt.curvature.pairs import is_curved

MAX_BYTES = 4 * 2**30


class Dense(NamedTuple):
    """A dense matrix.

    Attributes:
      matrix: H, a history of d rows; leaves of shape (d, *leaf.shape).
      size: how many pairs it holds.
    """

    matrix: Tree
    size: jax.Array


def init(optimizer: str, params: Tree) -> Dense:
    """Returns a matrix that holds no pair.

    Raises:
      ValueError: if the matrix would take more than 4 GiB.
    """
    dtype = _tree.scalar_dtype(params)
    d = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    if d * d * jnp.dtype(dtype).itemsize > MAX_BYTES:
        raise ValueError(
            f"naqopt.{optimizer}: `memory_size=None` keeps a dense matrix of {d:,} × {d:,} numbers,"
            " which is more than 4 GiB. Keep curvature pairs instead: `memory_size=10`."
        )
    return Dense(_tree.empty_history(params, d, dtype), jnp.zeros((), jnp.int32))


def multiply(dense: Any, vector: Tree) -> Tree:
    """Returns the matrix times a vector; it is symmetric, so that its rows serve as columns."""
    return _tree.history_sum(_tree.ravel(vector), dense.matrix)


def _identity(matrix: Tree) -> Tree:
    """Returns the identity in the layout of a matrix."""
    leaves, structure = jax.tree.flatten(matrix)
    offset, blocks = 0, []
    for rows in leaves:
        columns = math.prod(rows.shape[1:])
        block = jnp.eye(len(rows), columns, -offset, rows.dtype).reshape(rows.shape)
        blocks.append(_tree.shard_like(rows, block))
        offset += columns
    return jax.tree.unflatten(structure, blocks)


def _begin(dense: Dense, gamma: Scalar, condition: Scalar) -> Tree:
    """Returns γI where the condition holds, and the matrix elsewhere."""
    return jax.tree.map(
        lambda rows, unit: jnp.where(condition, gamma.astype(rows.dtype) * unit, rows),
        dense.matrix,
        _identity(dense.matrix),
    )


def clear(dense: Dense, condition: Scalar) -> Dense:
    """Forgets all pairs where the condition holds; the matrix is not touched, only not used."""
    return dense._replace(size=jnp.where(condition, 0, dense.size))


def _add_symmetric(matrix: Tree, a: Tree, b: Tree) -> Tree:
    """Returns the matrix + a bᵀ + b aᵀ."""
    flat_a, flat_b = _tree.ravel(a), _tree.ravel(b)

    def add(rows: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        column = (len(rows), *[1] * x.ndim)
        # Ranks are made equal, as strict modes of JAX ask.
        added = flat_a.reshape(column) * y[None] + flat_b.reshape(column) * x[None]
        return rows + added.astype(rows.dtype)

    return jax.tree.map(add, matrix, a, b)


def bfgs_update(
    dense: Dense,
    s: Tree,
    y: Tree,
    accept: Scalar,
    min_curvature: Any = None,
    numerator: Scalar | None = None,
) -> tuple[Dense, Scalar]:
    """Returns the matrix after the pair (s, y), and whether it was usable.

    With ρ = 1/sᵀy the update H⁺ = (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ, multiplied out::

        H⁺ = H + s uᵀ + u sᵀ,   u = ½ ρ (1 + ρ yᵀH y) s − ρ H y

    Before the first pair H = γ I with γ = sᵀy/yᵀy, or `numerator`/yᵀy. Where the gradient has not
    changed at all the pairs that made so short a step are forgotten.
    """
    dtype = jax.tree.leaves(dense.matrix)[0].dtype
    sy, yy, ss = (x.astype(dtype) for x in _tree.dots((s, y), (y, y), (s, s)))
    tiny = jnp.finfo(dtype).tiny
    finite = jnp.isfinite(ss) & jnp.isfinite(yy) & jnp.isfinite(sy)
    unchanged = accept & (yy == 0) & (ss > 0)
    stored = accept & finite & is_curved(sy, ss, yy, min_curvature) & (sy >= tiny)

    rho = jnp.where(stored, 1 / jnp.where(stored, sy, 1), 0)
    gamma = jnp.where(stored, (sy if numerator is None else numerator) / jnp.maximum(yy, tiny), 0)
    first = dense.size == 0
    hy = _tree.where(first, _tree.scale(gamma, y), multiply(dense, y))
    factor = 0.5 * (1 + rho * _tree.dot(y, hy).astype(dtype))
    # ρ goes to the vectors first: its square overflows where s is short.
    u = jax.tree.map(
        lambda x, h: factor.astype(x.dtype) * (rho.astype(x.dtype) * x) - rho.astype(x.dtype) * h,
        s,
        hy,
    )
    stored = stored & jnp.isfinite(_tree.squared_norm(u))

    # A refused pair becomes zeros, which leave the matrix as it is.
    (keep,) = _tree.masks(stored)
    s, u = _tree.choose((keep, (s, u)))
    start = _begin(dense, gamma, stored & first)
    size = jnp.where(unchanged, 0, dense.size + stored.astype(jnp.int32))
    return Dense(_add_symmetric(start, s, u), size), stored


def add_rank_one(dense: Any, vector: Tree, weight: Scalar, gamma: Scalar, accept: Scalar) -> Any:
    """Returns the matrix plus weight · v vᵀ where `accept` holds; the first is added to γI."""
    start = _begin(dense, gamma, accept & (dense.size == 0))
    (keep,) = _tree.masks(accept)
    vector = _tree.choose((keep, vector))
    half = _tree.scale(0.5 * weight, vector)
    matrix = _add_symmetric(start, vector, half)
    return dense._replace(matrix=matrix, size=dense.size + accept.astype(jnp.int32))


def dense_bfgs(optimizer: str, min_curvature: Any) -> Curvature:
    """Returns the curvature that a dense matrix holds.

    Args:
      optimizer: the call's name, for messages.
      min_curvature: c; a pair is used if sᵀy > c ‖s‖ ‖y‖; None for 1e-8, in float32 1e-6.

    Returns:
      A `Curvature` whose state is a `Dense`.
    """

    def precondition(dense: Dense, g: Tree, first_scale: Scalar) -> Tree:
        g = _tree.widen(g)
        return _tree.where(dense.size > 0, multiply(dense, g), _tree.scale(first_scale, g))

    def update(
        dense: Dense, s: Tree, y: Tree, accept: Scalar, numerator: Scalar | None = None
    ) -> tuple[Dense, Scalar]:
        return bfgs_update(dense, s, y, accept, min_curvature, numerator)

    return Curvature(
        lambda params: init(optimizer, params),
        lambda dense: dense.matrix,
        precondition,
        update,
        clear,
    )
