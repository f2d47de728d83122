"""The experiments of the paper on SVR-NAQ: networks, snapshots, what is counted and shown."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import naqopt
from benchmarks.models import perceptron
from benchmarks.reports import plots, tables
from benchmarks.studies import STUDIES, classifiers, regression
from benchmarks.training import problem
from benchmarks.training.mini_batches import Trainer
from benchmarks.training.optimizers import OPTIMIZERS
from benchmarks.training.problem import Problem

SNAPSHOTS = [name for name, row in OPTIMIZERS.items() if row.takes_snapshots]


def small_problem(**changes) -> Problem:
    """A regression of 43 points, which no batch of 8 divides."""
    draw = np.random.default_rng(0)
    inputs = jnp.asarray(draw.normal(size=(43, 3)), jnp.float32)
    targets = jnp.sin(inputs.sum(1, keepdims=True))
    model = functools.partial(
        perceptron.MLP,
        (3, 4, 1),
        activation=nnx.sigmoid,
        initializer=perceptron.symmetric_uniform(0.5),
    )
    options = {
        "title": "tiny",
        "settings": {"unit": "metres", "batch_size": 8},
        "model": model,
        "train": (inputs, targets),
        "test": (inputs[:9], targets[:9]),
        "batch_size": 8,
        "losses": problem.squared_errors,
        "target_scale": 2.5,
    }
    return Problem(**(options | changes))


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (functools.partial(regression.build_wine, batch_size=8), 169),
        (functools.partial(regression.build_casp, batch_size=16), 173),
        (classifiers.build_mnist_svr_cnn, 6_028),
        pytest.param(classifiers.build_cifar_svr_cnn, 13_170, marks=pytest.mark.slow),
    ],
)
def test_networks_have_the_papers_sizes_and_start(build, count):
    task = build(False)
    params, statistics = task.start(0)
    assert optax.tree.size(params) == count
    for leaf in jax.tree.leaves(params):
        assert np.max(np.abs(leaf)) <= 0.5
    everything = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert np.std(everything) == pytest.approx(1 / np.sqrt(12), rel=0.15)
    assert abs(np.mean(everything)) < 0.1
    outputs = task.outputs(params, statistics, task.test[0][:2])
    assert outputs.shape == (2, 10 if task.hits else 1)


def test_regressions_have_the_papers_sets_in_standard_units():
    for name, sizes in {"wine-8": (3_918, 980), "casp-64": (36_584, 9_146)}.items():
        task = STUDIES[name].build(False)
        assert (len(task.train[0]), len(task.test[0])) == sizes
        assert task.batch_size == int(name.partition("-")[2])
        for values in task.train:
            np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)
            np.testing.assert_allclose(values.std(0), 1, rtol=1e-3)
        assert task.evaluated == len(task.train[0])


# With another μ it is the same loop.
IN_CI = ("svrg", "svrg2", "svr-naq", "svr-lnaq")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in IN_CI else pytest.mark.slow) for x in SNAPSHOTS]
)
def test_every_epoch_begins_with_a_snapshot_of_all_examples(name):
    task = small_problem()
    trainer = Trainer(task, OPTIMIZERS[name])
    progress = trainer.start(0, 0.1)
    for epoch in range(3):
        iterate = jax.tree.map(np.array, naqopt.eval_params(progress.state, progress.params))
        trainer.advance(progress, 0, 0.1)
        state = progress.state
        assert state.snapshots == epoch + 1
        expected = jax.grad(task.loss)(iterate, task.train)
        for found, wanted in [(state.snapshot_params, iterate), (state.full_grad, expected)]:
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert state.info.steps_without_snapshot == 0
    assert state.count == 3 * 5


def test_gradients_are_counted_with_those_of_the_snapshots():
    counts = {}
    for name in ("adam", "olnaq-80", "svr-lnaq"):
        counts[name] = Trainer(small_problem(), OPTIMIZERS[name]).gradient_evaluations(2)
    # 5 batches of 8 an epoch; 43 examples in the full gradient, which takes 6 batches.
    assert counts["adam"] == {"gradient_evaluations": 10, "example_gradients": 80}
    assert counts["olnaq-80"] == {"gradient_evaluations": 20, "example_gradients": 160}
    assert counts["svr-lnaq"] == {"gradient_evaluations": 32, "example_gradients": 246}


def test_the_test_error_is_in_the_unit_of_the_data():
    task = small_problem()
    trainer = Trainer(task, OPTIMIZERS["adam"])
    progress = trainer.start(0, 0.1)
    numbers = trainer.evaluate(progress)
    outputs = task.outputs(progress.params, {}, task.test[0])
    expected = np.sqrt(np.mean(np.square(2.5 * (outputs - task.test[1]))))
    assert numbers["test_error"] == pytest.approx(expected, rel=1e-5)
    plain = Trainer(dataclasses.replace(task, target_scale=None), OPTIMIZERS["adam"])
    assert "test_error" not in plain.evaluate(progress)


def run_of(optimizer, losses, per_epoch, seed=0):
    """What tables and plots read of a run."""
    epochs = list(range(len(losses)))
    return {
        "status": "finished",
        "settings": {
            "experiment": {"unit": "metres"},
            "optimizer": optimizer,
            "learning_rate": 0.1,
            "seed": seed,
            "epochs": epochs[-1],
        },
        "records": {
            "epoch": epochs,
            "train_loss": losses,
            "test_loss": losses,
            "test_error": [2 * loss for loss in losses],
            "gradient_evaluations": [per_epoch * epoch // 8 for epoch in epochs],
            "example_gradients": [per_epoch * epoch for epoch in epochs],
            "seconds": [0.5 * epoch for epoch in epochs],
        },
    }


def test_the_table_compares_at_equal_gradients_and_names_the_unit():
    dear = run_of("svr-lnaq", [4.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.125], 240)
    cheap = run_of("adam", [4.0, 2.5, 1.5, 0.9, 0.8, 0.7, 0.6], 80)
    header, _, first, second = tables.results([dear, cheap]).splitlines()
    assert "train loss at 480 examples' gradients" in header
    assert "test error (metres), median [min, max]" in header

    def cell(line, title):
        titles = [text.strip() for text in header.split("|")]
        (column,) = [i for i, text in enumerate(titles) if text.startswith(title)]
        return line.split("|")[column].strip()

    assert cell(first, "optimizer") == "Adam"
    assert cell(first, "train loss at") == "0.6"
    assert cell(second, "train loss at") == "2"
    assert cell(second, "test error") == "0.25"
    # Where all take as many there is nothing to add.
    assert "train loss at" not in tables.results([cheap])


def test_the_plot_counts_examples_where_all_runs_do(tmp_path, monkeypatch):
    labels = []
    save = plots.plt.Figure.savefig

    def look(figure, *arguments, **options):
        labels.append({axis.get_xlabel() for axis in figure.axes})
        labels.append({axis.get_ylabel() for axis in figure.axes} - {""})
        save(figure, *arguments, **options)

    monkeypatch.setattr(plots.plt.Figure, "savefig", look)
    runs = [run_of("adam", [4.0, 2.0], 80), run_of("svr-naq", [4.0, 1.0], 240)]
    plots.curves(runs, "a title", tmp_path / "a.png")
    assert "gradients of single examples" in labels[0]
    assert "test error (metres)" in labels[1]
    del runs[0]["records"]["example_gradients"]
    plots.curves(runs, "a title", tmp_path / "b.png")
    assert "mini-batch gradients" in labels[2]
