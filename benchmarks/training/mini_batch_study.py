"""Studies that train on mini-batches: all optimizers, all seeds, then the table and the plot."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.reports import plots, records, tables
from benchmarks.training import learning_rates, runs
from benchmarks.training.mini_batches import Trainer
from benchmarks.training.optimizers import OPTIMIZERS
from benchmarks.training.problem import Problem
from benchmarks.training.runs import Run
from benchmarks.training.study import RESULTS, first_line


@dataclasses.dataclass(frozen=True)
class MiniBatchStudy:
    """A problem together with how long, how often and with what it is trained.

    Attributes:
      name: what the command line calls it.
      build: makes the problem, small if asked for the quick form; its docstring tells the paper's
        setting and what was decided where the paper is silent.
      epochs: length of a run; with `equal_gradients` that of a method of one gradient a step.
      quick_epochs: the same in the quick form.
      seeds: how many runs per optimizer.
      optimizers: names from the table in `benchmarks.training.optimizers`.
      equal_gradients: whether a method of two gradients a step gets half the epochs, and one of
        two and a full gradient an epoch, or of batches in three overlapping parts, a third.
      published: by optimizer, the test accuracy that the methods' authors print for the same.
      batch_sizes: by optimizer, where it is not the problem's.
      printed_rates: by optimizer, the rate of the paper, which is run too where the tuned differs;
        others have that of the table of optimizers, if any.
      known_rates: by optimizer, a rate that a smaller study has found, where looking for one would
        take longer than the runs.
      target_errors: shares of wrong answers; it is told after how many epochs each was reached.
    """

    name: str
    build: Callable[[bool], Problem]
    epochs: int
    quick_epochs: int
    seeds: int
    optimizers: tuple[str, ...] = ("adam", "adam-cosine", "adagrad", "adaqn", "asnaq")
    equal_gradients: bool = False
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    batch_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    printed_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    known_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    target_errors: tuple[float, ...] = ()

    options = ("optimizers", "seeds", "epochs")
    choices = tuple(OPTIMIZERS)

    @property
    def summary(self) -> str:
        """First line of the description."""
        # A builder with some arguments given has the docstring of the whole one.
        return first_line(getattr(self.build, "func", self.build).__doc__)

    @property
    def size(self) -> str:
        """How long, how often and by what."""
        plural = "s" if self.seeds > 1 else ""
        names = ", ".join(self.optimizers)
        return f"{self.epochs} epochs, {self.seeds} seed{plural}{self._equal}; {names}"

    @property
    def _equal(self) -> str:
        return ", equal gradient evaluations" if self.equal_gradients else ""

    def epochs_for(self, gradients: int, epochs: int) -> int:
        """Returns the epochs of an optimizer that takes so many epochs' gradients in one."""
        return math.ceil(epochs / gradients) if self.equal_gradients else epochs

    def run(
        self,
        folder: Path,
        quick: bool,
        optimizers: Sequence[str] | None = None,
        seeds: int | None = None,
        epochs: int | None = None,
    ) -> Path:
        """Runs the study, or what is missing of it.

        Args:
          folder: where the results go.
          quick: the small form, without a grid search.
          optimizers: names of optimizers; the study's own by default.
          seeds: runs per optimizer; by default the study's, one if quick.
          epochs: length of a run; the study's by default.

        Returns:
          The path of the plot.
        """
        epochs = epochs or (self.quick_epochs if quick else self.epochs)
        problem = self.build(quick)
        title = f"{self.name}: {problem.title}{self._equal}"
        title += " (QUICK form, smaller or shorter than the experiment)" if quick else ""
        settings = {"name": self.name, "quick": quick, "epochs": epochs, **problem.settings}
        click.echo(title)
        click.echo(f"{_described(settings)}\nresults in {folder}")
        for name in optimizers or self.optimizers:
            optimizer = OPTIMIZERS[name]
            options = dict(optimizer.options)
            if name in self.batch_sizes:
                options["batch_size"] = self.batch_sizes[name]
            size = options.get("batch_size", problem.batch_size)
            length = self.epochs_for(optimizer.gradients_per_example, epochs)
            trainer = Trainer(dataclasses.replace(problem, batch_size=size), optimizer, length)
            base = Run(settings, name, options, 0.0, 0, length)
            rate = None
            if name in self.known_rates:
                rate = self.known_rates[name]
            elif optimizer.quick_learning_rate is not None:
                rate = _learning_rate(base, trainer, folder, quick)
            train = functools.partial(
                _train_seeds, base, seeds or (1 if quick else self.seeds), trainer, folder, title
            )
            contents = train(name, rate)
            if quick:
                continue
            tried = [rate]
            if rate is not None and tables.worsened(contents, learning_rates.SECOND_CHANCE):
                tried.append(learning_rates.next_lower(rate))
                click.echo(f"{name}: ended well above its lowest loss; again with {tried[-1]:g}")
                train(f"{name}-lower", tried[-1])
            printed = self.printed_rates.get(name, optimizer.printed_rate)
            if printed is not None and printed not in tried:
                click.echo(f"{name}: also with the printed rate, {printed:g}")
                train(f"{name}-printed", printed)
        return self._conclude(folder, settings, title)

    def _conclude(self, folder: Path, settings: dict[str, Any], title: str) -> Path:
        """Writes the table and draws the curves of all runs with these settings in a folder."""
        contents = _collect(folder, settings)
        grids = {}
        for name in dict.fromkeys(
            run[0]["settings"]["optimizer"] for run in tables.by_optimizer(contents)
        ):
            grid = records.read(learning_rates.grid_file(folder, name))
            if grid is not None and grid["settings"]["experiment"] == settings:
                grids[name] = grid
        text = [_described(settings) + f", {contents[0]['device']}"]
        text.append(tables.results(contents, self.published, self.target_errors))
        if grids:
            text.append("Training loss by learning rate, from one seed and a fifth of the epochs:")
            text.append(tables.grids(grids))
        tables.write(folder, title, *text)
        return plots.curves(contents, title, folder / f"{folder.name}.png")


