"""Values with their derivatives along coordinates, taken through a network layer by layer.

Of networks this small it compiles and runs faster than nested automatic differentiation, and the
loss's gradient is reverse mode through plain array operations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Layers = Sequence[tuple[jax.Array, jax.Array]]


class Series(NamedTuple):
    """A function at many points with its derivatives along each coordinate by itself.

    Attributes:
      value: the function.
      along: by coordinate, the first derivative, the second and so on.
    """

    value: jax.Array
    along: Mapping[str, tuple[jax.Array, ...]]

    def d(self, coordinate: str, order: int = 1) -> jax.Array:
        """Returns a derivative."""
        return self.along[coordinate][order - 1]

    def __add__(self, other: "Series | float") -> "Series":
        """Returns the sum."""
        if not isinstance(other, Series):
            return Series(self.value + other, self.along)
        return jax.tree.map(jnp.add, self, other)

    def __mul__(self, other: "Series | float") -> "Series":
        """Returns the product, by Leibniz's rule."""
        if not isinstance(other, Series):
            return jax.tree.map(lambda x: x * other, self)

        def product(name: str, order: int) -> jax.Array:
            a = (self.value, *self.along[name])
            b = (other.value, *other.along[name])
            return sum(math.comb(order, i) * a[i] * b[order - i] for i in range(order + 1))  # type: ignore[return-value]

        orders = {name: len(derivatives) for name, derivatives in self.along.items()}
        return Series(
            self.value * other.value,
            {name: tuple(product(name, k + 1) for k in range(n)) for name, n in orders.items()},
        )


def coordinate(points: jax.Array, name: str, orders: Mapping[str, int]) -> Series:
    """Returns a coordinate itself, with so many derivatives along all of them."""
    zero, one = jnp.zeros_like(points), jnp.ones_like(points)
    along = {
        other: tuple(one if other == name and k == 0 else zero for k in range(n))
        for other, n in orders.items()
    }
    return Series(points, along)


def compose(derivatives: Sequence[jax.Array], inner: Series) -> Series:
    """Returns f(inner) from f, f′, f″ and f‴ at its values, by Faà di Bruno's formula."""
    value, *f = derivatives

    def chain(g: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        terms = [f[0] * g[0]]
        if len(g) > 1:
            terms.append(f[0] * g[1] + f[1] * g[0] ** 2)
        if len(g) > 2:
            terms.append(f[0] * g[2] + 3 * f[1] * g[0] * g[1] + f[2] * g[0] ** 3)
        return tuple(terms)

    return Series(value, {name: chain(g) for name, g in inner.along.items()})


def tanh(inner: Series) -> Series:
    """Returns the hyperbolic tangent of a series."""
    a = jnp.tanh(inner.value)
    first = 1 - a**2
    second = -2 * a * first
    return compose((a, first, second, -2 * (first**2 + a * second)), inner)


def sine(inner: Series, frequency: float) -> Series:
    """Returns sin(frequency · inner)."""
    return _wave(inner, frequency, jnp.sin, jnp.cos, 1)


def cosine(inner: Series, frequency: float) -> Series:
    """Returns cos(frequency · inner)."""
    return _wave(inner, frequency, jnp.cos, jnp.sin, -1)


def _wave(
    inner: Series,
    frequency: float,
    f: Callable[[jax.Array], jax.Array],
    other: Callable[[jax.Array], jax.Array],
    sign: int,
) -> Series:
    k = frequency
    a, b = f(k * inner.value), sign * other(k * inner.value)
    return compose((a, k * b, -(k**2) * a, -(k**3) * b), inner)


def network(layers: Layers, inputs: Sequence[Series]) -> list[Series]:
    """Returns the outputs of a tanh network at the points, each with its derivatives."""
    h = jax.tree.map(lambda *x: jnp.stack(x, axis=-1), *inputs)
    for kernel, bias in layers[:-1]:
        h = tanh(jax.tree.map(lambda x, k=kernel: x @ k, h) + bias)
    kernel, bias = layers[-1]
    h = jax.tree.map(lambda x: x @ kernel, h) + bias
    return [jax.tree.map(lambda x, i=i: x[..., i], h) for i in range(kernel.shape[1])]
