"""Learning curves as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from benchmarks.reports import pictures, records, tables
from benchmarks.reports.tables import Content
from benchmarks.training.optimizers import OPTIMIZERS

# One colour per optimizer in every plot; aSNAQ's and SVR-LNAQ's stand out, Optax's are muted.
COLOURS = {
    "adam": "#3b6fb6",
    "adam-cosine": "#3b6fb6",
    "adagrad": "#8a94a0",
    "adaqn": "#e39a2d",
    "adaqn-eps": "#e39a2d",
    "adaqn-monitored": "#7a5c3e",
    "asnaq": "#c8102e",
    "asnaq-eps": "#c8102e",
    "asnaq-backoff": "#8c2d8f",
    "asnaq-rms": "#2a9d8f",
    "asnaq-rms-backoff": "#7a5c3e",
    "asnaq-single": "#e76fae",
    "asnaq-single-backoff": "#3f8f29",
    "asnaq-single-backoff-rms": "#202428",
    "sgd": "#74b3d8",
    "lbfgs": "#202428",
    "obfgs": "#b8651b",
    "onaq": "#6a3d9a",
    "omoq": "#1b7f5c",
    "olbfgs": "#b8651b",
    "olnaq": "#6a3d9a",
    "olnaq-95": "#9b6fc9",
    "olmoq": "#1b7f5c",
    "olmoq-halved": "#4fb08c",
    "olmoq-undamped": "#1b7f5c",
    "olmoq-multi": "#c8102e",
    "olmoq-multi-undamped": "#c8102e",
    "onaq-80": "#2a9d8f",
    "olnaq-80": "#6a3d9a",
    "svrg": "#202428",
    "svrg2": "#e39a2d",
    "svr-naq": "#e76fae",
    "svr-lnaq": "#c8102e",
    "lbfgs-search": "#202428",
    "lbfgs-forgetting": "#7a5c3e",
    "sgd-plain": "#8a94a0",
    "momentum": "#74b3d8",
    "adadelta": "#3f8f29",
    "lsr1": "#c8102e",
    "sr1n": "#e39a2d",
}
_STYLES = {
    "adam-cosine": "--",
    "adaqn-eps": ":",
    "asnaq-eps": ":",
    "asnaq-backoff": "--",
    "asnaq-rms-backoff": "--",
    "asnaq-single-backoff": "--",
    "asnaq-single-backoff-rms": "-.",
    "lbfgs": "-.",
    "lbfgs-search": "-.",
    "lbfgs-forgetting": "-.",
    "momentum": "--",
    "obfgs": "--",
    "onaq": "--",
    "omoq": "--",
    "olmoq-undamped": "--",
    "olmoq-multi-undamped": "--",
    "onaq-80": "--",
    "svr-naq": "--",
    "svrg": "-.",
}
_AXES = {
    "epoch": "epoch",
    "example_gradients": "gradients of single examples",
    "gradient_evaluations": "mini-batch gradients",
    "seconds": "training time on one machine (s)",
}
_ROWS = {"train_loss": "train loss", "test_error": "test error", "test_accuracy": "test accuracy"}


def curves(contents: Sequence[Content], title: str, path: Path) -> Path:
    """Draws loss, and accuracy where there is one, against epochs, gradients and time.

    Lines are medians over the seeds and bands reach from the smallest to the largest. A line ends
    where the first of its runs diverged.

    Args:
      contents: runs that belong together.
      title: stands over the plot.
      path: where the PNG goes.

    Returns:
      The path.
    """
    groups = tables.by_optimizer(contents)
    # Gradients are counted by examples where every run has counted them so.
    by_examples = all("example_gradients" in content["records"] for content in contents)
    other = "gradient_evaluations" if by_examples else "example_gradients"
    positions = {name: label for name, label in _AXES.items() if name != other}
    measured = [name for name in _ROWS if any(name in content["records"] for content in contents)]
    figure, axes = plt.subplots(
        len(measured),
        3,
        figsize=(13.5, 1.3 + 3.6 * len(measured)),
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for row, quantity in zip(axes, measured, strict=True):
        for axis, position in zip(row, positions, strict=True):
            for index, group in enumerate(groups):
                name = group[0]["settings"]["optimizer"]
                again = index > 0 and groups[index - 1][0]["settings"]["optimizer"] == name
                _line(axis, name, group, position, quantity, again)
            axis.set_xlabel(positions[position])
            axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
            pictures.decorate(axis)
        unit = contents[0]["settings"].get("experiment", {}).get("unit")
        with_unit = quantity == "test_error" and unit
        row[0].set_ylabel(_ROWS[quantity] + (f" ({unit})" if with_unit else ""))
        if quantity in ("train_loss", "test_error"):
            _leave_out_explosions(row[0], contents, quantity)
            _logarithmic(row[0])
        else:
            _leave_out_the_start(row[0], [content["records"][quantity] for content in contents])
            row[0].yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=None))
    seeds = sorted({len(group) for group in groups})
    spread = f"median and range of {' or '.join(map(str, seeds))} seeds"
    note = spread if seeds != [1] else "one seed"
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = min(len(labels), 4) or 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return pictures.save(figure, f"{title}\n{note}", path)


def _line(
    axis: Axes, name: str, group: Sequence[Content], position: str, quantity: str, again: bool
) -> None:
    """Draws the median and range of one optimizer, dotted where it is another of its rates."""
    group = [content for content in group if quantity in content["records"]]
    if not group:
        return
    length = min(len(content["records"][quantity]) for content in group)
    xs = np.median([content["records"][position][:length] for content in group], axis=0)
    ys = np.array([content["records"][quantity][:length] for content in group], float)
    usable = np.isfinite(ys).all(axis=0)
    xs, ys = xs[usable], ys[:, usable]
    colour = COLOURS.get(name, f"C{list(OPTIMIZERS).index(name) % 10}")
    best = name in ("asnaq", "svr-lnaq", "lsr1", "olmoq-multi")
    diverged = sum(content["status"] == records.DIVERGED for content in group)
    optimizer = OPTIMIZERS[name]
    rate = group[0]["settings"]["learning_rate"]
    notes = [] if rate is None else [f"lr {rate:g}"]
    if size := tables.own_batch_size(group[0]):
        notes.append(f"batch {size}")
    label = optimizer.label + (f" ({', '.join(notes)})" if notes else "")
    label += f", {diverged} diverged" if diverged else ""
    pictures.band(
        axis,
        xs,
        ys,
        0.13,
        color=colour,
        label=label,
        linewidth=2.8 if best else 1.5,
        linestyle=":" if again else _STYLES.get(name, "-"),
        zorder=4 if best else 3,
    )
    if diverged and len(xs):
        axis.plot(xs[-1], np.median(ys, axis=0)[-1], "x", color=colour, markersize=9, zorder=5)


def _leave_out_the_start(axis: Axes, shares: Sequence[Sequence[Any]]) -> None:
    """Begins the scale a little below the lowest share after the first epoch."""
    later = [share for run in shares for share in run[1:] if share is not None]
    if later:
        margin = 0.1 * (max(later) - min(later))
        axis.set_ylim(min(later) - margin, max(later) + margin)


def _leave_out_explosions(axis: Axes, contents: Sequence[Content], quantity: str) -> None:
    """Ends the logarithmic scale above the greatest number at the start.

    As far above as a quarter of the decades that the numbers fall below it.
    """
    axis.set_yscale("log")  # first, or the limit set here would fix the linear scale's other end
    numbers = [[x for x in run["records"][quantity] if x is not None] for run in contents]
    start = max((run[0] for run in numbers if run), default=math.inf)
    lowest = min((x for run in numbers for x in run), default=0)
    if lowest > 0 and axis.get_ylim()[1] > (highest := start * (start / lowest) ** 0.25):
        axis.set_ylim(lowest * (lowest / start) ** 0.05, highest)


def _logarithmic(axis: Axes) -> None:
    """Makes the scale logarithmic, with plain numbers at 1, 2 and 5 where decades are few."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    decades = math.log10(high / low)
    if decades < 0.8:
        axis.yaxis.set_major_locator(ticker.MaxNLocator(6))
    elif decades < 3:
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
