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

from naqopt import _history, _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature import Curvature, broyden
from naqopt.curvature.pairs import is_curved

MAX_BYTES = 4 * 2**30


class Dense(NamedTuple):
    """A dense matrix.

    Attributes:
      matrix: H, a history of d rows; leaves of shape `(d, *leaf.shape)`.
      size: how many pairs it holds; −1 for none where γ of the next one is that pair's, whatever γ
        is given, as after a refused step: a search that fails with it would fail for ever.
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
        always = optimizer in broyden.SELF_SCALED  # by the calls of these names
        raise ValueError(
            f"naqopt.{optimizer}: {'it' if always else '`memory_size=None`'} keeps a dense matrix "
            f"of {d:,} × {d:,} numbers, which is more than 4 GiB. Keep curvature pairs instead: "
            f"{'naqopt.bfgs()' if always else '`memory_size=10`'}."
        )
    return Dense(_history.empty(params, d, dtype), jnp.zeros((), jnp.int32))


def multiply(dense: Any, vector: Tree) -> Tree:
    """Returns the matrix times a vector."""
    return _tree.unravel(_history.dot(dense.matrix, vector), vector)


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


def _begun(dense: Dense, gamma: Scalar, condition: Scalar, squares: "_Squares", like: Tree) -> Tree:
    """Returns γI after a change where the condition holds, and the matrix after it elsewhere.

    Two branches, so that the identity is not looked at in every step.
    """

    def begin() -> Tree:
        identity = _identity(dense.matrix)
        start = jax.tree.map(lambda rows: gamma.astype(rows.dtype) * rows, identity)
        return _add_squares(start, squares, like)

    return _tree.cond(condition, begin, lambda: _add_squares(dense.matrix, squares, like))


def clear(dense: Dense, condition: Scalar) -> Dense:
    """Forgets all pairs where the condition holds; the matrix is not touched, only not used."""
    return dense._replace(size=jnp.where(condition, -1, dense.size))


class _Squares(NamedTuple):
    """A change of the matrix: H/τ + Σ σ v vᵀ.

    Attributes:
      inverse_tau: 1/τ; None for 1.
      signs: σ of each, 1, −1 or 0.
      vectors: v of each, d numbers.
    """

    inverse_tau: Scalar | None
    signs: tuple[Any, ...]
    vectors: tuple[jax.Array, ...]


def _add_squares(matrix: Tree, squares: _Squares, like: Tree) -> Tree:
    """Returns the matrix after a change, in one pass; `like` is a tree of the params' shapes.

    The vectors are computed first, and not anew for each row of the matrix. v_i v_j is v_j v_i to
    the last bit, so that the matrix stays symmetric.
    """
    signed = (s.astype(v.dtype) * v for s, v in zip(squares.signs, squares.vectors, strict=True))
    finished = _tree.together(*squares.vectors, *signed)
    count = len(squares.vectors)
    vectors, columns = [_tree.unravel(v, like) for v in finished[:count]], finished[count:]
    factor = None
    if squares.inverse_tau is not None:
        (factor,) = _tree.together(squares.inverse_tau)

    def add(rows: jax.Array, *parts: jax.Array) -> jax.Array:
        # Ranks are made equal, as strict modes of JAX ask.
        shape = len(rows), *[1] * (rows.ndim - 1)
        squares = [c.reshape(shape) * v[None] for c, v in zip(columns, parts, strict=True)]
        added = sum(squares[1:], squares[0])
        scaled = rows if factor is None else factor.astype(rows.dtype) * rows
        return scaled + added.astype(rows.dtype)

    return jax.tree.map(add, matrix, *vectors)


def _times(hg: jax.Array, g: jax.Array, squares: _Squares) -> jax.Array:
    """Returns H⁺ g from H g, as `_add_squares` makes H⁺ from H."""
    weights = _tree.dots(*((v, g) for v in squares.vectors))
    product = hg if squares.inverse_tau is None else squares.inverse_tau.astype(hg.dtype) * hg
    for sign, weight, vector in zip(squares.signs, weights, squares.vectors, strict=True):
        product += (sign * weight).astype(hg.dtype) * vector
    return product


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

    The update of `naqopt.curvature.broyden` as two squares, with ρ = 1/sᵀy and h = ρ yᵀH y::

        H⁺ = H/τ + a u uᵀ − c z zᵀ
        r = √ρ s,   z = √ρ H y,   a = 1 + φ h/τ,   u = r − φ/(τ a) z,   c = ((1 − φ)/h + φ²/(τ a))/τ

    which is r rᵀ + (−z zᵀ/h + φ h (r − z/h)(r − z/h)ᵀ)/τ with the square of r completed. So
    rounding can make H⁺ indefinite by no more than H/τ − c z zᵀ is, of BFGS H − z zᵀ/(1 + h). (The
    product form multiplied out, with s uᵀ + u sᵀ, is not as good: in long runs on ill-conditioned
    losses H came to have negative eigenvalues.) Before the first pair H = γ I with γ = sᵀy/yᵀy, or
    `numerator`/yᵀy, or a given γ until a step is refused. Where the gradient has not changed at all
    the pairs that made so short a step are forgotten. A pair with yᵀH y ≤ 0, which only rounding
    makes, leaves H + r rᵀ by BFGS and is refused by the other rules.

    H y and H g are of one pass over the matrix, and H⁺ g of the same sum as H⁺, so that a step
    reads H twice and writes it once. Beside it vectors are nothing: here they are of d numbers and
    the same on every device, so that what is compiled hardly grows with the number of arrays.

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
      initial_scale: γ itself, until a step is refused.
    """
    dtype, like, of_y, of_g = jax.tree.leaves(dense.matrix)[0].dtype, s, y, g
    s, y = (_tree.ravel(x).astype(dtype) for x in (s, y))
    sy, yy, ss = (x.astype(dtype) for x in _tree.dots((s, y), (y, y), (s, s)))
    tiny = jnp.finfo(dtype).tiny
    finite = jnp.isfinite(ss) & jnp.isfinite(yy) & jnp.isfinite(sy)
    unchanged = accept & (yy == 0) & (ss > 0)
    stored = accept & finite & is_curved(sy, ss, yy, min_curvature) & (sy >= tiny)

    rho = jnp.where(stored, 1 / jnp.where(stored, sy, 1), 0)
    gamma = jnp.where(stored, (sy if numerator is None else numerator) / jnp.maximum(yy, tiny), 0)
    if initial_scale is not None:
        given = jnp.where(stored, jnp.asarray(initial_scale, dtype), 0)
        gamma = jnp.where(dense.size < 0, gamma, given)
    first = dense.size <= 0
    hg = None
    if g is None:
        hy = _history.dot(dense.matrix, of_y)
    else:
        hy, hg = _history.dots(dense.matrix, of_y, of_g)
        g = _tree.ravel(of_g).astype(dtype)
        hg = _tree.where(first, gamma * g, hg)
    hy = _tree.where(first, gamma * y, hy)
    h = rho * _tree.dot(y, hy).astype(dtype)
    phi, inverse_tau = jnp.ones_like(h), None
    if rule != broyden.BFGS:
        b = jnp.zeros_like(h)
        if expected is not None:  # of γ I before the first pair
            of_unit = ss / jnp.where(gamma > 0, gamma, 1)
            b = rho * jnp.where(first, of_unit, expected.astype(dtype))
        phi, tau = broyden.coefficients(rule, h, b, len(s))
        inverse_tau = 1 / tau
        stored = stored & (h > 0) & (b >= 0) & jnp.isfinite(h * b) & jnp.isfinite(inverse_tau)
    squares, length = _squares(s, hy, rho, h, phi, inverse_tau)
    stored = stored & jnp.isfinite(h) & jnp.isfinite(length)

    # A refused pair becomes zeros, which leave the matrix as it is.
    (keep,) = _tree.masks(stored)
    squares = squares._replace(
        signs=tuple(jnp.where(stored, sign, 0) for sign in squares.signs),
        vectors=_tree.choose((keep, squares.vectors)),
    )
    if inverse_tau is not None:
        squares = squares._replace(inverse_tau=jnp.where(stored, inverse_tau, 1))
    begins, gamma = _tree.together(stored & first, gamma)
    matrix = _begun(dense, gamma, begins, squares, like)
    size = jnp.where(stored, jnp.maximum(dense.size, 0) + 1, dense.size)
    size = jnp.where(unchanged, 0, size)
    product = None
    if g is not None and hg is not None:
        product = _tree.unravel(_times(hg, g, squares), like)
    return Dense(matrix, size), stored, product


