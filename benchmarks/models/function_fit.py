"""What is fitted: a function on a box, by a network of one hidden layer."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Params(NamedTuple):
    """The network x ↦ output_kernel · σ(x · input_kernel + hidden_bias) + output_bias."""

    input_kernel: jax.Array
    hidden_bias: jax.Array
    output_kernel: jax.Array
    output_bias: jax.Array


class Points(NamedTuple):
    """Scaled inputs, (points, variables), and targets, (points,)."""

    inputs: jax.Array
    targets: jax.Array


@dataclasses.dataclass(frozen=True)
class Task:
    """A function and the points at which it is known.

    Attributes:
      function: from inputs (points, variables) to targets (points,).
      bound: the inputs lie in [−bound, bound].
      train_inputs: (points, variables).
      test_inputs: likewise.
      hidden: units of the network.
    """

    function: Callable[[np.ndarray], np.ndarray]
    bound: float
    train_inputs: np.ndarray
    test_inputs: np.ndarray
    hidden: int

    @property
    def variables(self) -> int:
        """Numbers that the function reads."""
        return self.train_inputs.shape[1]

    def train(self) -> Points:
        """Returns the training points, scaled."""
        return self._scaled(self.train_inputs)

    def test(self) -> Points:
        """Returns the test points, scaled as the training points are."""
        return self._scaled(self.test_inputs)

    def start(self, seed: int) -> Params:
        """Returns fresh parameters, all from U(−0.5, 0.5).

        NumPy draws them, so that they are the same in both floating-point types.
        """
        hidden, inputs = self.hidden, self.variables * self.hidden
        drawn = np.random.default_rng(seed).uniform(-0.5, 0.5, inputs + 2 * hidden + 1)
        first, second, third, last = np.split(drawn, np.cumsum([inputs, hidden, hidden]))
        kernel = first.reshape(self.variables, hidden)
        return Params(*map(jnp.asarray, (kernel, second, third, last[0])))

    def _scaled(self, inputs: np.ndarray) -> Points:
        """Maps inputs and targets linearly so that box and training targets fill [−1, 1]."""
        reference, values = self.function(self.train_inputs), self.function(inputs)
        low, high = reference.min(), reference.max()
        targets = 2 * (values - low) / (high - low) - 1
        return Points(jnp.asarray(inputs / self.bound), jnp.asarray(targets))


def output(params: Params, inputs: jax.Array) -> jax.Array:
    """Returns the network's answers to scaled inputs."""
    hidden = jax.nn.sigmoid(inputs @ params.input_kernel + params.hidden_bias)
    return hidden @ params.output_kernel + params.output_bias


def error(params: Params, given: Points) -> jax.Array:
    """Returns E, the mean of ½ (output − target)²."""
    return 0.5 * jnp.mean(jnp.square(output(params, given.inputs) - given.targets))
