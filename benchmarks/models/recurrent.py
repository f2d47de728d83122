"""Recurrent networks, written to be quick on a CPU.

A recurrent layer reads a whole sequence. The product with its inputs, which does not wait for the
recurrence, is taken for all time steps at once; only the recurrent product stays inside
`jax.lax.scan`. Inside the networks sequences are time-major, (time, batch, features).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = nnx.initializers.Initializer


def small_normal() -> Initializer:
    """Returns the papers' initialization of the recurrent networks, N(0, 0.01²)."""
    return nnx.initializers.normal(0.01)


def as_in_flax() -> dict[str, Initializer]:
    """Returns the initializers of Flax's own cells.

    LeCun normal for inputs and head, orthogonal for the recurrence. Five layers of N(0, 0.01²)
    would pass on nothing: each shrinks its input about tenfold.
    """
    lecun = nnx.initializers.lecun_normal()
    return {
        "input_init": lecun,
        "recurrent_init": nnx.initializers.orthogonal(),
        "head_init": lecun,
    }


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
        self.input_kernel = nnx.Param(_gates(4, input_init, rngs, features, hidden))
        self.recurrent_kernel = nnx.Param(_gates(4, recurrent_init, rngs, hidden, hidden))
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


class GRU(nnx.Module):
    """A layer of gated recurrent units (Cho et al., 2014); reset, update and candidate in order.

    The candidate is tanh(W x + b + r (U h)), the reset behind the product, as cuDNN has it.

    Attributes:
      input_kernel: (features, 3 hidden).
      recurrent_kernel: (hidden, 3 hidden).
      bias: (3 hidden,), zeros at first.
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
        self.input_kernel = nnx.Param(_gates(3, input_init, rngs, features, hidden))
        self.recurrent_kernel = nnx.Param(_gates(3, recurrent_init, rngs, hidden, hidden))
        self.bias = nnx.Param(jnp.zeros((3 * hidden,)))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the states of all time steps, (time, batch, hidden)."""
        kernel = self.recurrent_kernel[...]
        hidden = kernel.shape[0]
        projected = _project(inputs, self.input_kernel[...], self.bias[...])

        @jax.checkpoint  # as in the LSTM
        def advance(state: jax.Array, projection: jax.Array) -> tuple[jax.Array, jax.Array]:
            product = state @ kernel
            gates = nnx.sigmoid(projection[:, : 2 * hidden] + product[:, : 2 * hidden])
            reset, update = jnp.split(gates, 2, axis=-1)
            candidate = jnp.tanh(projection[:, 2 * hidden :] + reset * product[:, 2 * hidden :])
            state = update * state + (1 - update) * candidate
            return state, state

        start = jnp.zeros((projected.shape[1], hidden), projected.dtype)
        return jax.lax.scan(advance, start, projected)[1]


Cell = type[Elman] | type[GRU] | type[LSTM]


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
        cell: Cell = Elman,
        depth: int = 1,
        every_step: bool = False,
        input_init: Initializer | None = None,
        recurrent_init: Initializer | None = None,
        head_init: Initializer | None = None,
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
          input_init: of the weights on the inputs; by default N(0, 0.01²), as in the papers.
          recurrent_init: of the weights on the state, likewise.
          head_init: of the head, likewise.
        """
        input_init, recurrent_init, head_init = (
            small_normal() if init is None else init
            for init in (input_init, recurrent_init, head_init)
        )
        layer = functools.partial(
            cell, rngs=rngs, input_init=input_init, recurrent_init=recurrent_init
        )
        self.layers = nnx.List([layer(hidden if i else features, hidden) for i in range(depth)])
        self.head = nnx.Linear(hidden, outputs, kernel_init=head_init, rngs=rngs)
        self.every_step = every_step

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps inputs (batch, time, features) to (batch, outputs) or (batch, time, outputs)."""
        sequence = jnp.swapaxes(inputs, 0, 1)
        for layer in self.layers:
            sequence = layer(sequence)
        if self.every_step:
            return self.head(jnp.swapaxes(sequence, 0, 1))
        return self.head(sequence[-1])


def _project(inputs: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns W x + b for all time steps by one product."""
    time, batch, features = inputs.shape
    return (inputs.reshape(time * batch, features) @ kernel + bias).reshape(time, batch, -1)


def _gates(count: int, init: Initializer, rngs: nnx.Rngs, rows: int, hidden: int) -> jax.Array:
    """Returns the weights of so many gates side by side, each drawn by itself."""
    return jnp.concatenate([init(rngs.params(), (rows, hidden)) for _ in range(count)], axis=1)
