"""The subproblem of a trust region: argmin gᵀs + ½ sᵀB s over ‖s‖ ≤ Δ, whatever holds B."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from naqopt import _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature.indefinite import Indefinite
from naqopt.steps import trust_region


class Solution(NamedTuple):
    """A step of the subproblem.

    Attributes:
      step: s.
      quadratic: sᵀB s.
      length: ‖s‖, which is not finite where s is not.
    """

    step: Tree
    quadratic: Scalar
    length: Scalar


def solve(
    curvature: Indefinite, exact: bool, state: Any, gradient: Tree, radius: Scalar
) -> Solution:
    """Solves the subproblem exactly or by conjugate gradients, from whatever holds B."""
    if exact or curvature.limited:
        return solve_by_eigenvectors(curvature, state, gradient, radius, exact)
    # The model by ‖g‖ has the same minimum, and no square that overflows.
    norm = _tree.norm(gradient)
    unit = jnp.where(norm > 0, norm, 1)
    product = curvature.multiply(state)
    found = _steihaug(
        lambda v: _tree.scale(1 / unit, product(v)),
        _tree.scale(1 / unit, gradient),
        radius,
        curvature.max_products(state),
    )
    quadratic, squared = _tree.dots((found.step, found.product), (found.step, found.step))
    return Solution(found.step, unit * quadratic, jnp.sqrt(squared))


def solve_by_eigenvectors(
    curvature: Indefinite, state: Any, gradient: Tree, radius: Scalar, exact: bool = True
) -> Solution:
    """Solves the subproblem in the eigenvectors of B, exactly or by conjugate gradients.

    Where B is γI, on the complement of the others, only the direction of g matters: one eigenvector
    more, with the coordinate a⊥ = √(‖g‖² − ‖a‖²). Conjugate gradients take the same steps among
    these coordinates as among all parameters, but read the pairs twice in all, where each product
    with B would read them twice.
    """
    eigen = curvature.eigen(state)
    a = jnp.where(eigen.present, eigen.project(gradient), 0)
    norm = _tree.norm(gradient).astype(a.dtype)
    unit = jnp.where(norm > 0, norm, 1)  # as in `solve`
    rest = jnp.sqrt(jnp.maximum((norm / unit) ** 2 - jnp.sum((a / unit) ** 2), 0))
    present = jnp.append(eigen.present, True)
    eigenvalues = jnp.where(present, jnp.append(eigen.eigenvalues, eigen.rest), 0)
    scaled, coordinates = eigenvalues / unit, jnp.append(a / unit, rest)
    if exact:
        found = trust_region.exact(scaled, coordinates, radius, present).step
    else:
        products = curvature.max_products(state)
        found = _steihaug(lambda v: scaled * v, coordinates, radius, products).step
    # s = τ g⊥ + Σ p_i u_i with g⊥ = g − Σ a_i u_i
    p = found[:-1]
    tau = jnp.where(rest > 0, found[-1] / jnp.where(rest > 0, rest * unit, 1), 0)
    outer = eigen.combine(p - tau * a)
    step = jax.tree.map(lambda g, x: tau.astype(g.dtype) * g + x.astype(g.dtype), gradient, outer)
    quadratic = jnp.sum(eigenvalues * found**2)
    # With pairs that hardly differ the eigenvectors are not quite orthonormal in float32.
    length = jnp.sqrt(_tree.squared_norm(step)).astype(a.dtype)
    shorter = jnp.minimum(1, radius / jnp.where(length > 0, length, 1))
    return Solution(_tree.scale(shorter, step), shorter**2 * quadratic, shorter * length)


def _steihaug(
    multiply: Callable[[Tree], Tree], gradient: Tree, radius: Scalar, max_products: int
) -> trust_region.Steihaug:
    """Solves the subproblem by conjugate gradients, as accurately as the dtype allows."""
    tolerance = 1e-12 if radius.dtype == jnp.float64 else 1e-6
    return trust_region.steihaug(multiply, gradient, radius, tolerance, max_products)
