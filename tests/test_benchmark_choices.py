"""`python -m benchmarks run svr-choices`: the method with switches, the files and the tables."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from flax import nnx
from jax.flatten_util import ravel_pytree
from PIL import Image

import naqopt
from benchmarks.cli import main
from benchmarks.models import perceptron
from benchmarks.reports import records
from benchmarks.reports import svr_choices as report
from benchmarks.studies import svr_choices as choices
from benchmarks.studies.svr_choices import VARIANTS
from benchmarks.training import problem
from benchmarks.training import svr_choices as training
from benchmarks.training.svr_choices import BASELINE, Choices

SEEDS, EPOCHS = (0, 3), 4


def command(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@functools.cache
def small_problem(dtype="float32"):
    """A regression of 3-4-1 whose last batch would not be full."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 3))
    targets = np.sin(inputs.sum(axis=1, keepdims=True)) + 0.1 * rng.normal(size=(60, 1))
    examples = jnp.asarray(inputs, dtype), jnp.asarray(targets, dtype)
    model = functools.partial(
        perceptron.MLP,
        (3, 4, 1),
        activation=nnx.sigmoid,
        initializer=perceptron.symmetric_uniform(0.5),
    )
    return problem.Problem(
        title="small",
        settings={"unit": "units"},
        model=model,
        train=tuple(x[:45] for x in examples),
        test=tuple(x[45:] for x in examples),
        batch_size=8,
        losses=problem.squared_errors,
        target_scale=2.0,
    )


def train_by_library(given, tx, seeds, epochs):
    """Returns by seed the iterate at the end of a loop as users write it, and the diagnostics."""

    @jax.jit
    def step(params, state, batch):
        value_fn = lambda p: given.loss(p, batch)  # noqa: E731
        grad = jax.grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def with_snapshot(params, state):
        full_grad = jax.grad(given.loss)(naqopt.eval_params(state, params), given.train)
        return naqopt.snapshot(state, params, full_grad)

    for seed in seeds:
        params = jax.tree.map(lambda x: x.astype(given.train[0].dtype), given.params(seed))
        state = jax.jit(tx.init)(params)
        for epoch in range(epochs):
            state = with_snapshot(params, state)
            key = jax.random.fold_in(jax.random.key(seed), epoch)
            order = np.array(jax.random.permutation(key, len(given.train[0])))
            for rows in order[: given.steps_per_epoch * given.batch_size].reshape(-1, 8):
                batch = tuple(np.asarray(x)[rows] for x in given.train)
                params, state = step(params, state, batch)
        yield naqopt.eval_params(state, params), naqopt.diagnostics(state)


@functools.cache
def trained_losses(name):
    return training.train(small_problem(), VARIANTS[name].choices, SEEDS, EPOCHS).train_losses


LIBRARY = {
    BASELINE: lambda: naqopt.svr_naq(
        naqopt.schedules.inverse_sqrt(1.0),
        momentum=0.9,
        memory_size=4,
        warmup_learning_rate=0.025,
    ),
    "dense": lambda: naqopt.svr_naq(memory_size=None),
    "svrg2-0.025": lambda: naqopt.svrg2(0.025),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_is_the_library(name, x64):
    given = small_problem("float64")
    trained = training.train(given, VARIANTS[name].choices, SEEDS, EPOCHS)
    by_library = train_by_library(given, LIBRARY[name](), SEEDS, EPOCHS)
    for index, (params, diagnostics) in enumerate(by_library):
        expected = ravel_pytree(params)[0]
        assert expected.dtype == trained.params.dtype == np.float64
        np.testing.assert_allclose(trained.params[index], expected, rtol=1e-9, atol=1e-9)
        loss = given.loss(params, given.train)
        np.testing.assert_allclose(trained.train_losses[index, -1], loss, rtol=1e-9)
        np.testing.assert_allclose(trained.test_losses[index], given.loss(params, given.test))
        assert trained.pairs_stored[index] == diagnostics["pairs_stored"]
    assert (trained.pairs_stored > 0).all()
    assert trained.train_losses.shape == (2, EPOCHS + 1)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("average", marks=pytest.mark.slow),
        "velocity-zeroed",
        pytest.param("no-reduction", marks=pytest.mark.slow),
    ],
)
def test_variants_differ(name):
    """In the first epoch, too, only what changes there; all of them differ in the end."""
    trained, baseline = trained_losses(name), trained_losses(BASELINE)
    np.testing.assert_array_equal(trained[:, 0], baseline[:, 0])
    same_at_first = name != "no-reduction"
    assert np.allclose(trained[:, 1], baseline[:, 1], rtol=1e-5) == same_at_first
    assert np.isfinite(trained).all()
    assert (abs(trained[:, -1] / baseline[:, -1] - 1) > 1e-4).all()


