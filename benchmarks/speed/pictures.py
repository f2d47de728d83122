"""The measurements as pictures: lines where something grows, bars for everything."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.reports.pictures import decorate, save
from benchmarks.speed import tables
from benchmarks.speed.growth import LINEAR

Entries = Sequence[Mapping[str, Any]]
_COLOURS = {"target met": "#1b7f5c", "target missed": "#c8102e", "no target": "#3b6fb6"}
_MARK = {"color": "#202428", "linewidth": 0, "zorder": 4}
_MARKS: Mapping[str, dict[str, Any]] = {
    "target": _MARK | {"label": "target", "marker": "|", "markersize": 11},
    "count": _MARK | {"label": "the papers' count", "marker": "D", "markersize": 5},
}
# Peers are black or grey.
_PEERS = {"optax.lbfgs": ("#202428", "-"), "optax.adam": ("#202428", "-.")}
_PEERS |= {"loss and gradient": ("#8a94a0", ":")}
_MARKERS = "osD^vPX*<>"
_ROW = 0.25  # inches a bar


def draw(content: Mapping[str, Any], folder: Path, suffix: str) -> list[Path]:
    """Draws what there is: compile times and growth as lines, every section as bars.

    Args:
      content: what `speed.json` holds.
      folder: where the PNGs go.
      suffix: what their names end with.

    Returns:
      The paths.
    """
    found = []
    for name, section in content["sections"].items():
        entries, title = section["entries"], f"{section['title']} — {section['device']}"
        lines = [entry for entry in entries if "line" in entry and "arrays" in entry]
        if lines:
            found.append(save(_compile_times(lines), title, folder / f"{name}{suffix}.png"))
        grown = [entry for entry in entries if "step_ms" in entry]
        if grown:
            found.append(save(_growth(grown), title, folder / f"{name}{suffix}.png"))
        # A logarithm is wanted; a difference of times may be hardly anything, or below zero.
        positive = [entry for entry in entries if (entry["value"] or 0) > 0]
        if positive:
            figure = _bars(positive, section["quantity"])
            found.append(save(figure, title, folder / f"bars-{name}{suffix}.png"))
    return found


def _compile_times(entries: Entries) -> Figure:
    """Draws compile time against arrays, a line an optimizer, in the order of the last points."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        lines.setdefault(entry["line"], []).append((entry["arrays"], entry["top_ms"] / 1e3))
        peer = (entry["arrays"], entry["bottom_ms"] / 1e3)
        if peer not in lines.setdefault("optax.lbfgs", []):
            lines["optax.lbfgs"].append(peer)
    figure, axis = plt.subplots(figsize=(10.5, 7), layout="constrained")
    styles = _styles(lines)
    for label in sorted(lines, key=lambda label: -lines[label][-1][1]):
        axis.plot(*zip(*lines[label], strict=True), label=label, **styles[label])
    _both_logarithmic(axis, "arrays that the params consist of", "seconds to compile a step")
    figure.legend(loc="outside right upper", frameon=False, title="slowest first")
    return figure


def _growth(entries: Entries) -> Figure:
    """Draws the time of a step against sizes, a panel for each kind of size."""
    groups = _grouped(entries)
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1 + 6.2 * len(groups), 5.6), squeeze=False, layout="constrained"
    )
    for axis, (group, found) in zip(axes[0], groups.items(), strict=True):
        styles = _styles([entry["name"] for entry in found])
        for entry in found:
            label = f"{entry['name']}: exponent {entry['value']:.3g}"
            axis.plot(entry["sizes"], entry["step_ms"], label=label, **styles[entry["name"]])
        _both_logarithmic(axis, group.removeprefix("steps over "), "a step in ms")
        axis.legend(fontsize=9, loc="upper left", title=f"exponents, target {LINEAR:g}")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
    return figure


