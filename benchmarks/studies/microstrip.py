"""Microstrip low-pass filter: a network of 227 parameters by full-batch methods, |S11| and |S21|.

The setting (Indrapriyadarsini et al., *Implementation of a modified Nesterov's Accelerated
quasi-Newton method on Tensorflow*, ICMLA 2018, example 2): a length D of 12, 14, 16, 18 or 20 mm
and a frequency of 0.1 to 4.5 GHz, 1,105 points; at 13, 15, 17 and 19 mm 884 for testing; a network
of 2-45-2, 227 parameters; full batch; at most 100,000 iterations; 15 runs.

The paper's filter is not public: neither its shape nor its substrate. Decided here: five lines in
a row between ports of 50 ohms, wide (5 mm long), narrow (D), wide (10 mm), narrow (D) and wide
(5 mm), on the substrate and with the widths of a textbook's filter, by the formulas in
`benchmarks.circuits.microstrip`. So the slides' figures are of other data. They stand beside ours
to show the order of the methods, and are not reproduced.

Decided too: the frequency in steps of 0.02 GHz, which makes the paper's number of points; inputs
and both outputs scaled to [−1, 1], sigmoids, a linear output, weights from U(−0.5, 0.5), E the mean
of ½ ‖y − t‖² and an end at a gradient of norm 10⁻⁶, all as in `function-modelling`; first-order
methods for all iterations, their learning rates tuned by 5 other runs and, beside them, the
customary ones; dense matrices. mBFGS is mNAQ without momentum. BFGS, with Armijo's search and with
a Wolfe search, `optax.lbfgs`, NAQ and MoQ without ξ and SSBroyden are not on the slides.
"""

from collections.abc import Mapping

import numpy as np

from benchmarks.circuits import microstrip
from benchmarks.models.function_fit import Task
from benchmarks.training import fit_methods, fits
from benchmarks.training.fit import Cut, Errors, Fit, Method, Published

FREQUENCIES = np.linspace(0.1, 4.5, 221)  # gigahertz


def points(*lengths: float) -> np.ndarray:
    """Returns every frequency at each of these lengths, in millimetres: (points, 2)."""
    return np.array([(length, f) for length in lengths for f in FREQUENCIES])


# ICMLA 2018, example 2.
_PUBLISHED = {
    "adagrad": Published(Errors(26.6, 26.4, 26.7), Errors(22.4, 22.3, 22.5), 100_000, 112),
    "rmsprop": Published(Errors(2.99, 2.44, 4.07), Errors(7.00, 1.88, 36.0), 100_000, 113),
    "adam": Published(Errors(4.63, 3.67, 5.60), Errors(37.0, 3.41, 212.5), 100_000, 137),
    "mbfgs": Published(Errors(1.04, 0.834, 1.46), Errors(1.01, 0.529, 3.52), 81_457, 493),
    "mnaq-0.8": Published(Errors(0.93, 0.827, 1.37), Errors(0.744, 0.534, 1.07), 38_470, 303),
    "mnaq-0.85": Published(Errors(1.02, 0.756, 1.62), Errors(7.32, 5.75, 87.8), 39_678, 314),
    "mnaq-0.9": Published(Errors(1.00, 0.716, 1.46), Errors(0.842, 0.558, 1.87), 30_619, 242),
    "mnaq-0.95": Published(Errors(1.24, 0.834, 1.85), Errors(2.08, 0.600, 13.7), 26_547, 209),
}
METHODS: Mapping[str, Method] = fit_methods.beside(
    _PUBLISHED,
    fit_methods.first_order(adagrad=0.1, rmsprop=0.001, adam=0.001)
    | fit_methods.family()
    | {name: fit_methods.searching()[name] for name in ("naq", "moq")}
    | fit_methods.recycling(),
)
PANELS = {
    "beside other methods": (
        *("adagrad", "rmsprop", "adam", "adam-customary"),
        *("bfgs", "optax-lbfgs", "mnaq-0.85", "ssbroyden"),
    ),
    "the family": (
        *("bfgs", "mbfgs", "mnaq-0.8", "mnaq-0.85", "mnaq-0.9", "mnaq-0.95", "amnaq"),
        *("naq", "moq"),
    ),
}
FIT = Fit(
    title="Microstrip low-pass filter, |S11| and |S21| by a 2-45-2 network",
    task=Task(
        microstrip.low_pass,
        box=((12.0, 20.0), (FREQUENCIES[0], FREQUENCIES[-1])),
        train_inputs=points(12, 14, 16, 18, 20),
        test_inputs=points(13, 15, 17, 19),
        hidden=45,
    ),
    methods=METHODS,
    panels=PANELS,
    max_iterations=100_000,
    runs=15,
    quick_iterations=1_000,
    quick_runs=2,
    quick_methods=("adam-customary", "bfgs", "mbfgs", "mnaq-0.85", "amnaq"),
    tuning_runs=5,
    source="The slides' figures (ICMLA 2018, example 2, 15 runs) are of a filter that is not "
    "public. They are here for orientation and are not reproduced.",
    published="slides', other data",
    cut=Cut(
        points(15),
        variable=1,
        xlabel="f (GHz)",
        title="D = 15 mm, not trained on",
        outputs=("|S11|", "|S21|"),
    ),
)

STUDIES = (fits.study("microstrip", __doc__, FIT),)
