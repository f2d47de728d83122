"""What an experiment trains: data, a model and a loss."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import naqopt

Params = Any
Statistics = Any
Examples = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A learning task of one size.

    Attributes:
      title: what stands over its plots and tables, sizes included.
      settings: what identifies the data and the model, plain JSON; runs with different settings are
        never put into one plot.
      model: makes the network from `rngs`.
      train: inputs and targets, the examples along the first axis.
      test: likewise, never trained on.
      batch_size: examples per step.
      losses: (outputs, targets) to one loss per example.
      hits: (outputs, targets) to the share of right answers per example, where there are any.
      evaluated: the training loss is that of so many training examples, the first ones.
      prepare: turns stored inputs into the network's, inside the compiled step.
      steps: an epoch is so many batches of a fresh order; by default all whole ones.
      weight_decay: λ of ½ λ ‖params‖², which is added to the loss that is trained on.
      stepwise: whether a step is compiled and not a whole epoch: within a loop XLA runs the
        convolutions of a library's layers twenty times slower on a CPU.
      target_scale: what the root of the mean loss is multiplied with to be an error in the unit
        that the settings name, where that is asked for.
    """

    title: str
    settings: Mapping[str, Any]
    model: Callable[..., nnx.Module]
    train: Examples
    test: Examples
    batch_size: int
    losses: Callable[[jax.Array, jax.Array], jax.Array]
    hits: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    evaluated: int = 10_000
    prepare: Callable[[jax.Array], jax.Array] = lambda inputs: inputs
    steps: int | None = None
    weight_decay: float = 0.0
    stepwise: bool = False
    target_scale: float | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        whole = len(self.train[0]) // self.batch_size
        return whole if self.steps is None else min(self.steps, whole)

    def rows(self, key: jax.Array) -> jax.Array:
        """Returns the examples of an epoch's batches in a random order, a row for each batch."""
        order = jax.random.permutation(key, len(self.train[0]))
        return order[: self.steps_per_epoch * self.batch_size].reshape(-1, self.batch_size)

    def sliding_rows(self, key: jax.Array, before: jax.Array | None) -> jax.Array:
        """Returns the examples of an epoch's overlapping batches, three parts each, newest first.

        The order is that of `rows`, `before` the key of the epoch before, None for the first one.
        """
        orders = [
            None if k is None else jax.random.permutation(k, len(self.train[0]))
            for k in (key, before)
        ]
        return naqopt.sliding_batches(orders[0], self.batch_size // 3, orders[1])

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """The network without its numbers."""
        return nnx.split(nnx.eval_shape(lambda: self.model(rngs=nnx.Rngs(0))))[0]

    def start(self, seed: int) -> tuple[Params, Statistics]:
        """Returns fresh parameters and running statistics as plain nested dictionaries.

        The statistics are what the network keeps beside its parameters: the running means and
        variances of batch normalization, or nothing.
        """
        states = nnx.split(self.model(rngs=nnx.Rngs(seed)), nnx.Param, ...)[1:]
        params, statistics = map(nnx.to_pure_dict, states)
        return params, statistics

    def params(self, seed: int) -> Params:
        """Returns fresh parameters."""
        return self.start(seed)[0]

    def outputs(self, params: Params, statistics: Statistics, inputs: jax.Array) -> jax.Array:
        """Returns what the trained network answers to stored inputs, by its running averages."""
        network = nnx.merge(self.graph, params, statistics, copy=True)
        network.eval()
        return network(self.prepare(inputs))

    def training_loss(
        self, params: Params, statistics: Statistics, batch: Examples
    ) -> tuple[jax.Array, Statistics]:
        """Returns the mean loss over a batch and the running statistics after it.

        Batch normalization goes by the statistics of this batch, so that the loss does not depend
        on the running ones. They are the auxiliary output of the evaluation that the caller makes
        once a step; whoever evaluates the loss again drops them.
        """
        inputs, targets = batch
        network = nnx.merge(self.graph, params, statistics, copy=True)
        loss = jnp.mean(self.losses(network(self.prepare(inputs)), targets))
        if self.weight_decay:
            loss += 0.5 * self.weight_decay * optax.tree.norm(params, squared=True)
        return loss, nnx.to_pure_dict(nnx.split(network, nnx.Param, ...)[2])

    def loss(self, params: Params, batch: Examples) -> jax.Array:
        """Returns the mean loss over a batch of a network that keeps no statistics."""
        return self.training_loss(params, {}, batch)[0]


def squared_errors(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns per example the mean of (output - target)²."""
    return jnp.mean(jnp.square(outputs - targets), axis=-1)


def cross_entropies(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns per example the cross entropy in nats, averaged over time steps if any."""
    chosen = jnp.sum(outputs * jax.nn.one_hot(targets, outputs.shape[-1]), axis=-1)
    return _per_example(jax.nn.logsumexp(outputs, axis=-1) - chosen)


def accuracies(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns per example whether the largest output is the target's, averaged over time steps."""
    return _per_example((jnp.argmax(outputs, axis=-1) == targets).astype(jnp.float32))


def _per_example(values: jax.Array) -> jax.Array:
    """Averages over all axes but the first."""
    return jnp.mean(values.reshape(values.shape[0], -1), axis=1)
