"""`python -m benchmarks run saddles`: the problems, the counts, and the files."""

import functools
import json
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import naqopt
from benchmarks.cli import main
from benchmarks.functions import saddles as problems
from benchmarks.functions.saddles import PROBLEMS
from benchmarks.reports import records
from benchmarks.reports import saddles as report
from benchmarks.studies import saddles
from benchmarks.studies.saddles import METHODS
from benchmarks.training import saddles as methods
from benchmarks.training.saddles import Method, Program

QUARTIC = PROBLEMS["quartic"]
EACH_PROBLEM = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@functools.cache
def program(name):
    return Program(METHODS[name], [QUARTIC])


def run(name, start=None, rate=1.0, limit=methods.LIMIT):
    start = QUARTIC.start() if start is None else start
    return program(name).run(0, start, QUARTIC.level(saddles.LEFT), rate, limit)


@EACH_PROBLEM
def test_zero_is_a_saddle(problem, x64):
    """The gradient is zero there, and the function both rises and falls around it."""
    zero = jnp.zeros(problem.dimension)
    np.testing.assert_array_equal(jax.grad(problem.function)(zero), zero)
    around = jax.vmap(problem.function)(1e5 * problem.around(7))
    assert around.min() < problem.at_saddle < around.max()


@pytest.mark.parametrize(
    ("name", "minimum"),
    [
        ("monkey", (-3.0, 0.0)),
        ("monkey", (1.5, 1.5 * math.sqrt(3))),
        ("quartic", (0.0, math.sqrt(2))),
        ("linear-network", np.concatenate([problems.TARGET.ravel(), np.eye(4).ravel()])),
    ],
)
def test_minima(name, minimum, x64):
    problem, minimum = PROBLEMS[name], jnp.asarray(minimum)
    np.testing.assert_allclose(problem.function(minimum), problem.minimum, atol=1e-14)
    np.testing.assert_allclose(jax.grad(problem.function)(minimum), 0, atol=1e-13)
    around = minimum + np.random.default_rng(0).normal(size=(50, problem.dimension))
    assert (jax.vmap(problem.function)(around) > problem.minimum).all()
    half = (problem.at_saddle + problem.minimum) / 2
    np.testing.assert_allclose(problem.level(saddles.LEFT), half)


@EACH_PROBLEM
def test_starts(problem):
    start, around = problem.start(), problem.around(7)
    np.testing.assert_allclose(np.linalg.norm(start), 1e-6)
    assert around.shape == (49, problem.dimension)
    everything = np.vstack([start, around])
    assert len(np.unique(everything, axis=0)) == 50
    assert (everything != 0).all()
    assert (np.linalg.norm(everything, axis=1) < 1.6e-6).all()
    np.testing.assert_array_equal(around, problem.around(7))
    if problem.dimension == 2:  # on no axis of the monkey saddle's symmetry
        angles = np.arctan2(everything[:, 1], everything[:, 0]) * 3 / np.pi
        assert (abs(angles - np.round(angles)) > 1e-3).all()
    else:
        np.testing.assert_allclose(np.linalg.norm(around, axis=1), 1e-6)


@pytest.mark.parametrize(
    ("name", "steps", "gradients", "losses"),
    [
        # Two gradients a step, one of them kept for the next.
        ("lsr1", 4, 5, 0),
        ("lsr1-armijo", 7, 7, 13),  # the first step is lengthened
        ("sr1n", 4, 8, 0),
        ("mosr1", 9, 9, 18),
        ("bfgs", 21, 21, 33),
        ("lsr1-radius-none", 19, 20, 0),
    ],
)
def test_counts(name, steps, gradients, losses, x64):
    found = run(name)
    assert (found.steps, found.gradients, found.losses) == (steps, gradients, losses)
    values = jax.vmap(QUARTIC.function)(found.points)
    level = QUARTIC.level(saddles.LEFT)
    assert (values[:-1] >= level).all()
    assert values[-1] < level
    np.testing.assert_allclose(values[-1], found.loss)
    assert len(found.points) == steps + 1


def test_iterates_are_those_of_a_loop_by_hand(x64):
    tx, w = naqopt.sr1n(), jnp.asarray(QUARTIC.start())
    state = tx.init(w)
    step = jax.jit(functools.partial(tx.update, value_fn=QUARTIC.function))
    for point in run("sr1n").points:
        np.testing.assert_allclose(naqopt.eval_params(state, w), point, rtol=1e-9)
        value, grad = jax.value_and_grad(QUARTIC.function)(w)
        updates, state = step(grad, state, w, value=value, grad=grad)
        w = w + updates


