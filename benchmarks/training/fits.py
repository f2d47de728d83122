"""Runs a fit: every method from every seed, then the table and the plot.

A run ends after the first step whose gradient, taken where the method takes it, has a norm of at
most the tolerance; the first-order methods run for all iterations. A target of the error ends no
run; the iterations to it are recorded. Everything is in float64 where a method does not say
otherwise. The learning rates of the first-order methods are tuned: the lowest average error of runs
of full length, from seeds that no reported run has, over a grid of five values that is extended as
in `benchmarks.training.learning_rates`.
"""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.reports import fits as report
from benchmarks.reports import records, tables
from benchmarks.reports.progress import progress_bar
from benchmarks.training import learning_rates
from benchmarks.training.fit import Fit
from benchmarks.training.fit_runs import Runner
from benchmarks.training.study import Study

TOLERANCE = 1e-6


def study(name: str, description: str | None, fit: Fit) -> Study:
    """Returns a fit as what the command line runs."""
    return Study(
        name,
        description,
        functools.partial(run, fit),
        f"at most {fit.max_iterations:,} iterations, {fit.runs} runs; {', '.join(fit.methods)}",
        options=("optimizers", "seeds"),
        choices=fit.methods,
    )


def run(
    fit: Fit,
    folder: Path,
    quick: bool = False,
    optimizers: Sequence[str] | None = None,
    seeds: int | None = None,
) -> Path:
    """Runs a fit, or what is missing of it.

    Args:
      fit: what to run.
      folder: where the results go.
      quick: fewer and shorter runs, of some methods alone, none of them tuned.
      optimizers: names from its table of methods; what was run before stays in the results.
      seeds: runs per method.

    Returns:
      The path of the plot.
    """
    count = seeds or (fit.quick_runs if quick else fit.runs)
    names = optimizers or (fit.quick_methods if quick else fit.methods)
    settings = {
        "points": len(fit.task.train_inputs),
        "test_points": len(fit.task.test_inputs),
        "hidden": fit.task.hidden,
        "max_iterations": fit.quick_iterations if quick else fit.max_iterations,
        "tolerance": TOLERANCE,
    }
    if fit.target_error is not None:
        settings["target_error"] = fit.target_error
    title = f"{fit.title} (QUICK form)" if quick else fit.title
    path = folder / f"{folder.name}.json"
    content = records.opened(path, title, settings, "methods")
    save = functools.partial(records.write, path, content)
    for name in names:
        entry = _entry(fit, name, content["methods"])
        length = settings["max_iterations"]
        runner = Runner(fit.task, fit.methods[name], TOLERANCE, length, fit.target_error)
        _run_method(runner, entry, count, fit.tuning_seeds, save)
    shown = {name: content["methods"][name] for name in fit.methods if _is_run(fit, name, content)}
    tables.write(folder, content["title"], *report.paragraphs(fit, content, shown))
    return report.picture(fit, content["title"], shown, folder / f"{folder.name}.png")


def _entry(fit: Fit, name: str, entries: dict[str, Any]) -> dict[str, Any]:
    """Returns what is known of a method; nothing if it was run with other settings."""
    method, settings = fit.methods[name], _settings(fit, name)
    if name not in entries or entries[name]["settings"] != settings:
        fresh = {"settings": settings, "learning_rate": method.learning_rate}
        entries[name] = fresh | {"compile_seconds": None, "grid": {}, "runs": []}
    return entries[name]


def _settings(fit: Fit, name: str) -> dict[str, Any]:
    """Returns what the runs of a method depend on."""
    method = fit.methods[name]
    settings = {"options": dict(method.options), "bits": method.bits}
    return settings | ({"tuning_seeds": fit.tuning_seeds} if method.tuned else {})


def _is_run(fit: Fit, name: str, content: Mapping[str, Any]) -> bool:
    entry = content["methods"].get(name)
    return entry is not None and entry["settings"] == _settings(fit, name) and bool(entry["runs"])


def _run_method(
    runner: Runner,
    entry: dict[str, Any],
    count: int,
    tuning_seeds: Sequence[int],
    save: Callable[[], None],
) -> None:
    """Tunes a method where that is due, and adds the runs that are missing."""
    method = runner.method
    if method.tuned and entry["learning_rate"] is None:
        entry["learning_rate"] = _tune(runner, entry["grid"], tuning_seeds, save)
    done = {run["seed"] for run in entry["runs"]}
    if done.issuperset(range(count)):
        click.echo(f"{method.label}: already run, reused")
        return
    with progress_bar(method.label, count, unit="run") as bar:
        for seed in range(count):
            if seed not in done:
                entry["runs"].append(runner.run(seed, entry["learning_rate"]))
                _keep_one_network(entry["runs"])
                entry["compile_seconds"] = records.rounded(runner.compile_seconds)
                save()
            bar.update()
        bar.set_postfix_str(f"average training error {_average(entry['runs']):.3g}")


def _tune(
    runner: Runner, grid: dict[str, Any], seeds: Sequence[int], save: Callable[[], None]
) -> float:
    """Returns the rate of the lowest average training error."""

    def average(rate: float) -> float:
        name = f"{rate:g}"
        if name not in grid:
            label = f"{runner.method.label}, learning rate {name}"
            with progress_bar(label, len(seeds), unit="run") as bar:
                found = []
                for seed in seeds:
                    found.append(runner.run(seed, rate))
                    bar.update()
                grid[name] = records.rounded(_average(found))
                bar.set_postfix_str(f"average training error {_average(found):.3g}")
            save()
        return records.number(grid[name])

    return learning_rates.best(learning_rates.search(average, runner.method.middle_rate))


def _keep_one_network(runs: Sequence[dict[str, Any]]) -> None:
    """Leaves its params to the run of the lowest training error, which the picture shows."""
    best = min(runs, key=_train_error)
    for run in runs:
        if run is not best:
            run.pop("params", None)


def _train_error(run: Mapping[str, Any]) -> float:
    return records.number(run["train_error"])


def _average(found: Sequence[Mapping[str, Any]]) -> float:
    return statistics.fmean(map(_train_error, found))
