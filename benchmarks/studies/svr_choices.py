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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reports import records, tables
from benchmarks.reports import svr_choices as report
from benchmarks.reports.progress import progress_bar
from benchmarks.studies import regression
from benchmarks.training import svr_choices as training
from benchmarks.training.problem import Problem
from benchmarks.training.study import Study
from benchmarks.training.svr_choices import BASELINE, Choices, Variant

NAME = "svr-choices"
TITLE = "The choices of SVR-NAQ's reconstruction, each varied alone"
TASKS = {
    "wine-8": functools.partial(regression.build_wine, batch_size=8),
    "wine-32": functools.partial(regression.build_wine, batch_size=32),
    "casp-64": functools.partial(regression.build_casp, batch_size=64),
}
EPOCHS, SEEDS = 20, 5
QUICK_TASKS, QUICK_EPOCHS, QUICK_SEEDS = ("wine-32",), 5, 2

_UNNORMALIZED = {"normalized": False}
_CONSTANT = {"counted": training.NOTHING}
_SVRG2 = {**_UNNORMALIZED, **_CONSTANT, "momentum": 0.0}

VARIANTS: Mapping[str, Variant] = {
    name: Variant(group, label, Choices(**changes))
    for name, group, label, changes in (
        (BASELINE, "baseline", "as in the library", {}),
        ("by-pairs", "rounding", "no change but rounding", {"by_pairs": True}),
        ("raw-decay-1", "length", "not normalized, 1/√k", _UNNORMALIZED),
        (
            "raw-decay-0.1",
            "length",
            "not normalized, 0.1/√k",
            {**_UNNORMALIZED, "learning_rate": 0.1},
        ),
        (
            "raw-0.1",
            "length",
            "not normalized, α = 0.1",
            {**_UNNORMALIZED, **_CONSTANT, "learning_rate": 0.1},
        ),
        (
            "raw-0.025",
            "length",
            "not normalized, α = 0.025",
            {**_UNNORMALIZED, **_CONSTANT, "learning_rate": 0.025},
        ),
        ("momentum-0", "momentum", "μ = 0 (SVRG+II, normalized)", {"momentum": 0.0}),
        *(
            (f"momentum-{mu:g}", "momentum", f"μ = {mu:g}", {"momentum": mu})
            for mu in (0.5, 0.8, 0.95)
        ),
        ("no-warmup", "first epoch", "no SVRG epoch", {"warmup_rate": None}),
        *(
            (f"warmup-{rate:g}", "first epoch", f"SVRG epoch at {rate:g}", {"warmup_rate": rate})
            for rate in (0.1, 0.316)
        ),
        ("gamma-newest", "H0", "γ of the newest pair", {"scale": training.NEWEST}),
        ("gamma-1", "H0", "γ = 1", {"scale": training.ONE}),
        *(
            (f"rate-{rate:g}", "step size", f"α_0 = {rate:g}", {"learning_rate": rate})
            for rate in (0.316, 3.16)
        ),
        (
            "k-later",
            "step size",
            "k from 1 after the SVRG epoch",
            {"counted": training.AFTER_WARMUP},
        ),
        ("k-epoch", "step size", "k within the epoch", {"counted": training.WITHIN_EPOCH}),
        ("k-epochs", "step size", "k counts epochs", {"counted": training.EPOCHS}),
        ("constant", "step size", "α = 0.03", {**_CONSTANT, "learning_rate": 0.03}),
        ("average", "snapshot", "at the mean of the iterates", {"snapshot_average": True}),
        ("velocity-zeroed", "velocity", "zeroed at a snapshot", {"keep_velocity": False}),
        ("no-reduction", "gradient", "no variance reduction", {"variance_reduced": False}),
        ("no-curvature", "memory", "no curvature, H = I", {"memory_size": 0}),
        *((f"m-{m}", "memory", f"m = {m}", {"memory_size": m}) for m in (1, 2, 8)),
        ("dense", "memory", "dense", {"memory_size": None}),
        ("damped", "pairs", "y + s, as in oNAQ", {"damping": 1.0}),
        ("convergence", "pairs", "y + ξ s, convergence term", {"damping": training.CONVERGENCE}),
        ("svrg2-0.01", "SVRG+II", "α = 0.01", {**_SVRG2, "learning_rate": 0.01}),
        ("svrg2-0.025", "SVRG+II", "α = 0.025", {**_SVRG2, "learning_rate": 0.025}),
    )
}
QUICK_VARIANTS = tuple(VARIANTS)


def run(folder: Path, quick: bool) -> Path:
    """Runs what is missing of it; the quick form has one task and is shorter."""
    path = folder / f"{NAME}.json"
    tasks, names = (QUICK_TASKS, QUICK_VARIANTS) if quick else (tuple(TASKS), tuple(VARIANTS))
    variants = {name: VARIANTS[name] for name in names}
    epochs, seeds = (QUICK_EPOCHS, QUICK_SEEDS) if quick else (EPOCHS, SEEDS)
    title = f"{TITLE} (QUICK form)" if quick else TITLE
    content = records.opened(path, title, {"epochs": epochs, "seeds": seeds}, "tasks")
    for task in tasks:
        problem = TASKS[task](False)
        entry = content["tasks"].setdefault(task, {"title": problem.title, "variants": {}})
        entry["unit"] = problem.settings["unit"]
        with progress_bar(task, len(names), unit="variant") as bar:
            for name, variant in variants.items():
                bar.set_postfix_str(variant.label)
                settings = dataclasses.asdict(variant.choices)
                known = entry["variants"].get(name)
                if known is None or known["settings"] != settings:
                    runs = _train(problem, variant.choices, range(seeds), epochs)
                    entry["variants"][name] = {"settings": settings, **runs}
                    records.write(path, content)
                bar.update()
    shown = {task: content["tasks"][task] for task in tasks}
    tables.write(folder, content["title"], *report.paragraphs(content, shown, variants))
    return report.picture(content, shown, variants, folder / f"{NAME}.png")


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