@pytest.mark.parametrize(
    ("counted", "counts"),
    [
        (training.ALL_STEPS, (11, 12, 16)),
        (training.AFTER_WARMUP, (6, 7, 11)),
        (training.WITHIN_EPOCH, (1, 2, 1)),
        (training.EPOCHS, (3, 3, 4)),
        (training.NOTHING, (1, 1, 1)),
    ],
)
def test_step_sizes(counted, counts):
    """The first two steps of the third epoch and the first of the fourth, of five steps each."""
    chosen = Choices(counted=counted, learning_rate=0.5)
    epochs, places = jnp.array([2, 2, 3]), jnp.array([0, 1, 0])
    sizes = training.step_size(chosen, epochs, places, 5)
    np.testing.assert_allclose(sizes * np.ones(3), 0.5 / np.sqrt(counts), rtol=1e-6)
    if counted == training.AFTER_WARMUP:
        unwarmed = dataclasses.replace(chosen, warmup_rate=None)
        sizes = training.step_size(unwarmed, epochs, places, 5)
        np.testing.assert_allclose(sizes, 0.5 / np.sqrt([11, 12, 16]), rtol=1e-6)


def test_recursion_pair_by_pair_changes_rounding_alone():
    rng = np.random.default_rng(1)
    chosen = Choices()
    kept = training._no_pairs(chosen, jnp.zeros(5))
    for _ in range(6):
        s = jnp.asarray(rng.normal(size=5), jnp.float32)
        kept, stored = training._learn(kept, s, 2 * s + 0.3 * s[::-1], jnp.array(True))
        assert stored
    g = jnp.asarray(rng.normal(size=5), jnp.float32)
    products = [
        training._precondition(dataclasses.replace(chosen, by_pairs=by_pairs), kept, g)
        for by_pairs in (False, True)
    ]
    np.testing.assert_allclose(*products, rtol=1e-4, atol=1e-5)


def test_each_variant_changes_the_baseline():
    everything = [variant.choices for variant in VARIANTS.values()]
    assert VARIANTS[BASELINE].choices == Choices()
    assert len(set(everything)) == len(everything)
    for variant in VARIANTS.values():
        assert len(variant.label) < 32


def test_quick_form_writes_its_files_and_reuses_them(monkeypatch, tmp_path):
    monkeypatch.setattr(choices, "QUICK_VARIANTS", (BASELINE, "no-curvature"))
    monkeypatch.setattr(choices, "QUICK_EPOCHS", 2)
    small = functools.partial(command, "run", "svr-choices", "--quick", "--out", tmp_path)
    output = small()
    folder = tmp_path / "svr-choices"
    content = json.loads((folder / "svr-choices.json").read_text())
    assert "QUICK" in content["title"]
    assert content["settings"] == {"epochs": 2, "seeds": 2}
    entry = content["tasks"]["wine-32"]
    assert entry["unit"] == "grades"
    assert list(entry["variants"]) == [BASELINE, "no-curvature"]
    for variant in entry["variants"].values():
        assert [run["seed"] for run in variant["runs"]] == [0, 1]
        assert all(len(run["train_losses"]) == 3 for run in variant["runs"])
    for run in entry["variants"][BASELINE]["runs"]:
        assert run["status"] == records.FINISHED
        assert run["train_losses"][-1] < run["train_losses"][0]
        assert 0.5 < run["test_error"] < 1
        assert run["pairs_stored"] == 1
    text = (folder / "results.md").read_text()
    assert "QUICK" in text
    assert "## wine-32" in text
    assert "memory: no curvature, H = I" in output
    with Image.open(folder / "svr-choices.png") as image:
        image.load()
        assert image.width > 700

    # Of an interrupted study only what is missing is run.
    kept = entry["variants"][BASELINE] | {"seconds": 1234.0}
    entry["variants"] = {BASELINE: kept}
    records.write(folder / "svr-choices.json", content)
    small()
    again = json.loads((folder / "svr-choices.json").read_text())["tasks"]["wine-32"]["variants"]
    assert again[BASELINE] == kept
    assert list(again) == [BASELINE, "no-curvature"]


def test_other_settings_start_afresh(capsys, tmp_path):
    path = tmp_path / "study.json"

    def opened(**settings):
        return records.opened(path, "a study", settings, "tasks")

    content = opened(epochs=2, seeds=1)
    records.write(path, content)
    assert opened(epochs=2, seeds=1) == content
    assert "starting afresh" not in capsys.readouterr().out
    content["tasks"]["wine-8"] = {}
    records.write(path, content)
    assert opened(epochs=3, seeds=1)["tasks"] == {}
    assert "has other settings; starting afresh" in capsys.readouterr().out


def test_tables_compare_seed_by_seed():
    def runs(*losses):
        return {
            "runs": [
                {
                    "status": records.FINISHED if loss and loss < 2 else records.DIVERGED,
                    "train_losses": [2.0, loss],
                    "test_error": loss,
                    "pairs_stored": 3,
                }
                for loss in losses
            ]
        }

    entry = {
        "unit": "grades",
        "variants": {
            BASELINE: runs(0.5, 0.6, 0.7),
            "dense": runs(0.45, 0.63, 0.77),
            "raw-0.1": runs(None, None, 0.6),
            "raw-0.025": runs(5.0, 5.0, 0.7),
        },
    }
    lines = report.table(entry, {name: VARIANTS[name] for name in entry["variants"]}).splitlines()[
        2:
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    spread = "0.6 [0.5, 0.7]"
    assert cells[0] == ["baseline: as in the library", spread, "", "", spread, "3"]
    assert cells[1][1:4] == ["0.63 [0.45, 0.77]", "+5.0% (1 of 3)", ""]
    assert cells[2][1:4] == ["diverged [0.6, diverged]", "diverged (1 of 3)", "2"]
    assert cells[3][1:4] == ["5 [0.7, 5]", "× 8.33 (0 of 3)", "2"]
