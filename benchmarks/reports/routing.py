"""Tables and the picture of global routing."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.reports import pictures, tables
from benchmarks.routing import learning, runs
from benchmarks.routing.grid import Grid
from benchmarks.routing.methods import Method

# The slides' table of 15 netlists: whole netlists, mean wire length of those less A*'s, mean best
# reward, mean episode of it.
SLIDES = {
    "Adam": (10, -2.2, 4562, 368),
    "RMSprop": (10, -3.5, 4601, 394),
    "aSNAQ": (12, -10.7, 4620, 265),
}


class Row(NamedTuple):
    """A method at a rate: its name, the rate as it is written, and its runs by netlist."""

    label: str
    rate: str
    runs: Sequence[Mapping[str, Any]]


def rows(entries: Mapping[str, Any], methods: Mapping[str, Method], netlists: int) -> list[Row]:
    """Returns the rows of the table, methods and their rates in order."""
    return [
        Row(methods[name].label, rate, [done[str(seed)] for seed in range(netlists)])
        for name, entry in entries.items()
        for rate, done in entry["runs"].items()
    ]


def paragraphs(
    content: Mapping[str, Any],
    methods: Mapping[str, Method],
    shown: Sequence[Row],
    lengths: Sequence[int],
) -> list[str]:
    """Returns the parts of `results.md`.

    Args:
      content: of the study's file.
      methods: by name.
      shown: the rows.
      lengths: the wire lengths of A*, by netlist.
    """
    settings = content["settings"]
    described = (
        f"{len(lengths)} netlists of {settings['nets']} two-pin nets, {settings['episodes']} "
        "episodes each. Of a run its best episode counts: most nets, and of as many the highest "
        f"reward. Wire length: edges by net, vias too; A*'s is {statistics.mean(lengths):.1f} in "
        "the mean, and it routes all nets. *Beside A\\**: the mean difference on the netlists that "
        "the method has routed whole. Seconds are the processor's, without compiling."
    )
    slides = (
        "The slides' own table, of 15 netlists of theirs with 50 two-pin nets, for orientation; "
        "it is not reproduced here:\n\n"
        + tables.markdown(
            ["method", "whole netlists", "wire length beside A*", "best reward", "episode"],
            [
                [label, f"{whole} of 15", f"{beside:+.1f}", f"{reward:,}", f"{episode}"]
                for label, (whole, beside, reward, episode) in SLIDES.items()
            ],
        )
    )
    tried = [
        (methods[name].label, entry["tried"], entry["tuned"])
        for name, entry in content["methods"].items()
        if entry["tried"]
    ]
    return [
        described,
        summary(shown, lengths, settings["nets"]),
        slides,
        "By netlist: wire length (beside A*), best reward, its episode, nets routed.",
        by_netlist(shown, lengths, settings["nets"]),
        "Learning rates, by the mean best reward where they were tried; the tuned one is bold:"
        if tried
        else "",
        tables.by_rate("learning rate", tried, lambda reward: f"{reward:,.1f}") if tried else "",
    ]


def summary(shown: Sequence[Row], lengths: Sequence[int], nets: int) -> str:
    """Returns a line for each method and rate, means over the netlists."""
    header = ["method", "learning rate", "whole netlists", "nets routed, mean [fewest]"]
    header += ["wire length beside A*", "best reward", "episode", "steps", "s", "µs a step"]
    lines = []
    for row in shown:
        arrived = [run["arrived"] for run in row.runs]
        beside = [
            run["length"] - length
            for run, length in zip(row.runs, lengths, strict=True)
            if run["arrived"] == nets
        ]
        steps, seconds = (
            statistics.mean(run[key] for run in row.runs) for key in ("steps", "seconds")
        )
        lines.append(
            [
                row.label,
                row.rate,
                f"{len(beside)} of {len(lengths)}",
                f"{statistics.mean(arrived):.2f} [{min(arrived)}]",
                f"{statistics.mean(beside):+.1f}" if beside else "–",
                f"{statistics.mean(run['reward'] for run in row.runs):,.1f}",
                f"{statistics.mean(run['episode'] for run in row.runs):.0f}",
                f"{steps:,.0f}",
                f"{seconds:.3g}",
                f"{1e6 * seconds / steps:.0f}",
            ]
        )
    return tables.markdown(header, lines)


def by_netlist(shown: Sequence[Row], lengths: Sequence[int], nets: int) -> str:
    """Returns a line for each netlist, as the slides' table has."""

    def cell(run: Mapping[str, Any], length: int) -> str:
        whole = run["arrived"] == nets
        wires = f"{run['length']} ({run['length'] - length:+d})" if whole else "–"
        return f"{wires}, {run['reward']}, {run['episode']}, {run['arrived']}"

    header = ["netlist", "A*", *(f"{row.label}, {row.rate}" for row in shown)]
    lines = [
        [str(seed), str(length), *(cell(row.runs[seed], length) for row in shown)]
        for seed, length in enumerate(lengths)
    ]
    return tables.markdown(header, lines)


