"""What the command line runs: studies, of whatever kind."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

from benchmarks.training.runs import ROOT

RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / ".cache" / "quick"


@dataclasses.dataclass(frozen=True)
class Study:
    """What is trained, by what, how long and from which starts.

    Attributes:
      name: what the command line calls it, and its folder of results.
      description: its first line is the summary.
      run: runs what is missing of it, (folder, quick, **options), and returns the path of the
        picture; the quick form is a small one.
      size: how long, how often and by what, in a line, where that can be chosen.
      options: which of `optimizers`, `seeds` and `epochs` can be chosen.
      choices: the names that `optimizers` are chosen from.
    """

    name: str
    description: str | None
    run: Callable[..., Path]
    size: str = ""
    options: tuple[str, ...] = ()
    choices: Collection[str] = ()

    @property
    def summary(self) -> str:
        """First line of the description."""
        return first_line(self.description)


def first_line(description: str | None) -> str:
    """Returns the summary that a docstring begins with."""
    return (description or "").strip().partition("\n")[0]
