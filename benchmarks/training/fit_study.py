"""The description of an experiment: a function, a network, and the methods that fit it."""

import dataclasses
from collections.abc import Mapping

from benchmarks.models.function_fit import Task
from benchmarks.training import learning_rates
from benchmarks.training.fit_methods import Method


@dataclasses.dataclass(frozen=True)
class Study:
    """A task, and what fits it.

    Attributes:
      name: of the folder and the file of results.
      title: stands over the table and the plot.
      task: what is fitted.
      methods: the lines of the table by name.
      panels: the plot's panels by title, each with the names of its methods.
      max_iterations: of a run.
      runs: per method.
      quick_iterations: the same in the quick form.
      quick_runs: the same in the quick form.
      quick_methods: the quick form's, none of them tuned.
      tuning_runs: per learning rate.
      source: where the published figures come from, where there are any.
    """

    name: str
    title: str
    task: Task
    methods: Mapping[str, Method]
    panels: Mapping[str, tuple[str, ...]]
    max_iterations: int
    runs: int
    quick_iterations: int
    quick_runs: int
    quick_methods: tuple[str, ...]
    tuning_runs: int
    source: str = ""

    @property
    def tuning_seeds(self) -> list[int]:
        """Seeds of the runs that choose the learning rates."""
        return list(range(learning_rates.SEED, learning_rates.SEED + self.tuning_runs))
