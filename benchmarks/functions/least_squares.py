"""Hard least-squares problems of Moré, Garbow and Hillstrom, with their starts and minima.

*Testing Unconstrained Optimization Software*, ACM TOMS 7 (1981). Their scales differ by up to 10⁸
between the variables, and some of their valleys are as steep: a solver that keeps a constant with
units fails on them. Float64 is needed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.functions.problems import Problem

_BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)
_KOWALIK_OSBORNE = np.array(
    [
        (0.1957, 4.0),
        (0.1947, 2.0),
        (0.1735, 1.0),
        (0.1600, 0.5),
        (0.0844, 0.25),
        (0.0627, 0.167),
        (0.0456, 0.125),
        (0.0342, 0.1),
        (0.0323, 0.0833),
        (0.0235, 0.0714),
        (0.0246, 0.0625),
    ]
)
_MEYER = (
    *(34_780, 28_610, 23_650, 19_630, 16_370, 13_720, 11_540, 9_744),
    *(8_261, 7_030, 6_005, 5_147, 4_427, 3_820, 3_307, 2_872),
)
_OSBORNE_1 = (
    *(0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751),
    *(0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490),
    *(0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406),
)


Vector = Callable[[jax.Array], jax.Array]


def _squares(residuals: Vector) -> Vector:
    """Returns the function Σ f_i²."""

    def function(x: jax.Array) -> jax.Array:
        return jnp.sum(residuals(x) ** 2)

    return function


def powell_badly_scaled(x: jax.Array) -> jax.Array:
    """MGH 3, with its minimum at (1.098·10⁻⁵, 9.106)."""
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def jennrich_sampson(x: jax.Array) -> jax.Array:
    """MGH 6 with ten terms."""
    i = jnp.arange(1, 11)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def bard(x: jax.Array) -> jax.Array:
    """MGH 8; it tends to 17.43 at infinity."""
    u = jnp.arange(1, 16)
    v = 16 - u
    return jnp.array(_BARD) - (x[0] + u / (v * x[1] + jnp.minimum(u, v) * x[2]))


def meyer(x: jax.Array) -> jax.Array:
    """MGH 10: a thermistor's resistance, with its minimum at (0.0056, 6181, 345)."""
    t = 45 + 5 * jnp.arange(1, 17)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - jnp.array(_MEYER)


def kowalik_osborne(x: jax.Array) -> jax.Array:
    """MGH 15; it tends to 1.027·10⁻³ at infinity."""
    y, u = jnp.array(_KOWALIK_OSBORNE).T
    return y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x: jax.Array) -> jax.Array:
    """MGH 16 with twenty terms."""
    t = jnp.arange(1, 21) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


def osborne_1(x: jax.Array) -> jax.Array:
    """MGH 17."""
    t = 10 * jnp.arange(33)
    model = x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4])
    return jnp.array(_OSBORNE_1) - model


def biggs_exp6(x: jax.Array) -> jax.Array:
    """MGH 18 with thirteen terms; it has a minimum of 5.656·10⁻³ and one of 0."""
    t = jnp.arange(1, 14) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


def watson(x: jax.Array) -> jax.Array:
    """MGH 20."""
    t = jnp.arange(1, 30)[:, None] / 29
    j = jnp.arange(len(x))
    slope = jnp.sum(j[1:] * x[1:] * t ** (j[1:] - 1), 1)
    value = jnp.sum(x * t**j, 1)
    ends = jnp.stack([x[0], x[1] - x[0] ** 2 - 1])
    return jnp.concatenate([slope - value**2 - 1, ends])


def penalty_2(x: jax.Array) -> jax.Array:
    """MGH 24."""
    n = len(x)
    i = jnp.arange(2, n + 1)
    y = jnp.exp(i / 10) + jnp.exp((i - 1) / 10)
    root = jnp.sqrt(1e-5)
    middle = root * (jnp.exp(x[1:] / 10) + jnp.exp(x[:-1] / 10) - y)
    upper = root * (jnp.exp(x[1:] / 10) - jnp.exp(-0.1))
    last = jnp.sum((n - jnp.arange(n)) * x**2) - 1
    return jnp.concatenate([x[:1] - 0.2, middle, upper, last[None]])


LEAST_SQUARES = (
    Problem("powell-badly-scaled", _squares(powell_badly_scaled), (0.0, 1.0)),
    Problem("jennrich-sampson", _squares(jennrich_sampson), (0.3, 0.4), 124.36218235561),
    Problem("bard", _squares(bard), (1.0, 1.0, 1.0), 8.21487730657e-3),
    Problem("meyer", _squares(meyer), (0.02, 4000.0, 250.0), 87.945855171),
    Problem(
        "kowalik-osborne", _squares(kowalik_osborne), (0.25, 0.39, 0.415, 0.39), 3.0750560385e-4
    ),
    Problem("brown-dennis", _squares(brown_dennis), (25.0, 5.0, -5.0, -1.0), 85822.2016263563),
    Problem("osborne-1", _squares(osborne_1), (0.5, 1.5, -1.0, 0.01, 0.02), 5.4648946975e-5),
    Problem("biggs-exp6", _squares(biggs_exp6), (1.0, 2.0, 1.0, 1.0, 1.0, 1.0)),
    Problem("watson-9", _squares(watson), (0.0,) * 9, 1.399760138e-6),
    Problem("penalty-2-4", _squares(penalty_2), (0.5,) * 4, 9.37629e-6),
)
