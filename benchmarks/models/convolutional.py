"""Convolutional networks: small ones that are quick on a CPU, and those of the paper on L-SR1.

Images are (batch, height, width, channels).
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.models.perceptron import MLP, Initializer

DECAY = 0.9  # of the running averages, a step


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


class LeNet(nnx.Module):
    """Convolutions of 5×5, each with ReLU and pooling, a hidden layer and the outputs.

    With batch normalization every convolution is normalized between its ReLU and the pooling, and
    the hidden layer behind its activation.

    Attributes:
      convolutions: of stride 1.
      hidden: linear.
      output: linear.
      norms: of the convolutions and the hidden layer, or none at all.
      activation: of the hidden layer.
    """

    def __init__(
        self,
        size: int,
        channels: Sequence[int],
        hidden: int,
        *,
        rngs: nnx.Rngs,
        padding: int,
        deviation: float,
        hidden_init: nnx.initializers.Initializer,
        activation: Callable[[jax.Array], jax.Array],
        batch_norm: bool,
    ):
        """Makes the layers.

        Args:
          size: height and width of the images.
          channels: of the images and of every convolution.
          hidden: units of the hidden layer.
          rngs: random streams; `params` is used.
          padding: of every convolution; 2 keeps the size of the image.
          deviation: σ of the convolutions' weights from N(0, σ²); the outputs' have 0.1.
          hidden_init: draws the hidden layer's weights; all biases begin with zero.
          activation: see the class.
          batch_norm: whether to normalize.
        """
        normal = nnx.initializers.normal
        pads = ((padding, padding), (padding, padding))
        self.convolutions = nnx.List(
            [
                nnx.Conv(*pair, (5, 5), padding=pads, kernel_init=normal(deviation), rngs=rngs)
                for pair in itertools.pairwise(channels)
            ]
        )
        for _ in channels[1:]:
            size = (size + 2 * padding - 4) // 2
        inputs = size**2 * channels[-1]
        self.hidden = nnx.Linear(inputs, hidden, kernel_init=hidden_init, rngs=rngs)
        self.output = nnx.Linear(hidden, 10, kernel_init=normal(0.1), rngs=rngs)
        normalized = (*channels[1:], hidden) if batch_norm else ()
        self.norms = nnx.List([nnx.BatchNorm(n, momentum=DECAY, rngs=rngs) for n in normalized])
        self.activation = activation

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to (batch, 10)."""
        for index, convolution in enumerate(self.convolutions):
            images = pooled(self._normalized(index, nnx.relu(convolution(images))))
        values = self.activation(self.hidden(images.reshape(len(images), -1)))
        return self.output(self._normalized(-1, values))

    def _normalized(self, index: int, values: jax.Array) -> jax.Array:
        return self.norms[index](values) if self.norms else values


def pooled(images: jax.Array) -> jax.Array:
    """Returns the greatest of each 2×2; on a CPU quicker than a window reduction's gradient."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


class ResidualBlock(nnx.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))), both convolutions of 3×3.

    Where the channels double, the first convolution and the shortcut halve the image, and the
    shortcut is filled up with zeros (option A of He et al.).

    Attributes:
      first: a convolution, of stride 2 where the channels double.
      second: a convolution.
      norms: of both.
      stride: of the first convolution and the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.stride = 1 if inputs == outputs else 2
        self.first = _convolution(inputs, outputs, self.stride, rngs)
        self.second = _convolution(outputs, outputs, 1, rngs)
        self.norms = nnx.List([_norm(outputs, rngs) for _ in range(2)])

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to images, halved or not."""
        values = self.second(nnx.relu(self.norms[0](self.first(images))))
        shortcut = images[:, :: self.stride, :: self.stride]
        missing = values.shape[-1] - shortcut.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, missing)))
        return nnx.relu(shortcut + self.norms[1](values))


class ResNet(nnx.Module):
    """He et al.'s residual network for CIFAR-10 of 6n + 2 layers.

    Attributes:
      first: the convolution that reads the image.
      norm: behind it.
      blocks: n of 16 channels, n of 32 and n of 64.
      output: linear, from the mean over the image.
    """

    def __init__(self, blocks: int = 3, *, rngs: nnx.Rngs):
        self.first = _convolution(3, 16, 1, rngs)
        self.norm = _norm(16, rngs)
        channels = [16] + [width for width in (16, 32, 64) for _ in range(blocks)]
        pairs = itertools.pairwise(channels)
        self.blocks = nnx.List([ResidualBlock(*pair, rngs=rngs) for pair in pairs])
        self.output = nnx.Linear(64, 10, kernel_init=nnx.initializers.he_normal(), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to (batch, 10)."""
        images = nnx.relu(self.norm(self.first(images)))
        for block in self.blocks:
            images = block(images)
        return self.output(images.mean((1, 2)))


def _convolution(inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    he_normal = nnx.initializers.he_normal()
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        strides=stride,
        padding=((1, 1), (1, 1)),
        use_bias=False,
        kernel_init=he_normal,
        rngs=rngs,
    )


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, momentum=DECAY, rngs=rngs)
