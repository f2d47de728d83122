"""The dense inverse Hessian of Broyden's class, d × d numbers; BFGS by default.

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
from naqopt.curvature import Curvature, broyden
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


class _Scaled(NamedTuple):
    """What an update other than BFGS does besides adding a bᵀ + b aᵀ: H/τ − sign c cᵀ."""

    inverse_tau: Scalar
    sign: Scalar
    c: Tree


def _add_symmetric(matrix: Tree, a: Tree, b: Tree, scaled: _Scaled | None = None) -> Tree:
    """Returns the matrix + a bᵀ + b aᵀ, or as `_Scaled` has it, in one pass.

    The vectors are computed first, and not anew for each row of the matrix.
    """
    # The sign goes to one of the factors, as c is that of a square.
    square = [] if scaled is None else [scaled.c, _tree.scale(scaled.sign, scaled.c)]
    a, b, *square = _finished(a, b, *square)

    def outer(column: jax.Array, row: jax.Array) -> jax.Array:
        # Ranks are made equal, as strict modes of JAX ask.
        return column.reshape(len(column), *[1] * row.ndim) * row[None]

    flat_a, flat_b = _tree.ravel(a), _tree.ravel(b)
    if scaled is None:
        return jax.tree.map(
            lambda rows, x, y: rows + (outer(flat_a, y) + outer(flat_b, x)).astype(rows.dtype),
            matrix,
            a,
            b,
        )
    c, signed = square
    flat_c, (factor,) = _tree.ravel(signed), _tree.together(scaled.inverse_tau)

    def add(rows: jax.Array, x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
        added = outer(flat_a, y) + outer(flat_b, x) - outer(flat_c, z)
        return factor.astype(rows.dtype) * rows + added.astype(rows.dtype)

    return jax.tree.map(add, matrix, a, b, c)


def _finished(*trees: Tree) -> list[Tree]:
    """Returns trees of one structure as they are, which nothing computes again where it reads."""
    leaves, structure = zip(*map(jax.tree.flatten, trees), strict=True)
    done = [_tree.together(*of_one) for of_one in zip(*leaves, strict=True)]
    return [jax.tree.unflatten(structure[0], tree) for tree in zip(*done, strict=True)]


def update(
    dense: Dense,
    s: Tree,
    y: Tree,
    accept: Scalar,
    min_curvature: Any = None,
    numerator: Scalar | None = None,
    rule: str = broyden.BFGS,
    expected: Scalar | None = None,
    initial_scale: Any = None,
) -> tuple[Dense, Scalar]:
    """Returns the matrix after the pair (s, y), and whether it was usable; see `_update`."""
    options = min_curvature, numerator, rule, expected, initial_scale
    dense, stored, _ = _update(dense, s, y, accept, None, *options)
    return dense, stored


def _update(
    dense: Dense,
    s: Tree,
    y: Tree,
    accept: Scalar,
    g: Tree | None,
    min_curvature: Any,
    numerator: Scalar | None,
    rule: str,
    expected: Scalar | None,
    initial_scale: Any,
) -> tuple[Dense, Scalar, Tree | None]:
    """Returns the matrix after the pair (s, y), whether it was usable, and H⁺ g if g is given.

    The update of `naqopt.curvature.broyden`, multiplied out, with ρ = 1/sᵀy and h = ρ yᵀH y::

        H⁺ = H/τ + s uᵀ + u sᵀ − (1 − φ)/(τ yᵀH y) H y yᵀH,   u = ½ ρ (1 + φ h/τ) s − φ/τ ρ H y

    For BFGS φ = τ = 1, and it is (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ. Before the first pair
    H = γ I with γ = sᵀy/yᵀy, or `numerator`/yᵀy. Where the gradient has not changed at all the
    pairs that made so short a step are forgotten.

    H y and H g are of one pass over the matrix, and H⁺ g = H g/τ + ... by the same sum as H⁺, so
    that a step reads H twice and writes it once.

    Args:
      dense: the matrix.
      s: the step.
      y: the difference of the gradients.
      accept: whether the pair is to be stored.
      g: what H⁺ is to be multiplied with, if anything.
      min_curvature: as in `dense_matrix`.
      numerator: in place of sᵀy in the γ of the first pair.
      rule: one of `naqopt.curvature.broyden.UPDATES`.
      expected: sᵀBs, which a self-scaled rule needs.
      initial_scale: γ itself.
    """
    dtype = jax.tree.leaves(dense.matrix)[0].dtype
    sy, yy, ss = (x.astype(dtype) for x in _tree.dots((s, y), (y, y), (s, s)))
    tiny = jnp.finfo(dtype).tiny
    finite = jnp.isfinite(ss) & jnp.isfinite(yy) & jnp.isfinite(sy)
    unchanged = accept & (yy == 0) & (ss > 0)
    stored = accept & finite & is_curved(sy, ss, yy, min_curvature) & (sy >= tiny)

    rho = jnp.where(stored, 1 / jnp.where(stored, sy, 1), 0)
    gamma = jnp.where(stored, (sy if numerator is None else numerator) / jnp.maximum(yy, tiny), 0)
    if initial_scale is not None:
        gamma = jnp.where(stored, jnp.asarray(initial_scale, dtype), 0)
    first = dense.size == 0
    hg = None
    if g is None:
        hy = multiply(dense, y)
    else:
        hy, hg = _tree.history_sums((_tree.ravel(y), _tree.ravel(g)), dense.matrix)
        hg = _tree.where(first, _tree.scale(gamma, g), hg)
    hy = _tree.where(first, _tree.scale(gamma, y), hy)
    h = rho * _tree.dot(y, hy).astype(dtype)
    scaled, phi_by_tau = None, jnp.ones_like(h)
    if rule != broyden.BFGS:
        b = jnp.zeros_like(h)
        if expected is not None:  # of γ I before the first pair
            of_unit = ss / jnp.where(gamma > 0, gamma, 1)
            b = rho * jnp.where(first, of_unit, expected.astype(dtype))
        d = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(s))
        phi, tau = broyden.coefficients(rule, h, b, d)
        inverse_tau = 1 / tau
        phi_by_tau = phi * inverse_tau
        sound = (h > 0) & (b >= 0) & jnp.isfinite(h * b) & jnp.isfinite(inverse_tau)
        stored = stored & sound & jnp.isfinite(phi_by_tau)
        # √(|1 − φ|/(τ yᵀHy)) H y, with yᵀHy = h/ρ
        ratio = jnp.abs(1 - phi) * inverse_tau / jnp.where(stored, h, 1)
        weight = jnp.sqrt(ratio) * jnp.sqrt(rho)
        scaled = _Scaled(inverse_tau, jnp.sign(1 - phi), _tree.scale(weight, hy))
    factor = 0.5 * (1 + phi_by_tau * h)
    # ρ goes to the vectors first: its square overflows where s is short.
    on_hy = phi_by_tau * rho
    u = jax.tree.map(
        lambda x, z: factor.astype(x.dtype) * (rho.astype(x.dtype) * x) - on_hy.astype(x.dtype) * z,
        s,
        hy,
    )
    stored = stored & jnp.isfinite(_tree.squared_norm(u))

    # A refused pair becomes zeros, which leave the matrix as it is.
    (keep,) = _tree.masks(stored)
    s, u = _tree.choose((keep, (s, u)))
    if scaled is not None:
        scaled = _Scaled(
            jnp.where(stored, scaled.inverse_tau, 1),
            jnp.where(stored, scaled.sign, 0),
            _tree.choose((keep, scaled.c)),
        )
    begins, gamma = _tree.together(stored & first, gamma)
    start = _begin(dense, gamma, begins)
    size = jnp.where(unchanged, 0, dense.size + stored.astype(jnp.int32))
    product = None
    if g is not None:
        product = _product(hg, g, s, u, scaled)
    return Dense(_add_symmetric(start, s, u, scaled), size), stored, product


def _product(hg: Tree, g: Tree, s: Tree, u: Tree, scaled: _Scaled | None) -> Tree:
    """Returns H⁺ g from H g, as `_add_symmetric` makes H⁺ from H."""
    if scaled is None:
        sg, ug = _tree.dots((s, g), (u, g))
        return jax.tree.map(lambda p, x, y: p + (ug * x + sg * y).astype(p.dtype), hg, s, u)
    sg, ug, cg = _tree.dots((s, g), (u, g), (scaled.c, g))
    cg = scaled.sign * cg
    return jax.tree.map(
        lambda p, x, y, z: (scaled.inverse_tau * p + ug * x + sg * y - cg * z).astype(p.dtype),
        hg,
        s,
        u,
        scaled.c,
    )


def add_rank_one(dense: Any, vector: Tree, weight: Scalar, gamma: Scalar, accept: Scalar) -> Any:
    """Returns the matrix plus weight · v vᵀ where `accept` holds; the first is added to γI."""
    start = _begin(dense, gamma, accept & (dense.size == 0))
    (keep,) = _tree.masks(accept)
    vector = _tree.choose((keep, vector))
    half = _tree.scale(0.5 * weight, vector)
    matrix = _add_symmetric(start, vector, half)
    return dense._replace(matrix=matrix, size=dense.size + accept.astype(jnp.int32))


def dense_matrix(
    optimizer: str, min_curvature: Any, rule: str = broyden.BFGS, initial_scale: Any = None
) -> Curvature:
    """Returns the curvature that a dense matrix holds.

    Args:
      optimizer: the call's name, for messages.
      rule: one of `naqopt.curvature.broyden.UPDATES`.
      min_curvature: c; a pair is used if sᵀy > c ‖s‖ ‖y‖; None for 1e-8, in float32 1e-6.
      initial_scale: γ of H0 = γ I; None for sᵀy/yᵀy of the first pair.

    Returns:
      A `Curvature` whose state is a `Dense`.
    """

    def precondition(dense: Dense, g: Tree, first_scale: Scalar) -> Tree:
        g = _tree.widen(g)
        return _tree.where(dense.size > 0, multiply(dense, g), _tree.scale(first_scale, g))

    def learn(
        dense: Dense,
        s: Tree,
        y: Tree,
        accept: Scalar,
        numerator: Scalar | None = None,
        expected: Scalar | None = None,
    ) -> tuple[Dense, Scalar]:
        options = min_curvature, numerator, rule, expected, initial_scale
        return update(dense, s, y, accept, *options)

    def learn_then_precondition(
        dense: Dense,
        s: Tree,
        y: Tree,
        accept: Scalar,
        g: Tree,
        first_scale: Scalar,
        expected: Scalar | None = None,
    ) -> tuple[Dense, Scalar, Tree]:
        g = _tree.widen(g)
        options = min_curvature, None, rule, expected, initial_scale
        dense, stored, product = _update(dense, s, y, accept, g, *options)
        known = _tree.where(dense.size > 0, product, _tree.scale(first_scale, g))
        return dense, stored, known

    return Curvature(
        lambda params: init(optimizer, params),
        lambda dense: dense.matrix,
        precondition,
        learn,
        clear,
        asks_expected=rule in broyden.SELF_SCALED,
        update_then_precondition=learn_then_precondition,
    )