def test_kept_gradients_change_no_step(x64):
    fresh = Program(Method("", lambda _: naqopt.lsr1()), [QUARTIC])
    found = fresh.run(0, QUARTIC.start(), QUARTIC.level(saddles.LEFT), 1.0)
    np.testing.assert_allclose(found.points, run("lsr1").points, rtol=1e-9)
    assert found.gradients == 2 * found.steps


def test_the_first_radius_decides(x64):
    """From radius 1 rank one needs the fewest steps; from that of the gradient the most."""
    starts = QUARTIC.around(3)
    names = ("lsr1", "lsr1-radius-none", "sr1n", "mosr1", "bfgs", "optax-lbfgs", "adam-customary")
    medians = {name: statistics.median(run(name, w).steps for w in starts) for name in names}
    assert medians["lsr1"] == medians["sr1n"] == 4
    for name in ("mosr1", "bfgs", "optax-lbfgs", "adam-customary"):
        assert medians[name] > 4
    assert max(medians["mosr1"], medians["bfgs"]) < medians["lsr1-radius-none"] <= 21
    # It doubles from 1e-6 to 1.
    lengths = np.linalg.norm(np.diff(run("lsr1-radius-none").points, axis=0), axis=1)
    np.testing.assert_allclose(lengths[2:12] / lengths[1:11], 2, rtol=1e-3)


@pytest.mark.parametrize("name", ["lsr1", "lsr1-armijo", "sr1n", "mosr1", "bfgs", "adam"])
def test_exactly_at_the_saddle_nobody_moves(name, x64):
    found = run(name, np.zeros(2), limit=20)
    assert found.steps == 20
    np.testing.assert_array_equal(found.points, 0)


def test_the_rate_of_the_fewest_steps(x64):
    starts = QUARTIC.around(3)
    level = QUARTIC.level(saddles.LEFT)
    tried = methods.tune(METHODS["adam"], QUARTIC, starts, level)
    assert tried["1"] == (2, 9)
    assert tried["0.1"] == (9, 9)
    assert tried["1000"] == (math.inf, 0)
    assert methods.best(tried) == 1
    by_program = statistics.median(run("adam", w, rate=0.1).steps for w in starts)
    assert by_program == 9
    assert methods.best({"1": (math.inf, 0), "10": (math.inf, 2), "100": (math.inf, 2)}) == 10


def test_quick_form_writes_its_files_and_reuses_them(monkeypatch, tmp_path):
    monkeypatch.setattr(saddles, "QUICK_METHODS", ("sr1n", "gradient-descent"))
    arguments = ["run", "saddles", "--quick", "--out", str(tmp_path)]
    before = jax.config.jax_enable_x64
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert jax.config.jax_enable_x64 == before
    assert jnp.zeros(1).dtype == (jnp.float64 if before else jnp.float32)
    folder = tmp_path / "saddles"
    content = json.loads((folder / "saddles.json").read_text())
    assert "QUICK" in content["title"]
    assert content["settings"]["starts"] == 9
    for key in PROBLEMS:
        entry = content["problems"][key]["methods"]["sr1n"]
        assert len(entry["around"]["steps"]) == 9
        assert not entry["moved_from_saddle"]
        assert entry["start"]["steps"][0] < 20
        assert entry["start"]["gradients"][0] == 2 * entry["start"]["steps"][0]
    monkey = content["problems"]["monkey"]["methods"]["gradient-descent"]
    assert monkey["start"]["steps"] == [None]
    assert monkey["path"]["x"][0] == pytest.approx(1e-6 * math.cos(0.7), rel=1e-5)
    text = (folder / "results.md").read_text()
    assert "none of the methods moves" in text
    assert "## quartic" in text
    with Image.open(folder / "saddles.png") as image:
        image.load()
        assert image.width > 1000

    # Of an interrupted study only what is missing is run.
    kept = content["problems"]["quartic"]["methods"]["sr1n"] | {"label": "kept"}
    content["problems"]["quartic"]["methods"]["sr1n"] = kept
    records.write(folder / "saddles.json", content)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert json.loads((folder / "saddles.json").read_text()) == content


def test_table_of_runs_that_have_not_left():
    around = {"steps": [3, None, None], "gradients": [4, 9, 9], "losses": [0, 0, 0]}
    method = {"label": "lsr1()", "rate": None, "start": {"steps": [None]}, "around": around}
    content = {"problems": {"quartic": {"methods": {"lsr1": method}}}}
    line = report.table(content, "quartic", ["lsr1"]).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:5] == ["", "not left", "not left [3, not left]", "1 of 3"]
    assert "not left (2 not)" in report.summary(content, ["lsr1"])
