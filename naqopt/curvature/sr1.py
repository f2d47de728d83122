"""Limited-memory symmetric rank one: an indefinite Hessian approximation from pairs (s, y).

With the stored pairs as columns of S and Y, oldest first, and B0 = γI,

    B = γI + Ψ M Ψᵀ,   Ψ = Y − γS,   M⁻¹ = D + L + Lᵀ − γ SᵀS

D is the diagonal and L the strictly lower triangle of SᵀY. (Line 33 of L-SR1's Algorithm 1 prints
SᵀY itself, which is wrong by O(1).) The method is self-dual: with S and Y exchanged and H0 = I/γ
the same formula gives the inverse H,

    H = I/γ + Ψ M Ψᵀ,   Ψ = S − Y/γ,   M⁻¹ = D + L + Lᵀ − YᵀY/γ

with L the strictly lower triangle of YᵀS. (The listing of the line search takes "a diagonal matrix,
typically I" for H0. With I, which has units, most starts beside a monkey saddle stay there.)

Pairs are stored scaled to ‖s‖ = 1, which changes neither matrix, so that the small ones are
well scaled. They are kept by slot and not by age; an empty slot is masked.

References:
  Byrd, Nocedal and Schnabel, *Representations of quasi-Newton matrices and their use in limited
  memory methods*, Mathematical Programming 63, 1994.
  Ramamurthy and Duffy, *L-SR1: A Second Order Optimization Method for Deep Learning*, 2017.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from naqopt import _history, _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature import Curvature

# γ = ½ max sᵀy/sᵀs over the memory. With 1 in place of ½ the pair of the largest has
# sᵀ(y − B0 s) = 0, so that alone it makes M⁻¹ singular and is dropped; with ½ that of H is
# sᵀy − yᵀy/γ ≤ sᵀy − 2 sᵀy < 0, as (sᵀy)² ≤ sᵀs yᵀy. Of the newest pair alone it
# is too small for long valleys, where it lets steps outside the memory's range overshoot
# (`test_a_long_valley`); yᵀy/sᵀy, the larger Barzilai-Borwein number, makes M⁻¹ and B indefinite on
# convex losses. Of the inverse, whose steps a line search shortens, it is ½ of the mean: with the
# maximum steps are shorter, and the error on Levy's function ended higher.
INITIAL_FACTOR = 0.5
MIN_CURVATURE = 1e-8  # r of the test |sᵀ(y − Bs)| ≥ r ‖s‖ ‖y − Bs‖


class RankOne(NamedTuple):
    """The stored pairs, by slot.

    Attributes:
      s: history of steps of length 1.
      y: history of differences of gradients, scaled as their s.
      ss: (m, m) numbers s_iᵀs_j.
      sy: (m, m) numbers s_iᵀy_j.
      yy: (m, m) numbers y_iᵀy_j.
      middle: (m, m) M of the pairs stored; what stands in empty slots is not used.
      gamma: γ, ½ of the largest sᵀy/sᵀs of the stored pairs, or of the mean for H, what the last
        step without a pair was made with, or a number that is given.
      size: how many pairs are stored, at most m.
      next: the slot that the next pair goes to.
    """

    s: Tree
    y: Tree
    ss: jax.Array
    sy: jax.Array
    yy: jax.Array
    middle: jax.Array
    gamma: jax.Array
    size: jax.Array
    next: jax.Array


class Factor(NamedTuple):
    """A matrix base I + Ψ M Ψᵀ with Ψ = on_s S + on_y Y.

    Attributes:
      base: γ of B, 1/γ of H.
      on_s: −γ of B, 1 of H.
      on_y: 1 of B, −1/γ of H.
      middle: (m, m) M, zero in the rows and columns of empty slots.
    """

    base: Scalar
    on_s: Scalar
    on_y: Scalar
    middle: jax.Array


def init(params: Tree, memory_size: int, dtype: Any = None, initial_scale: Any = None) -> RankOne:
    """Returns a ring for `memory_size` pairs of the shapes of params, empty."""
    scalars = _tree.scalar_dtype(params)

    def square() -> jax.Array:
        return jnp.zeros((memory_size, memory_size), scalars)

    return RankOne(
        s=_history.empty(params, memory_size, dtype),
        y=_history.empty(params, memory_size, dtype),
        ss=square(),
        sy=square(),
        yy=square(),
        middle=square(),
        gamma=jnp.array(1 if initial_scale is None else initial_scale, scalars),
        size=jnp.zeros((), jnp.int32),
        next=jnp.zeros((), jnp.int32),
    )


def _ages(memory: RankOne) -> jax.Array:
    """Returns by slot how many pairs are newer than its own."""
    return _history.ages(memory.next, len(memory.ss))


def _eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns eigenvalues and eigenvectors of a matrix that is symmetric but for rounding."""
    vectors, values = lax.linalg.eigh(matrix, symmetrize_input=False)
    return values, vectors


