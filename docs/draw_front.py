"""Draws the picture of the first page and of the README, from stored results.

`.venv/bin/python docs/draw_front.py` writes `docs/_static/front.png`, and `front-narrow.png` for
telephones. Nothing is chosen here but what is shown: one study where the library is far ahead, one
where a peer fails, and one where Adam is as good for less.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib import ticker  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from benchmarks.reports import pictures  # noqa: E402
from benchmarks.training.study import RESULTS  # noqa: E402

OURS, GREEN, VIOLET = "#c8102e", "#1b7f5c", "#6a3d9a"
ADAM, BLACK, GREY, BROWN = "#3b6fb6", "#202428", "#8a94a0", "#7a5c3e"


def _equation(axis: Axes) -> None:
    """Poisson's equation: error against gradients, medians and ranges of three starts."""
    methods = json.loads((RESULTS / "pinn-poisson" / "pinn-poisson.json").read_text())["methods"]
    for name, label, colour, style in (
        ("adam", "Adam, tuned", ADAM, "-"),
        ("optax-lbfgs", "optax.lbfgs", BLACK, "-."),
        ("scipy-bfgs", "SciPy BFGS", GREY, "--"),
        ("peer-ssbroyden", "ssbroyden-optimistix", BROWN, "--"),
        ("ssbroyden", "naqopt.ssbroyden()", OURS, "-"),
    ):
        runs = [run["curve"] for run in methods[name]["runs"].values()]
        common = np.unique(np.concatenate([run["gradients"] for run in runs]))
        common = common[common <= min(run["gradients"][-1] for run in runs)]
        errors = np.array(
            [np.exp(np.interp(common, run["gradients"], np.log(run["error"]))) for run in runs]
        )
        pictures.band(axis, common, errors, 0.15, color=colour, linestyle=style, label=label)
    axis.set_yscale("log")
    axis.set_ylabel("relative error")
    axis.set_title("Poisson's equation, 129 parameters, float64", fontsize=10)


def _records(study: str, name: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradients, and a quantity of all seeds."""
    files = sorted((RESULTS / study).glob(f"{name}-seed*.json"))
    records = [json.loads(file.read_text())["records"] for file in files]
    rows = [[np.inf if x is None else x for x in record[quantity]] for record in records]
    return np.array(records[0]["gradient_evaluations"]), np.array(rows)


def _mini_batches(axis: Axes) -> None:
    """A logistic regression: loss against gradients, medians and ranges of five seeds."""
    for name, label, colour, style in (
        ("lbfgs", "optax.lbfgs, tuned", BLACK, "-."),
        ("adam", "Adam, tuned", ADAM, "-"),
        ("olnaq-printed", "naqopt.onaq()", VIOLET, "-"),
        ("olmoq", "naqopt.omoq()", GREEN, "-"),
    ):
        gradients, losses = _records("logistic-64", name, "train_loss")
        pictures.band(axis, gradients, losses, 0.12, color=colour, linestyle=style, label=label)
    axis.set_yscale("log")
    axis.set_ylim(0.14, 2)
    axis.yaxis.set_major_locator(ticker.FixedLocator([0.2, 0.5, 1, 2]))
    axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set_ylabel("training loss")
    axis.set_title("Logistic regression, batches of 64", fontsize=10)


def _network(axis: Axes) -> None:
    """MNIST by a perceptron: accuracy against gradients, medians and ranges of three seeds."""
    for name, label, colour, style in (
        ("olbfgs", "naqopt.obfgs, tuned", GREY, "--"),
        ("adam", "Adam, tuned", ADAM, "-"),
        ("olnaq", "naqopt.onaq()", VIOLET, "-"),
        ("olmoq-printed", "naqopt.omoq()", GREEN, "-"),
    ):
        gradients, accuracies = _records("mnist-mlp", name, "test_accuracy")
        pictures.band(axis, gradients, accuracies, 0.12, color=colour, linestyle=style, label=label)
    axis.set_ylim(0.955, 0.985)
    axis.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=1))
    axis.set_ylabel("test accuracy")
    axis.set_title("MNIST, batches of 128: Adam is as good for less", fontsize=10)


def draw(path: Path, rows: int, columns: int) -> Path:
    """Draws the picture, its panels side by side or one above the other."""
    size = (4.5 * columns, 0.4 + 3.8 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
    for axis, panel in zip(axes.flat, (_equation, _mini_batches, _network), strict=True):
        panel(axis)
        axis.set_xlabel("gradients")
        pictures.decorate(axis)
        axis.legend(fontsize=8, frameon=False)
    said = "Medians and ranges over starts;", "naqopt by its defaults where not said otherwise"
    return pictures.save(figure, (" " if columns > 1 else "\n").join(said), path)


if __name__ == "__main__":
    draw(ROOT / "docs" / "_static" / "front.png", 1, 3)
    draw(ROOT / "docs" / "_static" / "front-narrow.png", 3, 1)  # for telephones
