"""The experiments with L-SR1 and SR1-N: their networks, their trainer and their columns."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from flax import nnx

import naqopt
from benchmarks.cli import main
from benchmarks.models import convolutional, perceptron
from benchmarks.reports import tables
from benchmarks.studies import STUDIES, lenets
from benchmarks.training import problem, runs
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.mini_batches import Trainer
from benchmarks.training.optimizers import OPTIMIZERS
from benchmarks.training.problem import Problem


def tiny_problem(quick=False, **changes):
    """Three classes of random inputs and a network that normalizes."""
    del quick
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(48, 4)).astype(np.float32)
    targets = jnp.asarray(inputs @ rng.normal(size=(4, 3))).argmax(1)
    options = {
        "title": "tiny",
        "settings": {"batch_size": 12},
        "model": functools.partial(perceptron.MLP, (4, 5, 3), batch_norm=True),
        "train": (jnp.asarray(inputs), targets),
        "test": (jnp.asarray(inputs[:20]), targets[:20]),
        "batch_size": 12,
        "losses": problem.cross_entropies,
        "hits": problem.accuracies,
    }
    return Problem(**(options | changes))


def small_lenet(batch_norm, **changes):
    options = {
        "padding": 0,
        "deviation": 0.1,
        "hidden_init": nnx.initializers.lecun_normal(),
        "activation": jnp.tanh,
        "batch_norm": batch_norm,
    }
    return convolutional.LeNet(16, (1, 2, 3), 4, rngs=nnx.Rngs(0), **(options | changes))


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lenets.build_mnist, 431_080),
        (functools.partial(lenets.build_mnist, batch_norm=True), 431_080 + 2 * (20 + 50 + 500)),
        (lenets.build_cifar, 145_578),
        # He et al.'s 0.27 million: convolutions, 19 normalizations and the outputs.
        (lenets.build_resnet, 269_722),
    ],
)
def test_networks_have_the_papers_sizes(build, count):
    task = build(True)
    shapes = nnx.split(nnx.eval_shape(lambda: task.model(rngs=nnx.Rngs(0))), nnx.Param, ...)[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_weights_are_drawn_as_the_paper_says():
    network = small_lenet(False, deviation=0.01)
    kernels = [np.ravel(layer.kernel[...]) for layer in network.convolutions]
    assert np.std(np.concatenate(kernels)) == pytest.approx(0.01, rel=0.2)
    assert np.std(network.output.kernel[...]) == pytest.approx(0.1, rel=0.3)
    for layer in (*network.convolutions, network.hidden, network.output):
        np.testing.assert_array_equal(layer.bias[...], 0)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_lenet_is_its_layers(batch_norm):
    """Convolution, ReLU, normalization by the batch, the greatest of 2×2; by plain loops."""
    network = small_lenet(batch_norm)
    images = np.random.default_rng(1).normal(size=(5, 16, 16, 1)).astype(np.float32)

    def normalized(values):
        if not batch_norm:
            return values
        axes = tuple(range(values.ndim - 1))
        return (values - values.mean(axes)) / np.sqrt(values.var(axes) + 1e-5)

    values = images
    for layer in network.convolutions:
        kernel = np.asarray(layer.kernel[...])
        size = values.shape[1] - 4
        out = np.zeros((5, size, size, kernel.shape[-1]))
        for i in range(size):
            for j in range(size):
                out[:, i, j] = np.einsum("bijc,ijco->bo", values[:, i : i + 5, j : j + 5], kernel)
        out = normalized(np.maximum(out, 0))
        values = np.array(
            [
                [out[:, i : i + 2, j : j + 2].max((1, 2)) for j in range(0, size, 2)]
                for i in range(0, size, 2)
            ]
        ).transpose(2, 0, 1, 3)
    hidden = np.tanh(values.reshape(5, -1) @ network.hidden.kernel[...])
    expected = normalized(hidden) @ network.output.kernel[...]
    np.testing.assert_allclose(network(jnp.asarray(images)), expected, rtol=1e-4, atol=1e-5)


def test_residual_block_adds_its_input():
    """With convolutions of zero only the shortcut is left: halved, and filled up with zeros."""
    images = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    for outputs, expected in (
        (3, images),
        (6, jnp.pad(images[:, ::2, ::2], [(0, 0)] * 3 + [(0, 3)])),
    ):
        block = convolutional.ResidualBlock(3, outputs, rngs=nnx.Rngs(0))
        block.second.kernel[...] = jnp.zeros_like(block.second.kernel[...])
        np.testing.assert_allclose(block(images), nnx.relu(expected), rtol=1e-6)
        block.second.kernel[...] = jnp.ones_like(block.second.kernel[...])
        assert not np.allclose(block(images), nnx.relu(expected))


def test_steps_one_by_one_are_those_of_the_compiled_epoch():
    rate, ends = 0.01, []
    for stepwise in (False, True):
        trainer = Trainer(tiny_problem(stepwise=stepwise), OPTIMIZERS["adam"])
        progress = trainer.start(0, rate)
        for _ in range(3):
            trainer.advance(progress, 0, rate)
        ends.append((progress.params, progress.statistics))
        assert trainer.compile_seconds > 0
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *ends)
    start = trainer.start(0, rate).params
    assert not np.allclose(ends[0][0]["layers"][0]["kernel"], start["layers"][0]["kernel"])


def test_weight_decay_is_trained_on_and_not_reported():
    plain, decayed = tiny_problem(), tiny_problem(weight_decay=0.1)
    params, statistics = plain.start(0)
    squares = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(params))
    batch = tuple(x[:12] for x in plain.train)
    losses = [task.training_loss(params, statistics, batch)[0] for task in (plain, decayed)]
    assert losses[1] - losses[0] == pytest.approx(0.05 * squares, rel=1e-4)
    trainers = [Trainer(task, OPTIMIZERS["adam"]) for task in (plain, decayed)]
    reported = [trainer.evaluate(trainer.start(0, 0.01)) for trainer in trainers]
    assert reported[0] == reported[1]


def test_a_method_without_a_rate_beside_one_of_other_batches(tmp_path, monkeypatch):
    """No grid is searched for it; the others' batches, targets and skipped pairs have columns."""
    monkeypatch.setattr(runs, "CHECKPOINTS", tmp_path / "checkpoints")
    experiment = MiniBatchStudy(
        "tiny",
        tiny_problem,
        epochs=2,
        quick_epochs=2,
        seeds=1,
        optimizers=("lsr1", "adam"),
        batch_sizes={"adam": 6},
        target_errors=(1.0, 0.0),
    )
    monkeypatch.setitem(STUDIES, "tiny", experiment)
    result = CliRunner().invoke(main, ["run", "tiny", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "tiny"
    ours, peer = (json.loads((folder / f"{x}-seed0.json").read_text()) for x in ("lsr1", "adam"))
    assert ours["settings"]["learning_rate"] is None
    assert ours["records"]["gradient_evaluations"] == [0, 8, 16]
    assert peer["settings"]["options"] == {"batch_size": 6}
    assert peer["records"]["gradient_evaluations"] == [0, 8, 16]
    assert [path.name for path in folder.glob("*-learning-rates.json")] == [
        "adam-learning-rates.json"
    ]
    header, _, *lines = (folder / "results.md").read_text().split("\n\n")[2].splitlines()
    rows = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0]] = dict(
            zip([x.strip() for x in header.strip("|").split("|")], cells, strict=True)
        )
    assert rows["L-SR1"]["learning rate"] == "none"
    assert (rows["L-SR1"]["batch"], rows["Adam"]["batch"]) == ("12", "6")
    assert rows["L-SR1"]["epochs to test error 100% / 0%"].startswith("0 / ")
    assert rows["L-SR1"]["updates skipped"].endswith("%")
    assert rows["L-SR1"]["steps rejected"].isdigit()
    assert rows["Adam"]["updates skipped"] == rows["Adam"]["steps rejected"] == ""