def tolerance(dtype: Any) -> float:
    """Returns what counts as zero beside 1 in the small matrices."""
    return 1e-12 if dtype == jnp.float64 else 1e-6


def _inverse_middle(memory: RankOne, inverse: bool) -> tuple[jax.Array, jax.Array]:
    """Returns M⁻¹ of all slots, and the size of the numbers that it is the difference of."""
    ages = _ages(memory)
    newer = ages[:, None] <= ages[None, :]  # i newer than j, or i = j
    # s_iᵀy_j of B's L is that of i newer than j; of H's, y_iᵀs_j.
    sy = memory.sy.T if inverse else memory.sy
    triangle = jnp.where(newer, sy, sy.T)
    gram = memory.yy / memory.gamma if inverse else memory.gamma * memory.ss
    return triangle - gram, jnp.maximum(jnp.abs(triangle), jnp.abs(gram))


def _invert(memory: RankOne, inverse: bool, changed: Scalar) -> tuple[Scalar, jax.Array]:
    """Returns the number of newest pairs that leave M⁻¹ nonsingular, as many as can be, and M.

    By its eigenvalues, which tell a singular one, mostly once; what has not `changed` stays.
    """
    matrix, sizes = _inverse_middle(memory, inverse)
    ages = _ages(memory)

    def invert(carry: tuple[Scalar, jax.Array, Scalar]) -> tuple[Scalar, jax.Array, Scalar]:
        count, _, _ = carry
        mask = ages < count
        both = mask[:, None] & mask[None, :]
        scale = jnp.max(jnp.where(both, sizes, 0))
        filled = jnp.where(both, matrix, 0) + jnp.diag(jnp.where(mask, 0, scale))
        values, vectors = _eigh(filled)
        smallest = jnp.min(jnp.abs(values))
        singular = (count > 0) & ~(smallest > tolerance(matrix.dtype) * scale)
        middle = _tree.matmul(vectors / jnp.where(values == 0, 1, values)[None, :], vectors.T)
        return count - singular.astype(jnp.int32), middle, singular

    count, middle, _ = lax.while_loop(
        lambda carry: carry[2], invert, (memory.size, memory.middle, changed)
    )
    return count, middle


def factor(memory: RankOne, inverse: bool = False) -> Factor:
    """Returns B with B0 = γI, or H with H0 = I/γ."""
    one = jnp.ones_like(memory.gamma)
    mask = _ages(memory) < memory.size
    middle = jnp.where(mask[:, None] & mask[None, :], memory.middle, 0)
    if inverse:
        scale = one / memory.gamma
        return Factor(scale, one, -scale, middle)
    return Factor(memory.gamma, -memory.gamma, one, middle)


def project(memory: RankOne, matrix: Factor, vector: Tree) -> jax.Array:
    """Returns Ψᵀ v."""
    on_s = _history.dot(memory.s, vector).astype(memory.ss.dtype)
    on_y = _history.dot(memory.y, vector).astype(memory.ss.dtype)
    return matrix.on_s * on_s + matrix.on_y * on_y


def combine(memory: RankOne, matrix: Factor, coefficients: jax.Array) -> Tree:
    """Returns Ψ c."""
    from_s = _history.combine(matrix.on_s * coefficients, memory.s)
    from_y = _history.combine(matrix.on_y * coefficients, memory.y)
    return jax.tree.map(jnp.add, from_s, from_y)


def multiply(memory: RankOne, matrix: Factor, vector: Tree, projected: Any = None) -> Tree:
    """Returns (base I + Ψ M Ψᵀ) v, in at least float32; `projected` is Ψᵀ v where it is known."""
    if projected is None:
        projected = project(memory, matrix, vector)
    outer = combine(memory, matrix, _tree.matmul(matrix.middle, projected))
    return jax.tree.map(
        lambda v, x: matrix.base.astype(v.dtype) * v + x.astype(v.dtype),
        _tree.widen(vector),
        outer,
    )


class Spectrum(NamedTuple):
    """B in its eigenvectors: γ on the complement of the range of Ψ, λ on the rest.

    Attributes:
      eigenvalues: (m,) λ_i.
      present: (m,) whether the eigenvector exists.
      vectors: (m, m) whose columns c give the eigenvectors Ψ c.
    """

    eigenvalues: jax.Array
    present: jax.Array
    vectors: jax.Array


