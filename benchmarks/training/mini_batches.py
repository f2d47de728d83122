"""One compiled training loop for every optimizer.

An epoch is a `lax.scan` over batches with data, parameters, running statistics and state on the
device. The order of the examples in epoch e is a permutation drawn from the run's seed and e alone,
so every optimizer sees the same batches and a run can go on from any epoch; batches that overlap
are cut from the same orders, as many of them as there are parts. A variance-reduced method gets its
snapshot, with the gradient over all training examples, before each epoch; adaQN may judge its
cycles on a fixed monitoring set as in its paper, the first training examples, as many as in a batch
(so its authors count its cost). Examples that do not fill the last batch are left out of that
epoch. The learning rate is an argument of the compiled epoch, so that a grid of rates and several
seeds compile once.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import naqopt
from benchmarks.training.optimizers import Optimizer
from benchmarks.training.problem import Examples, Params, Problem, Statistics

_EVALUATION_BATCH = 500
_FULL_GRADIENT_BATCH = 2_000
# From more arrays on our methods are handed one vector: they compile in half the time, and step as
# fast or faster.
_MANY_ARRAYS = 20
_Carry = tuple[Params, Statistics, Any]


@dataclasses.dataclass
class Progress:
    """Where a run stands; the next epoch consumes `params`, `statistics` and `state`."""

    params: Params
    statistics: Statistics
    state: Any
    epoch: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains one problem with one optimizer, at any learning rate and from any seed.

    Attributes:
      problem: what is learnt.
      optimizer: the row of the table.
      epochs: how long a run is, which only a step size that ends asks for.
      compile_seconds: tracing and compiling the epoch, None before the first.
    """

    def __init__(self, problem: Problem, optimizer: Optimizer, epochs: int = 1):
        self.problem = problem
        self.optimizer = optimizer
        self.epochs = epochs
        self.compile_seconds: float | None = None
        self._train = jax.device_put(problem.train)
        self._test = jax.device_put(problem.test)
        self._train_on: Any = None
        self._others: dict[int, Trainer] = {}
        params, _ = jax.eval_shape(functools.partial(problem.start, 0))
        self._flattens = optimizer.ours and len(jax.tree.leaves(params)) > _MANY_ARRAYS
        self._order = jax.jit(problem.rows if optimizer.parts == 1 else problem.sliding_rows)
        self._sums = jax.jit(self._sums_of_batch)
        self._snapshot = jax.jit(naqopt.snapshot)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch; of overlapping ones there are as many as parts."""
        if self.optimizer.parts == 1:
            return self.problem.steps_per_epoch
        return len(self._train[0]) // self._part_size

    @property
    def _part_size(self) -> int:
        return self.problem.batch_size // self.optimizer.parts

    def for_epochs(self, epochs: int) -> "Trainer":
        """Returns a trainer for runs of this length: itself, unless the step size ends."""
        if epochs == self.epochs or not self.optimizer.ends:
            return self
        if epochs not in self._others:
            self._others[epochs] = Trainer(self.problem, self.optimizer, epochs)
        return self._others[epochs]

    def start(self, seed: int, learning_rate: float | None) -> Progress:
        """Returns fresh parameters, statistics and state."""
        params, statistics = self.problem.start(seed)
        state = self._transformation(learning_rate).init(params)
        # Optax's L-BFGS begins with one array in two places, which an epoch cannot consume.
        return Progress(params, statistics, jax.tree.map(jnp.copy, state))

    def advance(self, progress: Progress, seed: int, learning_rate: float | None) -> None:
        """Trains for one epoch; `seconds` grows by its running time, compilation excluded."""
        rows = jax.block_until_ready(self._rows(seed, progress.epoch))
        rate = None if learning_rate is None else jnp.asarray(learning_rate, jnp.float32)
        batches = list(rows) if self.problem.stepwise else [rows]
        if self._train_on is None:
            started = time.perf_counter()
            train_on = self._step if self.problem.stepwise else self._epoch
            carry = progress.params, progress.statistics, progress.state
            compiled = jax.jit(train_on, donate_argnums=0)
            self._train_on = compiled.lower(carry, batches[0], rate, self._train).compile()
            self._with_snapshot(progress)
            self.compile_seconds = time.perf_counter() - started
        started = time.perf_counter()
        carry = progress.params, progress.statistics, self._with_snapshot(progress)
        for batch in batches:
            carry = self._train_on(carry, batch, rate, self._train)
        carry = jax.block_until_ready(carry)
        progress.params, progress.statistics, progress.state = carry
        progress.seconds += time.perf_counter() - started
        progress.epoch += 1

    def evaluate(self, progress: Progress) -> dict[str, float]:
        """Returns losses and accuracy at the iterate.

        A look-ahead method collects its running averages at the look-ahead point. Averages taken
        anew at the iterate over all training batches change the test loss of oLNAQ on `mnist-mlp`
        after 5 epochs from 0.0733 to 0.0730, and Adam's from 0.0681 to 0.0663: the lag of the
        average weighs no less than the look-ahead, so every method keeps its own.
        """
        iterate = naqopt.eval_params(progress.state, progress.params)
        train = tuple(x[: self.problem.evaluated] for x in self._train)
        train_loss, train_accuracy = self._evaluate(iterate, progress.statistics, train)
        test_loss, test_accuracy = self._evaluate(iterate, progress.statistics, self._test)
        numbers = {"train_loss": train_loss, "test_loss": test_loss}
        if self.problem.target_scale is not None:
            numbers["test_error"] = self.problem.target_scale * jnp.sqrt(test_loss)
        if self.problem.hits is not None:
            numbers |= {"train_accuracy": train_accuracy, "test_accuracy": test_accuracy}
        return {name: float(value) for name, value in numbers.items()}

    def diagnostics(self, progress: Progress) -> dict[str, float]:
        """Returns what `naqopt.diagnostics` says of the state; nothing of a peer's."""
        if not self.optimizer.ours:
            return {}
        return {name: x.item() for name, x in naqopt.diagnostics(progress.state).items()}

    def gradient_evaluations(self, epoch: int) -> dict[str, int]:
        """Returns how many gradients that many epochs take: of mini-batches and of examples.

        A full gradient counts as those of as many mini-batches as it takes.
        """
        batch_size = self._part_size * self.optimizer.parts
        batches = self.steps_per_epoch * self.optimizer.gradients_per_step
        examples = batches * batch_size
        if self.optimizer.takes_snapshots:
            batches += math.ceil(len(self._train[0]) / batch_size)
            examples += len(self._train[0])
        return {"gradient_evaluations": epoch * batches, "example_gradients": epoch * examples}

    def _rows(self, seed: int, epoch: int) -> jax.Array:
        """Returns the examples of an epoch's batches."""
        key = jax.random.key(seed)
        keys = [jax.random.fold_in(key, epoch)]
        if self.optimizer.parts > 1:  # they go on from those of the epoch before
            keys.append(jax.random.fold_in(key, epoch - 1) if epoch else None)
        return self._order(*keys)

    def _with_snapshot(self, progress: Progress) -> Any:
        """Returns the state, of a variance-reduced method with the snapshot of now."""
        if not self.optimizer.takes_snapshots:
            return progress.state
        batches = (
            tuple(x[start : start + _FULL_GRADIENT_BATCH] for x in self._train)
            for start in range(0, len(self._train[0]), _FULL_GRADIENT_BATCH)
        )
        iterate = naqopt.eval_params(progress.state, progress.params)
        full_grad = naqopt.full_gradient(self.problem.loss, iterate, batches)
        return self._snapshot(progress.state, progress.params, full_grad)

    def _transformation(
        self, learning_rate: float | jax.Array | None
    ) -> optax.GradientTransformationExtraArgs:
        steps = self.steps_per_epoch
        tx = self.optimizer.transformation(learning_rate, steps, self.epochs)
        return naqopt.flatten(tx) if self._flattens else tx

    def _epoch(
        self, carry: _Carry, rows: jax.Array, learning_rate: jax.Array | None, train: Examples
    ) -> _Carry:
        """Takes a step for every batch."""

        def step(carry: _Carry, rows: jax.Array) -> tuple[_Carry, None]:
            return self._step(carry, rows, learning_rate, train), None

        return jax.lax.scan(step, carry, rows)[0]

    def _step(
        self, carry: _Carry, rows: jax.Array, learning_rate: jax.Array | None, train: Examples
    ) -> _Carry:
        """Takes a step on the batch of these examples."""
        params, statistics, state = carry

        def examples(rows: jax.Array) -> Examples:
            return tuple(x[rows] for x in train)

        def loss(params: Params, batch: Examples) -> tuple[jax.Array, Statistics]:
            return self.problem.training_loss(params, statistics, batch)

        # The running statistics move by this evaluation alone; those of the optimizer's own
        # evaluations are dropped.
        gradient = jax.value_and_grad(loss, has_aux=True)
        closures: dict[str, Any]
        if self.optimizer.parts == 1:
            batch = examples(rows)
            (value, moved), grads = gradient(params, batch)
            closures = {"value_fn": lambda p: loss(p, batch)[0]}
        else:
            found = [gradient(params, examples(part)) for part in rows]
            (value, moved), grads = jax.tree.map(lambda *x: sum(x) / len(x), *found)
            closures = {"part_grads": tuple(part for _, part in found)}
        if self.optimizer.monitored:
            monitoring = tuple(x[: self.problem.batch_size] for x in train)
            closures["monitor_fn"] = lambda p: self.problem.training_loss(
                p, statistics, monitoring
            )[0]
        updates, state = self._transformation(learning_rate).update(
            grads, state, params, value=value, grad=grads, **closures
        )
        return optax.apply_updates(params, updates), moved, state

    def _evaluate(
        self, params: Params, statistics: Statistics, examples: Examples
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the mean loss and accuracy over all examples, in batches."""
        count = len(examples[0])
        batches = (
            tuple(x[start : start + _EVALUATION_BATCH] for x in examples)
            for start in range(0, count, _EVALUATION_BATCH)
        )
        parts = [self._sums(params, statistics, batch) for batch in batches]
        losses, hits = (sum(part) for part in zip(*parts, strict=True))
        return losses / count, hits / count

    def _sums_of_batch(
        self, params: Params, statistics: Statistics, batch: Examples
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the sum of losses and of right answers over a batch."""
        problem = self.problem
        outputs = problem.outputs(params, statistics, batch[0])
        hits = jnp.zeros(()) if problem.hits is None else problem.hits(outputs, batch[1]).sum()
        return problem.losses(outputs, batch[1]).sum(), hits
