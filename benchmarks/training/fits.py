"""Runs a fit: every method from every seed, then the table and the plot.

A run ends after the first step whose gradient, taken where the method takes it, has a norm of at
most the tolerance; the first-order methods run for all iterations. Everything is in float64 where a
method does not say otherwise. The learning rates of the first-order methods are tuned: the lowest
average error of runs of full length, from seeds that no reported run has, over a grid of five
values that is extended as in `benchmarks.training.learning_rates`.
"""

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.reports import fits as report
from benchmarks.reports import records
from benchmarks.reports.progress import progress_bar
from benchmarks.training import learning_rates
from benchmarks.training.fit import Fit, Method
from benchmarks.training.full_batches import Runner

TOLERANCE = 1e-6


def run(
    fit: Fit,
    folder: Path,
    quick: bool = False,
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
) -> Path:
    """Runs a fit, or what is missing of it.

    Args:
      fit: what to run.
      folder: where the results go.
      quick: fewer and shorter runs, of some methods alone, none of them tuned.
      methods: names from its table of methods.
      seeds: runs per method.

    Returns:
      The path of the plot.
    """
    started = time.perf_counter()
    count = seeds or (fit.quick_runs if quick else fit.runs)
    names = methods or (fit.quick_methods if quick else fit.methods)
    book = _Book(fit, folder / f"{folder.name}.json", quick)
    click.echo(f"{book.content['title']}\nresults in {folder}")
    for name in names:
        _run_method(name, count, book)
    path = report.write(fit, book.content, tuple(names), folder)
    click.echo(f"{time.perf_counter() - started:.0f} s in all")
    return path


class _Book:
    """The file of results, rewritten after every run."""

    def __init__(self, fit: Fit, path: Path, quick: bool):
        self.fit = fit
        self.path = path
        settings = {
            "points": len(fit.task.train_inputs),
            "test_points": len(fit.task.test_inputs),
            "hidden": fit.task.hidden,
            "max_iterations": fit.quick_iterations if quick else fit.max_iterations,
            "tolerance": TOLERANCE,
        }
        known = records.read(path)
        if known is not None and known["settings"] != settings:
            click.echo(f"{path}: has other settings; starting afresh")
            known = None
        self.content = known or {
            "schema": records.SCHEMA,
            "title": f"{fit.title} (QUICK form)" if quick else fit.title,
            "settings": settings,
            **records.environment(),
            "methods": {},
        }

    def entry(self, name: str, method: Method) -> dict[str, Any]:
        """Returns what is known of a method; nothing if it was run with other settings."""
        settings = {"options": dict(method.options), "bits": method.bits}
        if method.tuned:
            settings["tuning_seeds"] = self.fit.tuning_seeds
        known = self.content["methods"].get(name)
        if known is None or known["settings"] != settings:
            fresh = {"settings": settings, "learning_rate": method.learning_rate}
            known = fresh | {"compile_seconds": None, "grid": {}, "runs": []}
            self.content["methods"][name] = known
        return known

    def save(self) -> None:
        """Writes the file."""
        records.write(self.path, self.content)


def _run_method(name: str, count: int, book: _Book) -> None:
    """Tunes a method where that is due, and adds the runs that are missing."""
    method = book.fit.methods[name]
    entry = book.entry(name, method)
    settings = book.content["settings"]
    runner = Runner(book.fit.task, method, settings["tolerance"], settings["max_iterations"])
    if method.tuned and entry["learning_rate"] is None:
        entry["learning_rate"] = _tune(method, runner, entry["grid"], book)
    done = {run["seed"] for run in entry["runs"]}
    if done.issuperset(range(count)):
        click.echo(f"{method.label}: already run, reused")
        return
    with progress_bar(method.label, count, unit="run") as bar:
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
    seeds = book.fit.tuning_seeds

    def average(rate: float) -> float:
        name = f"{rate:g}"
        if name not in grid:
            with progress_bar(
                f"{method.label}, learning rate {name}", len(seeds), unit="run"
            ) as bar:
                errors = []
                for seed in seeds:
                    error = runner.run(seed, rate)["train_error"]
                    errors.append(math.inf if error is None else error)
                    bar.update()
                grid[name] = records.rounded(statistics.fmean(errors))
                bar.set_postfix_str(f"average training error {statistics.fmean(errors):.3g}")
            book.save()
        return math.inf if grid[name] is None else grid[name]

    return learning_rates.best(learning_rates.search(average, method.middle_rate))
