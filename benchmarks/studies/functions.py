"""Full-batch methods on standard test functions: evaluations to a gradient norm of 10⁻⁶."""

from pathlib import Path

from benchmarks.functions.problems import PROBLEMS
from benchmarks.reports import tables
from benchmarks.training.study import Study

NAME = "functions"
STARTS, QUICK_STARTS = 5, 2
QUICK_PROBLEMS = ("rosenbrock-2", "beale", "levy-2", "booth")


def run(folder: Path, quick: bool) -> Path:
    """Runs what is missing of it; the quick form has fewer problems from fewer starts."""
    # These import what no other experiment needs.
    from benchmarks.reports import comparison as report
    from benchmarks.reports import comparison_plots as plots
    from benchmarks.training import comparison
    from benchmarks.training.solvers import SOLVERS

    problems = [problem for problem in PROBLEMS if problem.name in QUICK_PROBLEMS or not quick]
    starts = QUICK_STARTS if quick else STARTS
    title = f"{NAME}: {len(problems)} problems from {starts} starts each"
    title += " (QUICK form, fewer problems and starts)" if quick else ""
    what = comparison.Comparison(NAME, problems, SOLVERS, starts, quick)
    with comparison.float64():
        content = comparison.complete(folder, title, what)
        tables.write(folder, content["title"], *report.paragraphs(content))
        plots.beale(folder / "beale.png")
        return plots.profile(content, folder / "profile.png")


STUDIES = (Study(NAME, __doc__, run),)
