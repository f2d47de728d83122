"""Functions with a saddle point at 0, where a run begins beside it, and what counts as left."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Function = Callable[[jax.Array], jax.Array]

DISTANCE = 1e-6  # of a start from the saddle
_ANGLE = 0.7  # of the one start of two parameters: no axis of symmetry of either function
_SHIFT = (0.05, 0.08)  # of the grid, in units of `DISTANCE`, so that it has no point on one either
_WIDTH = 4  # of the linear network
_SINGULAR_VALUES = (2.0, 1.5, 1.0, 0.5)  # of its target T


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function whose gradient is zero at 0, but which falls from there.

    Attributes:
      title: what it is.
      function: from a point of shape (d,) to a scalar.
      dimension: d.
      minimum: its lowest value.
    """

    title: str
    function: Function
    dimension: int
    minimum: float

    @property
    def at_saddle(self) -> float:
        """E at 0."""
        return float(self.function(jnp.zeros(self.dimension)))

    def level(self, share: float) -> float:
        """Returns E at the saddle, less this share of the whole decrease to the minimum."""
        return self.at_saddle - share * (self.at_saddle - self.minimum)

    def start(self) -> np.ndarray:
        """Returns the one start, `DISTANCE` off the saddle."""
        if self.dimension == 2:
            return DISTANCE * np.array([math.cos(_ANGLE), math.sin(_ANGLE)])
        return _directions(self.dimension, 1)[0]

    def around(self, side: int) -> np.ndarray:
        """Returns side² starts: a grid about the saddle, or directions of length `DISTANCE`."""
        if self.dimension > 2:
            return _directions(self.dimension, side**2 + 1)[1:]
        places = np.linspace(-1, 1, side)
        grid = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
        return DISTANCE * (grid + _SHIFT)


def _directions(dimension: int, count: int) -> np.ndarray:
    """Returns fixed random vectors of length `DISTANCE`."""
    vectors = np.random.default_rng(0).normal(size=(count, dimension))
    return DISTANCE * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _target() -> np.ndarray:
    """Returns T = U diag(σ) Vᵀ with fixed random U and V."""
    left, right = np.linalg.qr(np.random.default_rng(1).normal(size=(2, _WIDTH, _WIDTH)))[0]
    return left * _SINGULAR_VALUES @ right.T


TARGET = _target()


def monkey(x: jax.Array) -> jax.Array:
    """x³ − 3xy² + (x² + y²)²/4: −6.75 at distance 3 in three directions; no Hessian at 0."""
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2 + (x[0] ** 2 + x[1] ** 2) ** 2 / 4


def quartic(x: jax.Array) -> jax.Array:
    """x² − y² + y⁴/4: −1 at (0, ±√2)."""
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4


def linear_network(weights: jax.Array) -> jax.Array:
    """½‖W_2 W_1 − T‖² of two 4 × 4 matrices, one after the other in a vector; 0 at the minima."""
    first, second = weights.reshape(2, _WIDTH, _WIDTH)
    return 0.5 * jnp.sum((second @ first - TARGET) ** 2)


PROBLEMS: Mapping[str, Problem] = {
    "monkey": Problem("x³ − 3xy² + (x² + y²)²/4", monkey, 2, -6.75),
    "quartic": Problem("x² − y² + y⁴/4", quartic, 2, -1.0),
    "linear-network": Problem(
        "½‖W₂W₁ − T‖², 4 × 4, σ(T) = 2, 1.5, 1, 0.5", linear_network, 2 * _WIDTH**2, 0.0
    ),
}
