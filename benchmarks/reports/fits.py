"""The table beside the paper's, and the picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.models.function_fit import Params, Task
from benchmarks.reports import pictures, records, tables
from benchmarks.training.fit import Cut, Errors, Fit, Method
from benchmarks.training.fit_runs import CONVERGED

Content = Mapping[str, Any]

_COLOURS = {
    "sgd": "#c9ced4",
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
    "naq": "#9ccb6b",
    "naq-term": "#3f8f29",
    "moq": "#f2b5d4",
    "moq-term": "#e76fae",
    "ssbroyden": "#d4a017",
    "lsr1": "#c8102e",
    "lsr1-search": "#e76fae",
    "sr1n": "#e9963d",
    "sr1n-term": "#f0c89a",
    "mosr1": "#2a9d8f",
    "lnaq": "#6a3d9a",
    "lnaq-term": "#c77dff",
    "lnaq-schedule": "#b9a3d6",
    "lmoq": "#3f8f29",
    "lbfgs": "#202428",
    "optax-lbfgs": "#00b4d8",
}
_LINES = ("-", "--", ":")  # of a function's several outputs


def paragraphs(fit: Fit, content: Content, shown: Mapping[str, Content]) -> list[str]:
    """Returns what stands below the title of `results.md`; `shown` is by method."""
    text = [_described(fit, content), table(fit, shown)]
    if grids := _grids(fit, shown):
        others = f"of {fit.tuning_runs} other runs by learning rate:"
        text += [f"Average training error, 10⁻³, {others}", grids]
    return text


def table(fit: Fit, shown: Mapping[str, Content]) -> str:
    """Returns a line for each method, the published figures beside ours where there are any."""
    published = [fit.methods[name].published for name in shown if fit.methods[name].published]
    with_shares = any(paper.converged is not None for paper in published)
    with_times = any(paper.seconds is not None for paper in published)
    runs_of_all = [run for entry in shown.values() for run in entry["runs"]]
    trust_region = any(run.get("diagnostics", {}).get("radius") for run in runs_of_all)
    target = fit.target_error
    goal = "" if target is None else f" to E ≤ {target:g}"

    def beside(cell: str, there: bool = bool(published)) -> list[str]:
        return [cell] if there else []

    header = ["optimizer", "learning rate", "runs"]
    header += ["train error, 10⁻³: average / best / worst", *beside(fit.published), "median"]
    header += ["test error, 10⁻³", *beside(fit.published)]
    header += [f"iterations{goal}", *beside(fit.published)]
    header += ["converged" if target is None else "came there", *beside(fit.published, with_shares)]
    header += ["CPU s a run", *beside(fit.published, with_times)]
    header += ["updates skipped", "steps rejected"] if trust_region else []
    rows = []
    for name, entry in shown.items():
        method, runs = fit.methods[name], entry["runs"]
        paper, rate = method.published, entry["learning_rate"]
        train, test = (
            [1e3 * records.number(run[kind]) for run in runs]
            for kind in ("train_error", "test_error")
        )
        rows.append(
            [
                method.label,
                f"{rate:g}" if rate else "",
                str(len(runs)),
                _errors(Errors(statistics.fmean(train), min(train), max(train))),
                *beside(_errors(paper.train) if paper else ""),
                tables.finite(statistics.median(train), ".3g"),
                _errors(Errors(statistics.fmean(test), min(test), max(test))),
                *beside(_errors(paper.test) if paper else ""),
                f"{statistics.fmean(map(_iterations, runs)):,.0f}",
                *beside(f"{paper.iterations:,}" if paper else ""),
                _arrived(fit, method, runs),
                *beside(_figure(paper and paper.converged, "{:g} %"), with_shares),
                f"{statistics.fmean(run['seconds'] for run in runs):.2g}",
                *beside(_figure(paper and paper.seconds, "{:g}"), with_times),
                *(_refusals(runs) if trust_region else []),
            ]
        )
    return tables.markdown(header, rows)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _iterations(run: Content) -> int:
    """Returns the iterations to the target, or those of the whole run."""
    to_target = run.get("to_target")
    return run["iterations"] if to_target is None else to_target


def _arrived(fit: Fit, method: Method, runs: Sequence[Content]) -> str:
    """Returns how many runs came to the target, or to where the gradient vanishes."""
    if fit.target_error is not None:
        return f"{sum(run['to_target'] is not None for run in runs)}"
    return "" if method.first_order else f"{sum(run['status'] == CONVERGED for run in runs)}"


def _refusals(runs: Sequence[Content]) -> list[str]:
    """Returns the share of pairs that were refused, and the rejected steps of a run."""
    if not runs[0]["diagnostics"]:
        return ["", ""]
    sums = {
        name: sum(run["diagnostics"][name] for run in runs)
        for name in ("pairs_stored", "pairs_refused", "steps_rejected", "radius")
    }
    pairs = sums["pairs_stored"] + sums["pairs_refused"]
    skipped = f"{sums['pairs_refused'] / pairs:.2%}" if pairs else ""
    return [skipped, f"{sums['steps_rejected'] / len(runs):,.0f}" if sums["radius"] else ""]


def picture(fit: Fit, title: str, shown: Mapping[str, Content], path: Path) -> Path:
    """Draws the training errors against iterations, and one panel more.

    That is the function along the fit's cut and what the best runs make of it, or where there is
    no cut the training errors against time.
    """
    panels = len(fit.panels) + 1
    figure, axes = plt.subplots(1, panels, figsize=(17, 5.2), layout="constrained")
    for axis, (panel, names) in zip(axes, fit.panels.items(), strict=False):
        if axis is not axes[0]:
            axis.sharey(axes[0])
        _errors_of(axis, fit, {name: shown[name] for name in names if name in shown})
        axis.set(xlabel="iteration", title=panel)
    axes[0].set_ylabel("training error E")
    if fit.cut:
        _along(axes[-1], fit, fit.cut, shown)
    else:
        axes[-1].sharey(axes[0])
        drawn = {name: entry for name, entry in shown.items() if name in _COLOURS}
        _errors_of(axes[-1], fit, drawn, by_time=True)
        axes[-1].set(xlabel="CPU time (s)", title="by time, spread evenly over a run's iterations")
    pictures.decorate(axes[-1])
    counts = sorted({len(entry["runs"]) for entry in shown.values()})
    runs = " or ".join(map(str, counts))
    title += f"\nmedian and range of {runs} runs, dots where they end"
    return pictures.save(figure, title, path)


def _errors_of(axis: Axes, fit: Fit, shown: Mapping[str, Content], by_time: bool = False) -> None:
    """Draws the curves of some methods; those by time have the colours of those by iteration."""
    for name, entry in shown.items():
        _line(axis, fit, name, entry, by_time)
    if fit.target_error is not None:
        axis.axhline(fit.target_error, color="0.6", linestyle=":", label="target")
    axis.set(xscale="log", yscale="log")
    if axis.lines and not by_time:
        axis.legend(fontsize=8, frameon=False, loc="best")
    pictures.decorate(axis)


def _line(axis: Axes, fit: Fit, name: str, entry: Content, by_time: bool) -> None:
    """Draws the median and range of a method; a run that has ended keeps its error."""
    curves = [run["curve"] for run in entry["runs"]]
    marks = sorted({mark for curve in curves for mark in curve["iterations"] if mark})
    values = np.array(
        [
            [
                records.number(
                    curve["train_error"][np.searchsorted(curve["iterations"], mark, "right") - 1]
                )
                for mark in marks
            ]
            for curve in curves
        ]
    )
    colour, method = _COLOURS[name], fit.methods[name]
    seconds = sum(run["seconds"] for run in entry["runs"])
    iterations = sum(run["iterations"] for run in entry["runs"])
    unit = seconds / iterations if by_time else 1
    rate = entry["learning_rate"]
    label = method.label + (f" (lr {rate:g})" if rate else "")
    xs = unit * np.array(marks)
    pictures.band(axis, xs, values, 0.08, color=colour, label=label, linewidth=1.6)
    if not method.first_order:
        ends = [
            (unit * run["iterations"], records.number(run["train_error"])) for run in entry["runs"]
        ]
        axis.plot(*zip(*ends, strict=True), ".", color=colour, markersize=4, alpha=0.7)


def _along(axis: Axes, fit: Fit, cut: Cut, shown: Mapping[str, Content]) -> None:
    """Draws the function, and what the best runs of ours and of first-order methods make of it."""
    xs = cut.inputs[:, cut.variable]
    given = fit.task.function(cut.inputs)
    _outputs(axis, cut, xs, given, "given", color="#202428", linewidth=3, alpha=0.3)
    for first_order, colour in ((True, _COLOURS["adam"]), (False, _COLOURS["mnaq-0.95"])):
        runs = [
            (records.number(run["train_error"]), fit.methods[name].label, run["params"])
            for name, entry in shown.items()
            for run in entry["runs"]
            if fit.methods[name].first_order == first_order and "params" in run
        ]
        if runs:
            error, label, params = min(runs)
            found = fit.task.answers(_network(fit.task, params), cut.inputs)
            _outputs(axis, cut, xs, found, f"{label}, E = {error:.3g}", color=colour)
    title = "the best runs" + (f", {cut.title}" if cut.title else "")
    axis.set(xlabel=cut.xlabel, ylabel=", ".join(cut.outputs) or "y", title=title)
    axis.legend(fontsize=8, frameon=False)


def _outputs(axis: Axes, cut: Cut, xs: Any, values: np.ndarray, label: str, **looks: Any) -> None:
    """Draws a line for each number of the function."""
    columns = values.reshape(len(xs), -1).T
    for column, output, line in zip(columns, cut.outputs, _LINES, strict=False):
        axis.plot(xs, column, line, label=f"{output} {label}".strip(), **looks)


def _network(task: Task, stored: Sequence[Any]) -> Params:
    """Returns a record's params; earlier ones hold the input kernel of one variable flat."""
    params = Params(*map(jnp.asarray, stored))
    return params._replace(input_kernel=params.input_kernel.reshape(task.variables, -1))


def _grids(fit: Fit, shown: Mapping[str, Content]) -> str:
    tried = [
        (fit.methods[name].label, entry["grid"], entry["learning_rate"])
        for name, entry in shown.items()
        if entry["grid"]
    ]
    return tables.by_rate("learning rate", tried, _thousandths) if tried else ""


def _thousandths(error: float | None) -> str:
    return tables.finite(1e3 * records.number(error), ".3g")


def _described(fit: Fit, content: Content) -> str:
    settings = content["settings"]
    description = (
        f"{settings['points']:,} points, {settings['test_points']:,} for testing, "
        f"{fit.task.parameters} parameters. At most {settings['max_iterations']:,} iterations; "
        f"all but the first-order methods end where the gradient's norm is at most "
        f"{settings['tolerance']:g}. float64 where not said otherwise. {content['device']}."
    )
    return f"{description} {fit.source}".strip()


def _errors(errors: Errors) -> str:
    return " / ".join(tables.finite(error, ".3g") for error in errors)
