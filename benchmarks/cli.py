"""The command line, `python -m benchmarks`."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from benchmarks.studies import STUDIES
from benchmarks.training.optimizers import OPTIMIZERS
from benchmarks.training.study import QUICK_RESULTS, RESULTS

_OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the results. [default: benchmarks/results, or .cache/quick with --quick]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The papers' experiments and more, and the speed of the optimizers."""


@main.command("list")
def list_all() -> None:
    """Print the experiments and the optimizers."""
    click.echo("Experiments (run NAME):")
    for study in STUDIES.values():
        click.echo(f"  {study.name:18} {study.summary}")
        if study.size:
            click.echo(f"  {'':18} {study.size}")
    click.echo("\nOptimizers of the experiments on mini-batches (--optimizers a,b):")
    for name, optimizer in OPTIMIZERS.items():
        gradients = optimizer.gradients_per_step
        plural = "s" if gradients > 1 else ""
        click.echo(f"  {name:26} {optimizer.label} ({gradients} gradient{plural} a step)")


def _names(value: str | None, kind: str, known: Collection[str]) -> tuple[str, ...] | None:
    """Splits a list of names, each taken once, and refuses unknown ones."""
    if value is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        problem = f"unknown {kind} {', '.join(unknown)}" if unknown else f"no {kind} given"
        raise click.BadParameter(f"{problem}; there are {', '.join(known)}")
    return names


def _optimizers(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    del parameter
    study = STUDIES[context.params["name"]]
    # A study without the option says so itself.
    return _names(value, "optimizer", study.choices) if "optimizers" in study.options else value


def _experiment(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Refuses an unknown experiment."""
    del context, parameter
    if value not in STUDIES:
        raise click.BadParameter(f"unknown experiment {value}; there are {', '.join(STUDIES)}")
    return value


@main.command()
@click.argument("name", callback=_experiment, is_eager=True)
@click.option("--optimizers", callback=_optimizers, help="Names, separated by commas.")
@click.option("--seeds", type=click.IntRange(min=1), help="How many runs per optimizer.")
@click.option("--epochs", type=click.IntRange(min=1), help="Length of a run.")
@click.option("--quick", is_flag=True, help="A small form that ends within a minute or two.")
@_OUT
def run(
    name: str,
    optimizers: tuple[str, ...] | None,
    seeds: int | None,
    epochs: int | None,
    quick: bool,
    out: Path | None,
) -> None:
    """Run the experiment NAME, or go on with it; see `list`.

    Every optimizer's learning rate comes from the same grid, except with --quick, which uses the
    rates that the whole experiment has found. Finished runs are reused, unfinished ones go on.
    Writes a JSON file per run, a table and a plot.
    """
    study = STUDIES[name]
    options = {"optimizers": optimizers, "seeds": seeds, "epochs": epochs}
    chosen = {option: value for option, value in options.items() if value is not None}
    if not chosen.keys() <= set(study.options):
        possible = ", ".join(f"--{option}" for option in (*study.options, "quick"))
        raise click.UsageError(f"{name} has only the options {possible} and --out")
    started = time.perf_counter()
    study.run((out or (QUICK_RESULTS if quick else RESULTS)) / name, quick, **chosen)
    click.echo(f"{time.perf_counter() - started:.0f} s in all")


def _sections(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    from benchmarks.speed.sections import SECTIONS

    del context, parameter
    return _names(value, "section", SECTIONS) or ()


@main.command()
@click.option("--only", callback=_sections, help="Sections, separated by commas; others stay.")
@_OUT
@click.option("--quick", is_flag=True, help="Fewer calls and repeats, and smaller sizes.")
def speed(only: tuple[str, ...], out: Path | None, quick: bool) -> None:
    """Measure compile times, steps, directions, temporaries and their growth, as ratios.

    Every section is written as soon as it is measured, and an interrupted run goes on with the
    next. The names of the sections are compile, networks, arrays, memory, steps, direction,
    matrices, temporaries, scaling and costs.
    """
    from benchmarks import speed as measurements

    measurements.run(out or (QUICK_RESULTS if quick else RESULTS), quick, only)


@main.command()
@_OUT
@click.option("--quick", is_flag=True, help="Fewer steps.")
def distributed(out: Path | None, quick: bool) -> None:
    """Train in two processes, and from a checkpoint on other devices: the same numbers as in one.

    The processes talk over the loopback and have simulated devices. Writes a table, JSON and a
    picture; fails where numbers differ by more than rounding, or a checkpoint's by a bit.
    """
    from benchmarks.distributed import run as run_distributed

    run_distributed(out or (QUICK_RESULTS if quick else RESULTS), quick)
