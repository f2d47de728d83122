"""Global routing by double deep Q-learning: aSNAQ against Adam and RMSprop, beside A*.

All two-pin nets of a grid are to be connected with the least wire length and no edge over its
capacity. An agent walks them one after the other, 500 episodes for each netlist, and learns on the
way; its replay begins with the routes of A*. What counts of a run is its best episode: most nets
connected, and of as many the highest reward.

The settings are those of the authors' slides on aSNAQ and of the published code of Liao and others
(https://arxiv.org/abs/1906.08809); what they leave open is decided in `benchmarks.routing`. Adam
and RMSprop have their published rate 1e-4 and aSNAQ its 0.01, and each method besides the rate that
the grid of `benchmarks.training.learning_rates` gives: tried for a fifth of the episodes on
netlists that are not reported, the highest mean of the best rewards wins.

The slides' netlists are not public. Theirs and ours are drawn alike, no more. `--seeds` is the
number of netlists, which can grow later, and `--epochs` that of episodes; every run is kept as it
ends.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.reports import records, tables
from benchmarks.reports import routing as report
from benchmarks.reports.progress import progress_bar
from benchmarks.routing import grid as grids
from benchmarks.routing import runs
from benchmarks.routing.methods import METHODS, Method
from benchmarks.training import learning_rates
from benchmarks.training.study import Study

TUNING_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything a study has.

    Attributes:
      nets: two-pin nets of a netlist.
      netlists: runs of a method at a rate.
      episodes: of a run.
      tuning: netlists on which a rate is tried; 0 for no tuning.
    """

    nets: int
    netlists: int
    episodes: int = 500
    tuning: int = 4


TABLE = Size(nets=50, netlists=30)
CURVES = Size(nets=10, netlists=25)
QUICK = Size(nets=10, netlists=1, episodes=50, tuning=0)


def run(
    size: Size,
    folder: Path,
    quick: bool = False,
    seeds: int | None = None,
    epochs: int | None = None,
) -> Path:
    """Runs what is missing of it; `seeds` is the number of netlists and `epochs` of episodes."""
    size = QUICK if quick else size
    size = dataclasses.replace(
        size, netlists=seeds or size.netlists, episodes=epochs or size.episodes
    )
    settings = {"nets": size.nets, "episodes": size.episodes, "tuning": size.tuning}
    title = f"{folder.name}: {size.nets} two-pin nets" + (" (QUICK form)" if quick else "")
    path = folder / f"{folder.name}.json"
    content = records.opened(path, title, settings, "methods", ("scipy",))
    course = _Course(size, functools.partial(records.write, path, content))
    for name, method in METHODS.items():
        entry = content["methods"].setdefault(name, {"tried": {}, "runs": {}})
        for rate in course.rates(method, entry):
            course.complete(method, rate, entry["runs"].setdefault(f"{rate:g}", {}))
    lengths = [int(course.task(seed).wires.sum()) for seed in range(size.netlists)]
    shown = report.rows(content["methods"], METHODS, size.netlists)
    tables.write(folder, title, *report.paragraphs(content, METHODS, shown, lengths))
    picture = folder / f"{folder.name}.png"
    return report.picture(title, course.grid, course.task(0), shown, picture)


class _Course:
    """What all runs of a study have in common."""

    def __init__(self, size: Size, save: Callable[[], None]):
        self.size, self.save, self.grid = size, save, grids.make()
        self.task = functools.cache(lambda seed: runs.task(self.grid, seed, size.nets))

    def rates(self, method: Method, entry: dict[str, Any]) -> list[float]:
        """Returns the published rate and, where it is another, the tuned one."""
        if not self.size.tuning:
            return [method.middle_rate]
        episodes = math.ceil(self.size.episodes / 5)
        router = runs.Router(method, self.grid, episodes)

        def shortfall(rate: float) -> float:
            """Returns minus the mean best reward: the search wants the lowest."""
            name = f"{rate:g}"
            if name not in entry["tried"]:
                found = []
                with progress_bar(
                    f"{method.label}, tries {name}", self.size.tuning * episodes, unit="episode"
                ) as bar:
                    for seed in range(TUNING_SEED, TUNING_SEED + self.size.tuning):
                        found.append(runs.told(*router.run(self.task(seed), rate, bar.update)))
                entry["tried"][name] = statistics.mean(run["reward"] for run in found)
                self.save()
            return -float(entry["tried"][name])

        entry["tuned"] = learning_rates.best(learning_rates.search(shortfall, method.middle_rate))
        click.echo(f"{method.label}: tuned rate {entry['tuned']:g}")
        published = method.published_rate
        return list(dict.fromkeys([published, entry["tuned"]] if published else [entry["tuned"]]))

    def complete(self, method: Method, rate: float, done: dict[str, Any]) -> None:
        """Adds the runs of a method at a rate that are missing."""
        missing = [seed for seed in range(self.size.netlists) if str(seed) not in done]
        if not missing:
            click.echo(f"{method.label}, {rate:g}: already run, reused")
            return
        router = runs.Router(method, self.grid, self.size.episodes)
        total = len(missing) * self.size.episodes
        with progress_bar(f"{method.label}, {rate:g}", total, unit="episode") as bar:
            for seed in missing:
                learner, seconds = router.run(self.task(seed), rate, bar.update)
                # The first netlist is drawn.
                done[str(seed)] = runs.told(learner, seconds, with_wires=seed == 0)
                self.save()
                bar.set_postfix_str(f"{done[str(seed)]['arrived']} of {self.size.nets} nets")


STUDIES = tuple(
    Study(
        name,
        title + "\n\n" + (__doc__ or ""),
        functools.partial(run, size),
        options=("seeds", "epochs"),
    )
    for name, title, size in (
        (
            "routing",
            "Global routing of 50 nets by deep Q-learning: wire length and reward beside A*.",
            TABLE,
        ),
        (
            "routing-curves",
            "Global routing of 10 nets by deep Q-learning: reward by episode.",
            CURVES,
        ),
    )
)