def spectrum(memory: RankOne, matrix: Factor) -> Spectrum:
    """Returns the eigenvalues and eigenvectors of B that are not those of γI.

    The eigenvectors of ΨᵀΨ above 1e-6 (float32) or 1e-12 (float64) of the largest give a basis Q of
    the range of Ψ; with R = QᵀΨ they are those of γI + R M Rᵀ.
    """
    mask = _ages(memory) < memory.size
    both = mask[:, None] & mask[None, :]
    cross = matrix.on_s * matrix.on_y * (memory.sy + memory.sy.T)
    gram = matrix.on_s**2 * memory.ss + cross + matrix.on_y**2 * memory.yy
    sizes = matrix.on_s**2 * _tree.diagonal(memory.ss) + matrix.on_y**2 * _tree.diagonal(memory.yy)
    squares, vectors = _eigh(jnp.where(both, gram, 0))
    # Beside the numbers that were subtracted the smallest are rounding.
    largest = jnp.max(jnp.where(mask, sizes, 0))
    present = squares > tolerance(squares.dtype) * largest
    roots = jnp.sqrt(jnp.where(present, squares, 1))
    to_range = jnp.where(present[None, :], vectors / roots[None, :], 0)  # Q = Ψ to_range
    r = jnp.where(present[None, :], vectors * roots[None, :], 0).T  # R = QᵀΨ
    # What does not exist has an eigenvalue far away, so that it does not mix with the others.
    inner = _tree.matmul(_tree.matmul(r, matrix.middle), r.T)
    far = 2 * jnp.sum(jnp.abs(inner)) + 1
    values, rotation = _eigh(inner + jnp.diag(jnp.where(present, 0, far)))
    count = jnp.sum(present)
    exists = jnp.arange(len(values)) < count
    return Spectrum(matrix.base + values, exists, _tree.matmul(to_range, rotation))


def update(
    memory: RankOne,
    s: Tree,
    y: Tree,
    accept: Scalar,
    inverse: bool = False,
    initial_scale: Any = None,
) -> tuple[RankOne, Scalar]:
    """Returns the ring after the pair (s, y), and whether it was stored.

    It is if it is finite, `|sᵀ(y − Bs)| ≥ 1e-8 ‖s‖ ‖y − Bs‖` and y − γs is not negligible; for H
    the test is that of H, with s and y exchanged, and the first pair's is with its own γ. While
    M⁻¹ is singular the oldest pairs are dropped.
    """
    dtype = memory.ss.dtype
    length = jnp.sqrt(_tree.squared_norm(s)).astype(dtype)
    usable = jnp.isfinite(length) & (length > 0)
    scale = jnp.where(usable, 1 / jnp.where(usable, length, 1), 0)
    s = _tree.cast_as(memory.s, _tree.scale(scale, _tree.widen(s)))
    y = _tree.cast_as(memory.y, _tree.scale(scale, _tree.widen(y)))
    old_s_y, old_y_s, old_s_s, old_y_y = (
        _history.dot(history, vector).astype(dtype)
        for history, vector in ((memory.s, y), (memory.y, s), (memory.s, s), (memory.y, y))
    )
    sy, ss, yy = (x.astype(dtype) for x in _tree.dots((s, y), (s, s), (y, y)))
    # All of them, which also makes the store wait for the last reading of the rings: one after it
    # would take a copy of them.
    rows = jnp.stack([old_s_y, old_y_s, old_s_s, old_y_y])
    finite = jnp.all(jnp.isfinite(rows)) & jnp.isfinite(yy) & jnp.isfinite(sy)

    gamma = memory.gamma
    if inverse and initial_scale is None:
        gamma = _first_gamma(memory, sy, ss, yy)
    matrix = factor(memory._replace(gamma=gamma), inverse)
    known, given = (y, s) if inverse else (s, y)
    # given − matrix · known, which the new pair is to add
    on_s, on_y = (old_s_y, old_y_y) if inverse else (old_s_s, old_y_s)
    projected = matrix.on_s * on_s + matrix.on_y * on_y  # Ψᵀ · known
    residual = _tree.subtract(_tree.widen(given), multiply(memory, matrix, known, projected))
    squared, product = (
        x.astype(dtype) for x in _tree.dots((residual, residual), (_tree.widen(known), residual))
    )
    squared_known = yy if inverse else ss
    tested = product**2 >= MIN_CURVATURE**2 * squared_known * squared
    # ψ = y − γs, or s − y/γ: nothing of it is left where B0 explains the pair.
    psi = matrix.on_s**2 * ss + 2 * matrix.on_s * matrix.on_y * sy + matrix.on_y**2 * yy
    sizes = matrix.on_s**2 * ss + matrix.on_y**2 * yy
    distinct = psi > tolerance(dtype) * sizes
    (stored,) = _tree.together(accept & usable & finite & (product != 0) & tested & distinct)

    slot = memory.next
    m = len(memory.ss)

    here = (np.arange(m, dtype=np.int32) == slot) & stored

    def put(old: jax.Array, row: jax.Array, column: jax.Array, corner: Scalar) -> jax.Array:
        column = jnp.where(here, corner, column)[:, None]
        return jnp.where(here[None, :], column, jnp.where(here[:, None], row[None, :], old))

    moved = stored.astype(jnp.int32)
    new = RankOne(
        s=_history.set_row(memory.s, slot, s, stored),
        y=_history.set_row(memory.y, slot, y, stored),
        ss=put(memory.ss, old_s_s, old_s_s, ss),
        sy=put(memory.sy, old_y_s, old_s_y, sy),
        yy=put(memory.yy, old_y_y, old_y_y, yy),
        middle=memory.middle,
        gamma=jnp.where(stored, gamma, memory.gamma),
        size=jnp.minimum(memory.size + moved, m),
        next=_history.advance(slot, stored, m),
    )
    if initial_scale is None:
        new = new._replace(gamma=_gamma(new, inverse))
    size, middle = _invert(new, inverse, stored)
    return new._replace(size=size, middle=middle), stored


