"""Networks in Flax nnx, written to be quick on a CPU.

A recurrent layer reads a whole sequence. The product with its inputs, which does not wait for the
recurrence, is taken for all time steps at once; only the recurrent product stays inside
`jax.lax.scan`. Inside the recurrent networks sequences are time-major, (time, batch, features).
Images are (batch, height, width, channels).
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = nnx.initializers.Initializer


def small_normal() -> Initializer:
    """Returns the papers' initialization of the recurrent networks, N(0, 0.01²)."""
    return nnx.initializers.normal(0.01)


def symmetric_uniform(bound: float) -> Initializer:
    """Returns the initialization from U(−bound, bound)."""
    draw = nnx.initializers.uniform(2 * bound)
    return lambda *arguments, **options: draw(*arguments, **options) - bound


class Elman(nnx.Module):
    """A layer h_t = tanh(W x_t + U h_{t-1} + b), zero at the start.

    Attributes:
      input_kernel: W transposed, (features, hidden).
      recurrent_kernel: U transposed, (hidden, hidden).
      bias: b, zeros at first.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        input_init: Initializer,
        recurrent_init: Initializer,
    ):
        self.input_kernel = nnx.Param(input_init(rngs.params(), (features, hidden)))
        self.recurrent_kernel = nnx.Param(recurrent_init(rngs.params(), (hidden, hidden)))
        self.bias = nnx.Param(jnp.zeros((hidden,)))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the states of all time steps, (time, batch, hidden)."""
        kernel = self.recurrent_kernel[...]
        projected = _project(inputs, self.input_kernel[...], self.bias[...])

        def advance(state: jax.Array, projection: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jnp.tanh(projection + state @ kernel)
            return state, state

        start = jnp.zeros_like(projected[0])
        return jax.lax.scan(advance, start, projected)[1]


class LSTM(nnx.Module):
    """A layer of long short-term memory; gates in the order input, forget, cell, output.

    Attributes:
      input_kernel: (features, 4 hidden).
      recurrent_kernel: (hidden, 4 hidden).
      bias: (4 hidden,), zeros at first, the forget gate's too.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        input_init: Initializer,
        recurrent_init: Initializer,
    ):
        def gates(init: Initializer, rows: int) -> jax.Array:
            return jnp.concatenate([init(rngs.params(), (rows, hidden)) for _ in range(4)], axis=1)

        self.input_kernel = nnx.Param(gates(input_init, features))
        self.recurrent_kernel = nnx.Param(gates(recurrent_init, hidden))
        self.bias = nnx.Param(jnp.zeros((4 * hidden,)))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the outputs of all time steps, (time, batch, hidden)."""
        kernel = self.recurrent_kernel[...]
        hidden = kernel.shape[0]
        projected = _project(inputs, self.input_kernel[...], self.bias[...])

        # The logistic function is (1 + tanh(x/2))/2, so one tanh over all gates serves.
        half, one = jnp.full((hidden,), 0.5), jnp.ones((hidden,))
        scale = jnp.concatenate([half, half, one, half])

        # Recomputed for the gradient: keeping all gates of all steps takes twice the time.
        @jax.checkpoint
        def advance(
            carry: tuple[jax.Array, jax.Array], projection: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            cell, output = carry
            values = jnp.tanh(scale * (projection + output @ kernel))
            candidate = values[:, 2 * hidden : 3 * hidden]
            entry, forget, _, exit_ = jnp.split(0.5 + 0.5 * values, 4, axis=-1)
            cell = forget * cell + entry * candidate
            output = exit_ * jnp.tanh(cell)
            return (cell, output), output

        start = jnp.zeros((projected.shape[1], hidden), projected.dtype)
        return jax.lax.scan(advance, (start, start), projected)[1]


class SequenceModel(nnx.Module):
    """Recurrent layers on top of each other, and a linear head.

    Attributes:
      layers: the recurrent layers, the one that reads the inputs first.
      head: linear, from the last layer's state to the outputs.
      every_step: whether the head reads every time step, or the last one alone.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        cell: type[Elman] | type[LSTM] = Elman,
        depth: int = 1,
        every_step: bool = False,
        small_weights: bool = True,
    ):
        """Makes the layers.

        Args:
          features: numbers read per time step.
          hidden: width of every recurrent layer.
          outputs: numbers returned per example, or per time step.
          rngs: random streams; `params` is used.
          cell: the kind of layer.
          depth: how many layers.
          every_step: see the class.
          small_weights: draw all weights from N(0, 0.01²), as the paper on recurrent networks does.
            Otherwise they start as in Flax's own cells: LeCun normal for inputs, orthogonal for
            the recurrence. Five layers of N(0, 0.01²) would pass on nothing: each shrinks its
            input about tenfold.
        """
        if small_weights:
            input_init = recurrent_init = small_normal()
        else:
            input_init = nnx.initializers.lecun_normal()
            recurrent_init = nnx.initializers.orthogonal()
        layer = functools.partial(
            cell, rngs=rngs, input_init=input_init, recurrent_init=recurrent_init
        )
        self.layers = nnx.List([layer(hidden if i else features, hidden) for i in range(depth)])
        self.head = nnx.Linear(hidden, outputs, kernel_init=input_init, rngs=rngs)
        self.every_step = every_step

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps inputs (batch, time, features) to (batch, outputs) or (batch, time, outputs)."""
        sequence = jnp.swapaxes(inputs, 0, 1)
        for layer in self.layers:
            sequence = layer(sequence)
        if self.every_step:
            return self.head(jnp.swapaxes(sequence, 0, 1))
        return self.head(sequence[-1])


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


class PooledConvolution(nnx.Module):
    """A convolution with stride 1, and the greatest of each 2 x 2 of its outputs.

    It is one product of every band of k rows with a banded matrix, whose columns stand in an order
    in which the 2 x 2 are apart: on a CPU three times as quick as XLA's convolution and pooling.
    Of an odd number of outputs the last is left out.

    Attributes:
      kernel: (k, k, channels in, channels out).
      bias: (channels out,), zeros at first; it can as well be added after the pooling.
      padding: zeros on each side of the image.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        padding: int,
        *,
        rngs: nnx.Rngs,
        size: int = 5,
        initializer: Initializer | None = None,
    ):
        """Makes kernel and bias.

        Args:
          channels: of the input.
          outputs: channels of the output.
          padding: see the class.
          rngs: random streams; `params` is used.
          size: k.
          initializer: draws kernel and bias; None for LeCun normal and zeros.
        """
        kernel_init = initializer or nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, channels, outputs)))
        bias = initializer(rngs.params(), (outputs,)) if initializer else jnp.zeros((outputs,))
        self.bias = nnx.Param(bias)
        self.padding = padding

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to half the height and width, or so."""
        border = (self.padding, self.padding)
        images = jnp.pad(images, ((0, 0), border, border, (0, 0)))
        size, _, _, outputs = self.kernel.shape
        batch, height, width, channels = images.shape
        height, width_out = ((n - size + 1) // 2 * 2 for n in (height, width))
        # Column w of the image meets output column c by the kernel's column w - c: first the even
        # c, then the odd ones.
        order = jnp.arange(width_out).reshape(-1, 2).T.ravel()
        distance = jnp.arange(width)[:, None, None] - order[:, None]
        meets = (distance == jnp.arange(size)).astype(images.dtype)
        band = jnp.einsum("wcj,ijfo->iwfco", meets, self.kernel[...])
        rows = [images[:, i : i + height].reshape(batch, height, -1) for i in range(size)]
        products = jnp.concatenate(rows, -1) @ band.reshape(size * width * channels, -1)
        pairs = products.reshape(batch, height // 2, 2, 2, -1)
        return pairs.max((2, 3)).reshape(batch, height // 2, -1, outputs) + self.bias[...]


class CNN(nnx.Module):
    """Two convolutions with pooling, then linear layers.

    The activation comes after the pooling: it is monotone, so the order makes no difference.

    Attributes:
      convolutions: both.
      head: the linear layers.
      activation: what each of these layers ends with, the last one excepted.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        widths: Sequence[int],
        *,
        rngs: nnx.Rngs,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        size: int = 5,
        paddings: tuple[int, int] = (2, 2),
        initializer: Initializer | None = None,
    ):
        """Makes the layers.

        Args:
          channels: of the images and of both convolutions.
          widths: numbers of values that the linear layers begin with, of units in every hidden
            one, and of outputs.
          rngs: random streams; `params` is used.
          activation: see the class.
          size: of the convolutions' kernels.
          paddings: of both convolutions; (k - 1) / 2 keeps the size of the image.
          initializer: draws weights and biases; None for Flax's own way.
        """
        inputs, first, second = channels
        options = {"rngs": rngs, "size": size, "initializer": initializer}
        self.convolutions = nnx.List(
            [
                PooledConvolution(inputs, first, paddings[0], **options),
                PooledConvolution(first, second, paddings[1], **options),
            ]
        )
        self.head = MLP(widths, rngs=rngs, activation=activation, initializer=initializer)
        self.activation = activation

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (batch, height, width, channels) to (batch, outputs)."""
        for convolution in self.convolutions:
            images = self.activation(convolution(images))
        return self.head(images)


def _project(inputs: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns W x + b for all time steps by one product."""
    time, batch, features = inputs.shape
    return (inputs.reshape(time * batch, features) @ kernel + bias).reshape(time, batch, -1)


def parameter_count(params: object) -> int:
    """Returns how many numbers a tree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
