"""Levy's function of five variables: a network of 351 parameters by L-SR1-N, L-SR1, LNAQ, LBFGS.

The paper's setting (Indrapriyadarsini et al., *Accelerating Symmetric Rank-1 Quasi-Newton Method
with Nesterov's Gradient for Training Neural Networks*, Algorithms 15(1), 2022): a 5-50-1 network,
full batch, m = 10. The slides that we have show the average error in a picture without numbers:
L-SR1-N lies at or below LNAQ, L-SR1 and LBFGS.

Decided here: f(x) = π/5 {Σ (x_i − 1)² (1 + 10 sin²(πx_{i+1})) + 10 sin²(πx_1) + (x_5 − 1)²}, with
the sum over the first four variables, on [−4, 4]⁵; 1,000 points for training and 10,000 for
testing, drawn uniformly; inputs and targets scaled to [−1, 1]; a sigmoid hidden layer and a linear
output, weights from U(−0.5, 0.5); E the mean of ½ (y − t)²; float64; at most 5,000 iterations, or
to a gradient of norm 10⁻⁶; 10 runs. Adam's rate is tuned on 5 other runs. L-SR1-N and LNAQ take two
gradients an iteration, the others one (L-SR1 by trust region and `optax.lbfgs` keep the one at the
new point), and all but Adam take losses or gradients of trial points besides: the second panel goes
by the processor's time. The loss still falls when the runs end, and 1,000 points are few for 351
parameters: the lowest training errors have the highest test errors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

import naqopt
from benchmarks.models.function_fit import Task
from benchmarks.training import fits
from benchmarks.training.fit import Fit, Method

VARIABLES = 5
TRAIN_SEED, TEST_SEED = 20_000, 20_001  # far from those that draw the networks


def levy(inputs: np.ndarray) -> np.ndarray:
    """Returns Levy's function, which is 0 where all variables are 1 and positive elsewhere."""
    first, last = inputs[:, 0], inputs[:, -1]
    squares = (inputs[:, :-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * inputs[:, 1:]) ** 2)
    ends = 10 * np.sin(np.pi * first) ** 2 + (last - 1) ** 2
    return np.pi / inputs.shape[1] * (squares.sum(1) + ends)


def _naq_by_schedule(**options: Any) -> optax.GradientTransformation:
    return naqopt.naq(momentum=naqopt.schedules.nesterov_momentum(), **options)


def _lsr1_by_search(**options: Any) -> optax.GradientTransformation:
    return naqopt.lsr1(linesearch=naqopt.armijo(), **options)


LIMITED = {"memory_size": 10}
METHODS: Mapping[str, Method] = {
    "lsr1": Method("L-SR1", naqopt.lsr1, LIMITED | {"store_grad": True}, reuse=True),
    "lsr1-search": Method("L-SR1, line search", _lsr1_by_search, LIMITED),
    "sr1n": Method("L-SR1-N", naqopt.sr1n, LIMITED),
    "mosr1": Method("L-MoSR1", naqopt.mosr1, LIMITED),
    "sr1n-term": Method("L-SR1-N, ξ", naqopt.sr1n, {"convergence_term": True, **LIMITED}),
    "lnaq": Method("LNAQ, μ = 0.9", naqopt.naq, {"momentum": 0.9, **LIMITED}),
    "lnaq-term": Method(
        "LNAQ, μ = 0.9, ξ", naqopt.naq, {"momentum": 0.9, "convergence_term": True, **LIMITED}
    ),
    "lnaq-schedule": Method("LNAQ, μ as L-SR1-N", _naq_by_schedule, LIMITED),
    "lmoq": Method("LMoQ, μ = 0.9", naqopt.moq, {"momentum": 0.9, **LIMITED}),
    "lbfgs": Method("LBFGS", naqopt.bfgs, LIMITED),
    "optax-lbfgs": Method("optax.lbfgs", optax.lbfgs, LIMITED, ours=False, reuse=True),
    "adam": Method("Adam", optax.adam, first_order=True, ours=False),
}
PANELS = {"by iterations": tuple(METHODS)}
FIT = Fit(
    title="Levy's function of five variables by a 5-50-1 network, full batch, m = 10",
    task=Task(
        levy,
        box=((-4.0, 4.0),) * VARIABLES,
        train_inputs=np.random.default_rng(TRAIN_SEED).uniform(-4, 4, (1_000, VARIABLES)),
        test_inputs=np.random.default_rng(TEST_SEED).uniform(-4, 4, (10_000, VARIABLES)),
        hidden=50,
    ),
    methods=METHODS,
    panels=PANELS,
    max_iterations=5_000,
    runs=10,
    quick_iterations=200,
    quick_runs=2,
    quick_methods=("lsr1", "sr1n", "lnaq", "lbfgs"),
    tuning_runs=5,
)

STUDIES = (fits.study("levy", __doc__, FIT),)
