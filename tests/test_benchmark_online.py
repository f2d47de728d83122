"""The online methods' experiments: batch normalization, the networks, the schedules, the rates."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from flax import nnx
from small_problems import normalized_problem

import naqopt
from benchmarks.cli import main
from benchmarks.models import convolutional
from benchmarks.reports import records, tables
from benchmarks.studies import STUDIES, classifiers, logistic
from benchmarks.training import mini_batch_study, problem, runs
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.mini_batches import Trainer
from benchmarks.training.optimizers import OPTIMIZERS


def equal(tree, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, tree, other))


@pytest.mark.parametrize("name", ["adam", "onaq", "olmoq", "asnaq"])
def test_statistics_move_once_a_step_at_the_params(name):
    """By the caller's evaluation alone, however often the optimizer evaluates the loss itself."""
    task = normalized_problem(steps=1)
    trainer = Trainer(task, OPTIMIZERS[name])
    progress = trainer.start(0, 0.1)
    for epoch in range(3):
        params, statistics = jax.tree.map(np.array, (progress.params, progress.statistics))
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(0), epoch), 40)
        batch = tuple(x[order[:8]] for x in task.train)
        hidden = nnx.merge(task.graph, params, statistics, copy=True).layers[0](batch[0])
        trainer.advance(progress, 0, 0.1)
        after = progress.statistics["norms"][0]
        before = statistics["norms"][0]
        expected = 0.9 * before["mean"] + 0.1 * hidden.mean(0)
        np.testing.assert_allclose(after["mean"], expected, rtol=1e-5, atol=1e-6)
        expected = 0.9 * before["var"] + 0.1 * hidden.var(0)
        np.testing.assert_allclose(after["var"], expected, rtol=1e-4)
        assert not equal(params, progress.params)


def test_flax_optimizer_moves_statistics_once():
    """The README's step, with Flax's own optimizer."""
    task = normalized_problem()
    model = task.model(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, naqopt.onaq(), wrt=nnx.Param)

    def loss_fn(model, batch):
        return task.losses(model(batch[0]), batch[1]).mean()

    @nnx.jit
    def step(model, optimizer, batch):
        graphdef, _, rest = nnx.split(model, nnx.Param, ...)

        def value_fn(params):  # a copy of the model, whose batch statistics end with it
            return loss_fn(nnx.merge(graphdef, params, rest, copy=True), batch)

        value, grads = nnx.value_and_grad(loss_fn)(model, batch)  # moves the running averages
        optimizer.update(model, grads, value=value, grad=grads, value_fn=value_fn)
        return value

    hidden = model.layers[0](task.train[0])
    step(model, optimizer, task.train)
    mean = model.norms[0].mean[...]
    np.testing.assert_allclose(mean, 0.1 * hidden.mean(0), rtol=1e-5, atol=1e-6)