def _squares(
    s: jax.Array, hy: jax.Array, rho: Scalar, h: Scalar, phi: Scalar, inverse_tau: Scalar | None
) -> tuple[_Squares, Scalar]:
    """Returns a u uᵀ − c z zᵀ, and a number that is finite where all of it is."""
    root, by_tau = jnp.sqrt(rho), 1 if inverse_tau is None else inverse_tau
    # Where H y is but rounding, h can be 0 or less: then only r is left.
    known = h > 0
    h = jnp.where(known, h, 1)
    r, z = root * s, jnp.where(known, root, 0) * hy
    a = 1 + jnp.where(known, phi * by_tau * h, 0)
    c = by_tau * ((1 - phi) / h + phi**2 * by_tau / a)
    vectors = jnp.sqrt(a) * (r - phi * by_tau / a * z), jnp.sqrt(jnp.abs(c)) * z
    length = sum(_tree.dots(*((v, v) for v in vectors)), jnp.zeros_like(h))
    return _Squares(inverse_tau, (jnp.ones_like(h), -jnp.sign(c)), vectors), length


def add_rank_one(dense: Any, vector: Tree, weight: Scalar, gamma: Scalar, accept: Scalar) -> Any:
    """Returns the matrix plus weight · v vᵀ where `accept` holds; the first is added to γI."""
    dtype, (keep,) = jax.tree.leaves(dense.matrix)[0].dtype, _tree.masks(accept)
    v = _tree.choose((keep, _tree.ravel(vector).astype(dtype)))
    squares = _Squares(None, (jnp.sign(weight),), (jnp.sqrt(jnp.abs(weight)).astype(dtype) * v,))
    matrix = _begun(dense, gamma, accept & (dense.size == 0), squares, vector)
    return dense._replace(matrix=matrix, size=dense.size + accept.astype(jnp.int32))


def dense_matrix(
    optimizer: str, min_curvature: Any, rule: str = broyden.BFGS, initial_scale: Any = None
) -> Curvature:
    """Returns the curvature that a dense matrix holds.

    Args:
      optimizer: the call's name, for messages.
      rule: one of `naqopt.curvature.broyden.UPDATES`.
      min_curvature: c; a pair is used if sᵀy > c ‖s‖ ‖y‖; None for 1e-8, in float32 1e-6.
      initial_scale: γ of H0 = γ I, until a step is refused; None for sᵀy/yᵀy of the first pair.

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
