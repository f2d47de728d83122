"""What is fitted: a function on a box, by a network of one hidden layer."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Params(NamedTuple):
    """The network x ↦ output_kernel · σ(x · input_kernel + hidden_bias) + output_bias.

    The output kernel is (hidden,) and the bias a number where the function is one number, and
    (hidden, outputs) and (outputs,) where it is several.
    """

    input_kernel: jax.Array
    hidden_bias: jax.Array
    output_kernel: jax.Array
    output_bias: jax.Array


class Points(NamedTuple):
    """Scaled inputs, (points, variables), and targets, (points,) or (points, outputs)."""

    inputs: jax.Array
    targets: jax.Array


@dataclasses.dataclass(frozen=True)
class Task:
    """A function and the points at which it is known.

    Attributes:
      function: from inputs (points, variables) to targets, (points,) or (points, outputs).
      box: the least and the largest value of every variable.
      train_inputs: (points, variables).
      test_inputs: likewise.
      hidden: units of the network.
    """

    function: Callable[[np.ndarray], np.ndarray]
    box: Sequence[tuple[float, float]]
    train_inputs: np.ndarray
    test_inputs: np.ndarray
    hidden: int

    @property
    def variables(self) -> int:
        """Numbers that the function reads."""
        return self.train_inputs.shape[1]

    @property
    def parameters(self) -> int:
        """Numbers of the network."""
        return sum(math.prod(shape) for shape in self._shapes())

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
        shapes = self._shapes()
        drawn = np.random.default_rng(seed).uniform(-0.5, 0.5, self.parameters)
        parts = np.split(drawn, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        arrays = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        return Params(*map(jnp.asarray, arrays))

    def answers(self, params: Params, inputs: np.ndarray) -> np.ndarray:
        """Returns what a network makes of inputs, both in the function's own units."""
        low, high = self._range()
        scaled = np.asarray(output(params, jnp.asarray(self._scaled_inputs(inputs))))
        return low + (scaled + 1) * (high - low) / 2

    def _shapes(self) -> list[tuple[int, ...]]:
        outputs = self.function(self.train_inputs[:1]).shape[1:]
        return [(self.variables, self.hidden), (self.hidden,), (self.hidden, *outputs), outputs]

    def _scaled(self, inputs: np.ndarray) -> Points:
        """Maps inputs and targets linearly so that box and training targets fill [−1, 1]."""
        low, high = self._range()
        targets = 2 * (self.function(inputs) - low) / (high - low) - 1
        return Points(jnp.asarray(self._scaled_inputs(inputs)), jnp.asarray(targets))

    def _scaled_inputs(self, inputs: np.ndarray) -> np.ndarray:
        low, high = np.array(self.box, float).T
        return (inputs - (low + high) / 2) / ((high - low) / 2)

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the least and the largest training target, of each output."""
        targets = self.function(self.train_inputs)
        return targets.min(axis=0), targets.max(axis=0)


def output(params: Params, inputs: jax.Array) -> jax.Array:
    """Returns the network's answers to scaled inputs."""
    hidden = jax.nn.sigmoid(inputs @ params.input_kernel + params.hidden_bias)
    return hidden @ params.output_kernel + params.output_bias


def error(params: Params, given: Points) -> jax.Array:
    """Returns E, the mean over the points of ½ ‖output − target‖²."""
    residuals = output(params, given.inputs) - given.targets
    return 0.5 * jnp.sum(jnp.square(residuals)) / len(given.inputs)