def _train_seeds(
    base: Run, count: int, trainer: Trainer, folder: Path, title: str, name: str, rate: float | None
) -> list[dict[str, Any]]:
    """Trains a run at a rate from so many seeds, each into the file NAME-seedK.json."""
    return [
        runs.train(
            dataclasses.replace(base, learning_rate=rate, seed=seed),
            trainer,
            folder / f"{name}-seed{seed}.json",
            title,
            click.echo,
        )
        for seed in range(count)
    ]


def _collect(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Reads the runs that are done, of these settings.

    The runs of an optimizer must agree in everything but the seed. Seed 0 is always run first, so
    its file has the settings that hold.
    """
    contents = []
    for path in sorted(folder.glob("*-seed*.json")):
        content = records.read(path)
        first = records.read(path.with_name(path.name.partition("-seed")[0] + "-seed0.json"))
        matches = content is not None and content["settings"]["experiment"] == settings
        if not matches or (first and first["settings"] != content["settings"] | {"seed": 0}):
            click.echo(f"{path}: has other settings, left out")
        elif content["status"] == records.RUNNING:
            click.echo(f"{path}: not finished, left out")
        else:
            contents.append(content)
    return contents


def _learning_rate(run: Run, trainer: Trainer, folder: Path, quick: bool) -> float:
    """Returns an optimizer's rate: by a search, or if quick the whole experiment's."""
    if not quick:
        return learning_rates.choose(run, trainer, folder, click.echo)
    known = learning_rates.stored(RESULTS / folder.name, run.optimizer)
    default = OPTIMIZERS[run.optimizer].quick_learning_rate
    origin = "no search stored, documented default" if known is None else "of the whole experiment"
    click.echo(f"{run.optimizer}: learning rate {known or default:g} ({origin})")
    return known or default


def _described(settings: dict[str, Any]) -> str:
    """Writes settings in a line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
