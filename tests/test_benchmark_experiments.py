"""Every experiment that trains by the common loop, on stand-ins for its data."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from benchmarks.data import Dataset, labelled_images, measurements, sequences
from benchmarks.studies import STUDIES
from benchmarks.training import runs
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.mini_batches import Trainer
from benchmarks.training.optimizers import OPTIMIZERS
from benchmarks.training.runs import Run

# The quick compiler makes NaN of Adam on a network with batch normalization.
pytestmark = pytest.mark.default_compiler


def small_data(monkeypatch):
    """Stands in for data that would have to be fetched."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (8, 28, 28), dtype=np.uint8)
    labels = draw.integers(0, 10, 8, dtype=np.int32)
    monkeypatch.setattr(
        labelled_images, "load_mnist", lambda: Dataset(images, labels, images[:4], labels[:4])
    )
    colours = draw.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(
        labelled_images, "load_cifar10", lambda: Dataset(colours, labels, colours[:4], labels[:4])
    )
    for name, columns in {"load_wine": 11, "load_casp": 9}.items():
        table = draw.normal(size=(12, columns + 1)).astype(np.float32)
        rows = Dataset(table[:8, :-1], table[:8, -1:], table[8:, :-1], table[8:, -1:])
        monkeypatch.setattr(measurements, name, lambda rows=rows: rows)
    codes = draw.integers(0, 7, 500_001 + 50_001, dtype=np.int32)
    text = sequences.Text(codes[:500_001], codes[500_001:], "abcdefg")
    monkeypatch.setattr(sequences, "load_shakespeare", lambda: text)


BY_BATCHES = {n: study for n, study in STUDIES.items() if isinstance(study, MiniBatchStudy)}
# Variations of others, or networks that are mostly compiling.
SLOW = [name for name in BY_BATCHES if "-batch-" in name or name.endswith("-momentum")]
SLOW += ["digits-normalize", "mnist-cnn-normal", "mnist-lsr1-choices"]
SLOW += ["mnist-pixels-14-small", "mnist-pixels-14-glorot", "mnist-pixels-14-identity"]
SLOW += ["digits-variants", "mnist-mlp", "mnist-lenet", "char-lstm", "casp-16"]
SLOW += ["mnist-lsr1", "cifar-lsr1", "cifar-lsr1-bn", "cifar-resnet20"]
SLOW += ["mnist-cnn", "mnist-svr-cnn", "cifar-svr-cnn", "wine-32-equal", "casp-64-equal"]


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        pytest.param(name, False, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in BY_BATCHES
        if name != "counting-variants"
    ]
    + [("mnist-pixels", True), ("char-rnn", True)],
)
def test_every_experiment_trains(name, quick, monkeypatch, tmp_path):
    small_data(monkeypatch)
    monkeypatch.setattr(runs, "CHECKPOINTS", tmp_path / "checkpoints")
    task = BY_BATCHES[name].build(quick)
    json.dumps(task.settings)
    task = dataclasses.replace(
        task,
        batch_size=4,
        train=tuple(x[:8] for x in task.train),
        test=tuple(x[:4] for x in task.test),
    )
    trainer = Trainer(task, OPTIMIZERS["adam"])
    run = Run({"name": name}, "adam", {}, 0.01, 0, 1)
    content = runs.train(run, trainer, tmp_path / "run.json", task.title)
    assert content["status"] == "finished"
    columns = content["records"]
    assert columns["gradient_evaluations"] == [0, 2]
    assert columns["train_loss"][0] != columns["train_loss"][1]
    assert ("test_accuracy" in columns) != name.startswith(("counting", "wine", "casp"))
    assert BY_BATCHES[name].summary.endswith(".")


@pytest.mark.parametrize(("name", "informed"), [("mnist-rows", True), ("mnist-pixels", False)])
def test_what_the_first_gradient_knows_of_the_images(name, informed):
    """By pixels it is the same, to float32's rounding, when the images change places.

    The recurrent matrix of N(0, 0.01²) has spectral radius 0.1, and the last rows are blank: after
    784 steps nothing of the digit is left in the last state.
    """
    task = BY_BATCHES[name].build(False)
    params = task.params(0)
    inputs, targets = (x[:200] for x in task.train)

    def gradient(inputs):
        return jax.grad(task.loss)(params, (inputs, targets))

    straight, shuffled = jax.jit(gradient)(inputs), jax.jit(gradient)(inputs[::-1])
    moved = optax.tree.norm(optax.tree.sub(straight, shuffled))
    assert (moved > 1e-3 * optax.tree.norm(straight)) == informed
    assert (moved < 1e-7 * optax.tree.norm(straight)) != informed
