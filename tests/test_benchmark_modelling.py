"""`python -m benchmarks run function-modelling`: the task, the runs, the files and the table."""

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
from PIL import Image

from benchmarks.cli import main
from benchmarks.models import function_fit as task
from benchmarks.reports import fits as report
from benchmarks.reports import records
from benchmarks.studies import STUDIES, levy
from benchmarks.studies.function_modelling import FIT, METHODS
from benchmarks.training import fit_runs as training
from benchmarks.training import fits, learning_rates
from benchmarks.training.fit import Method
from benchmarks.training.fit_runs import Runner

GRADIENT_DESCENT = Method("gradient descent", optax.sgd, first_order=True, ours=False)


def command(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def replace(monkeypatch, name, fit, **changes):
    """Changes what a study fits, and how long."""
    changed = dataclasses.replace(fit, **changes)
    monkeypatch.setitem(STUDIES, name, fits.study(name, None, changed))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Makes the quick form smaller still, and returns it."""
    quick = {"quick_iterations": 30, "quick_runs": 2}
    quick["quick_methods"] = ("adam-customary", "mnaq-0.95")
    replace(monkeypatch, "function-modelling", FIT, **quick)
    return functools.partial(command, "run", "function-modelling", "--quick", "--out", tmp_path)


def test_network_has_the_papers_size():
    start = FIT.task.start
    assert optax.tree.size(start(0)) == 22
    assert optax.tree.size(levy.FIT.task.start(0)) == 351
    drawn = np.concatenate([np.ravel(leaf) for seed in range(50) for leaf in start(seed)])
    assert abs(drawn).max() <= 0.5
    assert abs(drawn).max() > 0.49
    assert abs(drawn.mean()) < 0.03
    assert not np.array_equal(start(0).input_kernel, start(1).input_kernel)


def test_points_fill_the_unit_interval_and_follow_the_curve(x64):
    train, test = FIT.task.train(), FIT.task.test()
    assert len(train.inputs) == 400
    assert len(test.inputs) == 10_000
    for scaled in train:
        assert scaled.min() == -1
        assert scaled.max() == 1
    inputs, between = train.inputs[:, 0], test.inputs[:, 0]
    x = np.linspace(-4, 4, 400)
    y = 1 + (x + 2 * x * x) * np.sin(-x * x)
    np.testing.assert_allclose(inputs, x / 4, atol=1e-15)
    slope, offset = np.polyfit(y, train.targets, 1)
    np.testing.assert_allclose(train.targets, slope * y + offset, atol=1e-12)
    # The test points have the training points' scale: the same function of the same inputs.
    between = np.interp(inputs, between, test.targets)
    np.testing.assert_allclose(between, train.targets, atol=1e-4)


def test_error_is_half_the_mean_square(x64):
    params = levy.FIT.task.start(3)
    given = jax.tree.map(lambda values: values[:11], levy.FIT.task.test())
    hidden = 1 / (1 + np.exp(-(given.inputs @ params.input_kernel + params.hidden_bias)))
    outputs = hidden @ params.output_kernel + params.output_bias
    expected = 0.5 * np.mean((outputs - given.targets) ** 2)
    np.testing.assert_allclose(task.error(params, given), expected, rtol=1e-12)


def test_run_follows_the_optimizer_and_records_its_end():
    content = Runner(FIT.task, GRADIENT_DESCENT, 1e-6, 25).run(0, 0.5)
    with jax.enable_x64(True):
        params, given = FIT.task.start(0), FIT.task.train()
        gradient = jax.jit(jax.grad(task.error))
        for _ in range(25):
            grads = gradient(params, given)
            params = jax.tree.map(lambda x, g: x - 0.5 * g, params, grads)
        error = task.error(params, given).item()
    assert content["status"] == training.ALL_ITERATIONS
    assert content["iterations"] == 25
    np.testing.assert_allclose(content["train_error"], error, rtol=1e-5)
    for found, expected in zip(content["params"], params, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    curve = content["curve"]
    assert curve["iterations"] == [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25]
    assert curve["train_error"][-1] == content["train_error"]
    json.dumps(content, allow_nan=False)


def test_quasi_newton_run_ends_where_the_gradient_vanishes():
    runner = Runner(FIT.task, METHODS["moq"], 0.01, 1000)
    content = runner.run(0)
    assert content["status"] == training.CONVERGED
    assert 1 < content["iterations"] < 1000
    assert content["gradient_norm"] <= 0.01
    assert content["diagnostics"]["pairs_stored"] > 0
    assert content["curve"]["iterations"][-1] == content["iterations"]


def test_precision_is_the_methods_own():
    def dtypes(method):
        seen = []
        make = lambda learning_rate: optax.stateless(  # noqa: E731
            lambda updates, params: (seen.append(params.input_kernel.dtype), updates)[1]
        )
        peer = Method("peer", make, first_order=True, ours=False)
        Runner(FIT.task, method(peer), 0.0, 1).run(0, 0.1)
        return {str(dtype) for dtype in seen}

    assert dtypes(lambda method: method) == {"float64"}
    assert dtypes(Method.in_float32) == {"float32"}
    assert jnp.zeros(()).dtype == jnp.float32


def test_divergence_is_recorded():
    content = Runner(FIT.task, GRADIENT_DESCENT, 1e-6, 100).run(0, 1e300)
    assert content["status"] == records.DIVERGED
    assert content["train_error"] is None
    assert content["iterations"] < 100


def test_quick_form_writes_its_files_and_reuses_them(small, tmp_path):
    output = small()
    folder = tmp_path / "function-modelling"
    content = json.loads((folder / "function-modelling.json").read_text())
    assert "QUICK" in content["title"]
    assert content["settings"]["max_iterations"] == 30
    assert list(content["methods"]) == ["adam-customary", "mnaq-0.95"]
    for entry in content["methods"].values():
        assert [run["seed"] for run in entry["runs"]] == [0, 1]
        assert entry["compile_seconds"] > 0
        assert all(run["train_error"] < 1 and run["iterations"] == 30 for run in entry["runs"])
    table = (folder / "results.md").read_text()
    assert "QUICK" in table
    assert "1.3 / 0.195 / 6.31" in table
    assert "| mNAQ, μ = 0.95" in output
    with Image.open(folder / "function-modelling.png") as image:
        image.load()
        assert image.width > 1000
    assert not list(tmp_path.glob("**/.*"))

    # Of an interrupted experiment only what is missing is run.
    del content["methods"]["adam-customary"]["runs"][1]
    records.write(folder / "function-modelling.json", content)
    assert small().count("already run, reused") == 1
    again = json.loads((folder / "function-modelling.json").read_text())["methods"]
    assert again["mnaq-0.95"] == content["methods"]["mnaq-0.95"]
    first, second = again["adam-customary"]["runs"]
    assert first == content["methods"]["adam-customary"]["runs"][0]
    assert second["seed"] == 1


def test_other_settings_start_afresh(small, monkeypatch):
    quick = {"quick_methods": ("adam-customary",), "quick_runs": 2}
    replace(monkeypatch, "function-modelling", FIT, **quick, quick_iterations=30)
    small()
    replace(monkeypatch, "function-modelling", FIT, **quick, quick_iterations=20)
    output = small()
    assert "has other settings; starting afresh" in output
    assert "reused" not in output


def test_chosen_optimizers_stand_beside_what_was_run_before(small, tmp_path):
    small("--optimizers", "mnaq-0.95")
    output = small("--optimizers", "adam-customary", "--seeds", 1)
    assert "already run" not in output
    table = (tmp_path / "function-modelling" / "results.md").read_text().splitlines()
    runs = {cells[1].strip(): cells[3].strip() for line in table if (cells := line.split("|"))[3:]}
    assert runs[METHODS["adam-customary"].label] == "1"
    assert runs[METHODS["mnaq-0.95"].label] == "2"


def test_what_is_chosen_has_to_be_the_studys_own():
    result = CliRunner().invoke(main, ["run", "function-modelling", "--optimizers", "mnaq,adam"])
    assert result.exit_code == 2
    assert "unknown optimizer mnaq; there are " in " ".join(result.output.split())
    result = CliRunner().invoke(main, ["run", "saddles", "--optimizers", "adam"])
    assert result.exit_code == 2
    assert "saddles has only the options --quick and --out" in " ".join(result.output.split())


def test_rates_are_tuned_on_other_runs_and_kept(monkeypatch, tmp_path):
    fit = dataclasses.replace(FIT, max_iterations=40)
    fits.run(fit, tmp_path / "function-modelling", optimizers=("adam",), seeds=1)
    path = tmp_path / "function-modelling" / "function-modelling.json"
    entry = json.loads(path.read_text())["methods"]["adam"]
    rates = {f"{rate:g}" for rate in learning_rates.grid(METHODS["adam"].middle_rate)}
    assert rates <= entry["grid"].keys()
    assert entry["grid"][f"{entry['learning_rate']:g}"] == min(entry["grid"].values())
    runner = Runner(FIT.task, METHODS["adam"], 1e-6, 40)
    tuned = [runner.run(seed, entry["learning_rate"])["train_error"] for seed in fit.tuning_seeds]
    assert entry["grid"][f"{entry['learning_rate']:g}"] == pytest.approx(np.mean(tuned), rel=1e-5)
    assert "other runs by learning rate" in path.with_name("results.md").read_text()


def test_table_stands_beside_the_papers():
    """Ours in 10⁻³, and the slides' line; a run that diverged counts as infinitely bad."""

    def runs(*errors):
        return [
            {
                "train_error": error,
                "test_error": error and 2 * error,
                "iterations": 100,
                "seconds": 0.5,
                "status": training.CONVERGED if error else records.DIVERGED,
            }
            for error in errors
        ]

    shown = {
        "mbfgs": {"learning_rate": None, "runs": runs(0.001, 0.002, 0.006)},
        "adagrad": {"learning_rate": 1.0, "runs": runs(0.001, None)},
    }
    _, _, first, second = report.table(FIT, shown).splitlines()
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == [
        "mBFGS (mNAQ, μ = 0)",
        "",
        "3",
        "3 / 1 / 6",
        "5.24 / 0.194 / 17.8",
        "2",
        "6 / 2 / 12",
        "5.26 / 0.233 / 17.8",
        "100",
        "31,370",
        "3",
        "0.5",
        "58",
    ]
    assert "diverged / 1 / diverged" in second
    assert "59.8 / 58.6 / 60.2" in second


def test_every_line_of_the_slides_is_there():
    averages = [method.published.train.average for method in METHODS.values() if method.published]
    assert set(averages) == {59.8, 3.34, 4.15, 15.14, 5.24, 1.94, 0.974, 1.53, 1.30}
    drawn = {name for names in FIT.panels.values() for name in names}
    assert drawn <= METHODS.keys()
    others = {"sgd", "ssbroyden"}  # see test_benchmark_circuits.py
    assert drawn | levy.METHODS.keys() | others == report._COLOURS.keys()


def test_levy_function():
    """Against its formula by loops: zero where all variables are 1, its minimum."""

    def by_loops(x):
        total = 10 * math.sin(math.pi * x[0]) ** 2 + (x[4] - 1) ** 2
        for i in range(4):
            total += (x[i] - 1) ** 2 * (1 + 10 * math.sin(math.pi * x[i + 1]) ** 2)
        return math.pi / 5 * total

    inputs = np.random.default_rng(2).uniform(-4, 4, (50, 5))
    np.testing.assert_allclose(levy.levy(inputs), [by_loops(x) for x in inputs], rtol=1e-12)
    assert (levy.levy(inputs) > 0).all()
    np.testing.assert_allclose(levy.levy(np.ones((1, 5))), 0, atol=1e-25)


def test_levy_by_a_trust_region(monkeypatch, tmp_path):
    """No figures of the paper in the table, but skipped updates and rejected steps."""
    quick = {"quick_methods": ("lsr1", "lbfgs"), "quick_iterations": 20, "quick_runs": 1}
    replace(monkeypatch, "levy", levy.FIT, **quick)
    command("run", "levy", "--quick", "--out", tmp_path)
    folder = tmp_path / "levy"
    content = json.loads((folder / "levy.json").read_text())
    run = content["methods"]["lsr1"]["runs"][0]
    assert run["diagnostics"]["radius"] > 0
    assert run["train_error"] < content["methods"]["lsr1"]["runs"][0]["curve"]["train_error"][0]
    table = (folder / "results.md").read_text()
    assert "paper" not in table
    header, _, first, second = table.split("\n\n")[2].splitlines()
    assert header.endswith("| updates skipped | steps rejected |")
    refused, stored = (run["diagnostics"][f"pairs_{x}"] for x in ("refused", "stored"))
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[-2] == f"{refused / (refused + stored):.2%}"
    assert cells[-1] == str(run["diagnostics"]["steps_rejected"])
    assert second.rstrip("| ").endswith("%")
    with Image.open(folder / "levy.png") as image:
        image.load()
        assert image.width > 1000
