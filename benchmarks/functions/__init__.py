"""Full-batch methods on standard test functions: evaluations to a gradient norm of 10⁻⁶."""

from pathlib import Path

NAME = "functions"


def run(out: Path, quick: bool = False) -> Path:
    """Runs the comparison, or what is missing of it.

    Args:
      out: the results go to a folder of the experiment's name in here.
      quick: the small form, fewer problems from fewer starts.

    Returns:
      The path of the performance profile.
    """
    from benchmarks.functions import comparison  # imports what no other experiment needs

    return comparison.run(out / NAME, quick)
