"""Tables of results in Markdown, aligned so that they read well in a terminal too."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.reports import records
from benchmarks.training.optimizers import OPTIMIZERS

Content = Mapping[str, Any]


def by_optimizer(contents: Sequence[Content]) -> list[list[Content]]:
    """Groups finished and diverged runs by optimizer and learning rate.

    The optimizers come in the order of their table, the rate that the search chose before the lower
    one of a second chance.
    """
    groups: dict[tuple[int, float], list[Content]] = {}
    order = list(OPTIMIZERS)
    for content in contents:
        settings = content["settings"]
        key = (order.index(settings["optimizer"]), -(settings["learning_rate"] or 0))
        groups.setdefault(key, []).append(content)
    return [
        sorted(groups[key], key=lambda content: content["settings"]["seed"])
        for key in sorted(groups)
    ]


def results(
    contents: Sequence[Content],
    published: Mapping[str, str] | None = None,
    target_errors: Sequence[float] = (),
) -> str:
    """Returns a table with a line for each optimizer.

    Args:
      contents: the runs.
      published: by optimizer, the test accuracy that the methods' authors print; a column if given.
      target_errors: shares of wrong answers; a column of the epochs until each if given.

    Returns:
      Markdown.
    """
    accuracies = any("test_accuracy" in content["records"] for content in contents)
    batches = any(own_batch_size(content) for content in contents)
    trust_region = any(map(_has_radius, contents))
    overlapping = any(OPTIMIZERS[x["settings"]["optimizer"]].parts > 1 for x in contents)
    header = ["optimizer", "learning rate", "seeds", "epochs", "gradients"]
    header += ["batch"] if batches else []
    header += ["final train loss, median [min, max]", "lowest on the way", "test loss"]
    budget = _common_gradients(contents)
    header += [f"train loss at {budget:,} examples' gradients"] if budget else []
    unit = contents[0]["settings"].get("experiment", {}).get("unit")
    header += [f"test error ({unit}), median [min, max]"] if unit else []
    header += ["test accuracy, median [min, max]"] if accuracies else []
    header += ["authors' accuracy"] if published else []
    if target_errors:
        header.append(f"epochs to test error {' / '.join(f'{x:.0%}' for x in target_errors)}")
    header += ["s/epoch", "restorations", "pairs stored", "pairs refused"]
    header += ["share of pairs refused"] if overlapping else []
    header += ["updates skipped", "steps rejected"] if trust_region else []
    rows = []
    for group in by_optimizer(contents):
        settings = group[0]["settings"]
        row = [OPTIMIZERS[settings["optimizer"]].label]
        row += [_rate(settings["learning_rate"]), _seeds(group)]
        row += [str(group[0]["settings"]["epochs"]), str(_planned_gradients(group[0]))]
        if batches:
            row.append(str(own_batch_size(group[0]) or settings["experiment"]["batch_size"]))
        row += [_spread(group, "train_loss"), finite(_lowest(group))]
        row += [finite(_median(group, "test_loss"))]
        row += [finite(_loss_within(group, budget))] if budget else []
        row += [_spread(group, "test_error")] if unit else []
        row += [_spread(group, "test_accuracy", ".2%", "")] if accuracies else []
        row += [published.get(settings["optimizer"], "")] if published else []
        row += [" / ".join(_epochs_to(group, x) for x in target_errors)] if target_errors else []
        row += [f"{statistics.median(map(_seconds_per_epoch, group)):.3g}"]
        for counter in ("restorations", "pairs_stored", "pairs_refused"):
            counted = counter in group[0]["records"]
            row.append(f"{_median(group, counter):.0f}" if counted else "")
        row += [_skipped(group)] if overlapping else []
        row += [_skipped(group), _rejected(group)] if trust_region else []
        rows.append(row)
    return markdown(header, rows)


def grids(chosen: Mapping[str, Content]) -> str:
    """Returns a table of the training losses that chose the learning rates."""
    tried = [
        (OPTIMIZERS[name].label, grid["train_losses"], grid["chosen"])
        for name, grid in chosen.items()
    ]
    return by_rate("learning rate", tried, lambda loss: finite(records.number(loss)))


def by_rate(
    head: str,
    tried: Sequence[tuple[str, Mapping[str, Any], float]],
    text: Callable[[Any], str],
) -> str:
    """Returns a table of what was found at the learning rates that were tried.

    Args:
      head: of the first column.
      tried: labels, what was found by rate, and the rate that was chosen, which is in bold.
      text: writes what was found.

    Returns:
      Markdown.
    """
    rates = sorted({rate for _, found, _ in tried for rate in found}, key=float)
    rows = []
    for label, found, chosen in tried:
        texts = {rate: text(value) for rate, value in found.items()}
        texts |= {rate: f"**{texts[rate]}**" for rate in texts if float(rate) == chosen}
        rows.append([label, *(texts.get(rate, "") for rate in rates)])
    return markdown([head, *rates], rows)


def write(folder: Path, title: str, *parts: str) -> None:
    """Writes and prints `results.md`.

    Args:
      folder: of the results.
      title: stands over it.
      *parts: the paragraphs; empty ones are left out.
    """
    text = "\n\n".join(filter(None, (f"# {title}", *parts))) + "\n"
    path = folder / "results.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    click.echo(f"\n{text}\ntables: {path}")


def finite(value: float, form: str = ".4g", otherwise: str = "diverged") -> str:
    """Writes a number in this form, or something else where it is not finite."""
    return f"{value:{form}}" if math.isfinite(value) else otherwise


def spread(values: Sequence[float], form: str = ".4g", otherwise: str = "diverged") -> str:
    """Writes the median and the range of numbers, each as `finite` does."""
    median, low, high = (finite(f(values), form, otherwise) for f in (statistics.median, min, max))
    return f"{median} [{low}, {high}]"


def _rate(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def own_batch_size(content: Content) -> int | None:
    """Returns the size of a run's batches where it is not that of the experiment."""
    return content["settings"].get("options", {}).get("batch_size")


