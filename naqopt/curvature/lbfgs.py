"""The two-loop recursion: H g from stored pairs and an initial matrix H0, without forming H.

Both forms compute the product with the matrix that the BFGS updates
H⁺ = (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ, oldest pair first, build from H0. aSNAQ's Algorithm 1
prints `η − (σ_i − β) s_i` in line 10: the sign has to be a plus, with a minus the result is wrong
by O(1).

References:
  Nocedal and Wright, *Numerical Optimization*, second edition, Algorithm 7.4.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from naqopt import _history, _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature import Curvature
from naqopt.curvature import pairs as ring
from naqopt.curvature.pairs import Pairs


def _scale(h0: Scalar | Tree, r: Tree) -> Tree:
    """H0 r for H0 = γ I (a scalar array) or a diagonal (a tree like r)."""
    if isinstance(h0, jax.Array):
        return jax.tree.map(lambda x: h0.astype(x.dtype) * x, r)
    return jax.tree.map(lambda h, x: h.astype(x.dtype) * x, h0, r)


@jax.jit
def two_loop_by_pairs(pairs: Pairs, g: Tree, h0: Scalar | Tree) -> Tree:
    """Returns H g pair by pair, as Algorithm 1 is printed (with the plus in line 10).

    Each of the 2 m sequential iterations waits for a sum over all parameters; `two_loop` gives the
    same with two such sums in all. This form is the one to read, and to check the other against.

    Args:
      pairs: the stored pairs.
      g: the gradient.
      h0: the initial matrix: a scalar γ for γ I, or a tree like g with the diagonal.

    Returns:
      H g, a tree like g in at least float32. The descent direction is its negative.
    """
    newest_first = ring.newest_first(pairs)
    rho = ring.inverse_curvatures(pairs)

    def row(history: Tree, i: Scalar) -> Tree:
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), history)

    def add(eta: Tree, c: Scalar, vector: Tree) -> Tree:
        return jax.tree.map(lambda x, v: x + c.astype(x.dtype) * v.astype(x.dtype), eta, vector)

    def first_loop(eta: Tree, i: Scalar) -> tuple[Tree, Scalar]:
        sigma = rho[i] * _tree.dot(row(pairs.s, i), eta)  # line 4
        return add(eta, -sigma, row(pairs.y, i)), sigma  # line 5

    def second_loop(eta: Tree, xs: tuple[Scalar, Scalar]) -> tuple[Tree, None]:
        i, sigma = xs
        beta = rho[i] * _tree.dot(row(pairs.y, i), eta)  # line 9
        return add(eta, sigma - beta, row(pairs.s, i)), None  # line 10, with a plus

    eta = jax.tree.map(lambda x, z: x.astype(z.dtype), g, _tree.zeros(g))  # line 2
    eta, sigmas = lax.scan(first_loop, eta, newest_first)
    eta = _scale(h0, eta)  # line 7
    eta, _ = lax.scan(second_loop, eta, (newest_first, sigmas), reverse=True)
    return eta


@jax.jit
def two_loop(pairs: Pairs, g: Tree, h0: Scalar | Tree) -> Tree:
    """Returns H g by coefficients: the same numbers as Algorithm 1, to rounding.

    The first loop needs of the vectors only S g and the stored products s_iᵀy_j, the second only Y
    r and the same products, so both become scans over m scalars::

        σ_i = ρ_i (s_iᵀg − Σ_{j newer} σ_j s_iᵀy_j)             newest → oldest
        r   = H0 (g − Σ σ_i y_i)
        e_i = σ_i − ρ_i (y_iᵀr + Σ_{j older} e_j s_jᵀy_i)       oldest → newest
        H g = r + Σ e_i s_i

    S and Y are each read twice, as four matrix-vector products, and on sharded parameters two sums
    of m numbers travel between devices in place of 2 m sums in sequence.

    Args:
      pairs: the stored pairs.
      g: the gradient.
      h0: the initial matrix: a scalar γ for γ I, or a tree like g with the diagonal.

    Returns:
      H g, a tree like g in at least float32. The descent direction is its negative.
    """
    newest_first = ring.newest_first(pairs)
    rho = ring.inverse_curvatures(pairs)
    products = pairs.products
    slots, none = np.arange(len(rho), dtype=np.int32), jnp.zeros_like(rho)

    a = _history.dot(pairs.s, g).astype(rho.dtype)

    # Coefficients not yet computed are 0, which leaves of the sum just the newer (older) pairs.
    def first_loop(sigma: jax.Array, i: Scalar) -> tuple[jax.Array, None]:
        newer = jnp.sum(products[i] * sigma)
        return jnp.where(slots == i, rho * (a - newer), sigma), None

    sigma, _ = lax.scan(first_loop, none, newest_first)
    sum_y = _history.combine(sigma, pairs.y)
    r = _scale(h0, jax.tree.map(lambda x, z: x.astype(z.dtype) - z, g, sum_y))

    b = _history.dot(pairs.y, r).astype(rho.dtype)

    def second_loop(e: jax.Array, i: Scalar) -> tuple[jax.Array, None]:
        older = jnp.sum(products[:, i] * e)
        return jnp.where(slots == i, sigma - rho * (b + older), e), None

    e, _ = lax.scan(second_loop, none, newest_first, reverse=True)
    return jax.tree.map(jnp.add, r, _history.combine(e, pairs.s))


def update(
    pairs: Pairs, s: Tree, y: Tree, accept: Scalar, min_curvature: Any = None
) -> tuple[Pairs, Scalar]:
    """Returns the ring after the pair (s, y), and whether it was stored: if sᵀy > c ‖s‖ ‖y‖.

    Where the gradient has not changed at all the pairs that made so short a step are forgotten.
    """
    new = ring.products(pairs, s, y)
    stored = accept & ring.is_usable(new) & ring.is_curved(new.sy, new.ss, new.yy, min_curvature)
    unchanged = accept & (new.yy == 0) & (new.ss > 0)
    return ring.clear(ring.store(pairs, s, y, new, stored), unchanged), stored


def limited_memory(
    memory_size: int,
    min_curvature: Any,
    scale: Callable[[Pairs], Scalar] = ring.newest_scale,
    dtype: Any = None,
) -> Curvature:
    """Returns the curvature that the last pairs hold, with H0 = γ I.

    Args:
      memory_size: m, how many pairs are kept.
      min_curvature: c; a pair is stored if sᵀy > c ‖s‖ ‖y‖; None for 1e-8, in float32 1e-6.
      scale: γ from the stored pairs: `pairs.newest_scale` or `pairs.mean_scale`.
      dtype: of the stored pairs.

    Returns:
      A `Curvature` whose state is a ring of `Pairs`.
    """

    def init(params: Tree) -> Pairs:
        return ring.init(params, memory_size, dtype)

    def precondition(pairs: Pairs, g: Tree, first_scale: Scalar) -> Tree:
        gamma = jnp.where(pairs.size > 0, scale(pairs), first_scale.astype(pairs.scales.dtype))
        (gamma,) = _tree.together(gamma)
        return two_loop(pairs, g, gamma)

    def learn(
        pairs: Pairs, s: Tree, y: Tree, accept: Scalar, numerator: Scalar | None = None
    ) -> tuple[Pairs, Scalar]:
        del numerator  # γ is the newest pairs' at every step, not the first one's
        return update(pairs, s, y, accept, min_curvature)

    return Curvature(init, lambda pairs: pairs.s, precondition, learn, ring.clear)
