"""What all pictures have in common."""

from pathlib import Path
from typing import Any

import click
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def band(axis: Axes, xs: np.ndarray, ys: np.ndarray, alpha: float, **line: Any) -> None:
    """Draws the median of several runs, and their range around it.

    Args:
      axis: the panel.
      xs: (points,).
      ys: (runs, points).
      alpha: how opaque the range is.
      **line: the looks of the median, its `color` among them.
    """
    axis.plot(xs, np.median(ys, axis=0), **line)
    low, high = ys.min(axis=0), ys.max(axis=0)
    axis.fill_between(xs, low, high, color=line["color"], alpha=alpha, linewidth=0, zorder=2)


def decorate(axis: Axes) -> None:
    """Gives a panel the grid and the frame of all of them."""
    axis.grid(color="#d8dce0", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.02)


def save(figure: Figure, title: str, path: Path) -> Path:
    """Writes a figure with its title as a PNG, says where, and returns the path."""
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    click.echo(f"picture: {path}")
    return path
