"""NAQ, MoQ and mNAQ by how far back their momentum is judged, with ξ and without."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import naqopt
from benchmarks.functions.clusters import CLUSTER
from benchmarks.functions.least_squares import LEAST_SQUARES
from benchmarks.functions.problems import PROBLEMS, Problem
from benchmarks.reports import records, tables
from benchmarks.training.study import Study

NAME = "restarts"
KINDS: Mapping[str, Sequence[Problem]] = {
    "functions": PROBLEMS,
    "least squares": LEAST_SQUARES,
    "cluster": (CLUSTER,),
}
METHODS = ("naq", "naq-term", "moq", "moq-term", "mnaq")
WINDOWS = (None, 1, 5)
STARTS, QUICK_STARTS = 5, 2
QUICK_WINDOWS = (None, 5)
# Above the lowest value, relative to it where it is above 1, where it counts as found.
EXCESS = 1e-6
Content = Mapping[str, Any]


def run(folder: Path, quick: bool) -> Path:
    """Runs what is missing of it; the quick form has fewer problems, windows and starts."""
    # These import what no other experiment needs.
    from benchmarks.reports import comparison_plots as plots
    from benchmarks.training import comparison

    kinds = {kind: some[: 2 if quick else None] for kind, some in KINDS.items()}
    problems = [problem for some in kinds.values() for problem in some]
    starts = QUICK_STARTS if quick else STARTS
    title = f"{NAME}: {len(problems)} problems from {starts} starts each"
    title += " (QUICK form, fewer problems, windows and starts)" if quick else ""
    solvers = _solvers(QUICK_WINDOWS if quick else WINDOWS)
    with comparison.float64():
        what = comparison.Comparison(NAME, problems, solvers, starts, quick)
        content = comparison.complete(folder, title, what)
        rows = summary(content, kinds)
    tables.write(folder, content["title"], _described(content), table(rows))
    return plots.restarts(content["title"], rows, folder / f"{NAME}.png")


def _solvers(windows: Sequence[int | None]) -> dict[str, Any]:
    """Returns a solver for each method and window, by a name that says both."""
    from benchmarks.training.solvers import ours

    calls: dict[str, Any] = {"naq": naqopt.naq, "moq": naqopt.moq, "mnaq": naqopt.mnaq}
    labels = {"naq": "NAQ", "moq": "MoQ", "mnaq": "mNAQ"}
    solvers = {}
    for method in METHODS:
        name, _, term = method.partition("-")
        for window in windows:
            label = labels[name] + (", ξ" if term else "")
            # mNAQ has the term by its definition.
            options = {"convergence_term": bool(term)} if name != "mnaq" else {}
            solvers[f"{method}/{window}"] = ours(
                label, calls[name], restart_window=window, **options
            )
    return solvers


def summary(content: Content, kinds: Mapping[str, Sequence[Problem]]) -> list[dict[str, Any]]:
    """Returns for each solver how its runs ended.

    `ended`: on the test functions, with a gradient norm within the tolerance. `found`: on the
    least-squares problems and the cluster, at the lowest value. `above`: of all runs, those whose
    last loss is above the first, or is no number.
    """
    from benchmarks.reports.comparison import SUCCESSES, costs

    starts = content["settings"]["starts"]
    rows = []
    for name, entry in content["solvers"].items():
        row = {
            "solver": name,
            "label": entry["label"],
            "window": entry["options"]["restart_window"],
        }
        row |= {"ended": 0, "runs": 0, "above": 0}
        spent: list[float] = []
        for kind, problems in kinds.items():
            found = 0
            for problem in problems:
                columns = entry["problems"][problem.name]
                lasts = [*map(records.number, columns["loss"])]
                enough = problem.minimum + EXCESS * max(1.0, abs(problem.minimum))
                found += sum(last <= enough for last in lasts)
                # To as many digits as the last losses are kept with.
                firsts = [
                    records.rounded(float(problem.function(start)))
                    for start in problem.starts(starts)
                ]
                row["above"] += sum(
                    not last <= first for first, last in zip(firsts, lasts, strict=True)
                )
                row["runs"] += starts
                if kind == "functions":
                    row["ended"] += sum(status in SUCCESSES for status in columns["status"])
                    spent += costs(columns)
            row[kind] = found
        row["evaluations"] = statistics.median_low(spent)
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a line for each solver."""
    header = ["method", "M", "functions: ended", "evaluations, median", "lowest found"]
    header += [
        "least squares: lowest found",
        "cluster: lowest found",
        "of all runs above the start",
    ]
    lines = []
    for row in rows:
        lines.append(
            [
                row["label"],
                str(row["window"]),
                str(row["ended"]),
                tables.finite(row["evaluations"], ",.0f", "failed"),
                *(str(row[kind]) for kind in ("functions", "least squares", "cluster")),
                f"{row['above']} of {row['runs']}",
            ]
        )
    return tables.markdown(header, lines)


def _described(content: Content) -> str:
    settings = content["settings"]
    return (
        "M is `restart_window`, over how many losses the momentum is judged; None is the papers' "
        f"method. A run ends where ‖∇f‖₂ ≤ {settings['tolerance']:g}, or after "
        f"{settings['limit']:,} evaluations, in float64. *Lowest found*: the last loss is within "
        f"{EXCESS:g} of the lowest value, relative to it where it is above 1. The test functions "
        "are those of `functions`; the hard least-squares problems are Moré, Garbow and "
        "Hillstrom's, with variables of scales up to 10⁸ apart; the cluster is 13 atoms of "
        "Lennard-Jones's potential near their lowest arrangement."
    )


STUDIES = (Study(NAME, __doc__, run),)
