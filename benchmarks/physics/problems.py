"""The equations that physics-informed networks are measured on.

Definitions and networks are those of the public examples of Urbán, Stefanou and Pons
(`arXiv:2405.04230 <https://arxiv.org/abs/2405.04230>`_), initial values and boundaries built into
the network where they can be; convection, on which plain training is known to fail, is that of
Krishnapriyan et al. (`arXiv:2109.01050 <https://arxiv.org/abs/2109.01050>`_). Decided here: KdV's
initial and boundary values enter the loss ten times as heavy as the residual; nonlinear Poisson and
the small Poisson problem vanish at the boundary by a factor x(1 − x)y(1 − y); convection has its
initial values and period built in. k1 and k2 of new points are theirs, and 1 and 1 for Schrödinger
and Helmholtz.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

from benchmarks.physics import references, series
from benchmarks.physics.series import Layers, Series

Fields = list[Series]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A differential equation and the network that solves it.

    Attributes:
      title: the equation, for people.
      widths: of the network's layers.
      box: by coordinate, where it runs.
      orders: by coordinate, up to which derivative the equation goes.
      solution: from the layers and the coordinates to the unknown functions.
      residuals: from the coordinates and the unknown functions to what should vanish.
      exact: (points, coordinates) to the true functions, stacked in front.
      points: how many, in full size; the paper's are more.
      focus: (k1, k2) of `redraw`; None where the points stay.
      boundary: points on the boundary, and their weight in the loss; 0 for none.
    """

    title: str
    widths: tuple[int, ...]
    box: Mapping[str, tuple[float, float]]
    orders: Mapping[str, int]
    solution: Callable[[Layers, Mapping[str, Series]], Fields]
    residuals: Callable[[Mapping[str, Series], Fields], list[jax.Array]]
    exact: Callable[..., np.ndarray]
    points: int = 2_000
    focus: tuple[float, float] | None = (1.0, 1.0)
    boundary: int = 0
    weight: float = 10.0

    def start(self, seed: int) -> Layers:
        """Returns fresh layers: Glorot normal, biases zero; NumPy draws them in float64."""
        draw = np.random.default_rng(seed)
        return [
            (
                jnp.asarray(draw.normal(0, np.sqrt(2 / (rows + columns)), (rows, columns))),
                jnp.zeros(columns),
            )
            for rows, columns in itertools.pairwise(self.widths)
        ]

    def draw(self, seed: int, count: int) -> dict[str, np.ndarray]:
        """Returns points of a scrambled Sobol sequence in the box."""
        drawn = qmc.Sobol(len(self.box), seed=seed).random_base2(int(np.ceil(np.log2(count))))
        low, high = np.array(list(self.box.values())).T
        return dict(zip(self.box, (low + (high - low) * drawn[:count]).T, strict=True))

    def redraw(
        self, layers: Layers, seed: tuple[int, ...], count: int, candidates: int
    ) -> dict[str, np.ndarray]:
        """Returns fresh points, more of them where the residual r is large.

        Of uniform candidates a point is drawn with a probability in proportion to
        |r|^k1 / mean |r|^k1 + k2, as in the public examples.
        """
        assert self.focus is not None
        k1, k2 = self.focus
        draw = np.random.default_rng(seed)
        drawn = {name: draw.uniform(*ends, candidates) for name, ends in self.box.items()}
        if k1:
            power = np.asarray(self._squares_at(layers, drawn)) ** (k1 / 2)
            weight = power / power.mean() + k2
            kept = draw.choice(candidates, count, replace=False, p=weight / weight.sum())
        else:
            kept = np.arange(count)
        return {name: values[kept] for name, values in drawn.items()}

    def squares(self, layers: Layers, points: Mapping[str, Any]) -> jax.Array:
        """Returns the squares of the residuals at points, of several equations their sum."""
        return sum((r**2 for r in self.residuals(*self.fields(layers, points))), jnp.zeros(()))

    @functools.cached_property
    def _squares_at(self) -> Callable[..., jax.Array]:
        """`squares`, compiled once."""
        return jax.jit(self.squares)

    def fields(self, layers: Layers, points: Mapping[str, Any]) -> tuple[Any, Fields]:
        """Returns the coordinates and the unknown functions at points."""
        coordinates = {
            name: series.coordinate(jnp.asarray(x), name, self.orders) for name, x in points.items()
        }
        return coordinates, self.solution(layers, coordinates)

    def loss(self, seed: int = 0) -> Callable[[Layers, Mapping[str, Any]], jax.Array]:
        """Returns the mean square of the residuals at points, and of errors on the boundary."""
        edge = self._edge(seed) if self.boundary else None
        target = None if edge is None else jnp.asarray(self.exact(**edge))

        def loss(layers: Layers, points: Mapping[str, Any]) -> jax.Array:
            total = jnp.mean(self.squares(layers, points))
            if edge is not None:
                _, fields = self.fields(layers, edge)
                wrong = jnp.stack([f.value for f in fields]) - target
                total += self.weight * jnp.mean(jnp.sum(wrong**2, axis=0))
            return total

        return loss

    def _edge(self, seed: int) -> dict[str, np.ndarray]:
        """Returns points at the beginning of the last coordinate and at both ends of the others."""
        points = self.draw(seed + 1, self.boundary)
        *others, last = self.box
        faces = [(last, 0)] + [(name, end) for name in others for end in (0, 1)]
        for face, (name, end) in enumerate(faces):
            points[name][face :: len(faces)] = self.box[name][end]
        return points

    def grid(self, count: int = 101) -> dict[str, np.ndarray]:
        """Returns a grid over the box, on which errors are measured."""
        axes = [np.linspace(*bounds, count) for bounds in self.box.values()]
        return dict(zip(self.box, (x.ravel() for x in np.meshgrid(*axes)), strict=True))

    def relative_error(self, layers: Layers, grid: Mapping[str, Any], true: Any) -> jax.Array:
        """Returns the relative L2 error on a grid."""
        _, fields = self.fields(layers, grid)
        found = jnp.stack([f.value for f in fields])
        return jnp.linalg.norm(found - true) / jnp.linalg.norm(true)