def test_columns_of_targets_and_skipped_updates():
    def content(accuracies, stored, refused):
        count = len(accuracies)
        columns = {
            "epoch": list(range(count)),
            "train_loss": [1.0] * count,
            "test_loss": [1.0] * count,
            "test_accuracy": accuracies,
            "gradient_evaluations": [10 * k for k in range(count)],
            "seconds": [float(k) for k in range(count)],
            "pairs_stored": [0] * (count - 1) + [stored],
            "pairs_refused": [0] * (count - 1) + [refused],
            "steps_rejected": [0] * (count - 1) + [3],
            "radius": [1.0] * count,
        }
        settings = {"optimizer": "lsr1", "learning_rate": None, "seed": 0, "epochs": count - 1}
        return {"status": "finished", "settings": settings, "records": columns}

    line = tables.results(
        [content([0.1, 0.6, 0.8, 0.7, 0.9], 30, 10)], target_errors=(0.4, 0.2, 0.05)
    ).splitlines()[-1]
    assert " 1 / 2 / – " in line
    assert " 25.00% " in line
    assert line.endswith(" 3 |")


def test_sr1n_is_the_authors_for_mini_batches():
    tx = OPTIMIZERS["sr1n"].transformation(None)
    state = tx.init({"a": jnp.zeros(3)})
    assert state.curvature.s["a"].shape == (8, 3)
    assert OPTIMIZERS["sr1n"].options["max_momentum"] == 0.9


def test_the_forgetful_peer_begins_anew_every_five_steps():
    """The pair of the step before is formed after it has forgotten."""
    tx = OPTIMIZERS["lbfgs-forgetting"].transformation(None)
    scales = jnp.arange(1.0, 9.0)

    def loss(params):
        return jnp.sum(scales * jnp.cosh(params - 1))

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state

    params, state, sizes = jnp.zeros(8), tx.init(jnp.zeros(8)), []
    for _ in range(12):
        params, state = step(params, state)
        sizes.append(int(naqopt.diagnostics(state)["pairs_in_memory"]))
    assert sizes == [0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 1, 2]
