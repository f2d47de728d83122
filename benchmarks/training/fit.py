"""A function fitted by a network on all points at once: the methods, and how long they run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax

from benchmarks.models.function_fit import Task
from benchmarks.training import learning_rates


class Errors(NamedTuple):
    """Average, best and worst over the runs, in 10⁻³."""

    average: float
    best: float
    worst: float


class Published(NamedTuple):
    """A line of the slides' table; what it does not have is None."""

    train: Errors
    test: Errors
    iterations: int
    seconds: float | None = None
    converged: float | None = None  # percent


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
      label: its name in the table and the plot.
      make: the factory, called with the options and, where there is one, the learning rate.
      options: its keywords, plain JSON.
      first_order: whether it takes a learning rate and runs for all iterations.
      learning_rate: of a first-order method; None to tune it.
      middle_rate: of the grid on which it is tuned, a power of √10.
      published: the paper's figures.
      bits: of the floating-point numbers.
      ours: whether `naqopt.diagnostics` has anything to say about its state.
      reuse: whether its state holds the value and gradient at the new params.
    """

    label: str
    make: Callable[..., optax.GradientTransformation]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    first_order: bool = False
    learning_rate: float | None = None
    middle_rate: float = 0.01
    published: Published | None = None
    bits: int = 64
    ours: bool = True
    reuse: bool = False

    @property
    def tuned(self) -> bool:
        """Whether a learning rate has to be found."""
        return self.first_order and self.learning_rate is None

    def transformation(self, learning_rate: Any) -> optax.GradientTransformationExtraArgs:
        """Returns the Optax transformation, which takes `value`, `grad` and `value_fn`."""
        rate = {"learning_rate": learning_rate} if self.first_order else {}
        return optax.with_extra_args_support(self.make(**rate, **self.options))

    def in_float32(self) -> "Method":
        """Returns the same in the smaller type, without the paper's figures."""
        return dataclasses.replace(self, label=f"{self.label}, float32", bits=32, published=None)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Points on a line, along which the picture shows a function and what was fitted to it.

    Attributes:
      inputs: (points, variables).
      variable: which of them runs along the axis.
      xlabel: says what it is.
      title: says where the others stand, if there are others.
      outputs: names of the function's numbers, if it has several.
    """

    inputs: np.ndarray
    variable: int
    xlabel: str
    title: str
    outputs: tuple[str, ...] = ("",)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A task, and what fits it.

    Attributes:
      title: stands over the table and the plot.
      task: what is fitted.
      methods: the lines of the table by name.
      panels: the plot's panels by title, each with the names of its methods.
      max_iterations: of a run.
      runs: per method.
      quick_iterations: the same in the quick form.
      quick_runs: the same in the quick form.
      quick_methods: the quick form's, none of them tuned.
      tuning_runs: per learning rate.
      source: where the published figures come from, where there are any.
      published: heads their columns.
      target_error: the table has the iterations until the error is at most this, and how many runs
        come there; None for iterations until the gradient vanishes.
      cut: what the last panel shows; None for the training errors against time.
    """

    title: str
    task: Task
    methods: Mapping[str, Method]
    panels: Mapping[str, tuple[str, ...]]
    max_iterations: int
    runs: int
    quick_iterations: int
    quick_runs: int
    quick_methods: tuple[str, ...]
    tuning_runs: int
    source: str = ""
    published: str = "paper's"
    target_error: float | None = None
    cut: Cut | None = None

    @property
    def tuning_seeds(self) -> list[int]:
        """Seeds of the runs that choose the learning rates."""
        return list(range(learning_rates.SEED, learning_rates.SEED + self.tuning_runs))