def _skipped(group: Sequence[Content]) -> str:
    """Returns the share of pairs that were refused, as the paper on L-SR1 reports it."""
    if "pairs_refused" not in group[0]["records"]:
        return ""
    refused, stored = _median(group, "pairs_refused"), _median(group, "pairs_stored")
    return f"{refused / (refused + stored):.2%}" if refused + stored else ""


def _rejected(group: Sequence[Content]) -> str:
    return f"{_median(group, 'steps_rejected'):.0f}" if _has_radius(group[0]) else ""


def _has_radius(content: Content) -> bool:
    return any(content["records"].get("radius", ()))


def _epochs_to(group: Sequence[Content], error: float) -> str:
    """Returns the median number of epochs after which so few answers were wrong."""
    reached = []
    for content in group:
        columns = content["records"]
        pairs = zip(columns["epoch"], columns["test_accuracy"], strict=True)
        good = (epoch for epoch, share in pairs if share is not None and 1 - share <= error)
        reached.append(next(good, math.inf))
    middle = statistics.median(reached)
    return f"{middle:g}" if math.isfinite(middle) else "–"


def _seeds(group: Sequence[Content]) -> str:
    diverged = sum(content["status"] == records.DIVERGED for content in group)
    return f"{len(group)} ({diverged} diverged)" if diverged else str(len(group))


def _final(content: Content, name: str, missing: float) -> float:
    """Returns the last number; a diverged run counts as infinitely bad."""
    values = content["records"].get(name)
    if values is None:
        return missing
    if content["status"] == records.DIVERGED and name in ("train_loss", "test_loss", "test_error"):
        return math.inf
    return missing if values[-1] is None else values[-1]


def _median(group: Sequence[Content], name: str, missing: float = math.inf) -> float:
    return statistics.median(_final(content, name, missing) for content in group)


def _lowest(group: Sequence[Content]) -> float:
    """Returns the median over seeds of the lowest training loss after any epoch."""
    losses = ([x for x in run["records"]["train_loss"] if x is not None] for run in group)
    return statistics.median(min(values, default=math.inf) for values in losses)


def _common_gradients(contents: Sequence[Content]) -> int | None:
    """Returns the examples' gradients of the cheapest whole run, where others take many more."""
    totals = set()
    for content in contents:
        columns = content["records"]
        if "example_gradients" not in columns:
            return None
        per_epoch = columns["example_gradients"][-1] // max(columns["epoch"][-1], 1)
        totals.add(per_epoch * content["settings"]["epochs"])
    return min(totals) if max(totals) > 1.1 * min(totals) else None


def _loss_within(group: Sequence[Content], budget: int) -> float:
    """Returns the median training loss after the last epoch within a budget of gradients."""
    losses = []
    for content in group:
        columns = content["records"]
        within = [
            loss
            for loss, spent in zip(columns["train_loss"], columns["example_gradients"], strict=True)
            if spent <= budget
        ]
        losses.append(math.inf if within[-1] is None else within[-1])
    return statistics.median(losses)


def worsened(group: Sequence[Content], factor: float) -> bool:
    """Returns whether the runs of a group ended that many times above their own lowest loss."""
    return not _median(group, "train_loss") <= factor * _lowest(group)


def _spread(group: Sequence[Content], name: str, *form: str) -> str:
    """Writes the median over the seeds, and the range where there are several."""
    values = [_final(content, name, math.inf) for content in group]
    return spread(values, *form) if len(values) > 1 else finite(values[0], *form)


def _seconds_per_epoch(content: Content) -> float:
    columns = content["records"]
    return columns["seconds"][-1] / max(columns["epoch"][-1], 1)


def _planned_gradients(content: Content) -> int:
    """Returns the mini-batch gradients of a whole run, also where this one diverged."""
    columns = content["records"]
    per_epoch = columns["gradient_evaluations"][-1] / max(columns["epoch"][-1], 1)
    return round(per_epoch * content["settings"]["epochs"])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a table with padded cells, the first column to the left."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([line(header), line(rule), *map(line, rows)])
