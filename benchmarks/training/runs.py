"""One run: an optimizer, a learning rate and a seed, kept as JSON and taken up where it stopped."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optax

from benchmarks.reports import records
from benchmarks.reports.progress import progress_bar
from benchmarks.reports.records import Columns
from benchmarks.training.checkpoints import Checkpoints
from benchmarks.training.mini_batches import Progress, Trainer

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / ".cache" / "checkpoints"
CHECKPOINT_SECONDS = 10.0
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Run:
    """What identifies a run.

    Attributes:
      experiment: settings of the problem, the same for all optimizers.
      optimizer: name in the table of optimizers.
      options: the optimizer's options.
      learning_rate: the learning rate; None where the method has none.
      seed: of the initial parameters and of the order of the examples.
      epochs: its length.
    """

    experiment: Mapping[str, Any]
    optimizer: str
    options: Mapping[str, Any]
    learning_rate: float | None
    seed: int
    epochs: int

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def train(run: Run, trainer: Trainer, path: Path, title: str, report: Report = print) -> dict:
    """Trains one run to its end, or reads it where that was done before.

    Args:
      run: what to train.
      trainer: the compiled loop for its problem and optimizer.
      path: the JSON file, rewritten after every epoch.
      title: stands in the file.
      report: takes a line for the user.

    Returns:
      The content of the file.
    """
    checkpoints = Checkpoints(CHECKPOINTS / _digest(run, path))
    content = records.read(path)
    if content is not None and content["settings"] != run.settings:
        differing = _differences(content["settings"], run.settings)
        report(f"{path}: has other settings ({differing}); starting afresh")
        content = None
    if content is not None and content["status"] != records.RUNNING:
        report(f"{path}: already {content['status']}, reused")
        return content

    progress = trainer.start(run.seed, run.learning_rate)
    columns: Columns = {} if content is None else content["records"]
    if columns and checkpoints.restore(progress, latest=columns["epoch"][-1]):
        report(f"{path}: going on after epoch {progress.epoch}")
        records.truncate(columns, progress.epoch + 1)
    else:
        columns = {}
        records.add(columns, _record(trainer, progress))
    content = {
        "schema": records.SCHEMA,
        "title": title,
        "status": records.RUNNING,
        "settings": run.settings,
        "parameters": optax.tree.size(progress.params),
        "compile_seconds": None if content is None else content["compile_seconds"],
        **records.environment(),
        "records": columns,
    }
    _train_on(run, trainer, progress, content, checkpoints, path)
    checkpoints.remove()
    return content


def _train_on(
    run: Run,
    trainer: Trainer,
    progress: Progress,
    content: dict[str, Any],
    checkpoints: Checkpoints,
    path: Path,
) -> None:
    """Trains from where the run stands to its end."""
    columns = content["records"]
    saved = time.monotonic()
    rate = "" if run.learning_rate is None else f" lr {run.learning_rate:g}"
    name = f"{run.optimizer}{rate} seed {run.seed}"
    with progress_bar(name, run.epochs, progress.epoch) as bar:
        bar.set_postfix_str("compiling")
        while progress.epoch < run.epochs:
            trainer.advance(progress, run.seed, run.learning_rate)
            record = _record(trainer, progress)
            records.add(columns, record)
            bar.set_postfix_str(_describe(record), refresh=False)
            bar.update()
            content["compile_seconds"] = records.rounded(trainer.compile_seconds)
            if not _finite(record):
                content["status"] = records.DIVERGED
                break
            # The record goes first: a checkpoint of an epoch without one could not be used.
            records.write(path, content)
            if progress.epoch < run.epochs and time.monotonic() - saved > CHECKPOINT_SECONDS:
                checkpoints.save(progress)
                saved = time.monotonic()
        else:
            content["status"] = records.FINISHED
        records.write(path, content)


def _record(trainer: Trainer, progress: Progress) -> dict[str, float | int]:
    """Evaluates a run as it stands."""
    return {
        "epoch": progress.epoch,
        **trainer.gradient_evaluations(progress.epoch),
        "seconds": progress.seconds,
        **trainer.evaluate(progress),
        **trainer.diagnostics(progress),
    }


def _finite(record: Mapping[str, float | int]) -> bool:
    return math.isfinite(record["train_loss"]) and math.isfinite(record["test_loss"])


def _describe(record: Mapping[str, float | int]) -> str:
    """What the progress bar shows."""
    parts = [f"train loss {record['train_loss']:.4g}"]
    if "test_accuracy" in record:
        parts.append(f"test accuracy {record['test_accuracy']:.2%}")
    return ", ".join([*parts, f"{record['seconds']:.1f} s of training"])


def _digest(run: Run, path: Path) -> str:
    """Names a run's checkpoints: other settings or another file, another name."""
    text = json.dumps([run.settings, str(path.absolute())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Says in which settings a stored run differs."""
    stored, wanted = _flat(stored), _flat(wanted)
    names = [name for name in stored | wanted if stored.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {stored.get(name)} instead of {wanted.get(name)}" for name in names)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
