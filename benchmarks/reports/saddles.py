"""The tables of steps and evaluations, and a picture of the paths."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.functions.saddles import PROBLEMS
from benchmarks.reports import pictures, records, tables

Content = Mapping[str, Any]
_COUNT = ",.10g", "not left"
# Colour, line and marker: the rank-one family in full lines, the others broken.
_LOOKS = {
    "lsr1": ("#c8102e", "-", "o"),
    "lsr1-radius-none": ("#e9963d", "-", "o"),
    "lsr1-armijo": ("#e76fae", "-", "s"),
    "sr1n": ("#6a3d9a", "-", "^"),
    "sr1n-exact": ("#b9a3d6", "-", "v"),
    "mosr1": ("#2a9d8f", "-", "D"),
    "bfgs": ("#3b6fb6", "--", "o"),
    "bfgs-zoom": ("#202428", "--", "s"),
    "optax-lbfgs": ("#7a5c3e", "-.", "^"),
    "adam-customary": ("#7fb0e6", ":", "v"),
    "adam": ("#3f8f29", ":", "v"),
    "gradient-descent": ("#8a94a0", ":", "D"),
}
_VIEWS = {"monkey": ((-3.7, 3.7), (-3.7, 3.7)), "quartic": ((-1.25, 1.25), (-0.35, 2.0))}


def paragraphs(content: Content, names: Sequence[str]) -> list[str]:
    """Returns what stands below the title of `results.md`."""
    text = [_described(content), summary(content, names), _at_saddle(content, names)]
    for key, entry in content["problems"].items():
        text += [f"## {key}: {entry['title']}", table(content, key, names), rates(entry, names)]
    return text


def summary(content: Content, names: Sequence[str]) -> str:
    """Returns the median steps by method and problem."""
    problems = content["problems"]
    rows = []
    for name in names:
        entries = [problem["methods"][name] for problem in problems.values()]
        row = [entries[0]["label"]]
        for entry in entries:
            steps = _steps(entry)
            away = sum(not math.isfinite(x) for x in steps)
            row.append(
                tables.finite(statistics.median(steps), *_COUNT)
                + (f" ({away} not)" if away else "")
            )
        rows.append(row)
    return tables.markdown(["median steps until left", *problems], rows)


def table(content: Content, key: str, names: Sequence[str]) -> str:
    """Returns a line for each method on one problem."""
    header = ["method", "rate", "steps from one start", "steps, median [min, max]", "left"]
    header += ["gradients, median [min, max]", "losses alone"]
    rows = []
    for name in names:
        entry = content["problems"][key]["methods"][name]
        steps = _steps(entry)
        left = sum(map(math.isfinite, steps))
        rows.append(
            [
                entry["label"],
                "" if entry["rate"] is None else f"{entry['rate']:g}",
                tables.finite(records.number(entry["start"]["steps"][0]), *_COUNT),
                _spread(steps),
                f"{left} of {len(steps)}",
                _spread(entry["around"]["gradients"]),
                tables.finite(statistics.median(entry["around"]["losses"]), *_COUNT),
            ]
        )
    return tables.markdown(header, rows)


def rates(entry: Content, names: Sequence[str]) -> str:
    """Returns the median steps by learning rate; empty where no method is tuned."""
    methods = [entry["methods"][name] for name in names]
    tried = [(x["label"], x["tried"], x["rate"]) for x in methods if "tried" in x]
    return tables.by_rate("median steps at the rate", tried, _median_steps) if tried else ""


def _median_steps(found: Content) -> str:
    return "–" if found["median"] is None else f"{found['median']:g}"


def picture(content: Content, names: Sequence[str], path: Path) -> Path:
    """Draws the paths from the one start over contours, and the losses of the network."""
    shown = [name for name in names if name in _LOOKS]
    figure, axes = plt.subplots(1, 3, figsize=(16, 7.2), layout="constrained")
    for axis, (key, view) in zip(axes, _VIEWS.items(), strict=False):
        _contours(axis, key, view)
        for place, name in enumerate(shown):
            found = content["problems"][key]["methods"][name]["path"]
            points = [np.array(found[coordinate], float) for coordinate in "xy"]
            _line(axis, name, *points, zorder=3 + 0.1 * (len(shown) - place))
        axis.plot(0, 0, "+", color="black", markersize=14, zorder=6)
        axis.set(xlim=view[0], ylim=view[1], aspect="equal", xlabel="x", ylabel="y")
        axis.set_title(content["problems"][key]["title"], fontsize=11)
    last = "linear-network"
    for name in shown:
        losses = np.array(content["problems"][last]["methods"][name]["path"]["losses"], float)
        _line(axes[2], name, np.arange(len(losses)), losses)
    axes[2].set(xlabel="step", ylabel="E", yscale="log", ylim=(3e-3, 30))
    axes[2].set_xscale("symlog", linthresh=10)
    axes[2].set_xticks(
        [0, 5, 10, 20, 50, 100, 200, 500], map(str, [0, 5, 10, 20, 50, 100, 200, 500])
    )
    half = PROBLEMS[last].level(content["settings"]["left"])
    axes[2].axhline(half, color="black", linewidth=0.8)
    axes[2].annotate(
        "left",
        (1, half),
        (0, 3),
        xycoords=("axes fraction", "data"),
        ha="right",
        textcoords="offset points",
        fontsize=9,
    )
    axes[2].set_title(content["problems"][last]["title"], fontsize=11)
    pictures.decorate(axes[2])
    distance = content["settings"]["distance"]
    title = f"{content['title']}: paths from one start {distance:g} beside it (the cross)"
    title += "\nin brackets the steps until it was left, panel by panel"
    handles = [_line(axes[2], name, np.zeros(0), np.zeros(0)) for name in shown]
    labels = [_label(content, name) for name in shown]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return pictures.save(figure, title, path)


def _label(content: Content, name: str) -> str:
    entries = [problem["methods"][name] for problem in content["problems"].values()]
    steps = (entry["start"]["steps"][0] for entry in entries)
    counts = ", ".join("not left" if x is None else str(x) for x in steps)
    return f"{entries[0]['label']} ({counts})"


def _line(axis: Axes, name: str, xs: np.ndarray, ys: np.ndarray, zorder: float = 3) -> Any:
    colour, style, marker = _LOOKS[name]
    (line,) = axis.plot(
        xs,
        ys,
        style,
        color=colour,
        marker=marker,
        markersize=4.5,
        markevery=1 if len(xs) < 100 else 20,
        linewidth=1.4,
        alpha=0.85,
        zorder=zorder,
    )
    return line


def _contours(axis: Axes, key: str, view: tuple[tuple[float, float], ...]) -> None:
    xs, ys = (np.linspace(*limits, 200) for limits in view)
    points = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    values = np.asarray(jax.vmap(PROBLEMS[key].function)(points)).reshape(len(ys), len(xs))
    depth = -PROBLEMS[key].minimum
    levels = depth * np.array([-0.98, -0.8, -0.6, -0.4, -0.2, -0.05, 0, 0.05, 0.2, 0.5, 1, 2, 4])
    axis.contour(xs, ys, values, levels, colors="#9aa4ae", linewidths=0.7, linestyles="-")
    middle = PROBLEMS[key].level(0.5)
    axis.contour(xs, ys, values, [middle], colors="black", linewidths=0.9, linestyles="-")


def _described(content: Content) -> str:
    settings = content["settings"]
    return (
        f"Starts {settings['distance']:g} beside the saddle at 0: one, and {settings['starts']} "
        "about it (a grid of that half width for two parameters, shifted so that no point lies on "
        "an axis of symmetry; random directions for the network). A run has left as soon as E at "
        "the iterate is below the saddle's by half of the decrease to the minimum; if it never was "
        f"within {settings['limit']:,} steps or its loss became infinite, it has not left. "
        "Defaults throughout, float64; `lsr1()` and the two zoom searches keep the gradient at the "
        "new point, so that none is computed twice. A gradient counts with its loss, and "
        "evaluations of the loss alone are counted apart (medians); what a run that has not left "
        "spent is counted too. Nobody is asked to stay below that level. The rates of Adam and "
        "gradient descent are those of the fewest median steps about the saddle among "
        f"{len(settings['rates'])} from 1e-3 to 1e3, for each problem. In the picture the "
        f"black contour is the level at which a run has left. {content['device']}."
    )


def _at_saddle(content: Content, names: Sequence[str]) -> str:
    """Says who moved exactly at the saddle."""
    movers = sorted(
        f"{problem['methods'][name]['label']} ({key})"
        for key, problem in content["problems"].items()
        for name in names
        if problem["methods"][name]["moved_from_saddle"]
    )
    who = f"moved: {', '.join(movers)}" if movers else "none of the methods moves, on any problem"
    return f"Exactly at the saddle, where the gradient is zero, {who}."


def _steps(entry: Content) -> list[float]:
    """Returns the steps from the starts about the saddle; infinite where a run has not left."""
    return [*map(records.number, entry["around"]["steps"])]


def _spread(values: Sequence[float]) -> str:
    return "not left" if min(values) == math.inf else tables.spread(values, *_COUNT)