def _gamma(memory: RankOne, inverse: bool) -> Scalar:
    """Returns ½ of the largest positive sᵀy/sᵀs of the pairs, of H of their mean, or the last γ."""
    sy, ss = _tree.diagonal(memory.sy), _tree.diagonal(memory.ss)
    positive = (_ages(memory) < memory.size) & (sy > 0)
    curvatures = jnp.where(positive, sy / jnp.where(ss > 0, ss, 1), 0)
    chosen = jnp.max(curvatures)
    if inverse:
        count = jnp.sum(positive.astype(curvatures.dtype))
        chosen = jnp.sum(curvatures) / jnp.maximum(count, 1)
    return jnp.where(chosen > 0, INITIAL_FACTOR * chosen, memory.gamma)


def _first_gamma(memory: RankOne, sy: Scalar, ss: Scalar, yy: Scalar) -> Scalar:
    """Returns γ with which a first pair is tested for H: its own ½ sᵀy/sᵀs, or ‖y‖/‖s‖.

    Of any other it might be, by chance, that H0 explains it; and none has been in its units.
    """
    ss = jnp.where(ss > 0, ss, 1)
    own = jnp.where(sy > 0, INITIAL_FACTOR * sy / ss, jnp.sqrt(yy / ss))
    return jnp.where((memory.size == 0) & (own > 0) & jnp.isfinite(own), own, memory.gamma)


def clear(memory: RankOne, condition: Scalar) -> RankOne:
    """Forgets all pairs where the condition holds."""
    return memory._replace(size=jnp.where(condition, 0, memory.size))


def inverse_memory(memory_size: int, dtype: Any = None, initial_scale: Any = None) -> Curvature:
    """Returns the curvature of the inverse H with H0 = I/γ, for line searches, with a γ or ours.

    H may be indefinite: where gᵀH g ≤ 0, and H g would lead uphill, it gives H0 g in place of H g.
    Ours is 1/γ = `first_scale` while no pair is stored.
    """

    def precondition(memory: RankOne, g: Tree, first_scale: Scalar) -> Tree:
        if initial_scale is None:
            first_gamma = 1 / first_scale.astype(memory.gamma.dtype)
            memory = memory._replace(gamma=jnp.where(memory.size > 0, memory.gamma, first_gamma))
        matrix = factor(memory, inverse=True)
        product = multiply(memory, matrix, g)
        g = _tree.widen(g)
        slope = _tree.dot(g, product)
        usable = (slope > 0) | ~jnp.isfinite(slope)
        return _tree.where(usable, product, _tree.scale(matrix.base, g))

    def learn(
        memory: RankOne, s: Tree, y: Tree, accept: Scalar, numerator: Scalar | None = None
    ) -> tuple[RankOne, Scalar]:
        del numerator
        return update(memory, s, y, accept, inverse=True, initial_scale=initial_scale)

    return Curvature(
        lambda params: init(params, memory_size, dtype, initial_scale),
        lambda memory: memory.s,
        precondition,
        learn,
        clear,
    )
