"""Small models by full-batch methods: a Gaussian process, an epidemic, a quantum circuit.

For people who fit a handful of parameters with `scipy.optimize.minimize` or `optax.lbfgs`: how many
gradients and seconds the dense methods of this library take to the same minimum. Float64, five
starts. A run has arrived where its loss is within 1e-6 of the lowest that any method found from
that start; methods can find different minima, so what ends elsewhere is counted too.
"""

import functools
import importlib.util
import statistics
from pathlib import Path
from typing import Any

import click

from benchmarks.reports import records, tables
from benchmarks.reports.progress import progress_bar
from benchmarks.small_models.models import MODELS, Model
from benchmarks.training.study import Study

NAME = "small-models"
STARTS, QUICK_STARTS = 5, 1
BUDGET = MARKS = 200
ARRIVED = 1e-6
METHODS = (
    "ssbroyden",
    "ssbfgs",
    "bfgs",
    "bfgs-first-pair",
    "scipy-bfgs",
    "scipy-lbfgs",
    "optax-lbfgs",
)
QUICK_METHODS = ("ssbroyden", "scipy-bfgs")


def run(folder: Path, quick: bool = False, seeds: int | None = None) -> Path:
    """Runs what is missing of it; the quick form has one start and fewer methods."""
    # These import what no other experiment needs.
    from benchmarks.physics.methods import METHODS as ALL_METHODS
    from benchmarks.training.comparison import float64

    _check_packages()
    starts = seeds or (QUICK_STARTS if quick else STARTS)
    methods = QUICK_METHODS if quick else METHODS
    settings = {"budget": BUDGET}
    title = f"{NAME}: three models of few parameters" + (" (QUICK form)" if quick else "")
    path = folder / f"{NAME}.json"
    packages = ("scipy", *sorted({name for m in MODELS.values() for name in m.packages}))
    content = records.opened(path, title, settings, "models", packages)
    save = functools.partial(records.write, path, content)
    with float64():
        for name, model in MODELS.items():
            entries = content["models"].setdefault(name, {})
            with progress_bar(name, starts * len(methods), unit="run") as bar:
                for method in methods:
                    runs = entries.setdefault(method, {})
                    for seed in range(starts):
                        if str(seed) not in runs:
                            runs[str(seed)] = _curve(model, ALL_METHODS[method], seed)
                            save()
                        bar.update()
    labels = {method: ALL_METHODS[method].label for method in methods}
    parts = [__doc__.partition("\n\n")[2].strip()]
    for name, model in MODELS.items():
        parts += [f"## {model.title}", _table(content["models"][name], labels, starts)]
    tables.write(folder, title, *parts)
    return _picture(title, content["models"], labels, starts, folder / f"{NAME}.png")


def _check_packages() -> None:
    missing = [
        name
        for name in ("tinygp", "diffrax", "pennylane")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise click.ClickException(
            f"{NAME} needs {', '.join(missing)}: pip install -e '.[small-models]'"
        )


def _curve(model: Model, method: Any, seed: int) -> dict[str, list[Any]]:
    """Returns the lowest losses of a run over its gradients and seconds."""
    from benchmarks.physics import runs

    loss = model.loss()
    recorder = runs.run(
        method.make,
        lambda params, points: loss(params),
        model.start(seed),
        lambda params, number: {},
        BUDGET,
        marks=MARKS,
    )
    # Six digits, as elsewhere, are too few for how far a loss is from the lowest.
    return {name: [float(f"{x:.15g}") for x in xs] for name, xs in recorder.curve.items()}


def _lowest(entries: Any, seed: int) -> float:
    return min(runs[str(seed)]["loss"][-1] for runs in entries.values())


def _arrival(curve: dict[str, list[float]], lowest: float) -> int | None:
    """Returns the mark at which a run has arrived, or None."""
    return next((i for i, x in enumerate(curve["loss"]) if x <= lowest + ARRIVED), None)


def _table(entries: Any, labels: dict[str, str], starts: int) -> str:
    header = ["method", "arrived", "gradients to there, median", "losses alone", "ms"]
    header += ["loss at the end, median [min, max]"]
    rows = []
    for method, label in labels.items():
        curves = [entries[method][str(seed)] for seed in range(starts)]
        arrivals = [_arrival(c, _lowest(entries, seed)) for seed, c in enumerate(curves)]
        there = [(c, i) for c, i in zip(curves, arrivals, strict=True) if i is not None]
        row = [label, f"{len(there)} of {starts}"]
        for key, factor in (("gradients", 1), ("losses", 1), ("seconds", 1e3)):
            row.append(
                f"{statistics.median(factor * c[key][i] for c, i in there):,.0f}" if there else ""
            )
        rows.append([*row, tables.spread([c["loss"][-1] for c in curves], ".8g")])
    return tables.markdown(header, rows)


def _picture(title: str, models: Any, labels: dict[str, str], starts: int, path: Path) -> Path:
    """Draws how far the loss is from the lowest, against gradients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, (name, entries) in zip(axes, models.items(), strict=True):
        for index, (method, label) in enumerate(labels.items()):
            for seed in range(starts):
                curve, lowest = entries[method][str(seed)], _lowest(entries, seed)
                axis.plot(
                    curve["gradients"],
                    [max(x - lowest, 1e-13) for x in curve["loss"]],
                    "--" if method.startswith(("scipy", "optax")) else "-",
                    color=f"C{index}",
                    linewidth=0.9,
                    label=label if seed == 0 else None,
                )
        axis.set(title=name, xlabel="gradients", yscale="log", ylabel="loss above the lowest found")
        axis.grid(alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=110)
    return path


STUDIES = (Study(NAME, __doc__, run, options=("seeds",)),)