def _bars(entries: Entries, quantity: str) -> Figure:
    """Draws a panel of bars for each group, beside each other where the groups are long."""
    groups = _grouped(entries)
    # Where all groups have the same lines one column of names will do.
    alike = len({tuple(entry["name"] for entry in found) for found in groups.values()}) == 1
    columns = min(len(groups), 4 if alike else 2)
    lengths = [len(found) for found in groups.values()]
    tallest = [max(lengths[i : i + columns]) for i in range(0, len(lengths), columns)]
    figure, axes = plt.subplots(
        len(tallest),
        columns,
        figsize=(4 + (4.5 if alike else 7) * columns, 1.6 + sum(0.8 + _ROW * n for n in tallest)),
        gridspec_kw={"height_ratios": [0.6 + _ROW * n for n in tallest]},
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for place, (axis, (group, found)) in enumerate(zip(axes.flat, groups.items(), strict=False)):
        _bar_panel(axis, found, alike and place % columns > 0)
        axis.set_title(group, fontsize=10)
        axis.set_xlabel(quantity)
    colours = {_colour(entry) for entry in entries}
    handles = {
        label: plt.Rectangle((0, 0), 1, 1, color=colour, alpha=0.85)
        for label, colour in _COLOURS.items()
        if colour in colours
    }
    for name, style in _MARKS.items():
        if any(name in entry for entry in entries):
            handles[style["label"]] = plt.Line2D([], [], **style)
    if any("low" in entry for entry in entries):
        handles["quartiles of the rounds"] = plt.Line2D([], [], color="#202428", linewidth=1)
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    return figure


def _colour(entry: Mapping[str, Any]) -> str:
    if "target" not in entry:
        return _COLOURS["no target"]
    return _COLOURS["target met" if tables.met(entry) else "target missed"]


def _bar_panel(axis: Axes, entries: Entries, nameless: bool) -> None:
    places = np.arange(len(entries))
    values = np.array([entry["value"] for entry in entries])
    lows = np.array([max(x.get("low", x["value"]), x["value"] / 30) for x in entries])
    highs = np.array([entry.get("high", entry["value"]) for entry in entries])
    colours = [_colour(entry) for entry in entries]
    axis.barh(places, values, color=colours, alpha=0.85, height=0.66)
    axis.errorbar(
        values, places, xerr=[values - lows, highs - values], fmt="none", ecolor="#202428"
    )
    marks = [*lows, *highs]
    for name, style in _MARKS.items():
        points = [(entry[name], i) for i, entry in enumerate(entries) if name in entry]
        if points:
            axis.plot(*zip(*points, strict=True), **style)
        marks += [value for value, _ in points]
    for place, value in zip(places, values, strict=True):
        axis.annotate(
            f"{value:.3g}",
            (1, place),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axis.set_yticks(places, [] if nameless else [x["name"] for x in entries], fontsize=8.5)
    axis.set_ylim(len(entries) - 0.5, -0.5)
    axis.set_xscale("log")
    # What is hardly anything beside the others has a number but no bar.
    low, high = max(min(marks), max(marks) / 300) / 2, max(marks) * 1.3
    axis.set_xlim(low, high)
    subs = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=20))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    decorate(axis)


def _grouped(entries: Entries) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(entry["group"], []).append(entry)
    return groups


def _styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns a colour, a kind of line and a marker for each label, no two alike."""
    colours = plt.get_cmap("tab10").colors
    styles = {}
    for index, label in enumerate(label for label in labels if label not in _PEERS):
        styles[label] = {
            "color": colours[index % len(colours)],
            "linestyle": "--" if label.endswith("flattened") else "-",
            "marker": _MARKERS[index % len(colours) if index < len(colours) else -1 - index % 10],
        }
    return styles | {
        label: {"color": colour, "linestyle": line, "linewidth": 2.4, "zorder": 5}
        for label, (colour, line) in _PEERS.items()
    }


def _both_logarithmic(axis: Axes, x: str, y: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    for one in (axis.xaxis, axis.yaxis):
        low, high = one.get_view_interval()
        few = math.log10(high / low) < 3
        one.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few else (1,), numticks=20))
        one.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
        one.set_minor_formatter(ticker.NullFormatter())
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    decorate(axis)
