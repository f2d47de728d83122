"""What is trained while the optimizers are timed: networks on random data, and bare vectors."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

from benchmarks.models import convolutional, perceptron, recurrent, transformer
from benchmarks.training import problem
from benchmarks.training.problem import Params, Problem


@dataclasses.dataclass(frozen=True)
class Task:
    """A loss and where it is trained from.

    Attributes:
      title: with the sizes.
      params: at the start.
      data: what the loss reads beside the params.
      loss: (params, data) to a scalar.
      cycles: five steps each, how many make up a turn.
      looped: whether the steps of a turn are one compiled loop. Within one XLA runs convolutions
        twenty times slower on a CPU.
    """

    title: str
    params: Params
    data: Any
    loss: Callable[[Params, Any], jax.Array]
    cycles: int = 1
    looped: bool = True

    @property
    def steps(self) -> int:
        """The steps of a turn: whole cycles of adaQN and aSNAQ."""
        return 5 * self.cycles


def quadratic(parameters: int, arrays: int = 1, cycles: int = 1) -> Task:
    """Returns ½ Σ c (p − 1)² of so many numbers in equal arrays, for the optimizer's own time.

    The 1,024 curvatures c between 0.001 and 1 keep every method busy for hundreds of steps; they
    come from the place in the vector, so that nothing else is read than the params.
    """
    length = parameters // arrays
    params = {f"array_{i:03}": jnp.zeros(length) for i in range(arrays)}

    def one(p: jax.Array) -> jax.Array:
        c = 0.001 + (jnp.arange(length) & 1023).astype(p.dtype) / 1024
        return 0.5 * jnp.sum(c * jnp.square(p - 1))

    def loss(params: Params, data: Any) -> jax.Array:
        del data
        return sum(map(one, params.values()), jnp.zeros(()))

    title = f"quadratic, {length * arrays:,} parameters, {plural(arrays, 'array')}"
    return Task(title, params, (), loss, cycles)


def plural(count: int, noun: str) -> str:
    """Returns the count with its noun."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def tanh_network(arrays: int, width: int = 32, cycles: int = 1) -> Task:
    """Returns square tanh layers, a weight and a bias each; a single array is a weight alone."""
    keys = iter(jax.random.split(jax.random.key(0), arrays + 2))
    layers = [
        {"kernel": jax.random.normal(next(keys), (width, width)) / width**0.5}
        | ({"bias": jnp.zeros(width)} if arrays > 1 else {})
        for _ in range(max(arrays // 2, 1))
    ]
    data = tuple(jax.random.normal(next(keys), (16, width)) for _ in range(2))

    def loss(params: Params, data: Any) -> jax.Array:
        values, targets = data
        for layer in params:
            values = jnp.tanh(values @ layer["kernel"] + layer.get("bias", 0.0))
        return jnp.mean(jnp.square(values - targets))

    title = f"tanh network {width} wide, {plural(len(jax.tree.leaves(layers)), 'array')}"
    return Task(title, layers, data, loss, cycles)


def packed(task: Task) -> Task:
    """Returns the same task with all params in one vector, which the loss takes apart."""
    vector, unravel = ravel_pytree(task.params)

    def loss(vector: jax.Array, data: Any) -> jax.Array:
        return task.loss(unravel(vector), data)

    return dataclasses.replace(task, title=f"{task.title}, packed", params=vector, loss=loss)


def of_problem(task: Problem, cycles: int = 1, looped: bool = True) -> Task:
    """Returns the first batch of a learning task, with the statistics that the network keeps."""
    params, statistics = task.start(0)
    batch = tuple(x[: task.batch_size] for x in task.train)

    def loss(params: Params, data: Any) -> jax.Array:
        batch, statistics = data
        return task.training_loss(params, statistics, batch)[0]

    count = optax.tree.size(params)
    title = f"{task.title}, {count:,} parameters"
    return Task(title, params, (batch, statistics), loss, cycles, looped)


def row_network() -> Task:
    """Returns the network of the rows of MNIST, 13,910 parameters."""
    model = functools.partial(recurrent.SequenceModel, 28, 100, 10)
    return of_problem(_random("row RNN", model, _images((128, 28, 28)), (128,), 10), cycles=4)


def lstm() -> Task:
    """Returns an LSTM of 256 that predicts the next of 84 characters, in windows of 50."""
    model = functools.partial(
        recurrent.SequenceModel,
        84,
        256,
        84,
        cell=recurrent.LSTM,
        every_step=True,
        **recurrent.as_in_flax(),
    )
    codes = jax.random.randint(jax.random.key(0), (64, 50), 0, 84)
    one_hot = functools.partial(jax.nn.one_hot, num_classes=84)
    return of_problem(_random("LSTM", model, codes, (64, 50), 84, prepare=one_hot))


def lenet() -> Task:
    """Returns LeNet-5 as the experiment `mnist-lenet` has it, in batches of 256."""
    model = functools.partial(convolutional.CNN, (1, 6, 16), (400, 120, 84, 10), paddings=(2, 0))
    task = _random("LeNet-5", model, _images((256, 28, 28, 1)), (256,), 10)
    return of_problem(task, looped=False)


def mlp() -> Task:
    """Returns a network of linear layers and 3.8 million parameters, in batches of 128."""
    model = functools.partial(perceptron.MLP, (784, 1600, 1600, 10))
    return of_problem(_random("MLP", model, _images((128, 784)), (128,), 10))


def resnet(blocks: int) -> Task:
    """Returns He et al.'s residual network, of 20 layers with three blocks, in batches of 8."""
    model = functools.partial(convolutional.ResNet, blocks)
    title = f"ResNet-{6 * blocks + 2}"
    return of_problem(_random(title, model, _images((8, 32, 32, 3)), (8,), 10), looped=False)


def text_transformer(blocks: int) -> Task:
    """Returns a transformer 64 wide with 4 heads, on 64 symbols in sequences of 32."""
    model = functools.partial(transformer.Transformer, 64, 64, 4, blocks, 32)
    codes = jax.random.randint(jax.random.key(0), (8, 32), 0, 64)
    return of_problem(_random(f"transformer of {blocks} blocks", model, codes, (8, 32), 64))


NETWORKS: Mapping[str, Callable[[], Task]] = {
    "row RNN": row_network,
    "LSTM": lstm,
    "LeNet-5": lenet,
    "MLP": mlp,
}


def _images(shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), shape)


def _random(
    title: str,
    model: Callable[..., nnx.Module],
    inputs: jax.Array,
    shape: tuple[int, ...],
    classes: int,
    **options: Any,
) -> Problem:
    """Returns the task of classifying one batch of inputs at random."""
    targets = jax.random.randint(jax.random.key(1), shape, 0, classes)
    examples = (inputs, targets)
    return Problem(
        title=title,
        settings={},
        model=model,
        train=examples,
        test=examples,
        batch_size=len(inputs),
        losses=problem.cross_entropies,
        **options,
    )
