"""Indefinite Hessian approximations behind one face: the limited memory and the dense matrix."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from naqopt import _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature import dense, sr1
from naqopt.curvature.sr1 import INITIAL_FACTOR, MIN_CURVATURE, RankOne


class Eigen(NamedTuple):
    """Some eigenvectors u_i of B; on the complement of them it is γI.

    Attributes:
      eigenvalues: λ_i.
      present: whether u_i exists.
      rest: γ.
      project: from v to the numbers u_iᵀv.
      combine: from numbers c_i to Σ c_i u_i.
    """

    eigenvalues: jax.Array
    present: jax.Array
    rest: Scalar
    project: Callable[[Tree], jax.Array]
    combine: Callable[[jax.Array], Tree]


class Indefinite(NamedTuple):
    """An approximation B of the Hessian that learns from pairs (s, y) and may be indefinite.

    Attributes:
      init: from the params to the state, which knows nothing yet: B = γI.
      begin: from a state, γ and whether a step is made to that with which it is made: where it
        knows nothing, B = γI.
      rows: from a state to a history in it whose rows are like the params.
      multiply: from a state to the function from v to B v.
      eigen: from a state to its `Eigen`.
      max_products: from a state to the products with B after which conjugate gradients must be
        done: one for each distinct eigenvalue, in exact arithmetic.
      update: from a state, s, y and whether to accept them to the next state and whether the pair
        was stored.
      clear: from a state and a condition to the state that knows nothing where the condition holds.
      limited: whether the eigenvectors are few, so that they cost no more than products with B.
    """

    init: Callable[[Tree], Any]
    begin: Callable[[Any, Scalar, Scalar], Any]
    rows: Callable[[Any], Tree]
    multiply: Callable[[Any], Callable[[Tree], Tree]]
    eigen: Callable[[Any], Eigen]
    max_products: Callable[[Any], int]
    update: Callable[[Any, Tree, Tree, Scalar], tuple[Any, Scalar]]
    clear: Callable[[Any, Scalar], Any]
    limited: bool


def _begin(initial_scale: Any) -> Callable[[Any, Scalar, Scalar], Any]:
    """Returns `Indefinite.begin` of a state with `gamma` and `size`, for a given γ or None."""

    def begin(state: Any, gamma: Scalar, condition: Scalar) -> Any:
        known = (state.size > 0) | ~condition
        return state._replace(gamma=jnp.where(known, state.gamma, gamma.astype(state.gamma.dtype)))

    return begin if initial_scale is None else lambda state, gamma, condition: state


def limited(memory_size: int, dtype: Any = None, initial_scale: Any = None) -> Indefinite:
    """Returns the approximation by the last `memory_size` pairs, from γI with a given γ or ours."""

    def multiply(memory: RankOne) -> Callable[[Tree], Tree]:
        matrix = sr1.factor(memory)
        return lambda vector: sr1.multiply(memory, matrix, vector)

    def eigen(memory: RankOne) -> Eigen:
        matrix = sr1.factor(memory)
        found = sr1.spectrum(memory, matrix)

        def project(vector: Tree) -> jax.Array:
            return _tree.matmul(found.vectors.T, sr1.project(memory, matrix, vector))

        def combine(coefficients: jax.Array) -> Tree:
            return sr1.combine(memory, matrix, _tree.matmul(found.vectors, coefficients))

        return Eigen(found.eigenvalues, found.present, matrix.base, project, combine)

    return Indefinite(
        init=lambda params: sr1.init(params, memory_size, dtype, initial_scale),
        begin=_begin(initial_scale),
        rows=lambda memory: memory.s,
        multiply=multiply,
        eigen=eigen,
        max_products=lambda memory: 2 * memory_size + 2,
        update=functools.partial(sr1.update, initial_scale=initial_scale),
        clear=sr1.clear,
        limited=True,
    )


class DenseRankOne(NamedTuple):
    """A dense matrix.

    Attributes:
      matrix: B, a history of d rows; leaves of shape `(d, *leaf.shape)`.
      gamma: γ, with which B = γI while it holds no pair.
      size: how many pairs it holds.
    """

    matrix: Tree
    gamma: jax.Array
    size: jax.Array


def dense_rank_one(optimizer: str, initial_scale: Any = None) -> Indefinite:
    """Returns the dense matrix B⁺ = B + r rᵀ/(rᵀs), r = y − B s; γI at its first pair."""

    def init(params: Tree) -> DenseRankOne:
        matrix, size = dense.init(optimizer, params)
        gamma = jnp.array(1 if initial_scale is None else initial_scale, _tree.scalar_dtype(params))
        return DenseRankOne(matrix, gamma, size)

    def multiply(state: DenseRankOne) -> Callable[[Tree], Tree]:
        def product(vector: Tree) -> Tree:
            vector = _tree.widen(vector)
            # The matrix has the widest dtype of the params.
            known = _tree.cast_as(vector, dense.multiply(state, vector))
            return _tree.where(state.size > 0, known, _tree.scale(state.gamma, vector))

        return product

    def eigen(state: DenseRankOne) -> Eigen:
        leaves = jax.tree.leaves(state.matrix)
        like, d = jax.tree.map(lambda rows: rows[0], state.matrix), len(leaves[0])
        blocks = [_tree.replicate(rows).reshape(d, -1) for rows in leaves]
        matrix = jnp.concatenate(blocks, axis=1)
        matrix = jnp.where(state.size > 0, matrix, state.gamma * jnp.eye(d, dtype=matrix.dtype))
        values, vectors = jnp.linalg.eigh(matrix)

        return Eigen(
            values,
            jnp.ones(d, bool),
            jnp.ones((), matrix.dtype),  # of no complement
            lambda vector: _tree.matmul(_tree.ravel(vector).astype(matrix.dtype), vectors),
            lambda coefficients: _tree.unravel(_tree.matmul(vectors, coefficients), like),
        )

    def update(
        state: DenseRankOne, s: Tree, y: Tree, accept: Scalar
    ) -> tuple[DenseRankOne, Scalar]:
        dtype = jax.tree.leaves(state.matrix)[0].dtype
        length = jnp.sqrt(_tree.squared_norm(s)).astype(dtype)
        usable = jnp.isfinite(length) & (length > 0)
        scale = jnp.where(usable, 1 / jnp.where(usable, length, 1), 0)
        s, y = (_tree.scale(scale, _tree.widen(x)) for x in (s, y))
        sy, yy, ss = (x.astype(dtype) for x in _tree.dots((s, y), (y, y), (s, s)))
        finite = jnp.isfinite(yy) & jnp.isfinite(sy)

        def test(known: Tree) -> tuple[Tree, Scalar, Scalar]:
            """Returns r = y − B s, rᵀs and whether they make an update; `known` is B s."""
            residual = _tree.subtract(y, known)
            squared = _tree.squared_norm(residual).astype(dtype)
            product = _tree.dot(s, residual).astype(dtype)
            large = product**2 >= MIN_CURVATURE**2 * ss * squared
            sizes = yy + _tree.squared_norm(known).astype(dtype)
            distinct = squared > sr1.tolerance(dtype) * sizes
            return residual, product, large & distinct & (product != 0)

        # The first pair is tested by B as it is, sets γ, and adds what γI does not explain.
        residual, product, passes = test(multiply(state)(s))
        stored = accept & usable & finite & passes
        positive = finite & (sy > 0)
        gamma = state.gamma
        if initial_scale is None:
            ratio = INITIAL_FACTOR * sy / jnp.where(ss > 0, ss, 1)
            gamma = jnp.where(positive, ratio, gamma).astype(dtype)
        after_scaling = test(_tree.scale(gamma, s))
        residual, product, adds = _tree.where(
            state.size == 0, after_scaling, (residual, product, passes)
        )
        adds = adds & stored
        weight = jnp.where(adds, 1 / jnp.where(adds, product, 1), 0)
        return dense.add_rank_one(state, residual, weight, gamma, stored), stored

    return Indefinite(
        init=init,
        begin=_begin(initial_scale),
        rows=lambda state: state.matrix,
        multiply=multiply,
        eigen=eigen,
        max_products=lambda state: 2 * len(jax.tree.leaves(state.matrix)[0]),
        update=update,
        clear=lambda state, condition: state._replace(size=jnp.where(condition, 0, state.size)),
        limited=False,
    )