def test_training_goes_by_the_batch_and_testing_by_the_averages():
    task = normalized_problem()
    params, statistics = task.start(0)
    others = jax.tree.map(lambda x: x + 1.0, statistics)
    loss, _ = task.training_loss(params, statistics, task.train)
    assert task.training_loss(params, others, task.train)[0] == loss
    outputs = task.outputs(params, statistics, task.train[0])
    assert not np.allclose(task.outputs(params, others, task.train[0]), outputs)
    # An example's answer does not depend on what else is in the batch.
    alone = task.outputs(params, statistics, task.train[0][:1])
    np.testing.assert_allclose(alone, outputs[:1], rtol=1e-5, atol=1e-6)

    trainer = Trainer(task, OPTIMIZERS["onaq"])
    progress = trainer.start(0, 1.0)
    trainer.advance(progress, 0, 1.0)
    iterate = naqopt.eval_params(progress.state, progress.params)
    network = nnx.merge(task.graph, iterate, progress.statistics, copy=True)
    network.eval()
    expected = task.losses(network(task.test[0]), task.test[1]).mean()
    np.testing.assert_allclose(trainer.evaluate(progress)["test_loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "onaq", "olmoq", "olmoq-multi"])
def test_interrupted_run_has_its_statistics_again(name, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", -1.0)
    run = runs.Run({}, name, {}, 0.1, 0, 4)
    trainer = Trainer(normalized_problem(), OPTIMIZERS[name])
    seen = []
    record = runs._record
    monkeypatch.setattr(
        runs,
        "_record",
        lambda trainer, progress: (
            seen.append(jax.tree.map(np.array, (progress.params, progress.statistics))),
            record(trainer, progress),
        )[1],
    )
    whole = runs.train(run, trainer, tmp_path / "whole.json", "tiny")
    final = seen[-1]
    advance = trainer.advance

    def fail(progress, *arguments):
        if progress.epoch == 2:
            raise KeyboardInterrupt
        advance(progress, *arguments)

    monkeypatch.setattr(trainer, "advance", fail)
    with pytest.raises(KeyboardInterrupt):
        runs.train(run, trainer, tmp_path / "broken.json", "tiny")
    monkeypatch.setattr(trainer, "advance", advance)
    lines = []
    resumed = runs.train(run, trainer, tmp_path / "broken.json", "tiny", lines.append)
    assert lines == [f"{tmp_path / 'broken.json'}: going on after epoch 2"]
    assert resumed["records"]["test_loss"] == whole["records"]["test_loss"]
    assert equal(seen[-1], final)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (classifiers.build_digits_mlp, 1_620 + 2 * (20 + 10)),
        (classifiers.build_mnist_mlp, 84_060 + 2 * (100 + 50)),
        (classifiers.build_mnist_cnn, 26_068),
        (classifiers.build_mnist_lenet, 61_706),
        (functools.partial(logistic.build, batch_size=16), 20),
    ],
)
def test_networks_have_the_papers_sizes(build, count):
    task = build(False)
    params, statistics = task.start(0)
    assert optax.tree.size(params) == count
    assert task.outputs(params, statistics, task.test[0][:2]).shape[0] == 2


@pytest.mark.parametrize(
    ("size", "padding", "channels", "outputs"), [(5, 2, 1, 3), (5, 0, 6, 16), (3, 0, 3, 5)]
)
@pytest.mark.parametrize("side", [14, 13])
def test_pooled_convolution_is_flax_s(size, padding, channels, outputs, side):
    layer = convolutional.PooledConvolution(channels, outputs, padding, size=size, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(outputs) / 10
    plain = nnx.Conv(channels, outputs, (size, size), padding=padding, rngs=nnx.Rngs(0))
    plain.kernel[...], plain.bias[...] = layer.kernel[...], layer.bias[...]
    images = jax.random.normal(jax.random.key(1), (3, side, side, channels))
    expected = nnx.max_pool(plain(images), (2, 2), strides=(2, 2))
    np.testing.assert_allclose(layer(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "step_sizes"),
    [
        ("olnaq", [0.3, 0.3 / math.sqrt(2), 0.3 / math.sqrt(3)]),
        ("olbfgs", [3 / 11, 3 / 12, 3 / 13]),
        ("olmoq-halved", [0.3, 0.3, 0.15]),
    ],
)
def test_schedules_begin_at_the_learning_rate(name, step_sizes):
    tx = OPTIMIZERS[name].transformation(jnp.float32(0.3), steps_per_epoch=2)

    def loss(params):
        return jnp.sum(jnp.square(params))

    params = jnp.ones(3)
    state = tx.init(params)
    for expected in step_sizes:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        params = optax.apply_updates(params, updates)
        assert naqopt.diagnostics(state)["step_size"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_size", [16, 64])
def test_optax_lbfgs_ends_above_its_start(batch_size):
    """On mini-batches of a logistic regression, in the median; the online methods go down."""
    task = logistic.build(True, batch_size)

    def final(name, rate, seeds=5):
        """Returns the median over seeds of the last training loss."""
        trainer = Trainer(task, OPTIMIZERS[name])
        losses = []
        for seed in range(seeds):
            progress = trainer.start(seed, rate)
            assert trainer.evaluate(progress)["train_loss"] == pytest.approx(math.log(2), rel=1e-6)
            for _ in range(60):
                trainer.advance(progress, seed, rate)
            losses.append(trainer.evaluate(progress)["train_loss"])
        gradients = 300 * trainer.optimizer.gradients_per_step
        counted = trainer.gradient_evaluations(60)
        assert counted["gradient_evaluations"] == gradients
        assert counted["example_gradients"] == gradients * trainer.problem.batch_size
        return np.median(losses)

    assert not final("lbfgs", 0.1) <= math.log(2)
    assert final("olnaq", 1.0, seeds=1) < 0.4
    assert final("omoq", 1.0, seeds=1) < 0.4


def test_printed_rate_and_figures_stand_beside_the_tuned(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(
        mini_batch_study,
        "_learning_rate",
        lambda run, *_: {"adam": 0.01, "sgd": 0.1}[run.optimizer],
    )
    for name in ("adam", "sgd"):
        row = dataclasses.replace(OPTIMIZERS[name], printed_rate=0.1)
        monkeypatch.setitem(OPTIMIZERS, name, row)
    experiment = MiniBatchStudy(
        "tiny",
        lambda quick: normalized_problem(hits=problem.accuracies),
        3,
        3,
        seeds=2,
        optimizers=("adam", "sgd"),
        published={"sgd": "97.9%"},
    )
    monkeypatch.setitem(STUDIES, "tiny", experiment)
    result = CliRunner().invoke(main, ["run", "tiny", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "tiny"
    rates = {
        path.name: json.loads(path.read_text())["settings"]["learning_rate"]
        for path in folder.glob("*-seed1.json")
    }
    assert rates["adam-seed1.json"] == 0.01
    assert rates["adam-printed-seed1.json"] == 0.1
    assert rates["sgd-seed1.json"] == 0.1
    assert "sgd-printed-seed1.json" not in rates
    assert result.output.count("adam: also with the printed rate, 0.1") == 1
    table = (folder / "results.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("| SGD")]
    assert "97.9%" in lines[0]
    assert all("97.9%" not in line for line in table.splitlines() if line.startswith("| Adam"))
    runs_of_adam = [records.read(folder / f"adam-seed{seed}.json") for seed in range(2)]
    assert "authors" not in tables.results(runs_of_adam)
