"""Full-batch methods on standard test functions: evaluations to a gradient norm of 10⁻⁶."""

import time
from pathlib import Path

import click

from benchmarks.functions.problems import PROBLEMS
from benchmarks.training.study import FixedStudy

NAME = "functions"
STARTS, QUICK_STARTS = 5, 2
QUICK_PROBLEMS = ("rosenbrock-2", "beale", "levy-2", "booth")


def run(folder: Path, quick: bool) -> Path:
    """Runs the comparison, or what is missing of it.

    Args:
      folder: where the results go.
      quick: the small form, fewer problems from fewer starts.

    Returns:
      The path of the performance profile.
    """
    # These import what no other experiment needs.
    from benchmarks.reports import comparison as report
    from benchmarks.reports import comparison_plots as plots
    from benchmarks.training import comparison
    from benchmarks.training.solvers import SOLVERS

    started = time.perf_counter()
    problems = [problem for problem in PROBLEMS if problem.name in QUICK_PROBLEMS or not quick]
    starts = QUICK_STARTS if quick else STARTS
    title = f"{NAME}: {len(problems)} problems from {starts} starts each"
    title += " (QUICK form, fewer problems and starts)" if quick else ""
    click.echo(f"{title}\nresults in {folder}")
    what = comparison.Comparison(NAME, problems, SOLVERS, starts, quick)
    with comparison.float64():
        content = comparison.complete(folder, title, what)
        text = report.text(content)
        click.echo(f"\n{text}")
        (folder / "results.md").write_text(text, encoding="utf-8")
        profile = plots.profile(content, folder / "profile.png")
        beale = plots.beale(folder / "beale.png")
    click.echo(f"pictures: {profile}, {beale}")
    click.echo(f"{time.perf_counter() - started:.0f} s in all")
    return profile


STUDIES = (FixedStudy(NAME, __doc__, run),)
