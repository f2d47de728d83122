"""The performance profile, and trajectories on Beale's function."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes

from benchmarks.functions.problems import PROBLEMS, Problem
from benchmarks.reports import comparison as report
from benchmarks.reports import pictures
from benchmarks.reports.comparison import Content
from benchmarks.training.solvers import SOLVERS, OptaxProgram

# One colour per method, for its limited and its dense form: ours warm, the others' cool.
COLOURS = {
    "bfgs": "#8c2d8f",
    "naq": "#c8102e",
    "moq": "#e39a2d",
    "mnaq": "#7a5c3e",
    "amnaq": "#e76fae",
    "optax": "#3b6fb6",
    "optimistix": "#2a9d8f",
    "scipy": "#202428",
}
_DASHES = {
    "zoom": "--",
    "rising": ":",
    "backtracking": ":",
    "term": "-.",
    "unchecked": (0, (1, 4)),
}
_LARGEST_RATIO = 64
_TRAVELLERS = ("moq", "mnaq", "amnaq", "naq", "bfgs", "optax")


def profile(content: Content, path: Path) -> Path:
    """Draws Dolan's and Moré's performance profile, limited memory and dense matrices apart.

    Args:
      content: the results.
      path: where the PNG goes.

    Returns:
      The path.
    """
    found = report.ratios(content)
    figure, axes = plt.subplots(1, 2, figsize=(14, 7.2), sharey=True, layout="constrained")
    for axis, dense, title in zip(
        axes, (False, True), ("limited memory, 10 pairs", "dense matrix"), strict=True
    ):
        for ours in (True, False):
            for name in found:
                if (SOLVERS[name].dense, SOLVERS[name].ours) == (dense, ours):
                    _step(axis, name, found[name])
        axis.set_xscale("log", base=2)
        ticks = 2.0 ** np.arange(math.log2(_LARGEST_RATIO) + 1)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xlim(1, _LARGEST_RATIO)
        axis.set_ylim(0, 1.01)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("evaluations, as a multiple of the cheapest solver's of either panel")
        pictures.decorate(axis)
        _legend_below(axis)
    runs = len(next(iter(found.values())))
    axes[0].set_ylabel(f"share of {runs} runs solved to ‖∇f‖ ≤ 10⁻⁶")
    return pictures.save(figure, f"Performance profile, {content['title']}", path)


def _step(axis: Axes, name: str, found: list[float]) -> None:
    """Draws the share of runs within each ratio."""
    finite = sorted(ratio for ratio in found if math.isfinite(ratio))
    shares = np.arange(1, len(finite) + 1) / len(found)
    solver = SOLVERS[name]
    method, *variant = name.removesuffix("-dense").split("-")
    axis.step(
        [1, *finite, max([_LARGEST_RATIO, *finite])],
        [0, *shares, max([0, *shares])],
        where="post",
        color=COLOURS[method],
        linestyle=_DASHES[variant[0]] if variant else "-",
        linewidth=2.2 if solver.ours else 1.5,
        label=f"{solver.label} ({len(finite) / len(found):.0%})",
    )


def _legend_below(axis: Axes, title: str | None = None) -> None:
    axis.legend(
        title=title,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=3,
        frameon=False,
    )


def beale(path: Path) -> Path:
    """Draws the ways of several methods down Beale's function.

    Args:
      path: where the PNG goes.

    Returns:
      The path.
    """
    problem = next(problem for problem in PROBLEMS if problem.name == "beale")
    figure, axes = plt.subplots(1, 2, figsize=(14, 7.6), layout="constrained")
    starts = {"the published start (1, 1)": problem.start, "(0, 0)": (0.0, 0.0)}
    programs = _travellers(problem)
    for axis, (described, start) in zip(axes, starts.items(), strict=True):
        x, y = np.meshgrid(np.linspace(-1, 4.5, 276), np.linspace(-1.5, 1.5, 151))
        heights = jax.vmap(problem.function)(np.column_stack([x.ravel(), y.ravel()]))
        heights = np.reshape(heights, x.shape)
        levels = np.logspace(-2, 3, 21)
        axis.contour(x, y, heights, levels, colors="#b4bac2", linewidths=0.8)
        for (label, colour, style), program in programs.items():
            points = np.array(list(program.path(0, np.array(start))))
            excess = float(problem.function(points[-1])) - problem.minimum
            arrived = 0 <= excess < 1e-6
            ending = str(program.counter.evaluations) if arrived else "fails"
            axis.plot(
                *points.T,
                style,
                color=colour,
                linewidth=1.3,
                marker="o",
                markersize=2.5,
                label=f"{label}: {ending}",
            )
        axis.plot(*start, "s", color="black", markersize=8, zorder=5)
        axis.plot(3, 0.5, "*", color="black", markersize=14, zorder=5)
        axis.set(xlim=(-1, 4.5), ylim=(-1.5, 1.5), xlabel="$x_1$", ylabel="$x_2$")
        axis.set_title(f"from {described}", fontsize=11)
        _legend_below(axis, "evaluations until ‖∇f‖ ≤ 10⁻⁶")
    described = "(square: start, star: minimum, contours from 10⁻² to 10³)"
    return pictures.save(figure, f"Iterates on Beale's function {described}", path)


def _travellers(problem: Problem) -> dict[tuple[str, str, str], OptaxProgram]:
    """Returns the methods of the picture with their labels, colours and lines."""
    functions = [problem.function]
    momentum, adam = optax.sgd(0.01, momentum=0.9), optax.adam(0.1)
    programs = {
        ("gradient descent, μ = 0.9", "#8a94a0", "-"): OptaxProgram(momentum, functions),
        ("Adam, α = 0.1", "#3f8f29", "-"): OptaxProgram(adam, functions),
    }
    for name in _TRAVELLERS:
        key = SOLVERS[name].label, COLOURS[name], "--" if name == "optax" else "-"
        programs[key] = SOLVERS[name].program(functions)
    return programs


def restarts(title: str, rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draws how many runs end, and how many above their start, by method and window."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    windows = list(dict.fromkeys(row["window"] for row in rows))
    panels = {
        "ended": "test functions: runs that end at a stationary point",
        "above": "all problems: runs that end above their start",
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(windows)
    for axis, (key, panel) in zip(axes, panels.items(), strict=True):
        for i, window in enumerate(windows):
            values = [row[key] for row in rows if row["window"] == window]
            places = np.arange(len(labels)) + (i - (len(windows) - 1) / 2) * width
            bars = axis.bar(places, values, width, label=f"M = {window}")
            axis.bar_label(bars, fontsize="x-small")
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlabel("method")
        axis.set_ylabel("runs")
        axis.set_title(panel, fontsize="medium")
    axes[1].legend(title="losses looked back at")
    return pictures.save(figure, title, path)
