"""Files of results: one small JSON per run, rewritten after every epoch.

A file is replaced by renaming a finished one over it, so that neither an interruption nor a second
process that reads along ever sees half of it. Numbers have six significant digits; a number that is
not finite is `null`.
"""

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jax

SCHEMA = 1
RUNNING, FINISHED, DIVERGED = "running", "finished", "diverged"
Record = dict[str, float | int | None]
Columns = dict[str, list[float | int | None]]


def rounded(value: float | int | None) -> float | int | None:
    """Returns the number as it is stored."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def add(columns: Columns, record: Mapping[str, float | int | None]) -> None:
    """Appends one epoch's numbers to the columns."""
    for name, value in record.items():
        columns.setdefault(name, []).append(rounded(value))


def truncate(columns: Columns, length: int) -> None:
    """Forgets all but the first epochs."""
    for values in columns.values():
        del values[length:]


def number(value: float | None) -> float:
    """Returns a stored number; one that was not finite is infinite."""
    return math.inf if value is None else value


def environment(*packages: str) -> dict[str, Any]:
    """Returns the versions and the machine that the numbers come from.

    Args:
      *packages: whose versions are told beside those that all results have.
    """
    packages = ("naqopt", "jax", "optax", "flax", "numpy", *packages)
    device = jax.devices()[0]
    processor = _processor() if device.platform == "cpu" else ""
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "device": f"{device.platform}: {processor or device.device_kind}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON at once or not at all, a line for each list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(_text(content) + "\n", encoding="utf-8")
    scratch.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """Returns the content of a file, or None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else None


def opened(
    path: Path,
    title: str,
    settings: Mapping[str, Any],
    part: str,
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the content of a study's file, or the beginning of it.

    Args:
      path: of the file; what it holds of other settings does not count.
      title: stands over the results.
      settings: what all results of the study have in common.
      part: under which name the results are kept, which is empty at first.
      packages: see `environment`.
    """
    click.echo(f"{title}\nresults in {path.parent}")
    known = read(path)
    if known is not None and known["settings"] == settings:
        return known
    if known is not None:
        click.echo(f"{path}: has other settings; starting afresh")
    content = {"schema": SCHEMA, "title": title, "settings": settings}
    return content | environment(*packages) | {part: {}}


def _text(value: Any, indent: str = "") -> str:
    """Renders JSON with objects spread over lines and lists of numbers kept on one."""
    inner = indent + "  "
    if isinstance(value, Mapping) and value:
        lines = [f"{inner}{json.dumps(name)}: {_text(item, inner)}" for name, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return "[\n" + ",\n".join(inner + _text(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _processor() -> str:
    """Returns the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
