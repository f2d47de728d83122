"""Physics-informed networks: one study for each equation, ours beside SciPy's and JAX's methods.

The problems are those of `benchmarks.physics.problems`, in float64. All but Adam begin where 1,000
steps of Adam have led (rate 0.005) and have a budget of gradients; Adam has as many more, with a
rate that is tuned on another start and ends at 0. The points are drawn anew every 500 gradients, by
the residuals of each method's own solution (those of the small Poisson problem stay), as few points
that stay are fitted and nothing between them; a method that stops before has its new points at
once. Reduced here to what two cores can do: 2,000 points
and 5,000 gradients, where the published runs have 8,000 to 15,000 points and 10,000 to 50,000
steps. A run ends after five minutes of the processor (SciPy's BFGS takes d³ operations a step), of
which the seconds in tables and curves are.
`pinn-burgers-in-full` is SSBroyden at the published size of one. `pinn-convection` is about the
first matrix of dense BFGS, behind 1,500 steps of Adam, and `pinn-convection-cold` without them: 600
gradients, four starts.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from benchmarks.physics.problems import PROBLEMS, Problem
from benchmarks.reports import records, tables
from benchmarks.reports.progress import progress_bar
from benchmarks.training.study import Study

WARM_RATE = 5e-3
TUNING_START = 1000


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything a study has.

    Attributes:
      methods: names.
      starts: runs of a method.
      points: at which the residuals are taken; None for the problem's own number.
      adam_steps: taken before.
      budget: gradients.
      block: gradients between new points.
      candidates: of which the new points are drawn.
      seconds: after which a run ends.
    """

    methods: tuple[str, ...]
    starts: int = 3
    points: int | None = None
    adam_steps: int = 1_000
    budget: int = 5_000
    block: int = 500
    candidates: int = 50_000
    seconds: float = 300


REDUCED = Size(
    (
        "ssbroyden",
        "ssbfgs",
        "bfgs",
        "bfgs-first-pair",
        "ssbroyden-naq",
        "naq",
        "lsr1",
        "peer-ssbroyden",
        "scipy-bfgs",
        "optimistix-bfgs",
        "optax-lbfgs",
        "scipy-lbfgs",
        "adam",
    )
)
QUICK = Size(("ssbroyden", "bfgs", "scipy-bfgs", "adam"), 1, 200, 50, 100, 40, 1_000)
# That of the public example.
BURGERS_IN_FULL = Size(("ssbroyden",), 1, 10_000, 5_000, 10_000, seconds=math.inf)
# What becomes of the first matrix, behind Adam and from fresh weights.
FIRST_MATRIX = Size(
    (
        "bfgs",
        "bfgs-first-pair",
        "bfgs-armijo",
        "bfgs-first-pair-armijo",
        "ssbfgs",
        "ssbfgs-first-pair",
        "ssbroyden",
        "ssbroyden-first-pair",
        "scipy-bfgs",
        "optimistix-bfgs",
    ),
    starts=4,
    adam_steps=1_500,
    budget=600,
)
FIRST_MATRIX_COLD = dataclasses.replace(FIRST_MATRIX, adam_steps=0)


def run(
    name: str,
    size: Size,
    folder: Path,
    quick: bool = False,
    optimizers: Sequence[str] | None = None,
    seeds: int | None = None,
) -> Path:
    """Runs what is missing of a study; the quick form has fewer points, gradients and methods."""
    # These import what no other experiment needs.
    from benchmarks.physics.methods import METHODS
    from benchmarks.reports import physics as report
    from benchmarks.training.comparison import float64

    problem = PROBLEMS[name]
    size = QUICK if quick else size
    starts = seeds or size.starts
    settings = {
        "problem": name,
        "points": size.points or problem.points,
        "boundary": problem.boundary,
        "parameters": sum((n + 1) * m for n, m in itertools.pairwise(problem.widths)),
        "budget": size.budget,
        "adam_steps": size.adam_steps,
    }
    if problem.focus is not None:
        settings["block"], settings["candidates"] = size.block, size.candidates
    title = f"{folder.name}: {problem.title}" + (" (QUICK form)" if quick else "")
    path = folder / f"{folder.name}.json"
    packages = ("scipy", "optimistix", "ssbroyden_optimistix")
    content = records.opened(path, title, settings, "methods", packages)
    save = functools.partial(records.write, path, content)
    with float64():
        task = _Task(problem, settings, size.seconds)
        for method in optimizers or size.methods:
            entry = content["methods"].setdefault(method, {"rates": {}, "runs": {}})
            _complete(task, METHODS[method], entry, starts, save)
        shown = {name: entry for name, entry in content["methods"].items() if entry["runs"]}
        tables.write(folder, title, _described(settings, starts), report.table(shown, METHODS))
        return report.picture(title, problem, task.grid, task.true, shown, METHODS, folder)


