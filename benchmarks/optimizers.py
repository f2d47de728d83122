"""The optimizers that the experiments compare, by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import naqopt


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A row of the table.

    Attributes:
      label: its name in plots and tables.
      make: the factory, called with a learning rate and the options.
      quick_learning_rate: what the quick forms use where no grid search has been stored.
      gradients_per_step: mini-batch gradients that a step takes, the caller's included.
      options: what differs from the factory's defaults.
      ours: whether `naqopt.diagnostics` has anything to say about its state.
    """

    label: str
    make: Callable[..., optax.GradientTransformation]
    quick_learning_rate: float
    gradients_per_step: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ours: bool = True

    def transformation(
        self, learning_rate: float | jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the Optax transformation, which takes `value`, `grad` and `value_fn`."""
        return optax.with_extra_args_support(self.make(learning_rate, **self.options))


def _asnaq(label: str, **options: Any) -> Optimizer:
    """Returns a row for aSNAQ or a variant of it."""
    gradients = 1 if options.get("single_gradient") else 2
    return Optimizer(label, naqopt.asnaq, 0.0316, gradients, options)


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adam": Optimizer("Adam", optax.adam, 0.00316, ours=False),
    "adagrad": Optimizer("Adagrad", optax.adagrad, 0.1, ours=False),
    "adaqn": Optimizer("adaQN", naqopt.adaqn, 0.0316),
    "asnaq": _asnaq("aSNAQ"),
    "asnaq-backoff": _asnaq("aSNAQ, back-off", backoff=0.9),
    "asnaq-rms": _asnaq("aSNAQ, RMS", accumulator_decay=0.9),
    "asnaq-rms-backoff": _asnaq("aSNAQ, RMS, back-off", accumulator_decay=0.9, backoff=0.9),
    "asnaq-single": _asnaq("aSNAQ, one gradient", single_gradient=True),
    "asnaq-single-backoff": _asnaq(
        "aSNAQ, one gradient, back-off", single_gradient=True, backoff=0.9
    ),
    "asnaq-single-backoff-rms": _asnaq(
        "aSNAQ, one gradient, back-off, RMS",
        single_gradient=True,
        backoff=0.9,
        accumulator_decay=0.9,
    ),
}
