"""Function modelling: a network of 22 parameters by full-batch methods, beside the paper's table.

The paper (Indrapriyadarsini et al., *Implementation of a modified Nesterov's Accelerated
quasi-Newton method on Tensorflow*, ICMLA 2018, example 1): y = 1 + (x + 2x²) sin(−x²) on [−4, 4] at
400 points, 10,000 for testing; inputs and targets scaled to [−1, 1]; a network of 1-7-1 with a
sigmoid hidden layer and a linear output, 22 parameters from U(−0.5, 0.5); E the mean of ½ (y − t)²;
full batch; at most 100,000 iterations; 15 runs.

Decided here: both sets of points at equal distances. The first-order methods run for all
iterations, as the paper's did; the others end after the first step whose gradient, taken where the
method takes it, has a norm of at most 10⁻⁶ (the paper's rule is not printed on the slides that we
have). Dense matrices as the paper's where not said otherwise. Everything in float64: the rule is
below float32's rounding, and the lines marked float32 show what the smaller type does. The learning
rates of the first-order methods are tuned: the lowest average error of 15 runs of full length,
from seeds that no reported run has, over a grid of five values that is extended as in
`benchmarks.learning_rates`; beside them stand the customary rates.
"""

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import tqdm

from benchmarks import learning_rates, records
from benchmarks.modelling import report, task
from benchmarks.modelling.methods import METHODS, Method
from benchmarks.modelling.training import Runner

NAME = "function-modelling"
TOLERANCE, MAX_ITERATIONS, RUNS = 1e-6, 100_000, 15
QUICK_ITERATIONS, QUICK_RUNS = 2_000, 3
QUICK_METHODS = ("adam-customary", "bfgs", "mbfgs", "mnaq-0.85", "mnaq-0.95", "naq", "moq")
TUNING_SEEDS = tuple(range(learning_rates.SEED, learning_rates.SEED + 15))


def run(
    out: Path,
    quick: bool = False,
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
) -> Path:
    """Runs the experiment, or what is missing of it.

    Args:
      out: the results go to a folder of the experiment's name in here.
      quick: fewer and shorter runs, of some methods alone, none of them tuned.
      methods: names from the table of methods.
      seeds: runs per method.

    Returns:
      The path of the plot.
    """
    started = time.perf_counter()
    folder = out / NAME
    count = seeds or (QUICK_RUNS if quick else RUNS)
    names = methods or (QUICK_METHODS if quick else METHODS)
    book = _Book(folder / f"{NAME}.json", quick)
    click.echo(f"{book.content['title']}\nresults in {folder}")
    for name in names:
        _run_method(name, METHODS[name], count, book)
    path = report.write(book.content, tuple(names), folder)
    click.echo(f"{time.perf_counter() - started:.0f} s in all")
    return path


class _Book:
    """The file of results, rewritten after every run."""

    def __init__(self, path: Path, quick: bool):
        self.path = path
        settings = {
            "points": task.TRAIN_POINTS,
            "test_points": task.TEST_POINTS,
            "hidden": task.HIDDEN,
            "max_iterations": QUICK_ITERATIONS if quick else MAX_ITERATIONS,
            "tolerance": TOLERANCE,
        }
        title = "Function modelling, y = 1 + (x + 2x²) sin(−x²) by a 1-7-1 network"
        known = records.read(path)
        if known is not None and known["settings"] != settings:
            click.echo(f"{path}: has other settings; starting afresh")
            known = None
        self.content = known or {
            "schema": records.SCHEMA,
            "title": f"{title} (QUICK form)" if quick else title,
            "settings": settings,
            **records.environment(),
            "methods": {},
        }

    def entry(self, name: str, method: Method) -> dict[str, Any]:
        """Returns what is known of a method; nothing if it was run with other settings."""
        settings = {"options": dict(method.options), "bits": method.bits}
        if method.tuned:
            settings["tuning_seeds"] = list(TUNING_SEEDS)
        known = self.content["methods"].get(name)
        if known is None or known["settings"] != settings:
            fresh = {"settings": settings, "learning_rate": method.learning_rate}
            known = fresh | {"compile_seconds": None, "grid": {}, "runs": []}
            self.content["methods"][name] = known
        return known

    def save(self) -> None:
        """Writes the file."""
        records.write(self.path, self.content)


def _run_method(name: str, method: Method, count: int, book: _Book) -> None:
    """Tunes a method where that is due, and adds the runs that are missing."""
    entry = book.entry(name, method)
    settings = book.content["settings"]
    runner = Runner(method, settings["tolerance"], settings["max_iterations"])
    if method.tuned and entry["learning_rate"] is None:
        entry["learning_rate"] = _tune(method, runner, entry["grid"], book)
    done = {run["seed"] for run in entry["runs"]}
    if done.issuperset(range(count)):
        click.echo(f"{method.label}: already run, reused")
        return
    with _progress_bar(method.label, count) as bar:
        for seed in range(count):
            if seed not in done:
                entry["runs"].append(runner.run(seed, entry["learning_rate"]))
                entry["compile_seconds"] = records.rounded(runner.compile_seconds)
                book.save()
            bar.update()
        errors = [run["train_error"] for run in entry["runs"]]
        average = statistics.fmean(math.inf if error is None else error for error in errors)
        bar.set_postfix_str(f"average training error {average:.3g}")


def _tune(method: Method, runner: Runner, grid: dict[str, Any], book: _Book) -> float:
    """Returns the rate of the lowest average training error."""

    def average(rate: float) -> float:
        name = f"{rate:g}"
        if name not in grid:
            with _progress_bar(f"{method.label}, learning rate {name}", len(TUNING_SEEDS)) as bar:
                errors = []
                for seed in TUNING_SEEDS:
                    error = runner.run(seed, rate)["train_error"]
                    errors.append(math.inf if error is None else error)
                    bar.update()
                grid[name] = records.rounded(statistics.fmean(errors))
                bar.set_postfix_str(f"average training error {statistics.fmean(errors):.3g}")
            book.save()
        return math.inf if grid[name] is None else grid[name]

    return learning_rates.best(learning_rates.search(average, method.middle_rate))


def _progress_bar(label: str, runs: int) -> tqdm.tqdm:
    return tqdm.tqdm(total=runs, desc=label, unit="run", dynamic_ncols=True, mininterval=1.0)
