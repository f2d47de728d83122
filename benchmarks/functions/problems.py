"""Standard unconstrained test functions with their published starts and minima.

"MGH" are the functions and starts of Moré, Garbow and Hillstrom, *Testing Unconstrained
Optimization Software*, ACM TOMS 7 (1981); the others are as in Surjanovic and Bingham's *Virtual
Library of Simulation Experiments*, which names no starts: theirs are ours.
"""

import dataclasses
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Function = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function to be minimised.

    Attributes:
      name: the function and, where it can have several, its dimension.
      function: from a point of shape (d,) to a scalar.
      start: the published start, or ours.
      minimum: the lowest value.
    """

    name: str
    function: Function
    start: tuple[float, ...]
    minimum: float = 0.0

    @property
    def dimension(self) -> int:
        """The number of variables."""
        return len(self.start)

    def starts(self, count: int) -> np.ndarray:
        """Returns the start itself, and others around it that are the same every time.

        Each of their coordinates is uniform in x ± max(1, |x|) / 2.
        """
        start = np.array(self.start)
        generator = np.random.default_rng(zlib.crc32(self.name.encode()))
        shifts = generator.uniform(-0.5, 0.5, (count - 1, len(start)))
        return np.vstack([start, start + shifts * np.maximum(1.0, np.abs(start))])


def rosenbrock(x: jax.Array) -> jax.Array:
    """Σ 100 (x_{i+1} − x_i²)² + (1 − x_i)², the chained form; MGH 1 in two dimensions."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def freudenstein_roth(x: jax.Array) -> jax.Array:
    """MGH 2; a second minimum of 48.98 at (11.41, −0.8968)."""
    first = -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1]
    second = -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]
    return first**2 + second**2


def brown_badly_scaled(x: jax.Array) -> jax.Array:
    """MGH 4, with its minimum at (10⁶, 2·10⁻⁶)."""
    return (x[0] - 1e6) ** 2 + (x[1] - 2e-6) ** 2 + (x[0] * x[1] - 2) ** 2


def beale(x: jax.Array) -> jax.Array:
    """MGH 5, with its minimum at (3, ½)."""
    powers = x[1] ** jnp.array([1, 2, 3])
    return jnp.sum((jnp.array([1.5, 2.25, 2.625]) - x[0] * (1 - powers)) ** 2)


def helical_valley(x: jax.Array) -> jax.Array:
    """MGH 7: 100 ((x_3 − 10 θ)² + (√(x_1² + x_2²) − 1)²) + x_3²; θ counts turns about the axis."""
    # θ in (−¼, ¾], as in the paper, where it is two branches of arctan(x_2 / x_1) / 2π.
    turns = (jnp.arctan2(-x[0], x[1]) + jnp.pi / 2) / (2 * jnp.pi)
    radius = jnp.sqrt(x[0] ** 2 + x[1] ** 2)
    return 100 * ((x[2] - 10 * turns) ** 2 + (radius - 1) ** 2) + x[2] ** 2


def box_3d(x: jax.Array) -> jax.Array:
    """MGH 12 with ten terms."""
    t = jnp.arange(1, 11) / 10
    model = jnp.exp(-t * x[0]) - jnp.exp(-t * x[1])
    return jnp.sum((model - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))) ** 2)


def powell_singular(x: jax.Array) -> jax.Array:
    """MGH 13: its Hessian is singular at the minimum."""
    return (
        (x[0] + 10 * x[1]) ** 2
        + 5 * (x[2] - x[3]) ** 2
        + (x[1] - 2 * x[2]) ** 4
        + 10 * (x[0] - x[3]) ** 4
    )


def wood(x: jax.Array) -> jax.Array:
    """MGH 14."""
    return (
        100 * (x[1] - x[0] ** 2) ** 2
        + (1 - x[0]) ** 2
        + 90 * (x[3] - x[2] ** 2) ** 2
        + (1 - x[2]) ** 2
        + 10 * (x[1] + x[3] - 2) ** 2
        + 0.1 * (x[1] - x[3]) ** 2
    )


def penalty_1(x: jax.Array) -> jax.Array:
    """MGH 23: 10⁻⁵ Σ (x_i − 1)² + (Σ x_i² − ¼)²."""
    return 1e-5 * jnp.sum((x - 1) ** 2) + (jnp.sum(x**2) - 0.25) ** 2


