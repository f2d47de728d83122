"""Function modelling: a network of 22 parameters by full-batch methods, beside the paper's table.

The paper (Indrapriyadarsini et al., *Implementation of a modified Nesterov's Accelerated
quasi-Newton method on Tensorflow*, ICMLA 2018, example 1): y = 1 + (x + 2x²) sin(−x²) on [−4, 4] at
400 points, 10,000 for testing; inputs and targets scaled to [−1, 1]; a network of 1-7-1 with a
sigmoid hidden layer and a linear output, 22 parameters from U(−0.5, 0.5); E the mean of ½ (y − t)²;
full batch; at most 100,000 iterations; 15 runs.

Decided here: both sets of points at equal distances. The first-order methods run for all
iterations, as the paper's did; the others end at a gradient of norm 10⁻⁶ (the paper's rule is not
printed on the slides that we have). Dense matrices as the paper's where not said otherwise.
Everything in float64: the rule is below float32's rounding, and the lines marked float32 show what
the smaller type does. Beside the tuned learning rates of the first-order methods, by 15 other runs,
stand the customary ones.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

import naqopt
from benchmarks.models.function_fit import Task
from benchmarks.training import fits
from benchmarks.training.fit import Errors, Fit, Method, Published
from benchmarks.training.study import Study

DENSE = {"memory_size": None}


def curve(inputs: np.ndarray) -> np.ndarray:
    """Returns 1 + (x + 2x²) sin(−x²)."""
    x = inputs[:, 0]
    return 1 + (x + 2 * x**2) * np.sin(-(x**2))


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
    limited, term = {"memory_size": 10}, {"convergence_term": True}
    for name, label, make in (("naq", "NAQ", naqopt.naq), ("moq", "MoQ", naqopt.moq)):
        options = {"momentum": 0.9, **DENSE}
        add(f"{name}-term", f"{label}, μ = 0.9, ξ", make, options=options | term)
        add(name, f"{label}, μ = 0.9", make, options=options)
    options = {"momentum": 0.9, **limited}
    add("lnaq-term", "LNAQ, μ = 0.9, ξ, m = 10", naqopt.naq, options=options | term)
    add("lnaq", "LNAQ, μ = 0.9, m = 10", naqopt.naq, options=options)
    add("optax-lbfgs", "optax.lbfgs, m = 10", optax.lbfgs, options=limited, ours=False)
    return methods | {
        f"{name}-float32": methods[name].in_float32()
        for name in ("adam-customary", "mnaq-0.95", "naq-term")
    }


METHODS: Mapping[str, Method] = _table()

# The left panel shows the paper's comparison, the middle one the family alone.
PANELS = {
    "beside the first-order methods": (
        "adagrad",
        "rmsprop",
        "adam",
        "adam-customary",
        "bfgs",
        "mnaq-0.85",
    ),
    "the family": (
        *("bfgs", "mbfgs", "mnaq-0.8", "mnaq-0.9", "mnaq-0.95", "amnaq"),
        *("naq-term", "naq", "moq-term", "moq"),
    ),
}
FIT = Fit(
    title="Function modelling, y = 1 + (x + 2x²) sin(−x²) by a 1-7-1 network",
    task=Task(
        curve,
        bound=4.0,
        train_inputs=np.linspace(-4, 4, 400)[:, None],
        test_inputs=np.linspace(-4, 4, 10_000)[:, None],
        hidden=7,
    ),
    methods=METHODS,
    panels=PANELS,
    max_iterations=100_000,
    runs=15,
    quick_iterations=2_000,
    quick_runs=3,
    quick_methods=("adam-customary", "bfgs", "mbfgs", "mnaq-0.85", "mnaq-0.95", "naq", "moq"),
    tuning_runs=15,
    source="The paper's figures are of 15 runs (ICMLA 2018, example 1); its learning rates are not "
    "known.",
)

STUDIES = (Study("function-modelling", __doc__, functools.partial(fits.run, FIT)),)
