"""Runs every solver on every problem from every start."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jax

from benchmarks.functions.problems import Problem
from benchmarks.reports import comparison as report
from benchmarks.reports import records
from benchmarks.reports.progress import progress_bar
from benchmarks.training.solvers import LIMIT, TOLERANCE, Program, Result, Solver

# A run that ends higher than this above the lowest value, relative to it where it is above 1, has
# found another stationary point.
EXCESS = 1e-7


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is run on what.

    Attributes:
      name: the experiment's, and that of its file.
      problems: what is minimised.
      solvers: by what, by name.
      starts: from how many starts each.
      quick: whether it is a small form.
    """

    name: str
    problems: Sequence[Problem]
    solvers: Mapping[str, Solver]
    starts: int
    quick: bool


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Switches 64-bit numbers on for a while."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def status(problem: Problem, result: Result) -> str:
    """Says how a run ended; the gradient alone decides between success and failure."""
    if not math.isfinite(result.gradient_norm):
        return report.DIVERGED
    converged = result.gradient_norm <= TOLERANCE
    if result.evaluations > LIMIT or (result.evaluations == LIMIT and not converged):
        return report.LIMIT
    if not converged:
        return report.STOPPED
    excess = EXCESS * max(1.0, abs(problem.minimum))
    return report.SOLVED if result.loss <= problem.minimum + excess else report.ELSEWHERE


def complete(folder: Path, title: str, comparison: Comparison) -> dict[str, Any]:
    """Runs what is missing of a comparison, keeps its file up to date, and returns the content."""
    path = folder / f"{comparison.name}.json"
    settings = {
        "name": comparison.name,
        "quick": comparison.quick,
        "starts": comparison.starts,
        "tolerance": TOLERANCE,
        "limit": LIMIT,
        "problems": {problem.name: problem.dimension for problem in comparison.problems},
    }
    content = records.opened(path, title, settings, "solvers", ("optimistix", "scipy"))
    problems, solvers = comparison.problems, comparison.solvers
    known, content["solvers"] = content["solvers"], {}
    for name, solver in solvers.items():
        entry = {"label": solver.label, "options": dict(solver.options), "problems": {}}
        old = known.get(name, entry)
        if old["options"] == entry["options"]:
            entry["problems"] = old["problems"]
        content["solvers"][name] = entry
    total = len(solvers) * len(problems)
    done = sum(len(entry["problems"]) for entry in content["solvers"].values())
    if done:
        click.echo(f"{path}: {done} of {total} are there already, reused")
    # Problems of one dimension share a compiled program.
    dimensions = sorted({problem.dimension for problem in problems})
    with progress_bar(comparison.name, total, done, unit="problem") as bar:
        for name, solver in solvers.items():
            results = content["solvers"][name]["problems"]
            for dimension in dimensions:
                group = [problem for problem in problems if problem.dimension == dimension]
                if all(problem.name in results for problem in group):
                    continue
                bar.set_description(f"{solver.label}, {dimension} variables: compiling")
                program = solver.program([problem.function for problem in group])
                for index, problem in enumerate(group):
                    if problem.name not in results:
                        results[problem.name] = _solve(program, index, problem, comparison.starts)
                        bar.set_description(f"{solver.label}, {problem.name}")
                        bar.update()
                        records.write(path, content)
    records.write(path, content)
    return content


def _solve(program: Program, index: int, problem: Problem, starts: int) -> dict[str, Any]:
    """Runs a solver on a problem from all starts; returns a column for each number."""
    columns: dict[str, list[Any]] = {}
    for start in problem.starts(starts):
        result = program.solve(index, start)
        record: Mapping[str, Any] = {
            "status": status(problem, result),
            "evaluations": result.evaluations,
            "losses": result.losses,
            "gradients": result.gradients,
            "iterations": result.iterations,
            "loss": records.rounded(result.loss),
            "gradient_norm": records.rounded(result.gradient_norm),
        }
        for column, value in record.items():
            columns.setdefault(column, []).append(value)
    return columns
