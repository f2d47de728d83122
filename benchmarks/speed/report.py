"""The files of the measurements: JSON that is gone on with, and tables in Markdown."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.reports import records
from benchmarks.speed import tables, tasks
from benchmarks.speed.sections import SECTIONS

Content = dict[str, Any]


def suffix() -> str:
    """Returns what sets the files of another device apart from those of the CPU."""
    if jax.default_backend() == "cpu":
        return ""
    return "-" + re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")


def load(path: Path) -> Content:
    """Returns what has been measured before, or the beginning of it."""
    content = records.read(path)
    if content is None or "sections" not in content:
        content = {"schema": records.SCHEMA, "title": "Speed of the optimizers"}
        content |= {"device": "", "pending": [], "pending_quick": False, "sections": {}}
    return content


def add(
    content: Content, name: str, entries: Sequence[Mapping[str, Any]], quick: bool, seconds: float
) -> None:
    """Puts a measured section in the place of an older one."""
    section = SECTIONS[name]
    environment = records.environment()
    content["device"] = environment["device"]
    measured = {
        "title": section.title + (" (QUICK form)" if quick else ""),
        "quantity": section.quantity,
        "quick": quick,
        "seconds": round(seconds),
        **environment,
        "entries": list(entries),
    }
    stored = content["sections"] | {name: measured}
    content["sections"] = {key: stored[key] for key in SECTIONS if key in stored}
    content["pending"] = [other for other in content["pending"] if other != name]


def table(section: Mapping[str, Any]) -> str:
    """Returns a section's table, and how many of its targets are met."""
    aimed = [entry for entry in section["entries"] if "target" in entry]
    text = tables.measurements(section["entries"], section["quantity"])
    if aimed:
        text += f"\n\nTargets met: {sum(map(tables.met, aimed))} of {len(aimed)}."
    return text


def markdown(content: Content) -> str:
    """Returns all tables."""
    parts = [
        f"# {content['title']}",
        "Ratios are medians of the ratios of rounds in which the compared functions took turns, "
        "with their quartiles; `ms` are the median times of what is above and below the fraction "
        "bar. States and params are donated, the peers' too.",
    ]
    for name, section in content["sections"].items():
        versions = ", ".join(f"{key} {value}" for key, value in section["versions"].items())
        parts += [
            f"## {section['title']}",
            SECTIONS[name].about,
            f"Device: {section['device']}, {tasks.plural(section['cores'], 'core')}; {versions}. "
            f"Measured in {section['seconds']:,} s by `python -m benchmarks speed --only {name}`.",
            table(section),
        ]
    return "\n\n".join(parts) + "\n"
