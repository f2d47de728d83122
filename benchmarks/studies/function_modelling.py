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

from collections.abc import Mapping

import numpy as np
import optax

import naqopt
from benchmarks.models.function_fit import Task
from benchmarks.training import fit_methods, fits
from benchmarks.training.fit import Cut, Errors, Fit, Method, Published


def curve(inputs: np.ndarray) -> np.ndarray:
    """Returns 1 + (x + 2x²) sin(−x²)."""
    x = inputs[:, 0]
    return 1 + (x + 2 * x**2) * np.sin(-(x**2))


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
    first_order = fit_methods.first_order(adagrad=1.0, rmsprop=0.00316, adam=0.00316)
    methods = fit_methods.beside(_PUBLISHED, first_order | fit_methods.family())
    methods |= fit_methods.searching()
    limited, term = {"memory_size": 10}, {"convergence_term": True}
    options = {"momentum": 0.9, **limited}
    methods["lnaq-term"] = Method("LNAQ, μ = 0.9, ξ, m = 10", naqopt.naq, options | term)
    methods["lnaq"] = Method("LNAQ, μ = 0.9, m = 10", naqopt.naq, options)
    methods["optax-lbfgs"] = Method("optax.lbfgs, m = 10", optax.lbfgs, limited, ours=False)
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
TEST_INPUTS = np.linspace(-4, 4, 10_000)[:, None]
FIT = Fit(
    title="Function modelling, y = 1 + (x + 2x²) sin(−x²) by a 1-7-1 network",
    task=Task(
        curve,
        box=((-4.0, 4.0),),
        train_inputs=np.linspace(-4, 4, 400)[:, None],
        test_inputs=TEST_INPUTS,
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
    cut=Cut(TEST_INPUTS, variable=0, xlabel="x", title=""),
)

STUDIES = (fits.study("function-modelling", __doc__, FIT),)
