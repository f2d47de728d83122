"""One compiled training loop for every optimizer.

An epoch is a `lax.scan` over batches with data, parameters, running statistics and state on the
device. The order of the examples in epoch e is a permutation drawn from the run's seed and e alone,
so every optimizer sees the same batches and a run can go on from any epoch. A variance-reduced
method gets its snapshot, with the gradient over all training examples, before each epoch. Examples
that do not fill the last batch are left out of that epoch. The learning rate is an argument of the
compiled epoch, so that a grid of rates and several seeds compile once.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import naqopt
from benchmarks.optimizers import Optimizer
from benchmarks.problem import Examples, Params, Problem, Statistics

_EVALUATION_BATCH = 500
_FULL_GRADIENT_BATCH = 2_000
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
      compile_seconds: tracing and compiling the epoch, None before the first.
    """

    def __init__(self, problem: Problem, optimizer: Optimizer):
        self.problem = problem
        self.optimizer = optimizer
        self.compile_seconds: float | None = None
        self._train = jax.device_put(problem.train)
        self._test = jax.device_put(problem.test)
        self._epoch: Any = None
        self._evaluate = jax.jit(self._evaluate_one)
        self._snapshot = jax.jit(naqopt.snapshot)

    def start(self, seed: int, learning_rate: float) -> Progress:
        """Returns fresh parameters, statistics and state."""
        params, statistics = self.problem.start(seed)
        state = self._transformation(learning_rate).init(params)
        # Optax's L-BFGS begins with one array in two places, which an epoch cannot consume.
        return Progress(params, statistics, jax.tree.map(jnp.copy, state))

    def advance(self, progress: Progress, seed: int, learning_rate: float) -> None:
        """Trains for one epoch; `seconds` grows by its running time, compilation excluded."""
        key = jax.random.fold_in(jax.random.key(seed), progress.epoch)
        rate = jnp.asarray(learning_rate, jnp.float32)

        def arguments(state: Any) -> tuple[Any, ...]:
            return progress.params, progress.statistics, state, key, rate, self._train

        if self._epoch is None:
            started = time.perf_counter()
            epoch = jax.jit(self._run_epoch, donate_argnums=(0, 1, 2))
            self._epoch = epoch.lower(*arguments(progress.state)).compile()
            self._with_snapshot(progress)
            self.compile_seconds = time.perf_counter() - started
        started = time.perf_counter()
        state = self._with_snapshot(progress)
        numbers = jax.block_until_ready(self._epoch(*arguments(state)))
        progress.params, progress.statistics, progress.state = numbers
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
        train_loss, _ = self._evaluate(iterate, progress.statistics, train)
        test_loss, test_accuracy = self._evaluate(iterate, progress.statistics, self._test)
        numbers = {"train_loss": train_loss, "test_loss": test_loss}
        if self.problem.target_scale is not None:
            numbers["test_error"] = self.problem.target_scale * jnp.sqrt(test_loss)
        if self.problem.hits is not None:
            numbers["test_accuracy"] = test_accuracy
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
        batch_size, gradients = self.problem.batch_size, self.optimizer.gradients_per_step
        batches = self.problem.steps_per_epoch * gradients
        examples = batches * batch_size
        if self.optimizer.takes_snapshots:
            batches += math.ceil(len(self._train[0]) / batch_size)
            examples += len(self._train[0])
        return {"gradient_evaluations": epoch * batches, "example_gradients": epoch * examples}

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
        self, learning_rate: float | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        return self.optimizer.transformation(learning_rate, self.problem.steps_per_epoch)

    def _run_epoch(
        self,
        params: Params,
        statistics: Statistics,
        state: Any,
        key: jax.Array,
        learning_rate: jax.Array,
        train: Examples,
    ) -> _Carry:
        problem = self.problem
        tx = self._transformation(learning_rate)
        order = jax.random.permutation(key, len(train[0]))
        order = order[: problem.steps_per_epoch * problem.batch_size]

        def step(carry: _Carry, rows: jax.Array) -> tuple[_Carry, None]:
            params, statistics, state = carry
            batch = tuple(x[rows] for x in train)

            def loss(params: Params) -> tuple[jax.Array, Statistics]:
                return problem.training_loss(params, statistics, batch)

            # The running statistics move by this evaluation alone; those of the optimizer's own
            # evaluations are dropped.
            (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, state = tx.update(
                grads, state, params, value=value, grad=grads, value_fn=lambda p: loss(p)[0]
            )
            return (optax.apply_updates(params, updates), moved, state), None

        rows = order.reshape(-1, problem.batch_size)
        return jax.lax.scan(step, (params, statistics, state), rows)[0]

    def _evaluate_one(
        self, params: Params, statistics: Statistics, examples: Examples
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the mean loss and accuracy over all examples, in batches."""
        problem = self.problem

        def sums(batch: Examples) -> tuple[jax.Array, jax.Array]:
            outputs = problem.outputs(params, statistics, batch[0])
            hits = jnp.zeros(()) if problem.hits is None else problem.hits(outputs, batch[1]).sum()
            return problem.losses(outputs, batch[1]).sum(), hits

        count = len(examples[0])
        size = min(count, _EVALUATION_BATCH)
        whole = count // size * size
        batches = tuple(x[:whole].reshape(-1, size, *x.shape[1:]) for x in examples)
        totals = [total.sum() for total in jax.lax.map(sums, batches)]
        if whole < count:
            rest = sums(tuple(x[whole:] for x in examples))
            totals = [total + part for total, part in zip(totals, rest, strict=True)]
        return totals[0] / count, totals[1] / count
