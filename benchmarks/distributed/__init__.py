"""Two processes train as one does, and a checkpoint is taken up on another layout of devices.

`python -m benchmarks distributed`: processes of `jax.distributed` on the loopback of one machine,
each with simulated devices. What one process with as many devices computes differs by the rounding
of sums that are taken in another order; what a checkpoint holds does not differ by a bit.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.distributed.worker import OPTIMIZERS, Task
from benchmarks.reports import pictures, records, tables

TOLERANCE = 1e-9  # of numbers in float64
_SECONDS = 600
_TITLE = "Two processes of 4 devices against one of 8, and a checkpoint taken up by one of 2"


def run(out: Path, quick: bool) -> Path:
    """Runs all layouts, compares them and writes a table, JSON and a picture.

    Args:
      out: the folder `distributed` in it takes the results.
      quick: fewer steps.

    Returns:
      The path of the JSON.

    Raises:
      RuntimeError: if a process fails, or a layout computes something else than the first.
    """
    folder = (out / "distributed").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    steps = 20 if quick else 60
    click.echo(f"{_TITLE}\nresults in {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        found = _trained(Path(scratch), steps)
    entries = {optimizer: _compared(found, optimizer, steps // 2) for optimizer in OPTIMIZERS}
    path = folder / "distributed.json"
    content = {"schema": records.SCHEMA, "title": _TITLE, "steps": steps, "quick": quick}
    records.write(path, content | records.environment("orbax-checkpoint") | {"optimizers": entries})
    _write_table(folder, entries, steps)
    _draw(found, folder / "distributed.png", steps // 2)
    wrong = [name for name, entry in entries.items() if not _agrees(entry)]
    if wrong:
        raise RuntimeError(f"other numbers than those of one process: {', '.join(wrong)}; {path}")
    return path


def _trained(scratch: Path, steps: int) -> dict[str, Any]:
    """Trains in every layout; returns by its name what each has written."""
    common = {"folder": str(scratch), "steps": steps, "checkpoint_at": steps // 2}
    one = Task("one", devices=8, **common)
    _launch("one process, 8 devices", [one])
    two = Task("two", devices=4, processes=2, port=_free_port(), **common)
    both = [dataclasses.replace(two, process=i) for i in range(2)]
    _launch("two processes, 4 devices each", both)
    resumed = Task("resumed", devices=2, resume="two", **common)
    _launch("one process, 2 devices, from the checkpoint of the two", [resumed])
    found = {}
    for task in (one, two, resumed):
        with np.load(scratch / f"{task.name}.npz") as arrays:
            found[task.name] = dict(arrays)
    return found


def _launch(title: str, tasks: Sequence[Task]) -> None:
    """Runs the processes of a layout together and waits for them."""
    click.echo(f"{title} …")
    started = []
    for task in tasks:
        flags = f"--xla_force_host_platform_device_count={task.devices}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        command = [sys.executable, "-m", "benchmarks.distributed.worker"]
        command.append(json.dumps(dataclasses.asdict(task)))
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=_SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{title}: a process ended with {process.returncode}:\n{output}")


def _free_port() -> int:
    """Returns a port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _numbers(found: Any, optimizer: str, kind: str) -> list[np.ndarray]:
    """Returns the arrays of one kind that a run has written."""
    prefix = f"{optimizer}/{kind}/"
    count = sum(name.startswith(prefix) for name in found)
    return [found[f"{prefix}{i}"] for i in range(count)]


def _deviation(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Returns the largest deviation, relative to the largest number of each array."""
    return max(
        float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
        for a, b in zip(actual, expected, strict=True)
    )


def _compared(found: dict[str, Any], optimizer: str, resumed_at: int) -> dict[str, Any]:
    """Returns how far the layouts are from each other."""

    def of(run: str, kind: str) -> list[np.ndarray]:
        return _numbers(found[run], optimizer, kind)

    (losses,) = of("one", "losses")
    saved, restored = of("two", "saved"), of("resumed", "restored")
    return {
        "loss_deviation": _deviation(of("two", "losses"), [losses]),
        "params_deviation": _deviation(of("two", "params"), of("one", "params")),
        "checkpoint_arrays": len(saved),
        "checkpoint_equal": len(saved) == len(restored)
        and all(a.tobytes() == b.tobytes() for a, b in zip(saved, restored, strict=True)),
        "resumed_loss_deviation": _deviation(of("resumed", "losses"), [losses[resumed_at:]]),
        "resumed_params_deviation": _deviation(of("resumed", "params"), of("one", "params")),
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
    }


def _agrees(entry: dict[str, Any]) -> bool:
    deviations = [value for name, value in entry.items() if name.endswith("deviation")]
    return entry["checkpoint_equal"] and max(deviations) < TOLERANCE


def _write_table(folder: Path, entries: dict[str, dict[str, Any]], steps: int) -> None:
    """Writes and prints `results.md`."""
    header = ["optimizer", "loss, two processes", "params", "checkpoint", "loss, resumed", "params"]
    header.append("loss, first and last")
    rows = [
        [
            optimizer,
            f"{entry['loss_deviation']:.1e}",
            f"{entry['params_deviation']:.1e}",
            "equal" if entry["checkpoint_equal"] else "other bits",
            f"{entry['resumed_loss_deviation']:.1e}",
            f"{entry['resumed_params_deviation']:.1e}",
            f"{entry['first_loss']:.3g}, {entry['last_loss']:.3g}",
        ]
        for optimizer, entry in entries.items()
    ]
    note = f"Largest relative deviations from one process of 8 devices, {steps} steps, float64:"
    tables.write(folder, _TITLE, note, tables.markdown(header, rows))


def _draw(found: dict[str, Any], path: Path, resumed_at: int) -> None:
    """Draws the losses of all layouts, and how far they are from those of one process."""
    figure, axes = plt.subplots(
        2, len(OPTIMIZERS), figsize=(3.6 * len(OPTIMIZERS), 6), sharex=True, layout="constrained"
    )
    looks = {
        "one": ("one process, 8 devices", "#3b6fb6", "-"),
        "two": ("two processes, 4 devices each", "#c8102e", "--"),
        "resumed": ("one process, 2 devices, resumed", "#3f8f29", ":"),
    }
    for column, optimizer in zip(axes.T, OPTIMIZERS, strict=True):
        (expected,) = _numbers(found["one"], optimizer, "losses")
        for name, (label, colour, style) in looks.items():
            (losses,) = _numbers(found[name], optimizer, "losses")
            first = resumed_at if name == "resumed" else 0
            xs = 1 + first + np.arange(len(losses))
            line = {"color": colour, "linestyle": style, "label": label}
            column[0].plot(xs, losses, **line)
            if name != "one":
                deviation = np.abs(losses / expected[first:] - 1)
                column[1].plot(xs, np.maximum(deviation, 1e-17), **line)
        column[0].set_title(optimizer, fontsize=10)
        column[1].set_xlabel("step")
        for axis in column:
            axis.set_yscale("log")
            pictures.decorate(axis)
    axes[0][0].set_ylabel("loss")
    axes[1][0].set_ylabel("relative deviation of the loss")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    pictures.save(figure, _TITLE, path)