def picture(title: str, grid: Grid, task: runs.Task, shown: Sequence[Row], path: Path) -> Path:
    """Draws the mean reward by episode, and netlist 0 as A* and as the best run route it."""
    figure = Figure(figsize=(17, 5.6), layout="constrained")
    curves, reference, routed = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    figure.get_layout_engine().set(h_pad=0.12)
    labels = list(dict.fromkeys(row.label for row in shown))
    lowest = math.inf
    for row in shown:
        means = np.mean([run["rewards"] for run in row.runs], axis=0)
        # A second rate of a method is dashed.
        first = next(other for other in shown if other.label == row.label) is row
        curves.plot(
            runs.CURVE * (np.arange(len(means)) + 1),
            means,
            "-" if first else "--",
            color=f"C{labels.index(row.label)}",
            label=f"{row.label}, {row.rate}",
        )
        lowest = min(lowest, means[len(means) // 20])
    # From where the first twentieth of the episodes has led to: all begin far below.
    curves.set(xlabel="episode", ylabel="reward, mean over the netlists", ylim=(lowest, None))
    curves.legend()
    pictures.decorate(curves)
    best = max(shown, key=lambda row: learning.score(row.runs[0]["reward"], row.runs[0]["arrived"]))
    found = np.zeros_like(task.wires)
    for net, edges in enumerate(best.runs[0]["wires"]):
        found[net, edges] = True
    nets, run = len(task.netlist.start), best.runs[0]
    for axis, label, arrived, wires in (
        (reference, "A*", nets, task.wires),
        (routed, f"{best.label}, episode {run['episode']}", run["arrived"], found),
    ):
        _wires(axis, grid, task, wires)
        axis.set_title(
            f"netlist 0 by {label}:\n{arrived} of {nets} nets, wire length {wires.sum()}",
            fontsize=10,
        )
    return pictures.save(figure, title, path)


def _wires(axis: Axes, grid: Grid, task: runs.Task, wires: np.ndarray) -> None:
    """Draws each net in a colour of its own, nets on one edge beside each other, and the pins."""
    nets = int(task.netlist.net.max()) + 1
    colors = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, nets))
    for cell, action in np.argwhere(grid.capacity[grid.edge] > 0):
        if action not in (0, 2):
            continue
        x, y, _ = grid.position[cell]
        to_x, to_y, _ = grid.position[grid.neighbour[cell, action]]
        on_it = np.flatnonzero(wires[:, grid.edge[cell, action]])
        for track, net in enumerate(on_it):
            aside = 0.13 * (track - (len(on_it) - 1) / 2)
            along_x = aside * (action == 2)
            along_y = aside * (action == 0)
            axis.plot(
                [x + along_x, to_x + along_x],
                [y + along_y, to_y + along_y],
                color=colors[net],
                linewidth=1.8,
            )
    pins = grid.position[np.concatenate([task.netlist.start, task.netlist.goal])]
    axis.plot(*pins[:, :2].T, "s", color="black", markersize=4)
    width, height, _ = grid.position.max(axis=0)
    axis.set(xlim=(-0.5, width + 0.5), ylim=(-0.5, height + 0.5), aspect="equal")
    axis.set(xlabel="x, layer 1 (squares are pins)", ylabel="y, layer 2")
