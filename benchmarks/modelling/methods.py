"""The optimizers of the experiment, and the figures that the slides print for them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

import naqopt


class Errors(NamedTuple):
    """Average, best and worst over the runs, in 10⁻³."""

    average: float
    best: float
    worst: float


class Published(NamedTuple):
    """A line of the slides' table: 15 runs."""

    train: Errors
    test: Errors
    iterations: int
    seconds: float


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


DENSE = {"memory_size": None}


def _amnaq(**options: Any) -> optax.GradientTransformation:
    return naqopt.mnaq(momentum=naqopt.schedules.nesterov_momentum(), **options)


def _wolfe_bfgs(**options: Any) -> optax.GradientTransformation:
    """Returns BFGS with the search of `optax.lbfgs`, whose pairs have positive curvature."""
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")
    return naqopt.bfgs(linesearch=search, **options)


# ICMLA 2018, example 1.
_PUBLISHED = {
    "adagrad": Published(Errors(59.8, 58.6, 60.2), Errors(59.03, 57.69, 59.48), 100_000, 40),
    "rmsprop": Published(Errors(3.34, 0.564, 7.89), Errors(3.35, 0.409, 8.16), 100_000, 41),
    "adam": Published(Errors(4.15, 0.324, 14.3), Errors(4.14, 0.359, 14.53), 100_000, 42),
    "bfgs": Published(Errors(15.14, 0.650, 31.80), Errors(15.14, 0.650, 30.66), 3_204, 4.9),
    "mbfgs": Published(Errors(5.24, 0.194, 17.8), Errors(5.26, 0.233, 17.80), 31_370, 58),
    "mnaq-0.8": Published(Errors(1.94, 0.307, 6.33), Errors(1.94, 0.307, 6.33), 9_006, 23),
    "mnaq-0.85": Published(Errors(0.974, 0.307, 5.00), Errors(0.980, 0.315, 5.00), 7_549, 19),
    "mnaq-0.9": Published(Errors(1.53, 0.194, 13.8), Errors(1.53, 0.194, 13.80), 5_931, 15),
    "mnaq-0.95": Published(Errors(1.30, 0.195, 6.31), Errors(1.30, 0.233, 6.31), 4_461, 11),
}


def _table() -> dict[str, Method]:
    methods: dict[str, Method] = {}

    def add(name: str, label: str, make: Any, **attributes: Any) -> Method:
        published = _PUBLISHED.get(name.removesuffix("-customary"))
        methods[name] = Method(label, make, published=published, **attributes)
        return methods[name]

    for name, label, make, customary, middle in (
        ("adagrad", "AdaGrad", optax.adagrad, 0.01, 1.0),
        ("rmsprop", "RMSprop", optax.rmsprop, 0.001, 0.00316),
        ("adam", "Adam", optax.adam, 0.001, 0.00316),
    ):
        peer = {"first_order": True, "ours": False}
        add(name, label, make, middle_rate=middle, **peer)
        add(f"{name}-customary", f"{label}, customary rate", make, learning_rate=customary, **peer)
    add("bfgs", "BFGS", naqopt.bfgs, options=DENSE)
    add("bfgs-wolfe", "BFGS, Wolfe search", _wolfe_bfgs, options=DENSE)
    add("mbfgs", "mBFGS (mNAQ, μ = 0)", naqopt.mnaq, options={"momentum": 0.0, **DENSE})
    for momentum in (0.8, 0.85, 0.9, 0.95):
        options = {"momentum": momentum, **DENSE}
        add(f"mnaq-{momentum:g}", f"mNAQ, μ = {momentum:g}", naqopt.mnaq, options=options)
    add("amnaq", "amNAQ", _amnaq, options=DENSE)
    add("naq", "NAQ, μ = 0.9", naqopt.naq, options={"momentum": 0.9, **DENSE})
    add("moq", "MoQ, μ = 0.9", naqopt.moq, options={"momentum": 0.9, **DENSE})
    limited = {"memory_size": 10}
    add("lnaq", "LNAQ, μ = 0.9, m = 10", naqopt.naq, options={"momentum": 0.9, **limited})
    add("optax-lbfgs", "optax.lbfgs, m = 10", optax.lbfgs, options=limited, ours=False)
    return methods | {
        f"{name}-float32": methods[name].in_float32()
        for name in ("adam-customary", "mnaq-0.95", "naq")
    }


METHODS: Mapping[str, Method] = _table()