class _Task:
    """A problem as a loss of one vector and of points."""

    def __init__(self, problem: Problem, settings: dict[str, Any], seconds: float = math.inf):
        self.problem, self.settings, self.seconds = problem, settings, seconds
        self.grid = problem.grid()
        self.true = problem.exact(**self.grid)
        layers_loss = problem.loss()
        _, self.unravel = ravel_pytree(problem.start(0))
        self.loss = lambda vector, points: layers_loss(self.unravel(vector), points)
        self.error = jax.jit(
            lambda v: problem.relative_error(self.unravel(v), self.grid, self.true)
        )
        self._warm = functools.cache(self._warmed)

    def start(self, seed: int, warm: bool) -> jax.Array:
        """Returns the params of a start, behind the steps of Adam or not."""
        vector, _ = ravel_pytree(self.problem.start(seed))
        return self._warm(seed) if warm else vector

    def draw(self, vector: jax.Array, seed: int, block: int) -> dict[str, Any]:
        """Returns the points of a block; of the first one they are the same for all."""
        count = self.settings["points"]
        if block == 0 or self.problem.focus is None:
            points = self.problem.draw(0, count)
        else:
            layers, candidates = self.unravel(vector), self.settings["candidates"]
            points = self.problem.redraw(layers, (seed, block), count, candidates)
        return jax.tree.map(jnp.asarray, points)

    def _warmed(self, seed: int) -> jax.Array:
        tx, points = optax.adam(WARM_RATE), self.problem.draw(0, self.settings["points"])

        def step(carry: Any, _: Any) -> Any:
            vector, state = carry
            updates, state = tx.update(jax.grad(self.loss)(vector, points), state)
            return (optax.apply_updates(vector, updates), state), None

        @jax.jit
        def adam(vector: jax.Array) -> jax.Array:
            steps = self.settings["adam_steps"]
            return jax.lax.scan(step, (vector, tx.init(vector)), length=steps)[0][0]

        return adam(self.start(seed, warm=False))


def _complete(task: _Task, method: Any, entry: dict[str, Any], starts: int, save: Any) -> None:
    """Adds the runs of a method that are missing, tuned before where it has a rate."""
    missing = [seed for seed in range(starts) if str(seed) not in entry["runs"]]
    if not missing:
        click.echo(f"{method.label}: already run, reused")
        return
    make = method.make
    if method.rate:
        make = functools.partial(method.make, rate=_tune(task, method, entry, save))
    with progress_bar(method.label, len(missing), unit="run") as bar:
        for seed in missing:
            found = _run(task, make, seed, warm=not method.rate)
            entry["runs"][str(seed)] = found
            save()
            bar.set_postfix_str(
                f"loss {found['curve']['loss'][-1]:.3g}, error {found['curve']['error'][-1]:.3g}"
            )
            bar.update()


def _tune(task: _Task, method: Any, entry: dict[str, Any], save: Any) -> float:
    """Returns the rate with the lowest loss from a start that no reported run has."""
    from benchmarks.physics.methods import ADAM_RATES

    for rate in ADAM_RATES:
        if f"{rate:g}" not in entry["rates"]:
            make = functools.partial(method.make, rate=rate)
            found = _run(task, make, TUNING_START, warm=False)
            entry["rates"][f"{rate:g}"] = found["curve"]["loss"][-1]
            save()
    return float(min(entry["rates"], key=entry["rates"].__getitem__))


def _run(task: _Task, make: Any, seed: int, warm: bool) -> dict[str, Any]:
    """Returns the curve of a run, its errors and its end, plain JSON."""
    from benchmarks.physics import runs

    budget = task.settings["budget"] + (0 if warm else task.settings["adam_steps"])
    recorder = runs.run(
        make,
        task.loss,
        task.start(seed, warm),
        lambda vector, block: task.draw(vector, seed, block),
        budget,
        task.settings.get("block"),
        seconds=task.seconds,
    )
    errors = [float(task.error(jnp.asarray(point))) for point in recorder.points]
    curve = {**recorder.curve, "error": errors}
    if warm:
        done = task.settings["adam_steps"]
        curve["gradients"] = [n + done for n in curve["gradients"]]
    rounded = {name: [records.rounded(x) for x in column] for name, column in curve.items()}
    end = [float(f"{x:.9g}") for x in recorder.points[-1]]
    return {"curve": rounded, "params": end}


def _described(settings: dict[str, Any], starts: int) -> str:
    return (
        f"{settings['parameters']:,} parameters, {settings['points']:,} points"
        + (f", drawn anew every {settings['block']} gradients" if "block" in settings else "")
        + (f", {settings['boundary']:,} on the boundary" if settings["boundary"] else "")
        + f", {settings['adam_steps']:,} steps of Adam and {settings['budget']:,} gradients, "
        f"{starts} start{'s' if starts > 1 else ''}, float64."
    )


def _sizes(name: str) -> dict[str, Size]:
    """Returns the sizes in which a problem is run, by the end of the study's name."""
    if name == "convection":
        return {"": FIRST_MATRIX, "-cold": FIRST_MATRIX_COLD}
    return {"": REDUCED} | ({"-in-full": BURGERS_IN_FULL} if name == "burgers" else {})


STUDIES = tuple(
    Study(
        f"pinn-{name}{ending}",
        problem.title + ".\n\n" + (__doc__ or ""),
        functools.partial(run, name, size),
        f"{size.budget:,} gradients, {size.starts} starts; {', '.join(size.methods)}",
        options=("optimizers", "seeds"),
        choices=size.methods,
    )
    for name, problem in PROBLEMS.items()
    for ending, size in _sizes(name).items()
)
