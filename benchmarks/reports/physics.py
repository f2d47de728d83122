"""The table and the picture of a physics-informed network."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.reports import tables

Entries = Mapping[str, Mapping[str, Any]]


def table(entries: Entries, methods: Mapping[str, Any]) -> str:
    """Returns a line for each method: where its runs ended, and what they took."""
    header = ["method", "loss, median [min, max]", "relative L2 error, median [min, max]"]
    header += ["gradients", "losses alone", "CPU s", "error at half the gradients"]
    rows = []
    for name, entry in entries.items():
        curves = [run["curve"] for run in entry["runs"].values()]
        label = methods[name].label
        if entry["rates"]:
            label += f" ({min(entry['rates'], key=entry['rates'].__getitem__)})"
        row = [label]
        row += [tables.spread([c[key][-1] for c in curves], ".2e") for key in ("loss", "error")]
        for key, form in (("gradients", ",.0f"), ("losses", ",.0f"), ("seconds", ".3g")):
            row.append(f"{statistics.median(c[key][-1] for c in curves):{form}}")
        row.append(f"{statistics.median(map(_half_way, curves)):.2e}")
        rows.append(row)
    return tables.markdown(header, rows)


def _half_way(curve: Mapping[str, Any]) -> float:
    """Returns the error at the last mark within half of the gradients."""
    half = curve["gradients"][-1] / 2
    within = [e for n, e in zip(curve["gradients"], curve["error"], strict=True) if n <= half]
    return within[-1] if within else curve["error"][0]


def picture(
    title: str,
    problem: Any,
    grid: Mapping[str, np.ndarray],
    true: np.ndarray,
    entries: Entries,
    methods: Mapping[str, Any],
    folder: Path,
) -> Path:
    """Draws error and loss against gradients and seconds, and the best solution and its error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 3)
    colors = [f"C{i}" for i in range(10)]
    ours = others = 0
    for name, entry in entries.items():
        method = methods[name]
        color = colors[ours % 10] if method.ours else colors[(others + 3) % 10]
        style, width = ("-", 1.8) if method.ours else ("--", 1.0)
        ours, others = ours + method.ours, others + (not method.ours)
        for index, run in enumerate(entry["runs"].values()):
            curve = run["curve"]
            label = method.label if index == 0 else None
            for column, x in enumerate(("gradients", "seconds")):
                for row, y in enumerate(("error", "loss")):
                    axes[row, column].plot(
                        curve[x], curve[y], style, color=color, linewidth=width, label=label
                    )
    for column, (x, scale) in enumerate(
        (
            ("gradients, Adam's at first included", "linear"),
            ("seconds of the processor, without compiling", "log"),
        )
    ):
        for row, y in enumerate(("relative L2 error", "loss")):
            axes[row, column].set(xscale=scale, yscale="log", xlabel=x, ylabel=y)
            axes[row, column].grid(alpha=0.3)
    best_name, best = min(
        ((name, run) for name, entry in entries.items() for run in entry["runs"].values()),
        key=lambda pair: pair[1]["curve"]["error"][-1],
    )
    _, unravel = ravel_pytree(problem.start(0))
    _, fields = problem.fields(unravel(jnp.asarray(best["params"])), grid)
    found = np.asarray(fields[0].value)
    names = list(grid)
    side = round(np.sqrt(found.size))
    extent = (*problem.box[names[0]], *problem.box[names[1]])
    for row, (what, values, colours) in enumerate(
        (
            (f"u by {methods[best_name].label}", found, "RdBu_r"),
            ("its distance from the true one", abs(found - true[0]), "Greys"),
        )
    ):
        axis = axes[row, 2]
        image = axis.imshow(
            values.reshape(side, side), cmap=colours, aspect="auto", origin="lower", extent=extent
        )
        axis.set(title=what, xlabel=names[0], ylabel=names[1])
        figure.colorbar(image, ax=axis)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    path = folder / f"{folder.name}.png"
    figure.savefig(path, dpi=110)
    return path
