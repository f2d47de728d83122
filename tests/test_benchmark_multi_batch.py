"""The studies of multi-batch oLMoQ: batches that overlap, what they cost, what is recorded."""

import json

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from small_problems import normalized_problem

from benchmarks.cli import main
from benchmarks.studies import STUDIES
from benchmarks.training import runs
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.mini_batches import Trainer
from benchmarks.training.optimizers import OPTIMIZERS


def trainer_of(name="olmoq-multi"):
    """40 examples, batches of 9, which are three parts of 3."""
    return Trainer(normalized_problem(batch_size=9), OPTIMIZERS[name])


def test_batches_slide_on_from_epoch_to_epoch():
    trainer = trainer_of()
    assert trainer.steps_per_epoch == 13
    rows = np.concatenate([trainer._rows(5, epoch) for epoch in range(3)])
    assert rows.shape == (39, 3, 3)
    np.testing.assert_array_equal(rows[1:, 2], rows[:-1, 1])
    np.testing.assert_array_equal(rows[1:, 1], rows[:-1, 0])
    # The orders are those of the other methods.
    plain = np.concatenate([trainer_of("olmoq")._rows(5, epoch).ravel() for epoch in range(3)])
    np.testing.assert_array_equal(rows[:, 0].reshape(3, -1)[:, :36], plain.reshape(3, -1)[:, :36])


def test_the_statistics_move_by_the_mean_of_the_parts():
    trainer = trainer_of()
    task, progress = trainer.problem, trainer.start(0, 0.1)
    one_step = jax.jit(trainer._step)
    rows = trainer._rows(0, 0)[0]
    params, statistics, state = progress.params, progress.statistics, progress.state
    _, after, _ = one_step((params, statistics, state), rows, 0.1, task.train)
    layer = nnx.merge(task.graph, params, statistics, copy=True).layers[0]
    means, variances = (
        np.mean([f(layer(task.train[0][part])) for part in rows], axis=0)
        for f in (lambda x: np.mean(x, 0), lambda x: np.var(x, 0))
    )
    before = statistics["norms"][0]
    np.testing.assert_allclose(
        after["norms"][0]["mean"], 0.9 * before["mean"] + 0.1 * means, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        after["norms"][0]["var"], 0.9 * before["var"] + 0.1 * variances, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["mnist-mlp-multibatch", "mnist-lenet-multibatch"])
def test_methods_have_equal_numbers_of_gradients_of_examples(name):
    study = STUDIES[name]
    task = study.build(True)
    for epochs in (study.epochs, study.quick_epochs):
        spent = {}
        for optimizer in study.optimizers:
            row = OPTIMIZERS[optimizer]
            length = study.epochs_for(row.gradients_per_example, epochs)
            spent[optimizer] = Trainer(task, row).gradient_evaluations(length)
        examples = [counts["example_gradients"] for counts in spent.values()]
        # An epoch of few batches loses more of one that is not full.
        assert max(examples) < 1.04 * min(examples)
        # And as many steps as oLMoQ, of as many examples.
        steps = [spent[n]["gradient_evaluations"] for n in ("olmoq", "olmoq-multi")]
        assert max(steps) < 1.04 * min(steps)


def test_a_study_tells_the_share_of_refused_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHECKPOINTS", tmp_path / "checkpoints")
    names = ("olmoq-undamped", "olmoq-multi-undamped")
    study = MiniBatchStudy(
        "tiny",
        lambda quick: normalized_problem(batch_size=9),
        6,
        6,
        seeds=1,
        optimizers=names,
        equal_gradients=True,
    )
    monkeypatch.setitem(STUDIES, "tiny", study)
    result = CliRunner().invoke(main, ["run", "tiny", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "tiny" / "results.md").read_text().splitlines()
        if line.startswith("|")
    ]
    shares = [row[header.index("share of pairs refused")] for row in rows]
    for name, share in zip(names, shares, strict=True):
        content = json.loads((tmp_path / "tiny" / f"{name}-seed0.json").read_text())
        stored, refused = (
            content["records"][f"pairs_{what}"][-1] for what in ("stored", "refused")
        )
        steps = 6 * 4 if name == "olmoq-undamped" else 2 * 13
        assert stored + refused == steps - 1
        assert share == f"{refused / (stored + refused):.2%}"
        assert refused > 0 or name == "olmoq-multi-undamped"
