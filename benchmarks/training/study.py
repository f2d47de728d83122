"""What the command line runs: studies, of whatever kind."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.training.runs import ROOT

RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / ".cache" / "quick"


class Study(Protocol):
    """What is trained, by what, how long and from which starts."""

    @property
    def name(self) -> str:
        """What the command line calls it, and its folder of results."""

    @property
    def summary(self) -> str:
        """What it is, in a line."""

    @property
    def size(self) -> str:
        """How long, how often and by what, in another line; empty where that is all decided."""

    @property
    def options(self) -> Sequence[str]:
        """Which of `optimizers`, `seeds` and `epochs` can be chosen."""

    def run(self, out: Path, quick: bool = False, **options: Any) -> Path:
        """Runs the study, or what is missing of it.

        Args:
          out: the results go to a folder of the study's name in here.
          quick: a small form.
          **options: those that can be chosen.

        Returns:
          The path of the picture.
        """


@dataclasses.dataclass(frozen=True)
class FixedStudy:
    """A study all of whose settings are decided.

    Attributes:
      name: see `Study`.
      description: its first line is the summary.
      conduct: runs it into a folder, the quick form or the whole; returns the path of the picture.
    """

    name: str
    description: str | None
    conduct: Callable[[Path, bool], Path]
    size = ""
    options = ()

    @property
    def summary(self) -> str:
        """First line of the description."""
        return first_line(self.description)

    def run(self, out: Path, quick: bool = False) -> Path:
        """Runs the study, or what is missing of it."""
        return self.conduct(out / self.name, quick)


def first_line(description: str | None) -> str:
    """Returns the summary that a docstring begins with."""
    return (description or "").strip().partition("\n")[0]