PI = np.pi
NU = 0.01 / PI


def _burgers() -> Problem:
    def solution(layers: Layers, c: Mapping[str, Series]) -> Fields:
        x, t = c["x"], c["t"]
        (n,) = series.network(layers, [t, series.cosine(x, PI), series.sine(x, PI)])
        return [series.sine(x, PI) * -1.0 + t * n]

    def residuals(_: Any, fields: Fields) -> list[jax.Array]:
        (u,) = fields
        return [u.d("t") + u.value * u.d("x") - NU * u.d("x", 2)]

    return Problem(
        "Burgers, u_t + u u_x = (0.01/π) u_xx",
        (3, 20, 20, 20, 1),
        {"x": (-1.0, 1.0), "t": (0.0, 1.0)},
        {"x": 2, "t": 1},
        solution,
        residuals,
        references.burgers,
    )


def _allen_cahn() -> Problem:
    def solution(layers: Layers, c: Mapping[str, Series]) -> Fields:
        x, t = c["x"], c["t"]
        (n,) = series.network(layers, [t, series.cosine(x, PI), series.sine(x, PI)])
        return [x * x * series.cosine(x, PI) + t * n]

    def residuals(_: Any, fields: Fields) -> list[jax.Array]:
        (u,) = fields
        return [u.d("t") - 1e-4 * u.d("x", 2) + 5 * (u.value**3 - u.value)]

    return Problem(
        "Allen–Cahn, u_t = 1e-4 u_xx − 5(u³ − u)",
        (3, 30, 30, 30, 1),
        {"x": (-1.0, 1.0), "t": (0.0, 1.0)},
        {"x": 2, "t": 1},
        solution,
        residuals,
        references.allen_cahn,
        focus=(1.0, 0.0),
    )


def _kdv() -> Problem:
    def solution(layers: Layers, c: Mapping[str, Series]) -> Fields:
        return series.network(layers, [c["x"] * 0.1 + -1.0, c["t"] * 0.4 + -1.0])

    def residuals(_: Any, fields: Fields) -> list[jax.Array]:
        (u,) = fields
        return [u.d("t") + 6 * u.value * u.d("x") + u.d("x", 3)]

    return Problem(
        "KdV, two solitons, u_t + 6 u u_x + u_xxx = 0",
        (2, 30, 30, 30, 1),
        {"x": (0.0, 20.0), "t": (0.0, 5.0)},
        {"x": 3, "t": 1},
        solution,
        residuals,
        references.two_solitons,
        focus=(0.0, 0.0),
        boundary=600,
    )


def _schroedinger() -> Problem:
    def solution(layers: Layers, c: Mapping[str, Series]) -> Fields:
        x, t = c["x"], c["t"]
        k = PI / 15
        real, imaginary = series.network(layers, [t, series.cosine(x, k), series.sine(x, k)])
        s = 1 / jnp.cosh(x.value)
        slope = -s * jnp.tanh(x.value)
        start = series.compose((2 * s, 2 * slope, 2 * (s - 2 * s**3)), x)
        return [start + t * real, t * imaginary]

    def residuals(_: Any, fields: Fields) -> list[jax.Array]:
        u, v = fields
        square = u.value**2 + v.value**2
        return [
            -v.d("t") + 0.5 * u.d("x", 2) + square * u.value,
            u.d("t") + 0.5 * v.d("x", 2) + square * v.value,
        ]

    return Problem(
        "Schrödinger, i ψ_t + ½ ψ_xx + |ψ|² ψ = 0",
        (3, 40, 40, 2),
        {"x": (-15.0, 15.0), "t": (0.0, PI / 2)},
        {"x": 2, "t": 1},
        solution,
        residuals,
        references.schroedinger,
    )


