"""Thirteen atoms of Lennard-Jones's potential: a loss that is infinite inside and flat far away.

A step that is too long throws the atoms apart, where no gradient leads back.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.functions.problems import Problem


def lennard_jones(x: jax.Array) -> jax.Array:
    """Σ_{i<j} 4 (r_ij⁻¹² − r_ij⁻⁶) with the atoms' coordinates one after the other."""
    points = x.reshape(-1, 3)
    i, j = np.triu_indices(len(points), 1)
    inverse = 1 / jnp.sum((points[i] - points[j]) ** 2, axis=1) ** 3
    return 4 * jnp.sum(inverse**2 - inverse)


def icosahedron() -> np.ndarray:
    """Returns thirteen atoms near their lowest arrangement, of shape (13, 3)."""
    golden = (1 + 5**0.5) / 2
    corners = [
        corner
        for a in (-1, 1)
        for b in (-golden, golden)
        for corner in ((0, a, b), (a, b, 0), (b, 0, a))
    ]
    return np.array([(0, 0, 0), *corners]) * 1.08 / np.hypot(1, golden)


@dataclasses.dataclass(frozen=True)
class Cluster(Problem):
    """A cluster near its lowest arrangement."""

    def starts(self, count: int) -> np.ndarray:
        """Returns arrangements in which each coordinate is shifted by up to 0.05."""
        generator = np.random.default_rng(0)
        return np.array(self.start) + generator.uniform(-0.05, 0.05, (count, self.dimension))


CLUSTER = Cluster(
    "lennard-jones-13", lennard_jones, tuple(icosahedron().ravel().tolist()), -44.326801
)
