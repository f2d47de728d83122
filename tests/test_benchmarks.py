"""The command line, the training loop and the files of `python -m benchmarks`, on tiny problems."""

import dataclasses
import functools
import importlib
import json
import math
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks import studies
from benchmarks.cli import main
from benchmarks.data import sequences
from benchmarks.models import recurrent
from benchmarks.reports import plots, records, tables
from benchmarks.studies import STUDIES
from benchmarks.training import learning_rates, problem, runs
from benchmarks.training import mini_batches as training
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.mini_batches import Trainer
from benchmarks.training.optimizers import OPTIMIZERS
from benchmarks.training.problem import Problem
from benchmarks.training.runs import Run
from naqopt.flatten import FlattenState

STUDY_MODULES = [module.name for module in pkgutil.iter_modules(studies.__path__)]


def tiny_problem(quick: bool = False) -> Problem:
    """Tiny: counting on a handful of strings."""
    inputs, targets = sequences.counting_sequences(0, 46 if quick else 66, 5)
    return Problem(
        title="tiny",
        settings={"strings": len(inputs) - 6},
        model=functools.partial(recurrent.SequenceModel, 1, 3, 1, **recurrent.as_in_flax()),
        train=(jnp.asarray(inputs[6:]), jnp.asarray(targets[6:])),
        test=(jnp.asarray(inputs[:6]), jnp.asarray(targets[:6])),
        batch_size=8,
        losses=problem.squared_errors,
    )


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """Adds a tiny experiment and keeps checkpoints out of the repository."""
    monkeypatch.setattr(runs, "CHECKPOINTS", tmp_path / "checkpoints")
    experiment = MiniBatchStudy("tiny", tiny_problem, 3, 2, seeds=2, optimizers=("adam", "adagrad"))
    monkeypatch.setitem(STUDIES, "tiny", experiment)
    return experiment


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def a_run(**changes):
    settings = {"name": "tiny", "quick": False, "epochs": 4}
    run = Run(settings, "adam", {}, 0.01, 0, 4)
    return dataclasses.replace(run, **changes)


def test_list_names_everything():
    result = command("list")
    assert result.exit_code == 0
    for name in [*STUDIES, *OPTIMIZERS]:
        assert name in result.output


