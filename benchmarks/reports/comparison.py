"""The results as tables, and the costs that the performance profile is made of."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.reports import tables
from benchmarks.training.solvers import SOLVERS

# How a run ends: at the lowest value, at another stationary point, after too many evaluations,
# because the solver gave up, or where the loss or its gradient is not finite.
SOLVED, ELSEWHERE, LIMIT, STOPPED, DIVERGED = "solved", "elsewhere", "limit", "stopped", "diverged"
SUCCESSES = (SOLVED, ELSEWHERE)
Content = Mapping[str, Any]
Columns = Mapping[str, Sequence[Any]]


def costs(columns: Columns) -> list[float]:
    """Returns the evaluations of each run, infinite where it failed."""
    pairs = zip(columns["status"], columns["evaluations"], strict=True)
    return [evaluations if status in SUCCESSES else math.inf for status, evaluations in pairs]


def ratios(content: Content) -> dict[str, list[float]]:
    """Returns for each solver its cost of each run over the least cost of any solver there.

    Runs that every solver fails are left out.
    """
    solvers = content["solvers"]
    rows = {
        name: [cost for columns in entry["problems"].values() for cost in costs(columns)]
        for name, entry in solvers.items()
    }
    best = [min(column) for column in zip(*rows.values(), strict=True)]
    return {
        name: [cost / least for cost, least in zip(row, best, strict=True) if math.isfinite(least)]
        for name, row in rows.items()
    }


def paragraphs(content: Content) -> list[str]:
    """Returns what stands below the title of `results.md`."""
    settings = content["settings"]
    parts = [
        f"Each run goes on until ‖∇f‖₂ ≤ {settings['tolerance']:g}, or fails after "
        f"{settings['limit']:,} evaluations, in float64, with every solver's defaults. A loss with "
        "its gradient is one evaluation, a loss alone is one too; both are counted as they run. "
        "*Elsewhere* are runs that end at a stationary point above the lowest value, a success by "
        "the gradient. Medians of evaluations count failures as infinite; those of the losses "
        "alone and of the gradients are over the successes. *Cheapest* and *within 2×* are of all "
        "solvers here. The limited-memory methods keep 10 pairs. With `reuse` the line search's "
        "last gradient serves the next step; NAQ and mNAQ take two gradients a step.",
        _summary(content),
    ]
    for dense, heading in ((False, "limited memory"), (True, "dense matrix")):
        names = [name for name in content["solvers"] if SOLVERS[name].dense == dense]
        parts += [
            f"Median evaluations by problem, {heading} (in parentheses: how many of the "
            f"{settings['starts']} starts failed):",
            _by_problem(content, names),
        ]
    return parts


def _summary(content: Content) -> str:
    """A line for each solver."""
    header = ["solver", "options", "solved", "elsewhere", "failed", "evaluations, median"]
    header += ["losses alone", "gradients", "cheapest", "within 2×"]
    found = ratios(content)
    rows = []
    for name, entry in content["solvers"].items():
        columns = _joined(entry["problems"].values())
        endings = columns["status"]
        successes = [i for i, status in enumerate(endings) if status in SUCCESSES]
        failures = {
            status: endings.count(status)
            for status in (LIMIT, STOPPED, DIVERGED)
            if status in endings
        }
        listed = ", ".join(f"{count} {status}" for status, count in failures.items())
        failed = sum(failures.values())
        row = [entry["label"], _options(entry["options"])]
        row += [str(endings.count(status)) for status in SUCCESSES]
        row += [f"{failed} ({listed})" if failed else "0", _median(costs(columns))]
        for kind in ("losses", "gradients"):
            row.append(_median([columns[kind][i] for i in successes]))
        row += [_share(found[name], 1), _share(found[name], 2)]
        rows.append(row)
    return tables.markdown(header, rows)


def _by_problem(content: Content, names: Sequence[str]) -> str:
    """A line for each problem."""
    rows = []
    for problem in content["settings"]["problems"]:
        row = [problem]
        for name in names:
            spent = costs(content["solvers"][name]["problems"][problem])
            failed = sum(map(math.isinf, spent))
            row.append(_median(spent) + (f" ({failed})" if failed else ""))
        rows.append(row)
    labels = [content["solvers"][name]["label"] for name in names]
    return tables.markdown(["problem", *labels], rows)


def _joined(columns: Sequence[Columns]) -> dict[str, list[Any]]:
    joined: dict[str, list[Any]] = {}
    for some in columns:
        for name, values in some.items():
            joined.setdefault(name, []).extend(values)
    return joined


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _median(values: Sequence[float]) -> str:
    """Writes a value of the list, so that an infinite one does not spoil its neighbour."""
    median = statistics.median_low(values) if values else math.inf
    return tables.finite(median, ",.0f", "failed")


def _share(found: Sequence[float], factor: float) -> str:
    return f"{sum(ratio <= factor for ratio in found) / len(found):.0%}"
