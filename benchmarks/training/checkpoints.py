"""Checkpoints of unfinished runs, by Orbax, kept out of the results.

A checkpoint holds the parameters, the running statistics, the optimizer's state and the seconds so
far. The random key of an epoch follows from the run's seed and the epoch, which is in the
checkpoint's name.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.training.mini_batches import Progress
from benchmarks.training.problem import Params, Statistics


class Checkpoints:
    """The newest checkpoint of one run.

    Attributes:
      folder: where it is kept; no other run may use it.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()

    def save(self, progress: Progress) -> None:
        """Saves the run as it stands, then forgets the checkpoint before."""
        before = self._epochs()
        path = self.folder / f"epoch-{progress.epoch}"
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(path, self._content(progress), force=True)
        for epoch in before:
            if epoch != progress.epoch:
                shutil.rmtree(self.folder / f"epoch-{epoch}")

    def restore(self, progress: Progress, latest: int) -> bool:
        """Sets a fresh run to the newest checkpoint.

        Args:
          progress: the run at its start; it gives the shapes and is set.
          latest: the last epoch whose record is kept; a later checkpoint is of no use.

        Returns:
          Whether there was one.
        """
        epochs = [epoch for epoch in self._epochs() if epoch <= latest]
        if not epochs:
            return False
        path = self.folder / f"epoch-{max(epochs)}"
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            content = checkpointer.restore(
                path, args=ocp.args.StandardRestore(self._content(progress))
            )
        tree = jax.tree.structure(_numbers(progress))
        numbers = jax.tree.unflatten(tree, content["leaves"])
        progress.params, progress.statistics, progress.state = numbers
        progress.seconds = float(content["seconds"])
        progress.epoch = max(epochs)
        return True

    def remove(self) -> None:
        """Forgets the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _content(self, progress: Progress) -> dict[str, object]:
        return {
            "leaves": jax.tree.leaves(_numbers(progress)),
            "seconds": np.float64(progress.seconds),
        }

    def _epochs(self) -> list[int]:
        """Returns the epochs of the finished checkpoints; Orbax renames one when it is whole."""
        names = [path.name for path in self.folder.glob("epoch-*")]
        return [int(name[6:]) for name in names if name[6:].isdecimal()]


def _numbers(progress: Progress) -> tuple[Params, Statistics, Any]:
    return progress.params, progress.statistics, progress.state
