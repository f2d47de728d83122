"""What is fitted: a curve of one variable, by a network of 22 parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN = 7
TRAIN_POINTS, TEST_POINTS = 400, 10_000
INTERVAL = (-4.0, 4.0)


class Params(NamedTuple):
    """The network x ↦ output_kernel · σ(input_kernel x + hidden_bias) + output_bias."""

    input_kernel: jax.Array
    hidden_bias: jax.Array
    output_kernel: jax.Array
    output_bias: jax.Array


class Points(NamedTuple):
    """Scaled inputs and targets, one number per point."""

    inputs: jax.Array
    targets: jax.Array


def curve(x: np.ndarray) -> np.ndarray:
    """Returns the target before scaling, 1 + (x + 2x²) sin(−x²)."""
    return 1 + (x + 2 * x**2) * np.sin(-(x**2))


def points(count: int) -> Points:
    """Returns so many points at equal distances, scaled as the training points are.

    Their inputs and targets are mapped linearly so that the training points fill [−1, 1].
    """
    reference = np.linspace(*INTERVAL, TRAIN_POINTS)
    x = np.linspace(*INTERVAL, count)
    return Points(
        jnp.asarray(_scaled(x, reference)), jnp.asarray(_scaled(curve(x), curve(reference)))
    )


def start(seed: int) -> Params:
    """Returns fresh parameters, all from U(−0.5, 0.5).

    NumPy draws them, so that they are the same in both floating-point types.
    """
    drawn = np.random.default_rng(seed).uniform(-0.5, 0.5, 3 * HIDDEN + 1)
    first, second, third, last = np.split(drawn, [HIDDEN, 2 * HIDDEN, 3 * HIDDEN])
    return Params(*map(jnp.asarray, (first, second, third, last[0])))


def output(params: Params, inputs: jax.Array) -> jax.Array:
    """Returns the network's answers to scaled inputs."""
    hidden = jax.nn.sigmoid(inputs[:, None] * params.input_kernel + params.hidden_bias)
    return hidden @ params.output_kernel + params.output_bias


def error(params: Params, given: Points) -> jax.Array:
    """Returns E, the mean of ½ (output − target)²."""
    return 0.5 * jnp.mean(jnp.square(output(params, given.inputs) - given.targets))


def _scaled(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    low, high = reference.min(), reference.max()
    return 2 * (values - low) / (high - low) - 1
