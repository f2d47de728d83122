"""The optimizers that learn to route, by name."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import optax

import naqopt

# The settings that the authors' paper on routing has; all others are aSNAQ's defaults.
ASNAQ = functools.partial(
    naqopt.asnaq, memory_size=8, fisher_size=100, cycle_length=5, max_momentum=0.95
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      label: its name in tables and plots.
      make: from the learning rate to the optimizer.
      middle_rate: the middle of its grid of rates.
      published_rate: run too, where the tuned one is another; None for a method that has none.
    """

    label: str
    make: Callable[[Any], optax.GradientTransformation]
    middle_rate: float
    published_rate: float | None = None


METHODS = {
    "adam": Method("Adam", optax.adam, 1e-4, 1e-4),
    "rmsprop": Method("RMSprop", optax.rmsprop, 1e-4, 1e-4),
    "asnaq": Method("aSNAQ", ASNAQ, 0.01, 0.01),
    "asnaq-single": Method(
        "aSNAQ, one gradient, back-off, RMS",
        functools.partial(ASNAQ, single_gradient=True, backoff=0.9, accumulator_decay=0.9),
        0.01,
    ),
}
