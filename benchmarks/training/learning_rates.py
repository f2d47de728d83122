"""How learning rates are chosen: one grid and one rule for every optimizer.

The grid has five values; where an optimizer's has its middle is said in the table of optimizers.
Each rate is tried once, from a seed that no reported run has, for a fifth of the epochs; the
lowest final training loss wins. If the winner lies at an end of the grid, the grid is extended
there by its own factor until the winner is inside, twice at most in either direction.

A rate that is best for a fifth of the epochs can be too high for all of them. An optimizer whose
runs end more than `SECOND_CHANCE` times above the lowest training loss that they had on the way is
run again with the grid's next lower rate, and both are reported.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reports import records
from benchmarks.training.mini_batches import Trainer
from benchmarks.training.optimizers import OPTIMIZERS
from benchmarks.training.runs import Report, Run, progress_bar

SEED = 1000
EXTENSIONS = 2
SECOND_CHANCE = 1.25


def _rate(power: int) -> float:
    """Returns the grid's value √10^power to three digits."""
    return float(f"{10 ** (power / 2):.3g}")


def _power(rate: float) -> int:
    return round(2 * math.log10(rate))


def grid(middle: float = 0.01) -> list[float]:
    """Returns the rates that are tried first."""
    return [_rate(_power(middle) + offset) for offset in range(-2, 3)]


def search(loss: Callable[[float], float], middle: float = 0.01) -> dict[float, float]:
    """Tries the grid and its extensions.

    Args:
      loss: the final training loss at a learning rate; not finite where it diverged.
      middle: the middle of the grid.

    Returns:
      The loss of every rate that was tried, by rising rate; infinite where it diverged.
    """
    tried: dict[int, float] = {}
    powers = [_power(rate) for rate in grid(middle)]

    def attempt(power: int) -> None:
        value = loss(_rate(power))
        tried[power] = value if math.isfinite(value) else math.inf

    for power in powers:
        attempt(power)
    while True:
        best = min(sorted(tried), key=tried.__getitem__)
        lowest, highest = min(tried), max(tried)
        if best == lowest and lowest > powers[0] - EXTENSIONS:
            attempt(lowest - 1)
        elif best == highest and highest < powers[-1] + EXTENSIONS:
            attempt(highest + 1)
        else:
            return {_rate(power): tried[power] for power in sorted(tried)}


def best(losses: dict[float, float]) -> float:
    """Returns the rate of the lowest loss, the smallest of equals."""
    return min(sorted(losses), key=losses.__getitem__)


def next_lower(rate: float) -> float:
    """Returns the grid's value below a rate."""
    return _rate(_power(rate) - 1)


def grid_file(folder: Path, optimizer: str) -> Path:
    """Returns where an optimizer's grid is kept."""
    return folder / f"{optimizer}-learning-rates.json"


def stored(folder: Path, optimizer: str) -> float | None:
    """Returns the rate that a finished search in this folder has chosen, if there is one."""
    content = records.read(grid_file(folder, optimizer))
    return None if content is None else content["chosen"]


def choose(run: Run, trainer: Trainer, folder: Path, report: Report = print) -> float:
    """Searches the grid for a run's optimizer and keeps all of its results.

    Args:
      run: a run of this optimizer; its rate and seed do not matter, a fifth of its epochs is used.
      trainer: the compiled loop.
      folder: where the JSON goes; rates that it already holds for these settings are not repeated.
      report: takes a line for the user.

    Returns:
      The learning rate to use.
    """
    epochs = math.ceil(run.epochs / 5)
    settings = {
        name: value
        for name, value in run.settings.items()
        if name not in ("learning_rate", "seed", "epochs")
    } | {"seed": SEED, "epochs": epochs}
    path = grid_file(folder, run.optimizer)
    known = records.read(path)
    if known is not None and known["settings"] != settings:
        report(f"{path}: has other settings; searching afresh")
        known = None
    results = {} if known is None else dict(known["train_losses"])

    def keep(chosen: float | None) -> None:
        content: dict[str, Any] = {"schema": records.SCHEMA, "settings": settings}
        ordered = {rate: results[rate] for rate in sorted(results, key=float)}
        records.write(path, content | {"chosen": chosen, "train_losses": ordered})

    def loss(rate: float) -> float:
        name = f"{rate:g}"
        if name not in results:
            final = _final_loss(trainer, rate, epochs, f"{run.optimizer} lr {name} (grid)")
            results[name] = records.rounded(final)
            keep(None)
        return records.number(results[name])

    losses = search(loss, OPTIMIZERS[run.optimizer].middle_rate)
    chosen = best(losses)
    keep(chosen)
    listed = ", ".join(f"{rate:g}: {value:.4g}" for rate, value in losses.items())
    report(f"{run.optimizer}: training loss after {epochs} epochs by learning rate: {listed}")
    edge = " (at the end of the extended grid)" if chosen in (min(losses), max(losses)) else ""
    report(f"{run.optimizer}: learning rate {chosen:g}{edge}")
    return chosen


def _final_loss(trainer: Trainer, rate: float, epochs: int, name: str) -> float:
    """Returns the training loss at the end of a run that leaves no other trace."""
    trainer = trainer.for_epochs(epochs)
    progress = trainer.start(SEED, rate)
    with progress_bar(name, epochs) as bar:
        for _ in range(epochs):
            trainer.advance(progress, SEED, rate)
            bar.update()
        final = trainer.evaluate(progress)["train_loss"]
        bar.set_postfix_str(f"train loss {final:.4g}")
    return final
