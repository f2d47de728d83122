"""Which choices in the reconstruction of SVR-NAQ matter: each one varied alone, on three tasks.

The formulas of the paper (Yasuda et al., *A Stochastic Variance Reduced Nesterov's Accelerated
Quasi-Newton Method*, ICMLA 2019) are lost in the text that we have. `naqopt.svr_naq` is a reading
of its prose, and here every decision of that reading is changed alone: networks of 170 parameters
learn the quality of wine (batches of 8 and of 32) and CASP (batches of 64) for 20 epochs.

Decided here: the rates are those of the baseline, not tuned for each variant, so that a line says
what the one change does and not how good the method can become. All variants start from the same
parameters and see the same batches, by which they are compared seed by seed. A run has diverged if
its final training loss is not finite or above that of the start.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reports import records, tables
from benchmarks.reports import svr_choices as report
from benchmarks.reports.progress import progress_bar
from benchmarks.studies import regression
from benchmarks.training import svr_choices as training
from benchmarks.training.problem import Problem
from benchmarks.training.study import Study
from benchmarks.training.svr_variants import VARIANTS, Choices

NAME = "svr-choices"
TITLE = "The choices of SVR-NAQ's reconstruction, each varied alone"
TASKS = {
    "wine-8": functools.partial(regression.build_wine, batch_size=8),
    "wine-32": functools.partial(regression.build_wine, batch_size=32),
    "casp-64": functools.partial(regression.build_casp, batch_size=64),
}
EPOCHS, SEEDS = 20, 5
QUICK_TASKS, QUICK_EPOCHS, QUICK_SEEDS = ("wine-32",), 5, 2
QUICK_VARIANTS = tuple(VARIANTS)


def run(folder: Path, quick: bool) -> Path:
    """Runs what is missing of it; the quick form has one task and is shorter."""
    path = folder / f"{NAME}.json"
    tasks, names = (QUICK_TASKS, QUICK_VARIANTS) if quick else (tuple(TASKS), tuple(VARIANTS))
    epochs, seeds = (QUICK_EPOCHS, QUICK_SEEDS) if quick else (EPOCHS, SEEDS)
    title = f"{TITLE} (QUICK form)" if quick else TITLE
    content = records.opened(path, title, {"epochs": epochs, "seeds": seeds}, "tasks")
    for task in tasks:
        problem = TASKS[task](False)
        entry = content["tasks"].setdefault(task, {"title": problem.title, "variants": {}})
        entry["unit"] = problem.settings["unit"]
        with progress_bar(task, len(names), unit="variant") as bar:
            for name in names:
                bar.set_postfix_str(VARIANTS[name].label)
                choices = VARIANTS[name].choices
                settings = dataclasses.asdict(choices)
                known = entry["variants"].get(name)
                if known is None or known["settings"] != settings:
                    runs = _train(problem, choices, range(seeds), epochs)
                    entry["variants"][name] = {"settings": settings, **runs}
                    records.write(path, content)
                bar.update()
    shown = {task: content["tasks"][task] for task in tasks}
    tables.write(folder, content["title"], *report.paragraphs(content, shown, names))
    return report.picture(content, shown, names, folder / f"{NAME}.png")


def _train(
    problem: Problem, choices: Choices, seeds: Sequence[int], epochs: int
) -> dict[str, list[dict[str, Any]] | float]:
    """Trains a variant from all seeds; returns its runs, and their time with the compilation."""
    started = time.perf_counter()
    trained = training.train(problem, choices, seeds, epochs)
    seconds = time.perf_counter() - started
    runs = []
    for index, seed in enumerate(seeds):
        losses = trained.train_losses[index].tolist()
        # The comparison is false for NaN.
        fine = losses[-1] <= losses[0]
        test_error = (problem.target_scale or 1.0) * math.sqrt(trained.test_losses[index])
        runs.append(
            {
                "seed": seed,
                "status": records.FINISHED if fine else records.DIVERGED,
                "test_error": records.rounded(test_error),
                "pairs_stored": trained.pairs_stored[index].item(),
                "train_losses": [records.rounded(loss) for loss in losses],
            }
        )
    return {"seconds": records.rounded(seconds), "runs": runs}


STUDIES = (Study(NAME, __doc__, run),)
