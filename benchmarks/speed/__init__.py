"""The speed of the optimizers, as ratios of times taken in one run; `python -m benchmarks speed`.

The sections are listed in `benchmarks.speed.sections`. Each is written as soon as it is measured,
so that an interrupted run goes on with the next.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import click
import jax

from benchmarks.reports import records
from benchmarks.speed import pictures, report, sizes
from benchmarks.speed.sections import SECTIONS


def run(out: Path, quick: bool, only: Sequence[str] = ()) -> Path:
    """Measures the sections, prints their tables and writes JSON, Markdown and pictures.

    Args:
      out: folder for `speed/speed.json` and what is made of it; on another device than a CPU the
        files bear its name.
      quick: the small form.
      only: names of sections; the others stay as they are. By default all are measured, or those
        that an interrupted run has not come to.

    Returns:
      The path of the tables.
    """
    folder = out / "speed"
    path = folder / f"speed{report.suffix()}.json"
    content = report.load(path)
    if not only:
        if not content["pending"] or content["pending_quick"] != quick:
            content |= {"pending": list(SECTIONS), "pending_quick": quick}
        elif len(content["pending"]) < len(SECTIONS):
            click.echo(f"going on with an interrupted run (delete {path} to begin anew)")
        records.write(path, content)
    tables_path = folder / f"results{report.suffix()}.md"
    for name in list(only or content["pending"]):
        click.echo(f"\n{SECTIONS[name].title} …")
        started = time.perf_counter()
        entries = SECTIONS[name].measure(sizes.QUICK if quick else sizes.FULL)
        report.add(content, name, entries, quick, time.perf_counter() - started)
        jax.clear_caches()
        records.write(path, content)
        tables_path.write_text(report.markdown(content), encoding="utf-8")
        click.echo(report.table(content["sections"][name]))
    click.echo(f"\ntables: {tables_path}")
    pictures.draw(content, folder, report.suffix())
    return tables_path