def _bump(c: Mapping[str, Series]) -> Series:
    """Returns x(1 − x)y(1 − y)."""
    x, y = c["x"], c["y"]
    return x * (x * -1.0 + 1.0) * y * (y * -1.0 + 1.0)


def _nonlinear_poisson() -> Problem:
    k = 4 * PI

    def solution(layers: Layers, c: Mapping[str, Series]) -> Fields:
        (n,) = series.network(layers, [c["x"], c["y"]])
        return [series.sine(c["x"], k) + 1.0 + _bump(c) * n]

    def residuals(c: Mapping[str, Series], fields: Fields) -> list[jax.Array]:
        (u,) = fields
        wave = jnp.sin(k * c["x"].value) * jnp.cos(k * c["y"].value)
        source = -2 * k**2 * wave - jnp.exp(1 + wave)
        return [u.d("x", 2) + u.d("y", 2) - jnp.exp(u.value) - source]

    return Problem(
        "nonlinear Poisson, Δu − e^u = f, u = 1 + sin 4πx cos 4πy",
        (2, 30, 30, 1),
        {"x": (0.0, 1.0), "y": (0.0, 1.0)},
        {"x": 2, "y": 2},
        solution,
        residuals,
        lambda x, y: (1 + np.sin(k * x) * np.cos(k * y))[None],
        focus=(0.0, 0.0),
    )


def _helmholtz() -> Problem:
    k = 6 * PI

    def solution(layers: Layers, c: Mapping[str, Series]) -> Fields:
        waves = [f(c[name], PI) for name in ("x", "y") for f in (series.cosine, series.sine)]
        return series.network(layers, waves)

    def residuals(c: Mapping[str, Series], fields: Fields) -> list[jax.Array]:
        (u,) = fields
        source = (1 - 2 * k**2) * jnp.sin(k * c["x"].value) * jnp.sin(k * c["y"].value)
        return [u.d("x", 2) + u.d("y", 2) + u.value - source]

    return Problem(
        "Helmholtz, Δu + u = q, u = sin 6πx sin 6πy",
        (4, 30, 30, 30, 1),
        {"x": (-1.0, 1.0), "y": (-1.0, 1.0)},
        {"x": 2, "y": 2},
        solution,
        residuals,
        lambda x, y: (np.sin(k * x) * np.sin(k * y))[None],
    )


def _convection() -> Problem:
    speed = 30.0

    def solution(layers: Layers, c: Mapping[str, Series]) -> Fields:
        x, t = c["x"], c["t"]
        (n,) = series.network(layers, [t, series.cosine(x, 1.0), series.sine(x, 1.0)])
        return [series.sine(x, 1.0) + t * n]

    def residuals(_: Any, fields: Fields) -> list[jax.Array]:
        (u,) = fields
        return [u.d("t") + speed * u.d("x")]

    return Problem(
        "convection, u_t + 30 u_x = 0",
        (3, 20, 20, 1),
        {"x": (0.0, 2 * PI), "t": (0.0, 1.0)},
        {"x": 1, "t": 1},
        solution,
        residuals,
        lambda x, t: np.sin(x - speed * t)[None],
        points=1_000,
        focus=None,
    )


def _poisson() -> Problem:
    def solution(layers: Layers, c: Mapping[str, Series]) -> Fields:
        (n,) = series.network(layers, [c["x"], c["y"]])
        return [_bump(c) * n]

    def residuals(c: Mapping[str, Series], fields: Fields) -> list[jax.Array]:
        (u,) = fields
        source = 2 * PI**2 * jnp.sin(PI * c["x"].value) * jnp.sin(PI * c["y"].value)
        return [u.d("x", 2) + u.d("y", 2) + source]

    return Problem(
        "Poisson, −Δu = f, u = sin πx sin πy",
        (2, 32, 1),
        {"x": (0.0, 1.0), "y": (0.0, 1.0)},
        {"x": 2, "y": 2},
        solution,
        residuals,
        lambda x, y: (np.sin(PI * x) * np.sin(PI * y))[None],
        points=900,
        focus=None,
    )


PROBLEMS: Mapping[str, Problem] = {
    "poisson": _poisson(),
    "burgers": _burgers(),
    "allen-cahn": _allen_cahn(),
    "kdv": _kdv(),
    "schroedinger": _schroedinger(),
    "nonlinear-poisson": _nonlinear_poisson(),
    "helmholtz": _helmholtz(),
    "convection": _convection(),
}
