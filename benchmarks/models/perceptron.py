"""Perceptrons: linear layers with an activation between them."""

import itertools
from collections.abc import Callable, Sequence

import jax
from flax import nnx

Initializer = nnx.initializers.Initializer


def symmetric_uniform(bound: float) -> Initializer:
    """Returns the initialization from U(−bound, bound)."""
    draw = nnx.initializers.uniform(2 * bound)
    return lambda *arguments, **options: draw(*arguments, **options) - bound


class MLP(nnx.Module):
    """Linear layers with an activation between them, and batch normalization in front of it.

    Attributes:
      layers: the linear layers.
      norms: a normalization for each hidden layer, or none at all.
      activation: what the hidden layers end with.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        rngs: nnx.Rngs,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        batch_norm: bool = False,
        initializer: Initializer | None = None,
    ):
        """Makes the layers.

        Args:
          widths: numbers of inputs, of units in every hidden layer, and of outputs.
          rngs: random streams; `params` is used.
          activation: see the class.
          batch_norm: whether to normalize. The running averages forget with a decay of 0.9 a step,
            as PyTorch's do: Flax's 0.99 would still remember the start after an epoch of the
            smaller tasks.
          initializer: draws weights and biases; None for Flax's own way.
        """
        options = {"kernel_init": initializer, "bias_init": initializer} if initializer else {}
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs, **options) for pair in pairs])
        hidden = widths[1:-1] if batch_norm else ()
        self.norms = nnx.List([nnx.BatchNorm(width, momentum=0.9, rngs=rngs) for width in hidden])
        self.activation = activation

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps inputs (batch, ...) to (batch, outputs)."""
        values = inputs.reshape(len(inputs), -1)
        for index, layer in enumerate(self.layers[:-1]):
            values = layer(values)
            if self.norms:
                values = self.norms[index](values)
            values = self.activation(values)
        return self.layers[-1](values)
