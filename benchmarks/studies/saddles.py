"""How many steps escaping a saddle point takes, with indefinite models of the Hessian and without.

The claim: a method whose model of the Hessian may be indefinite (`naqopt.lsr1`, `naqopt.sr1n`,
`naqopt.mosr1`) needs the fewest. Every run begins 1e-6 beside the saddle of one of three functions
and has left it as soon as E at the iterate (`naqopt.eval_params`) is below the saddle's by half of
the whole decrease to the minimum. After 2,000 steps it counts as not left.

Decided here: all methods have their defaults and float64; Adam and gradient descent have the rate
of the fewest steps (median over the starts about the saddle) among 13 from 1e-3 to 1e3. A run is
not asked to stay below that level, and so a rate that jumps there is a good one. Adam has its
customary rate too, and L-SR1 also the first radius of SR1-N.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import naqopt
from benchmarks.functions.saddles import DISTANCE, PROBLEMS, Problem
from benchmarks.reports import records, tables
from benchmarks.reports import saddles as report
from benchmarks.reports.progress import progress_bar
from benchmarks.training import saddles as methods
from benchmarks.training.saddles import LIMIT, RATES, Method, Program
from benchmarks.training.study import Study

NAME = "saddles"
TITLE = "Leaving a saddle point"
SIDE, QUICK_SIDE = 7, 3
LEFT, ARRIVED = 0.5, 0.999  # shares of the decrease: a run has left, and a path is drawn so far
STEPS_AT_SADDLE = 50
STEPS_OF_PATH = 300

# `store_grad` saves the second evaluation of the gradient at the new params and changes no step.
METHODS: Mapping[str, Method] = {
    "lsr1": Method("lsr1()", lambda _: naqopt.lsr1(store_grad=True), reuse=True),
    "lsr1-radius-none": Method(
        "lsr1(initial_radius=None)",
        lambda _: naqopt.lsr1(initial_radius=None, store_grad=True),
        reuse=True,
    ),
    "lsr1-armijo": Method(
        "lsr1(linesearch=armijo())",
        lambda _: naqopt.lsr1(linesearch=naqopt.armijo()),
    ),
    "sr1n": Method("sr1n()", lambda _: naqopt.sr1n()),
    "sr1n-exact": Method('sr1n(solver="exact")', lambda _: naqopt.sr1n(solver="exact")),
    "mosr1": Method("mosr1()", lambda _: naqopt.mosr1()),
    "bfgs": Method("bfgs()", lambda _: naqopt.bfgs()),
    "bfgs-zoom": Method(
        "bfgs(linesearch=zoom(20))",
        lambda _: naqopt.bfgs(linesearch=optax.scale_by_zoom_linesearch(20), store_grad=True),
        reuse=True,
    ),
    "optax-lbfgs": Method("optax.lbfgs()", lambda _: optax.lbfgs(), reuse=True),
    "adam-customary": Method("Adam, 0.001", lambda _: optax.adam(1e-3)),
    "adam": Method("Adam, tuned", optax.adam, tuned=True),
    "gradient-descent": Method("gradient descent, tuned", optax.sgd, tuned=True),
}
QUICK_METHODS = tuple(METHODS)


def run(folder: Path, quick: bool) -> Path:
    """Runs what is missing of it; the quick form has fewer starts."""
    path = folder / f"{NAME}.json"
    names = QUICK_METHODS if quick else tuple(METHODS)
    settings = {
        "starts": (QUICK_SIDE if quick else SIDE) ** 2,
        "distance": DISTANCE,
        "limit": LIMIT,
        "left": LEFT,
        "rates": list(RATES),
    }
    title = f"{TITLE} (QUICK form)" if quick else TITLE
    content = records.opened(path, title, settings, "problems")
    for key, problem in PROBLEMS.items():
        content["problems"].setdefault(key, {"title": problem.title, "methods": {}})
    # Problems of one dimension share a compiled program.
    groups: dict[int, list[str]] = {}
    for key, problem in PROBLEMS.items():
        groups.setdefault(problem.dimension, []).append(key)
    with (
        jax.enable_x64(True),
        progress_bar(NAME, len(names) * len(groups), unit="method") as bar,
    ):
        for group in groups.values():
            for name in names:
                bar.set_postfix_str(METHODS[name].label)
                if any(name not in content["problems"][key]["methods"] for key in group):
                    program = Program(METHODS[name], [PROBLEMS[key] for key in group])
                    for index, key in enumerate(group):
                        entry = content["problems"][key]["methods"]
                        entry[name] = _study(program, index, name, PROBLEMS[key], content)
                    records.write(path, content)
                bar.update()
        tables.write(folder, content["title"], *report.paragraphs(content, names))
        return report.picture(content, names, folder / f"{NAME}.png")


def _study(
    program: Program, index: int, name: str, problem: Problem, content: Mapping[str, Any]
) -> dict[str, Any]:
    """Runs one method on one problem from all starts; returns what goes into the file."""
    level = problem.level(LEFT)
    around = problem.around(math.isqrt(content["settings"]["starts"]))
    entry: dict[str, Any] = {"label": METHODS[name].label, "rate": None}
    rate = 1.0
    if METHODS[name].tuned:
        tried = methods.tune(METHODS[name], problem, around, level)
        rate = entry["rate"] = methods.best(tried)
        entry["tried"] = {
            key: {"median": records.rounded(median), "left": left}
            for key, (median, left) in tried.items()
        }
    entry["start"] = _columns([program.run(index, problem.start(), level, rate)], level)
    entry["around"] = _columns([program.run(index, w, level, rate) for w in around], level)
    saddle = np.zeros(problem.dimension)
    resting = program.run(index, saddle, level, rate, STEPS_AT_SADDLE)
    entry["moved_from_saddle"] = bool((resting.points != 0).any())
    arrived = problem.level(ARRIVED)
    path = program.run(index, problem.start(), arrived, rate, STEPS_OF_PATH).points
    losses = np.asarray(jax.vmap(problem.function)(path))
    entry["path"] = {"losses": [records.rounded(loss) for loss in losses.tolist()]}
    if problem.dimension == 2:
        for axis, coordinates in zip("xy", path.T.tolist(), strict=True):
            entry["path"][axis] = [records.rounded(x) for x in coordinates]
    return entry


def _columns(runs: Sequence[methods.Run], level: float) -> dict[str, list[int | None]]:
    """Returns the counts by run; no steps where it has not left."""
    return {
        "steps": [run.steps if run.loss < level else None for run in runs],
        "gradients": [run.gradients for run in runs],
        "losses": [run.losses for run in runs],
    }


STUDIES = (Study(NAME, __doc__, run),)
