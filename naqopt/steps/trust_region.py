"""Trust regions: the subproblem, solved exactly or by conjugate gradients, and the radius.

The subproblem is to minimise m(s) = gᵀs + ½ sᵀB s over ‖s‖ ≤ Δ, with B symmetric and possibly
indefinite.

References:
  Nocedal and Wright, *Numerical Optimization*, second edition, chapter 4 and Algorithm 7.2.
  Brust, Erway and Marcia, *On Solving L-SR1 Trust-Region Subproblems* (arXiv:1506.07222).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from naqopt import _tree
from naqopt._tree import Scalar, Tree

MIN_RADIUS, MAX_RADIUS = 1e-10, 1e10


class RadiusRule(NamedTuple):
    r"""When a trust-region step is accepted and how the radius Δ follows it.

    With the ratio of the actual reduction of the loss to the predicted one

    .. math::
      \rho = \frac{E(\hat w) - E(\hat w + s)}{-\hat g^\top s - \frac12 s^\top B s}

    a step is accepted where :math:`\rho` > `accept`. Then Δ is multiplied by `grow` where
    :math:`\rho` > `grow_above` and :math:`\lVert s \rVert` > `boundary` · Δ, and by `shrink` where
    :math:`\rho` < `shrink_below`; it stays within 1e-10 and 1e10. Defaults are L-SR1's.

    Attributes:
      accept: η in [0, `shrink_below`].
      shrink_below: l, up to `grow_above`.
      grow_above: u.
      boundary: ρ in [0, 1], the part of Δ that counts as a step to the boundary.
      shrink: in (0, 1).
      grow: ≥ 1.

    Example:
      >>> import naqopt
      >>> naqopt.RadiusRule(shrink=0.25).shrink
      0.25

    References:
      Ramamurthy and Duffy, *L-SR1: A Second Order Optimization Method for Deep Learning*, 2017,
      Algorithm 1.

    Costs nothing. On noisy losses a smaller `shrink_below` keeps the radius from collapsing.
    """

    accept: float = 1e-6
    shrink_below: float = 0.1
    grow_above: float = 0.75
    boundary: float = 0.8
    shrink: float = 0.5
    grow: float = 2.0


_NEWTON_STEPS = 40


class Spectral(NamedTuple):
    """The solution in the eigenvectors of B.

    Attributes:
      step: its coordinates; 0 where there is no eigenvector.
      sigma: σ ≥ 0 with (B + σI) s = −g and B + σI positive semidefinite.
      reduction: −m(s) ≥ 0.
    """

    step: jax.Array
    sigma: Scalar
    reduction: Scalar


def exact(
    eigenvalues: jax.Array, gradient: jax.Array, radius: Scalar, present: jax.Array | None = None
) -> Spectral:
    """Solves the subproblem for a diagonal B, which any B is in its eigenvectors.

    With the gaps d_j = λ_j − min(0, λ_min) and σ = δ − min(0, λ_min) the step is −a_j / (d_j + δ),
    in which nothing cancels, however close −λ_min and σ are. Then

    1. λ_min > 0 and ‖a/d‖ ≤ Δ: δ = 0, the minimum of the model lies inside;
    2. λ_min ≤ 0 and ‖a/d‖ ≤ Δ, where 0/0 counts as 0 (the hard case): δ = 0, and where λ_min < 0
       an eigenvector of λ_min leads on to the boundary;
    3. otherwise Newton's method on φ(δ) = 1/‖a/(d + δ)‖ − 1/Δ from
       `δ_0 = max_j(|a_j|/Δ − d_j)`, which lies to the left of the root, so that it rises to it.

    Args:
      eigenvalues: (r,) numbers λ_j.
      gradient: (r,) coordinates a_j of g in the eigenvectors.
      radius: Δ > 0.
      present: (r,) whether the eigenvector exists; all of them by default.

    Returns:
      A `Spectral`.
    """
    dtype = eigenvalues.dtype
    present = jnp.ones(eigenvalues.shape, bool) if present is None else present
    a = jnp.where(present, gradient, 0).astype(dtype)
    radius = radius.astype(dtype)
    lowest = jnp.min(jnp.where(present, eigenvalues, jnp.inf))
    shift = jnp.maximum(-lowest, 0)
    gaps = jnp.where(present, eigenvalues + shift, jnp.inf)

    # In units in which Δ = 1 and the largest |a_j| = 1 nothing overflows: |q_j| ≤ 1 from the start.
    largest = jnp.max(jnp.abs(a))
    unit = jnp.where(largest > 0, largest / radius, 1)
    c, d = jnp.abs(a) / jnp.where(largest > 0, largest, 1), gaps / unit

    def norms(delta: Scalar) -> tuple[Scalar, Scalar]:
        """‖q‖ and Σ c²/(d + δ)³ for q = c/(d + δ)."""
        denominator = d + delta
        usable = denominator > 0
        q = jnp.where(usable, c / jnp.where(usable, denominator, 1), jnp.where(c > 0, jnp.inf, 0))
        cubes = jnp.where(usable, q**2 / jnp.where(usable, denominator, 1), 0)
        return jnp.sqrt(jnp.sum(q**2)), jnp.sum(cubes)

    at_zero, _ = norms(jnp.zeros((), dtype))
    inside = at_zero <= 1  # of both kinds: an inner minimum, or the hard case

    def goes_on(carry: tuple[Scalar, Scalar, Scalar]) -> Scalar:
        count, _, rising = carry
        return (count < _NEWTON_STEPS) & rising

    def newton(carry: tuple[Scalar, Scalar, Scalar]) -> tuple[Scalar, Scalar, Scalar]:
        count, delta, _ = carry
        length, cubes = norms(delta)
        new = delta + length**2 * (length - 1) / jnp.where(cubes > 0, cubes, 1)
        return count + 1, jnp.maximum(new, delta), (new > delta) & (cubes > 0)

    start = jnp.max(c - d)
    _, delta, _ = lax.while_loop(goes_on, newton, (jnp.zeros((), jnp.int32), start, ~inside))
    delta = jnp.where(inside, 0, delta)

    denominator = d + delta
    usable = denominator > 0
    q = -jnp.sign(a) * jnp.where(usable, c / jnp.where(usable, denominator, 1), 0)
    length = jnp.sqrt(jnp.sum(q**2))
    q = q / jnp.maximum(length, 1)
    onward = jnp.where(inside & (lowest < 0), jnp.sqrt(jnp.maximum(1 - length**2, 0)), 0)
    first = jnp.arange(len(a)) == jnp.argmin(jnp.where(present, eigenvalues, jnp.inf))
    # Where that eigenvector already has a part, it is lengthened and not turned round.
    q = q + jnp.where(first, jnp.where(q < 0, -onward, onward), 0)
    step = radius * q
    model = a * step + 0.5 * jnp.where(present, eigenvalues, 0) * step**2
    return Spectral(step, shift + unit * delta, -jnp.sum(model))


class Steihaug(NamedTuple):
    """What conjugate gradients have found.

    Attributes:
      step: s.
      product: B s.
      iterations: products with B taken.
    """

    step: Tree
    product: Tree
    iterations: Scalar


def steihaug(
    multiply: Callable[[Tree], Tree],
    gradient: Tree,
    radius: Scalar,
    tolerance: float,
    max_iterations: int,
) -> Steihaug:
    """Solves the subproblem by conjugate gradients (Nocedal and Wright, Algorithm 7.2).

    The first direction of no positive curvature, or the first step out of the region, is followed
    to the boundary. The step reduces the model at least as much as the Cauchy point does, and is
    the minimum where B is positive definite and the region large.

    Args:
      multiply: from a vector to B times it.
      gradient: g, in at least float32.
      radius: Δ > 0.
      tolerance: it ends at ‖g + B s‖ ≤ tolerance · ‖g‖.
      max_iterations: or after so many products.

    Returns:
      A `Steihaug`.
    """
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    squared = _tree.squared_norm(gradient)
    enough = tolerance**2 * squared
    radius = radius.astype(squared.dtype)

    def add(x: Tree, c: Scalar, y: Tree) -> Tree:
        return jax.tree.map(lambda a, b: a + c.astype(a.dtype) * b, x, y)

    def goes_on(carry: tuple) -> Scalar:
        count, *_, done = carry
        return (count < max_iterations) & ~done

    def iterate(carry: tuple) -> tuple:
        count, z, r, rr, d, _ = carry
        bd = multiply(d)
        curvature, zz, zd, dd = _tree.dots((d, bd), (z, z), (z, d), (d, d))
        convex = curvature > 0
        alpha = rr / jnp.where(convex, curvature, 1)
        out = zz + 2 * alpha * zd + alpha**2 * dd >= radius**2
        # The ends of the line z + τ d on the boundary; of a convex model the one ahead is meant.
        root = jnp.sqrt(jnp.maximum(zd**2 + dd * (radius**2 - zz), 0))
        safe = jnp.where(dd > 0, dd, 1)
        # −zd ± root, each without cancellation.
        larger = -(zd + jnp.where(zd < 0, -root, root))
        other = jnp.where(larger != 0, (zz - radius**2) / jnp.where(larger != 0, larger, 1), 0)
        ends = jnp.stack([larger / safe, other])
        ahead, behind = jnp.max(ends), jnp.min(ends)

        def model(tau: Scalar) -> Scalar:  # along the line, from z
            return -tau * rr + 0.5 * tau**2 * curvature

        lower = jnp.where(model(behind) < model(ahead), behind, ahead)
        leaves = ~convex | out
        (tau,) = _tree.together(jnp.where(convex, jnp.where(out, ahead, alpha), lower))
        z, r = add(z, tau, d), add(r, tau, bd)
        new_rr = _tree.squared_norm(r)
        beta = new_rr / jnp.where(rr > 0, rr, 1)
        d = jax.tree.map(lambda x, y: beta.astype(y.dtype) * y - x, r, d)
        return count + 1, z, r, new_rr, d, leaves | (new_rr <= enough)

    d = jax.tree.map(jnp.negative, gradient)
    start = (jnp.zeros((), jnp.int32), zeros, gradient, squared, d, squared == 0)
    count, z, r, *_ = lax.while_loop(goes_on, iterate, start)
    return Steihaug(z, _tree.subtract(r, gradient), count)  # r = g + B s


def next_radius(rule: RadiusRule, radius: Scalar, ratio: Scalar, length: Scalar) -> Scalar:
    """Returns the radius after a step: larger after a good one at the boundary, less after a bad.

    Args:
      rule: what is good and bad, and the factors.
      radius: Δ.
      ratio: the actual reduction by the predicted one; 0 where the latter is not positive.
      length: ‖s‖.

    Returns:
      Δ by the rule, which shrinks it where the ratio is not a number too; at least 1e-10 and at
      most 1e10.
    """
    grows = (ratio > rule.grow_above) & (length > rule.boundary * radius)
    shrinks = ~(ratio >= rule.shrink_below)
    factor = jnp.where(grows, rule.grow, jnp.where(shrinks, rule.shrink, 1)).astype(radius.dtype)
    return jnp.clip(radius * factor, MIN_RADIUS, MAX_RADIUS)
