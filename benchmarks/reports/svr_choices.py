"""The tables of the variants, and a picture of their final losses."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib import ticker
from matplotlib.axes import Axes

from benchmarks.reports import pictures, records, tables
from benchmarks.training.svr_choices import BASELINE, Variant

Content = Mapping[str, Any]
Variants = Mapping[str, Variant]
_COLOUR, _BASELINE_COLOUR, _DIVERGED_COLOUR = "#3b6fb6", "#202428", "#c8102e"
_HIGHEST = 1.3  # times the baseline's median, where a panel ends


def paragraphs(content: Content, shown: Mapping[str, Content], variants: Variants) -> list[str]:
    """Returns what stands below the title of `results.md`; `shown` is by task."""
    text = [_described(content), summary(shown, variants)]
    for task, entry in shown.items():
        text += [f"## {task}: {entry['title']}", table(entry, variants)]
    return text


def summary(shown: Mapping[str, Content], variants: Variants) -> str:
    """Returns by variant and task how the final training loss changed against the baseline's."""
    rows = []
    for name, variant in variants.items():
        if name != BASELINE:
            rows.append([variant.title, *(_change(entry, name) for entry in shown.values())])
    return tables.markdown(["choice", *shown], rows)


def table(entry: Content, variants: Variants) -> str:
    """Returns a line for each variant on one task."""
    header = ["choice", "final train loss, median [min, max]", "change", "diverged"]
    header += [f"test RMSE ({entry['unit']}), median [min, max]", "pairs stored"]
    rows = []
    for name, variant in variants.items():
        runs = entry["variants"][name]["runs"]
        rows.append(
            [
                variant.title,
                tables.spread(_losses(entry, name)),
                "" if name == BASELINE else _change(entry, name),
                str(_diverged(runs) or ""),
                tables.spread([records.number(run["test_error"]) for run in runs]),
                f"{statistics.median(run['pairs_stored'] for run in runs):g}",
            ]
        )
    return tables.markdown(header, rows)


def picture(content: Content, shown: Mapping[str, Content], variants: Variants, path: Path) -> Path:
    """Draws the median and the range of every variant's final training loss, a panel per task."""
    figure, axes = plt.subplots(
        1,
        len(shown),
        figsize=(4.2 + 3.8 * len(shown), 1.6 + 0.27 * len(variants)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (task, entry) in zip(axes[0], shown.items(), strict=True):
        _panel(axis, entry, variants)
        axis.set_title(task, fontsize=11)
        axis.set_xlabel("final training loss")
    axes[0][0].set_yticks(range(len(variants)), [x.title for x in variants.values()], fontsize=9)
    axes[0][0].set_ylim(len(variants) - 0.5, -0.5)
    seeds = content["settings"]["seeds"]
    note = f"median and range of {seeds} seeds; grey: the baseline's; ▸ beyond the scale"
    return pictures.save(figure, f"{content['title']}\n{note}", path)


def _panel(axis: Axes, entry: Content, variants: Variants) -> None:
    losses = {name: _losses(entry, name) for name in variants}
    baseline = losses[BASELINE]
    middle = statistics.median(baseline)
    lowest = min(min(values) for values in losses.values())
    highest = _HIGHEST * middle
    axis.axvspan(min(baseline), max(baseline), color=_BASELINE_COLOUR, alpha=0.08, linewidth=0)
    axis.axvline(middle, color=_BASELINE_COLOUR, linewidth=0.8)
    group = variants[BASELINE].group
    for place, (name, variant) in enumerate(variants.items()):
        values = losses[name]
        median = statistics.median(values)
        diverged = _diverged(entry["variants"][name]["runs"])
        colour = _DIVERGED_COLOUR if diverged else _COLOUR
        colour = _BASELINE_COLOUR if name == BASELINE else colour
        if min(values) < highest:
            axis.hlines(place, min(values), min(max(values), highest), color=colour, linewidth=2)
        beyond = median > highest
        axis.plot(min(median, highest), place, ">" if beyond else "o", color=colour, clip_on=False)
        notes = [f"median {tables.finite(median)}"] if beyond and math.isfinite(median) else []
        notes += [f"{diverged} diverged"] if diverged else []
        axis.annotate(
            ", ".join(notes),
            (highest, place),
            (-8, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
        )
        if variant.group != group:
            axis.axhline(place - 0.5, color="#b4bac0", linewidth=0.6)
        group = variant.group
    pictures.decorate(axis)
    axis.set_xlim(lowest - 0.02 * middle, highest)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(6))


def _described(content: Content) -> str:
    settings = content["settings"]
    return (
        f"{settings['epochs']} epochs, seeds 0 to {settings['seeds'] - 1}. {content['device']}. "
        "Each line changes one thing of the baseline, `naqopt.svr_naq()`: SVRG at 0.025 in the "
        "first epoch, normalized directions, 1/√k over all steps, μ = 0.9, m = 4, γ the mean of "
        "the pairs'; SVRG+II stands beside it, with the same first epoch. Nothing is tuned for a "
        "variant. The change is the median over the seeds of the final training loss divided by "
        "the baseline's from the same seed, less 1, and in brackets how many seeds ended below it. "
        "The line on rounding, the same formulas with their sums in another order, tells what is "
        "noise. Diverged: not finite, or above the start's loss."
    )


def _change(entry: Content, name: str) -> str:
    """Writes the change against the baseline, and from how many seeds the loss is lower."""
    pairs = list(zip(_losses(entry, name), _losses(entry, BASELINE), strict=True))
    ratio = statistics.median(loss / base for loss, base in pairs)
    lower = f"({sum(loss < base for loss, base in pairs)} of {len(pairs)})"
    if not math.isfinite(ratio):
        return f"diverged {lower}"
    return f"{ratio - 1:+.1%} {lower}" if ratio < 2 else f"× {ratio:.3g} {lower}"


def _losses(entry: Content, name: str) -> list[float]:
    """Returns the final training losses by seed, infinite where there is no number."""
    return [records.number(run["train_losses"][-1]) for run in entry["variants"][name]["runs"]]


def _diverged(runs: Sequence[Content]) -> int:
    return sum(run["status"] == records.DIVERGED for run in runs)
