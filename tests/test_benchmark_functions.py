"""`python -m benchmarks run functions`: the problems, the counting, and the files."""

import collections
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
from benchmarks.functions import problems
from benchmarks.functions.problems import PROBLEMS
from benchmarks.reports import comparison as report
from benchmarks.reports import comparison_plots as plots
from benchmarks.studies import functions, restarts
from benchmarks.training import comparison, solvers
from benchmarks.training.evaluations import Counter
from benchmarks.training.solvers import LIMIT, SOLVERS, OptaxProgram, Result

BY_NAME = {problem.name: problem for problem in PROBLEMS}
EACH_PROBLEM = pytest.mark.parametrize("problem", PROBLEMS, ids=BY_NAME)


def penalty_minimiser():
    """All coordinates t, where 2·10⁻⁵ (t − 1) + 4 t (10 t² − ¼) = 0."""
    roots = np.roots([40, 0, 2e-5 - 1, -2e-5])
    return [max(roots.real)] * 10


MINIMISERS = {
    "rosenbrock-2": [1, 1],
    "beale": [3, 0.5],
    "levy-2": [1, 1],
    "freudenstein-roth": [5, 4],
    "brown-badly-scaled": [1e6, 2e-6],
    "booth": [1, 3],
    "himmelblau": [3, 2],
    "helical-valley": [1, 0, 0],
    "box-3d": [1, 10, 1],
    "powell-singular": [0, 0, 0, 0],
    "wood": [1, 1, 1, 1],
    "levy-10": [1] * 10,
    "penalty-1-10": penalty_minimiser(),
    "variably-dimensioned-10": [1] * 10,
    "trigonometric-10": [0] * 10,
    "dixon-price-10": [2 ** -((2**i - 2) / 2**i) for i in range(1, 11)],
    "zakharov-10": [0] * 10,
    "styblinski-tang-10": [-2.903534027771178] * 10,
    "rosenbrock-100": [1] * 100,
}
# Moré, Garbow and Hillstrom's, or worked out by hand.
VALUES_AT_STARTS = {
    "rosenbrock-2": 24.2,
    "beale": 14.203125,
    "freudenstein-roth": 400.5,
    "brown-badly-scaled": 999998000002.999996,
    "booth": 74,
    "himmelblau": 170,
    "helical-valley": 2500,
    "box-3d": 1031.153810609398,
    "powell-singular": 215,
    "wood": 19192,
    "penalty-1-10": 148032.56535,
    "variably-dimensioned-10": 2198551.1625,
    "dixon-price-10": 54,
    "zakharov-10": 10 + 27.5**2 + 27.5**4,
    "styblinski-tang-10": 0,
    "rosenbrock-100": 50 * 24.2 + 49 * (100 * (-1.2 - 1) ** 2 + 0),
    "broyden-tridiagonal-100": 98 + 2**2 + 3**2,
}


@pytest.fixture(autouse=True)
def wide():
    """Everything in float64, as in the comparison."""
    with comparison.float64():
        yield


