"""The table beside the paper's, and the picture."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks import plots, tables
from benchmarks.modelling import task
from benchmarks.modelling.methods import METHODS, Errors
from benchmarks.modelling.training import CONVERGED

Content = Mapping[str, Any]

# The left panel shows the paper's comparison, the middle one the family alone.
_PANELS = {
    "beside the first-order methods": (
        "adagrad",
        "rmsprop",
        "adam",
        "adam-customary",
        "bfgs",
        "mnaq-0.85",
    ),
    "the family": ("bfgs", "mbfgs", "mnaq-0.8", "mnaq-0.9", "mnaq-0.95", "amnaq", "naq", "moq"),
}
_COLOURS = {
    "adagrad": "#8a94a0",
    "rmsprop": "#2a9d8f",
    "adam": "#3b6fb6",
    "adam-customary": "#7fb0e6",
    "bfgs": "#202428",
    "mbfgs": "#7a5c3e",
    "mnaq-0.8": "#f0b36e",
    "mnaq-0.85": "#e9963d",
    "mnaq-0.9": "#dd6b20",
    "mnaq-0.95": "#c8102e",
    "amnaq": "#8c2d8f",
    "naq": "#3f8f29",
    "moq": "#e76fae",
}


def write(content: Content, names: Sequence[str], folder: Path) -> Path:
    """Prints the table and writes it and the picture.

    Args:
      content: the file of results.
      names: the methods to show, in this order.
      folder: where `results.md` and the PNG go.

    Returns:
      The path of the picture.
    """
    shown = {name: content["methods"][name] for name in names}
    text = [f"# {content['title']}", _described(content), table(shown)]
    grids = _grids(shown)
    if grids:
        text += ["Average training error, 10⁻³, of 15 other runs by learning rate:", grids]
    (folder / "results.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    click.echo("\n" + "\n\n".join(text[2:]) + "\n")
    path = picture(content["title"], shown, folder / f"{folder.name}.png")
    click.echo(f"table: {folder / 'results.md'}\ncurves: {path}")
    return path


def table(shown: Mapping[str, Content]) -> str:
    """Returns a line for each method, the paper's figures beside ours."""
    header = ["optimizer", "learning rate", "runs"]
    header += ["train error, 10⁻³: average / best / worst", "paper's", "median"]
    header += ["test error, 10⁻³", "paper's", "iterations", "paper's", "converged"]
    header += ["CPU s a run", "paper's"]
    rows = []
    for name, entry in shown.items():
        method, runs = METHODS[name], entry["runs"]
        paper, rate = method.published, entry["learning_rate"]
        train, test = (
            [1e3 * _number(run[kind]) for run in runs] for kind in ("train_error", "test_error")
        )
        rows.append(
            [
                method.label,
                f"{rate:g}" if rate else "",
                str(len(runs)),
                _errors(Errors(statistics.fmean(train), min(train), max(train))),
                _errors(paper.train) if paper else "",
                _short(statistics.median(train)),
                _errors(Errors(statistics.fmean(test), min(test), max(test))),
                _errors(paper.test) if paper else "",
                f"{statistics.fmean(run['iterations'] for run in runs):,.0f}",
                f"{paper.iterations:,}" if paper else "",
                "" if method.first_order else f"{sum(run['status'] == CONVERGED for run in runs)}",
                f"{statistics.fmean(run['seconds'] for run in runs):.2g}",
                f"{paper.seconds:g}" if paper else "",
            ]
        )
    return tables.markdown(header, rows)


def picture(title: str, shown: Mapping[str, Content], path: Path) -> Path:
    """Draws the training errors against iterations, and the curve as the best run fits it."""
    figure, axes = plt.subplots(1, 3, figsize=(17, 5.2), layout="constrained")
    axes[1].sharey(axes[0])
    for axis, (panel, names) in zip(axes, _PANELS.items(), strict=False):
        for name in names:
            if name in shown:
                _line(axis, name, shown[name])
        axis.set(xscale="log", yscale="log", xlabel="iteration", title=panel)
        if axis.lines:
            axis.legend(fontsize=8, frameon=False, loc="lower left")
        plots.decorate(axis)
    axes[0].set_ylabel("training error E")
    _fit(axes[2], shown)
    plots.decorate(axes[2])
    counts = sorted({len(entry["runs"]) for entry in shown.values()})
    runs = " or ".join(map(str, counts))
    figure.suptitle(f"{title}\nmedian and range of {runs} runs, dots where they end", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _line(axis: Axes, name: str, entry: Content) -> None:
    """Draws the median and range of a method; a run that has ended keeps its error."""
    curves = [run["curve"] for run in entry["runs"]]
    marks = sorted({mark for curve in curves for mark in curve["iterations"] if mark})
    values = np.array(
        [
            [
                _number(
                    curve["train_error"][np.searchsorted(curve["iterations"], mark, "right") - 1]
                )
                for mark in marks
            ]
            for curve in curves
        ]
    )
    colour, method = _COLOURS[name], METHODS[name]
    rate = entry["learning_rate"]
    label = method.label + (f" (lr {rate:g})" if rate else "")
    axis.plot(marks, np.median(values, axis=0), color=colour, label=label, linewidth=1.6)
    axis.fill_between(
        marks, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.08, linewidth=0
    )
    if not method.first_order:
        ends = [(run["iterations"], _number(run["train_error"])) for run in entry["runs"]]
        axis.plot(*zip(*ends, strict=True), ".", color=colour, markersize=4, alpha=0.7)


def _fit(axis: Axes, shown: Mapping[str, Content]) -> None:
    """Draws the curve, and what the best runs of ours and of the first-order methods make of it."""
    points = task.points(1_000)
    axis.plot(points.inputs, points.targets, color="#202428", linewidth=3, alpha=0.3, label="curve")
    for first_order, colour in ((True, _COLOURS["adam"]), (False, _COLOURS["mnaq-0.95"])):
        runs = [
            (_number(run["train_error"]), METHODS[name].label, run["params"])
            for name, entry in shown.items()
            for run in entry["runs"]
            if METHODS[name].first_order == first_order
        ]
        if runs:
            error, label, params = min(runs)
            fitted = task.output(task.Params(*map(jnp.asarray, params)), points.inputs)
            axis.plot(points.inputs, fitted, color=colour, label=f"{label}, E = {error:.3g}")
    axis.set(xlabel="x, scaled", ylabel="y, scaled", title="the best runs")
    axis.legend(fontsize=8, frameon=False)


def _grids(shown: Mapping[str, Content]) -> str:
    grids = {name: entry for name, entry in shown.items() if entry["grid"]}
    rates = sorted({rate for entry in grids.values() for rate in entry["grid"]}, key=float)
    rows = []
    for name, entry in grids.items():
        row = [METHODS[name].label]
        for rate in rates:
            text = _short(1e3 * _number(entry["grid"][rate])) if rate in entry["grid"] else ""
            row.append(f"**{text}**" if float(rate) == entry["learning_rate"] else text)
        rows.append(row)
    return tables.markdown(["learning rate", *rates], rows) if grids else ""


def _described(content: Content) -> str:
    settings = content["settings"]
    return (
        f"{settings['points']} points, {settings['test_points']:,} for testing, 22 parameters. "
        f"At most {settings['max_iterations']:,} iterations; all but the first-order methods end "
        f"where the gradient's norm is at most {settings['tolerance']:g}. float64 where not said "
        f"otherwise. {content['device']}. The paper's figures are of 15 runs (ICMLA 2018, "
        "example 1); its learning rates are not known."
    )


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _errors(errors: Errors) -> str:
    return " / ".join(map(_short, errors))


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "diverged"