def test_no_two_studies_have_the_same_name():
    modules = [importlib.import_module(f"benchmarks.studies.{x}") for x in STUDY_MODULES]
    names = [study.name for module in modules for study in module.STUDIES]
    assert len(names) > len(modules)
    assert sorted(set(names)) == sorted(names)
    assert set(names) | {"tiny"} == STUDIES.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing"), "unknown experiment nothing; there are char-rnn, char-lstm"),
        (("run", "tiny", "--optimizers", "adam,sdg"), "unknown optimizer sdg; there are adam, ada"),
        (("run", "tiny", "--optimizers", ","), "no optimizer given; there are adam"),
        (("run", "tiny", "--seeds", "0"), "Invalid value for '--seeds'"),
        (("run", "tiny", "--epochs", "-1"), "Invalid value for '--epochs'"),
        (("run", "tiny", "--epochs", "many"), "'many' is not a valid integer"),
        (("run",), "Missing argument 'NAME'"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    result = command(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_run_writes_json_table_and_plot(tmp_path):
    result = command("run", "tiny", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "tiny"
    content = json.loads((folder / "adam-seed1.json").read_text())
    assert content["schema"] == records.SCHEMA
    assert content["status"] == "finished"
    experiment = {"name": "tiny", "quick": False, "epochs": 3, "strings": 60}
    assert content["settings"]["experiment"] == experiment
    assert {"jax", "optax", "flax", "naqopt"} <= content["versions"].keys()
    assert content["cores"] >= 1
    assert content["compile_seconds"] > 0
    columns = content["records"]
    assert columns["epoch"] == [0, 1, 2, 3]
    assert columns["gradient_evaluations"] == [0, 7, 14, 21]
    assert columns["seconds"] == sorted(columns["seconds"])
    assert len(columns["train_loss"]) == len(columns["test_loss"]) == 4

    grid = json.loads((folder / "adam-learning-rates.json").read_text())
    assert set(grid["train_losses"]) >= {f"{rate:g}" for rate in learning_rates.grid()}
    assert grid["settings"]["epochs"] == 1
    assert grid["settings"]["seed"] not in (0, 1)
    assert grid["chosen"] == content["settings"]["learning_rate"]

    with Image.open(folder / "tiny.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 1000
    assert "Adagrad" in (folder / "results.md").read_text()
    assert str(folder / "tiny.png") in result.output
    assert "Adagrad" in result.output
    assert not list(tmp_path.glob("**/.*"))

    again = command("run", "tiny", "--out", tmp_path)
    assert again.exit_code == 0
    assert again.output.count("already finished, reused") == 4
    assert json.loads((folder / "adam-seed1.json").read_text()) == content


def test_quick_says_so_and_searches_nothing(tmp_path):
    result = command("run", "tiny", "--quick", "--out", tmp_path, "--optimizers", "adam")
    assert result.exit_code == 0, result.output
    assert "QUICK" in result.output
    assert "documented default" in result.output
    assert not list(tmp_path.glob("**/*-learning-rates.json"))
    content = json.loads((tmp_path / "tiny" / "adam-seed0.json").read_text())
    assert "QUICK" in content["title"]
    assert content["settings"]["experiment"]["quick"] is True
    assert content["settings"]["learning_rate"] == OPTIMIZERS["adam"].quick_learning_rate


def test_other_settings_are_not_mixed(tmp_path):
    arguments = ("run", "tiny", "--quick", "--out", tmp_path, "--seeds", 1)
    assert command(*arguments, "--optimizers", "adam,adagrad").exit_code == 0
    result = command(*arguments, "--optimizers", "adam", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "adam-seed0.json: has other settings (experiment.epochs 2 instead of 1" in result.output
    assert "adagrad-seed0.json: has other settings, left out" in result.output
    assert "Adagrad" not in (tmp_path / "tiny" / "results.md").read_text()


def test_runs_of_one_optimizer_must_agree(tmp_path):
    arguments = ("run", "tiny", "--quick", "--out", tmp_path, "--optimizers", "adam")
    assert command(*arguments, "--seeds", 2).exit_code == 0
    path = tmp_path / "tiny" / "adam-seed1.json"
    content = records.read(path)
    content["settings"]["learning_rate"] = 0.5
    records.write(path, content)
    result = command(*arguments, "--seeds", 1)
    assert "adam-seed1.json: has other settings, left out" in result.output
    assert "adam-seed0.json: has other" not in result.output


@pytest.mark.parametrize("name", ["adam", "asnaq"])
def test_interrupted_run_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", -1.0)
    run = a_run(optimizer=name)
    trainer = Trainer(tiny_problem(), OPTIMIZERS[name])
    whole = runs.train(run, trainer, tmp_path / "whole.json", "tiny")

    path = tmp_path / "broken.json"
    advance = trainer.advance

    def fail(progress, *arguments):
        if progress.epoch == 2:
            raise KeyboardInterrupt
        advance(progress, *arguments)

    monkeypatch.setattr(trainer, "advance", fail)
    with pytest.raises(KeyboardInterrupt):
        runs.train(run, trainer, path, "tiny")
    assert json.loads(path.read_text())["status"] == "running"
    monkeypatch.setattr(trainer, "advance", advance)
    lines = []
    resumed = runs.train(run, trainer, path, "tiny", lines.append)
    assert lines == [f"{path}: going on after epoch 2"]
    assert resumed["status"] == "finished"
    for column in whole["records"].keys() - {"seconds"}:
        assert resumed["records"][column] == whole["records"][column], column
    assert whole["records"].keys() == resumed["records"].keys()
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_checkpoint_without_its_record_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", -1.0)
    run, path = a_run(), tmp_path / "run.json"
    trainer = Trainer(tiny_problem(), OPTIMIZERS["adam"])
    runs.train(run, trainer, path, "tiny")
    path.unlink()
    lines = []
    content = runs.train(run, trainer, path, "tiny", lines.append)
    assert not lines
    assert content["records"]["epoch"] == [0, 1, 2, 3, 4]


def test_diverged_run_is_recorded_and_shown(tmp_path):
    trainer = Trainer(tiny_problem(), OPTIMIZERS["adam"])
    path = tmp_path / "run.json"
    diverged = runs.train(a_run(learning_rate=1e38), trainer, path, "tiny")
    assert diverged["status"] == "diverged"
    assert diverged["records"]["train_loss"][-1] is None
    assert len(diverged["records"]["epoch"]) < 5
    lines = []
    runs.train(a_run(learning_rate=1e38), trainer, path, "tiny", lines.append)
    assert lines == [f"{path}: already diverged, reused"]
    good = runs.train(a_run(seed=1), trainer, tmp_path / "good.json", "tiny")
    good["settings"]["learning_rate"] = 1e38  # as if it were another seed of the same
    table = tables.results([diverged, good])
    assert "2 (1 diverged)" in table
    assert "diverged]" in table
    assert plots.curves([diverged, good], "tiny", tmp_path / "plot.png").exists()


def test_all_optimizers_see_the_same_batches():
    def order(name):
        seen = []
        task = dataclasses.replace(
            tiny_problem(), prepare=lambda x: (jax.debug.callback(seen.append, x.sum()), x)[1]
        )
        trainer = Trainer(task, OPTIMIZERS[name])
        progress = trainer.start(0, 0.0)
        trainer.advance(progress, 0, 0.0)
        jax.effects_barrier()
        return [float(value) for value in seen]

    seen = order("adam")
    assert len(seen) == 7
    assert len(set(seen)) > 1
    assert order("adagrad") == seen


def test_many_arrays_are_trained_as_one_vector(monkeypatch):
    """Ours alone, to the same losses."""

    def train(name, most_arrays):
        monkeypatch.setattr(training, "_MANY_ARRAYS", most_arrays)
        trainer = Trainer(tiny_problem(), OPTIMIZERS[name])
        progress = trainer.start(0, 0.01)
        trainer.advance(progress, 0, 0.01)
        return progress.state, trainer.evaluate(progress), trainer.diagnostics(progress)

    as_it_is, flattened = train("asnaq", 20), train("asnaq", 1)
    assert isinstance(flattened[0], FlattenState)
    assert not isinstance(as_it_is[0], FlattenState)
    assert flattened[1] == pytest.approx(as_it_is[1], rel=1e-4)
    assert flattened[2] == pytest.approx(as_it_is[2], rel=1e-2)
    assert not isinstance(train("adam", 1)[0], FlattenState)


@pytest.mark.parametrize("name", ["asnaq", "asnaq-single"])
def test_own_optimizers_record_their_numbers(name, tmp_path):
    trainer = Trainer(tiny_problem(), OPTIMIZERS[name])
    content = runs.train(
        a_run(optimizer=name, options=trainer.optimizer.options),
        trainer,
        tmp_path / "run.json",
        "tiny",
    )
    columns = content["records"]
    assert {"restorations", "pairs_stored", "momentum"} <= columns.keys()
    steps = 4 * trainer.problem.steps_per_epoch
    assert columns["gradient_evaluations"][-1] == steps * (2 if name == "asnaq" else 1)
    assert columns["pairs_stored"][-1] + columns["restorations"][-1] > 0
    assert content["settings"]["options"] == OPTIMIZERS[name].options


def losses_around(best):
    """Returns a loss of learning rates with its only minimum at one of the grid's powers."""
    return lambda rate: abs(2 * math.log10(rate) - best)


@pytest.mark.parametrize(
    ("best", "chosen", "tried"),
    [
        (-4, 0.01, 5),
        (-6, 0.001, 6),
        (-7, 0.000316, 7),
        (-8, 0.0001, 7),
        (-12, 0.0001, 7),
        (-2, 0.1, 6),
        (-1, 0.316, 7),
        (4, 1.0, 7),
    ],
)
def test_grid_is_extended_until_the_best_is_inside(best, chosen, tried):
    losses = learning_rates.search(losses_around(best))
    assert learning_rates.best(losses) == chosen
    assert len(losses) == tried
    assert list(losses) == sorted(losses)


def test_grid_survives_divergence():
    losses = learning_rates.search(lambda rate: math.nan if rate > 0.02 else 1 / rate)
    assert learning_rates.best(losses) == 0.01
    assert losses[0.1] == math.inf
    assert learning_rates.grid() == [0.001, 0.00316, 0.01, 0.0316, 0.1]
    assert learning_rates.grid(1.0) == [0.1, 0.316, 1.0, 3.16, 10.0]


def test_grid_goes_on_where_it_stopped(tmp_path, monkeypatch):
    tried = []

    def final_loss(trainer, rate, epochs, name):
        if len(tried) == 3:
            raise KeyboardInterrupt
        tried.append(rate)
        return losses_around(-4)(rate)

    monkeypatch.setattr(learning_rates, "_final_loss", final_loss)
    with pytest.raises(KeyboardInterrupt):
        learning_rates.choose(a_run(), None, tmp_path, lambda line: None)
    assert learning_rates.stored(tmp_path, "adam") is None
    before, tried[:] = list(tried), []
    assert learning_rates.choose(a_run(), None, tmp_path, lambda line: None) == 0.01
    assert not set(before) & set(tried)
    assert len(before) + len(tried) == 5
    assert learning_rates.stored(tmp_path, "adam") == 0.01


def test_lstm_follows_its_equations():
    layer = recurrent.LSTM(
        2,
        3,
        rngs=recurrent.nnx.Rngs(0),
        input_init=recurrent.small_normal(),
        recurrent_init=recurrent.small_normal(),
    )
    inputs = jax.random.normal(jax.random.key(1), (4, 1, 2))
    W, U = np.asarray(layer.input_kernel[...]), np.asarray(layer.recurrent_kernel[...])
    cell = hidden = np.zeros((1, 3))
    for t, output in enumerate(layer(inputs)):
        z = np.asarray(inputs[t]) @ W + hidden @ U
        i, f, g, o = np.split(z, 4, axis=-1)
        sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        np.testing.assert_allclose(output, hidden, rtol=1e-5, atol=1e-8)


def test_gru_follows_its_equations():
    layer = recurrent.GRU(
        2,
        3,
        rngs=recurrent.nnx.Rngs(0),
        input_init=recurrent.nnx.initializers.normal(1.0),
        recurrent_init=recurrent.nnx.initializers.normal(1.0),
    )
    inputs = jax.random.normal(jax.random.key(1), (4, 1, 2))
    W = np.split(np.asarray(layer.input_kernel[...]), 3, axis=1)
    U = np.split(np.asarray(layer.recurrent_kernel[...]), 3, axis=1)
    hidden = np.zeros((1, 3))
    for t, output in enumerate(layer(inputs)):
        x = np.asarray(inputs[t])
        sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
        reset, update = (sigmoid(x @ W[i] + hidden @ U[i]) for i in range(2))
        candidate = np.tanh(x @ W[2] + reset * (hidden @ U[2]))
        hidden = update * hidden + (1 - update) * candidate
        np.testing.assert_allclose(output, hidden, rtol=1e-5, atol=1e-7)


def test_a_step_size_that_ends_goes_by_the_length_of_the_run():
    trainer = Trainer(tiny_problem(), OPTIMIZERS["adam-cosine"], 2)
    assert trainer.for_epochs(2) is trainer
    assert trainer.for_epochs(1) is trainer.for_epochs(1) is not trainer
    plain = Trainer(tiny_problem(), OPTIMIZERS["adam"], 2)
    assert plain.for_epochs(1) is plain
    for epochs in (1, 2):
        progress = trainer.for_epochs(epochs).start(0, 0.01)
        moved = []
        for _ in range(3):
            before = jax.device_get(progress.params)
            trainer.for_epochs(epochs).advance(progress, 0, 0.01)
            moved.append(
                any(
                    map(
                        np.any, jax.tree.leaves(jax.tree.map(np.not_equal, before, progress.params))
                    )
                )
            )
        assert moved == [True] * epochs + [False] * (3 - epochs)


def test_equal_gradients_halve_the_epochs():
    assert [STUDIES["counting-variants"].epochs_for(n, 75) for n in (1, 2)] == [75, 38]
    assert STUDIES["counting"].epochs_for(2, 75) == 75


def finished(rate, losses):
    """What the tables read of a run of Adam."""
    return {
        "status": "finished",
        "settings": {"optimizer": "adam", "learning_rate": rate, "seed": 0, "epochs": 2},
        "records": {
            "epoch": [0, 1, 2],
            "train_loss": losses,
            "test_loss": losses,
            "gradient_evaluations": [0, 3, 6],
            "seconds": [0.0, 1.0, 2.0],
        },
    }


def test_second_chance():
    """Runs that end well above their own best go again with the grid's next lower rate."""
    factor = learning_rates.SECOND_CHANCE
    assert tables.worsened([finished(0.01, [3.0, 1.0, 1.3])], factor)
    assert tables.worsened([finished(0.01, [3.0, 1.0, None])], factor)
    assert not tables.worsened([finished(0.01, [3.0, 1.0, 1.2])], factor)
    lower = [learning_rates.next_lower(rate) for rate in learning_rates.grid()[1:]]
    assert lower == learning_rates.grid()[:-1]
    lines = tables.results(
        [finished(0.00316, [3.0, 1.0, 0.5]), finished(0.01, [3.0, 1.0, 1.3])]
    ).splitlines()
    assert len(lines) == 4
    assert " 0.01 " in lines[2]
    assert " 0.00316 " in lines[3]