@pytest.mark.parametrize("name", MINIMISERS)
def test_gradients_vanish_at_the_known_minima(name):
    problem, point = BY_NAME[name], jnp.array(MINIMISERS[name], float)
    value, gradient = jax.jit(jax.value_and_grad(problem.function))(point)
    np.testing.assert_allclose(value, problem.minimum, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(gradient, 0, atol=1e-8)


@pytest.mark.parametrize("name", VALUES_AT_STARTS)
def test_values_at_the_published_starts(name):
    problem = BY_NAME[name]
    value = jax.jit(problem.function)(jnp.array(problem.start))
    np.testing.assert_allclose(value, VALUES_AT_STARTS[name], rtol=1e-12, atol=1e-12)


def test_the_remaining_functions_follow_their_formulas():
    """Levy's and the trigonometric function, with loops."""
    x = np.linspace(-4, 3, 10)
    w = [1 + (z - 1) / 4 for z in x]
    levy = math.sin(math.pi * w[0]) ** 2
    levy += sum((z - 1) ** 2 * (1 + 10 * math.sin(math.pi * z + 1) ** 2) for z in w[:-1])
    levy += (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    np.testing.assert_allclose(problems.levy(jnp.array(x)), levy)
    trigonometric = 0
    for i in range(10):
        cosines = sum(math.cos(z) for z in x)
        residual = 10 - cosines + (i + 1) * (1 - math.cos(x[i])) - math.sin(x[i])
        trigonometric += residual**2
    np.testing.assert_allclose(problems.trigonometric(jnp.array(x)), trigonometric)


@EACH_PROBLEM
def test_starts_are_the_published_one_and_others_around_it(problem):
    starts = problem.starts(5)
    assert starts.shape == (5, problem.dimension)
    np.testing.assert_array_equal(starts, problem.starts(5))
    np.testing.assert_array_equal(starts[:2], problem.starts(2))
    np.testing.assert_array_equal(starts[0], problem.start)
    assert len(np.unique(starts, axis=0)) == 5
    largest = np.maximum(1, np.abs(starts[0])) / 2
    assert np.all(np.abs(starts - starts[0]) <= largest)
    assert np.all(np.isfinite(jax.jit(jax.vmap(problem.function))(jnp.array(starts))))


def test_counter_counts_what_runs():
    counter = Counter()
    loss = counter.loss([jnp.sum, lambda x: jnp.sum(x**2)])

    @jax.jit
    def program(point, index):
        at = functools.partial(loss, index=index)
        jax.lax.fori_loop(0, 3, lambda i, x: x + at(x), point)  # 3 losses
        gradient = jax.lax.fori_loop(0, 4, lambda i, x: jax.grad(at)(point), point)  # 4 gradients
        value, derivative = jax.linearize(at, point)  # a loss, and the gradient of one of them
        transposed = jax.linear_transpose(derivative, point)
        twice = jax.lax.cond(value > 100, lambda: gradient, lambda: transposed(1.0)[0])
        return jax.lax.cond(value > 100, lambda: at(point), lambda: value), twice

    value, gradient = program(jnp.array([1.0, 2.0]), 1)
    jax.effects_barrier()
    assert value == 5
    np.testing.assert_array_equal(gradient, [2, 4])
    assert (counter.evaluations, counter.gradients, counter.losses) == (8, 5, 3)
    counter.reset()
    program(jnp.array([1.0, 2.0]), 0)
    jax.effects_barrier()
    assert (counter.evaluations, counter.gradients) == (8, 5)


# From the iterations to the gradients that a run takes, where the method decides it.
GRADIENTS = {
    "bfgs": lambda iterations: iterations + 1,
    "moq-dense": lambda iterations: iterations + 1,
    "naq": lambda iterations: 2 * iterations + 1,
    "mnaq": lambda iterations: 2 * iterations + 1,
    "optax-backtracking": lambda iterations: iterations + 1,
    "optax": None,
    "optimistix": None,
    "scipy-dense": None,
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_reported_evaluations_are_those_that_run(name):
    executed = collections.Counter()

    def booth(x):
        jax.debug.callback(lambda: executed.update(["booth"]))
        return problems.booth(x)

    program = SOLVERS[name].program([problems.beale, booth])
    result = program.solve(1, np.array([0.0, 0.0]))
    jax.effects_barrier()
    assert result.evaluations == executed["booth"]
    if GRADIENTS[name] is not None:
        assert result.gradients == GRADIENTS[name](result.iterations)
    if name == "optimistix":
        assert result.evaluations == result.iterations
    if name in ("optax", "scipy-dense"):
        assert result.losses == 0
        assert result.gradients > result.iterations
    # The same rule for all of them.
    assert 0 < np.linalg.norm(result.gradient) <= 1e-6
    np.testing.assert_allclose(result.point, [1, 3], atol=1e-6)
    np.testing.assert_allclose(result.gradient, jax.grad(problems.booth)(result.point), atol=1e-12)
    np.testing.assert_allclose(result.loss, problems.booth(result.point), atol=1e-20)
    # Counts start afresh with every run.
    assert program.solve(1, np.array([0.0, 0.0])).evaluations == result.evaluations


def test_a_path_leads_through_the_iterates_of_a_run():
    program = SOLVERS["bfgs"].program([problems.beale])
    result = program.solve(0, np.array([1.0, 1.0]))
    points = list(program.path(0, np.array([1.0, 1.0])))
    assert len(points) == result.iterations + 1
    np.testing.assert_allclose(points[0], [1, 1])
    np.testing.assert_allclose(points[-1], result.point, atol=1e-9)


@pytest.mark.parametrize(
    ("learning_rate", "expected"), [(1e-7, report.LIMIT), (10.0, report.DIVERGED)]
)
def test_runs_that_do_not_converge_fail(learning_rate, expected):
    program = OptaxProgram(optax.sgd(learning_rate), [problems.rosenbrock])
    result = program.solve(0, np.array([-1.2, 1.0]))
    assert comparison.status(BY_NAME["rosenbrock-2"], result) == expected
    assert (result.evaluations > LIMIT) == (expected == report.LIMIT)


@pytest.mark.parametrize(
    ("loss", "norm", "evaluations", "expected"),
    [
        (1e-12, 1e-6, LIMIT, report.SOLVED),
        (1e-12, 1e-6, LIMIT + 1, report.LIMIT),
        (48.9842, 1e-7, 20, report.ELSEWHERE),
        (1e-12, 2e-6, 20, report.STOPPED),
        (1e-12, 2e-6, LIMIT, report.LIMIT),
        (0.0, math.nan, 20, report.DIVERGED),
    ],
)
def test_the_gradient_decides_between_success_and_failure(loss, norm, evaluations, expected):
    result = Result(np.zeros(2), loss, np.array([norm, 0.0]), 10, 0, evaluations)
    assert comparison.status(BY_NAME["freudenstein-roth"], result) == expected


def made_up_content():
    """Two solvers on one problem from three starts."""
    runs = {
        "bfgs": (["solved", "elsewhere", "limit"], [10, 20, 5001]),
        "scipy": (["solved", "stopped", "diverged"], [5, 7, 3]),
    }
    entries = {}
    for name, (endings, spent) in runs.items():
        columns = {"status": endings, "evaluations": spent}
        columns |= {"losses": [0, 0, 0], "gradients": spent}
        entries[name] = {"label": name, "options": {}, "problems": {"beale": columns}}
    settings = {"problems": {"beale": 2}, "starts": 3, "tolerance": 1e-6, "limit": 5000}
    return {"title": "made up", "settings": settings, "solvers": entries}


def test_ratios_are_to_the_cheapest_and_failures_infinite():
    content = made_up_content()
    assert report.ratios(content) == {"bfgs": [2, 1], "scipy": [1, math.inf]}
    text = "\n".join(report.paragraphs(content))
    assert "2 (1 stopped, 1 diverged)" in text
    assert "20 (1)" in text
    assert "failed (2)" in text


@pytest.fixture
def small(monkeypatch):
    """Fewer solvers and problems."""
    for name in set(SOLVERS) - {"bfgs", "scipy", "scipy-dense"}:
        monkeypatch.delitem(SOLVERS, name)
    monkeypatch.setattr(functions, "QUICK_PROBLEMS", ("booth", "beale"))
    monkeypatch.setattr(plots, "_TRAVELLERS", ("bfgs",))


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_quick_run_writes_its_files_and_resumes(small, tmp_path, monkeypatch):
    result = command("run", "functions", "--quick", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "QUICK" in result.output
    folder = tmp_path / "functions"
    path = folder / "functions.json"
    content = json.loads(path.read_text())
    assert content["settings"]["problems"] == {"beale": 2, "booth": 2}
    assert content["versions"].keys() >= {"naqopt", "jax", "optax", "scipy", "optimistix"}
    for name, entry in content["solvers"].items():
        assert entry["options"] == SOLVERS[name].options
        columns = entry["problems"]["booth"]
        assert columns["status"] == ["solved", "solved"]
        assert columns["evaluations"] == [
            losses + gradients
            for losses, gradients in zip(columns["losses"], columns["gradients"], strict=True)
        ]
        assert all(norm <= 1e-6 for norm in columns["gradient_norm"])
    for picture in ("profile.png", "beale.png"):
        with Image.open(folder / picture) as image:
            image.load()
            assert image.width > 1000
    text = (folder / "results.md").read_text()
    assert all(entry["label"] in text for entry in content["solvers"].values())
    assert text.strip() in result.output

    # What is missing, or was run with other options, is run again; the rest is not.
    del content["solvers"]["bfgs"]["problems"]["booth"]
    content["solvers"]["scipy-dense"]["options"] = {"maxls": 3}
    content["solvers"]["scipy"]["problems"]["booth"]["evaluations"] = [77, 78]
    path.write_text(json.dumps(content))
    solved = []
    solve = comparison._solve

    def watched(program, index, problem, starts):
        solved.append(problem.name)
        return solve(program, index, problem, starts)

    monkeypatch.setattr(comparison, "_solve", watched)
    monkeypatch.setattr(plots, "beale", lambda path: path)
    result = command("run", "functions", "--quick", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "3 of 6 are there already, reused" in result.output
    assert solved == ["booth", "beale", "booth"]
    content = json.loads(path.read_text())
    assert content["solvers"]["scipy-dense"]["options"] == {}
    assert content["solvers"]["scipy"]["problems"]["booth"]["evaluations"] == [77, 78]

    monkeypatch.setattr(functions, "QUICK_STARTS", 1)
    result = command("run", "functions", "--quick", "--out", tmp_path)
    assert "has other settings; starting afresh" in result.output
    assert len(solved) == 3 + 6


def test_the_command_line_knows_the_experiment(tmp_path):
    assert "functions " in command("list").output
    result = command("run", "functions", "--seeds", 2, "--out", tmp_path)
    assert result.exit_code == 2
    assert "functions has only the options --quick and --out" in result.output


def test_every_solver_is_drawn():
    assert all(name.split("-")[0] in plots.COLOURS for name in SOLVERS)
    labels = [solver.label for solver in SOLVERS.values()]
    assert len(set(labels)) == len(labels)
    parts = [x for solver in SOLVERS.values() for x in solver.options.values()]
    assert all(x in solvers._PARTS for x in parts if isinstance(x, str))


def test_restarts_are_summed_up_by_kind():
    """From stored numbers: who ended, who found the lowest value, who ended above the start."""
    kinds = {"functions": [BY_NAME["booth"]], "least squares": [BY_NAME["beale"]]}
    ends = {"status": ["solved", "limit"], "evaluations": [10, 5000]}
    content = {
        "settings": {"starts": 2},
        "solvers": {
            "naq/5": {
                "label": "LNAQ",
                "options": {"restart_window": 5},
                "problems": {
                    "booth": {**ends, "loss": [1e-9, None]},
                    "beale": {**ends, "loss": [1e-5, 1e6]},
                },
            }
        },
    }
    (row,) = restarts.summary(content, kinds)
    assert (row["label"], row["window"], row["runs"]) == ("LNAQ", 5, 4)
    assert (row["ended"], row["functions"], row["least squares"]) == (1, 1, 0)
    assert row["above"] == 2
    assert row["evaluations"] == 10


def test_restarts_write_their_files(tmp_path, monkeypatch):
    few = {kind: [BY_NAME["booth"]] for kind in ("functions", "least squares", "cluster")}
    monkeypatch.setattr(restarts, "KINDS", few)
    monkeypatch.setattr(restarts, "METHODS", ("naq",))
    result = command("run", "restarts", "--quick", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "restarts" / "restarts.json").read_text())
    windows = [entry["options"]["restart_window"] for entry in content["solvers"].values()]
    assert windows == [None, 5]
    lines = (tmp_path / "restarts" / "results.md").read_text().splitlines()
    assert sum(line.startswith("| LNAQ") for line in lines) == 2
    with Image.open(tmp_path / "restarts" / "restarts.png") as image:
        assert image.width > 1000