def variably_dimensioned(x: jax.Array) -> jax.Array:
    """MGH 25: Σ (x_i − 1)² + r² + r⁴ with r = Σ i (x_i − 1)."""
    r = jnp.sum(jnp.arange(1, len(x) + 1) * (x - 1))
    return jnp.sum((x - 1) ** 2) + r**2 + r**4


def trigonometric(x: jax.Array) -> jax.Array:
    """MGH 26; has minima above 0."""
    i = jnp.arange(1, len(x) + 1)
    residuals = len(x) - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)
    return jnp.sum(residuals**2)


def broyden_tridiagonal(x: jax.Array) -> jax.Array:
    """MGH 30: Σ ((3 − 2 x_i) x_i − x_{i−1} − 2 x_{i+1} + 1)²."""
    padded = jnp.pad(x, 1)
    return jnp.sum(((3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1) ** 2)


def booth(x: jax.Array) -> jax.Array:
    """A quadratic with its minimum at (1, 3)."""
    return (x[0] + 2 * x[1] - 7) ** 2 + (2 * x[0] + x[1] - 5) ** 2


def himmelblau(x: jax.Array) -> jax.Array:
    """Has four minima of 0."""
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def levy(x: jax.Array) -> jax.Array:
    """Has many minima."""
    w = 1 + (x - 1) / 4
    head = jnp.sin(jnp.pi * w[0]) ** 2
    middle = (w[:-1] - 1) ** 2 * (1 + 10 * jnp.sin(jnp.pi * w[:-1] + 1) ** 2)
    tail = (w[-1] - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * w[-1]) ** 2)
    return head + jnp.sum(middle) + tail


def dixon_price(x: jax.Array) -> jax.Array:
    """(x_1 − 1)² + Σ i (2 x_i² − x_{i−1})²."""
    i = jnp.arange(2, len(x) + 1)
    return (x[0] - 1) ** 2 + jnp.sum(i * (2 * x[1:] ** 2 - x[:-1]) ** 2)


def zakharov(x: jax.Array) -> jax.Array:
    """Σ x_i² + r² + r⁴ with r = ½ Σ i x_i."""
    r = jnp.sum(0.5 * jnp.arange(1, len(x) + 1) * x)
    return jnp.sum(x**2) + r**2 + r**4


def styblinski_tang(x: jax.Array) -> jax.Array:
    """½ Σ x_i⁴ − 16 x_i² + 5 x_i, with two minima in each coordinate."""
    return 0.5 * jnp.sum(x**4 - 16 * x**2 + 5 * x)


PROBLEMS = (
    Problem("rosenbrock-2", rosenbrock, (-1.2, 1.0)),
    Problem("beale", beale, (1.0, 1.0)),
    Problem("levy-2", levy, (-5.0, -5.0)),
    Problem("freudenstein-roth", freudenstein_roth, (0.5, -2.0)),
    Problem("brown-badly-scaled", brown_badly_scaled, (1.0, 1.0)),
    Problem("booth", booth, (0.0, 0.0)),
    Problem("himmelblau", himmelblau, (0.0, 0.0)),
    Problem("helical-valley", helical_valley, (-1.0, 0.0, 0.0)),
    Problem("box-3d", box_3d, (0.0, 10.0, 20.0)),
    Problem("powell-singular", powell_singular, (3.0, -1.0, 0.0, 1.0)),
    Problem("wood", wood, (-3.0, -1.0, -3.0, -1.0)),
    Problem("levy-10", levy, (-5.0,) * 10),
    Problem("penalty-1-10", penalty_1, tuple(map(float, range(1, 11))), 7.08765e-5),
    Problem(
        "variably-dimensioned-10", variably_dimensioned, tuple(1 - i / 10 for i in range(1, 11))
    ),
    Problem("trigonometric-10", trigonometric, (0.1,) * 10),
    Problem("dixon-price-10", dixon_price, (1.0,) * 10),
    Problem("zakharov-10", zakharov, (1.0,) * 10),
    Problem("styblinski-tang-10", styblinski_tang, (0.0,) * 10, -391.6616570377142),
    Problem("rosenbrock-100", rosenbrock, (-1.2, 1.0) * 50),
    Problem("broyden-tridiagonal-100", broyden_tridiagonal, (-1.0,) * 100),
)
