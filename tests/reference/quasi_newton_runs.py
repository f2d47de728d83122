"""Runs of the quasi-Newton references in which much happens and errors hardly grow.

Mini-batch runs train the small classifier of `network` on batch `k mod 12`. Full-batch runs go
down a bowl, since on the classifier every line search magnifies an error of 1e-14 beyond use:
E(w) = Σ (√(1 + z_i²) − 1)/60 with z = K A w, which is linear far from its minimum at 0, so that
steps overshoot and are halved, and whose value keeps its digits near the minimum.

In the runs called restart the momentum starts anew at least once. In those called refused a search
ends without a step and in those called lowest with the lowest of its trials, mostly since the
learning rate is larger than fourteen trials can mend. In the others none of this happens.
"""

from dataclasses import dataclass, field

import numpy as np

from . import network, quasi_newton

STEPS = 100
TERMS, PARAMETERS = 60, 40


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      method: a key of `quasi_newton.METHODS`.
      seed: of the problem and the start.
      settings: hyperparameters; a schedule is a tuple (name, arguments …), see `resolve`.
      batches: "full" for a bowl, "mini" for the classifier.
      bowl: steepness K, condition number of A and size of the start.
      clip_norm: the norm to which the gradient is clipped in front of the method, or `None`.
    """

    method: str
    seed: int
    settings: dict
    batches: str
    bowl: dict = field(default_factory=dict)
    clip_norm: float | None = None


def _bowl(steepness, condition, start):
    return {"steepness": steepness, "condition": condition, "start": start}


def _full(method, seed, bowl, clip_norm=None, **settings):
    return Run(method, seed, settings, "full", _bowl(*bowl), clip_norm)


def _mini(method, seed, clip_norm=None, **settings):
    settings = {"damping": 1.0, "normalize": True, "min_curvature": 1e-8, **settings}
    return Run(method, seed, settings, "mini", clip_norm=clip_norm)


_NESTEROV = ("nesterov_momentum", 0.95)
_HARMONIC = ("harmonic", 1.0, 10)
_ROOT = ("inverse_sqrt", 1.0)
_HALF_ROOT = ("inverse_sqrt", 0.5)

RUNS = {
    "bfgs": _full("bfgs", 3, (5, 10, 0.1), memory_size=4, convergence_term=False),
    "bfgs_dense": _full(
        "bfgs", 0, (1, 30, 1), memory_size=None, convergence_term=False, initial_scale=1.0
    ),
    "bfgs_first_pair": _full(
        "bfgs", 0, (1, 30, 1), memory_size=None, convergence_term=False, initial_scale="first_pair"
    ),
    "bfgs_far": _full("bfgs", 8, (1, 3, 3), memory_size=4, convergence_term=False),
    "bfgs_term": _full("bfgs", 8, (30, 10, 0.1), memory_size=4, convergence_term=True),
    "bfgs_term_dense": _full(
        "bfgs", 13, (30, 10, 0.1), memory_size=None, convergence_term=True, initial_scale=0.1
    ),
    "naq": _full("naq", 0, (10, 10, 0.1), memory_size=4, momentum=0.5, convergence_term=True),
    "naq_dense": _full(
        "naq", 37, (10, 10, 0.3), memory_size=None, momentum=0.8, convergence_term=True
    ),
    "naq_no_term": _full(
        "naq", 36, (10, 3, 0.03), memory_size=4, momentum=0.3, convergence_term=False
    ),
    "naq_no_term_dense": _full(
        "naq", 36, (10, 30, 0.3), memory_size=None, momentum=0.3, convergence_term=False
    ),
    "naq_far_dense": _full(
        "naq", 27, (1, 30, 5), memory_size=None, momentum=0.5, convergence_term=False
    ),
    "naq_half": _full(
        "naq",
        11,
        (30, 10, 0.03),
        memory_size=4,
        momentum=0.5,
        convergence_term=False,
        learning_rate=0.5,
    ),
    "naq_half_dense": _full(
        "naq",
        0,
        (30, 30, 0.03),
        memory_size=None,
        momentum=0.5,
        convergence_term=False,
        learning_rate=0.5,
    ),
    "naq_nesterov": _full(
        "naq", 10, (30, 3, 0.03), memory_size=4, momentum=_NESTEROV, convergence_term=True
    ),
    "naq_nesterov_dense": _full(
        "naq", 5, (30, 10, 0.1), memory_size=None, momentum=_NESTEROV, convergence_term=True
    ),
    "moq": _full("moq", 36, (10, 10, 0.1), memory_size=4, momentum=0.5, convergence_term=True),
    "moq_dense": _full(
        "moq", 13, (10, 30, 0.1), memory_size=None, momentum=0.8, convergence_term=True
    ),
    "moq_no_term": _full("moq", 0, (3, 10, 1), memory_size=4, momentum=0.5, convergence_term=False),
    "moq_no_term_dense": _full(
        "moq", 1, (1, 3, 3), memory_size=None, momentum=0.3, convergence_term=False
    ),
    "mnaq": _full("mnaq", 36, (3, 10, 0.01), memory_size=4, momentum=0.5),
    "mnaq_dense": _full("mnaq", 0, (30, 30, 0.1), memory_size=None, momentum=0.3),
    "mnaq_nesterov": _full("mnaq", 39, (1, 3, 0.03), memory_size=4, momentum=_NESTEROV),
    "mnaq_nesterov_dense": _full("mnaq", 3, (30, 3, 0.01), memory_size=None, momentum=_NESTEROV),
    "naq_restart": _full(
        "naq",
        28,
        (5, 10, 0.1),
        memory_size=4,
        momentum=0.9,
        convergence_term=False,
        restart_window=5,
    ),
    "naq_restart_dense": _full(
        "naq",
        21,
        (10, 3, 0.3),
        memory_size=None,
        momentum=0.9,
        convergence_term=True,
        restart_window=5,
    ),
    "naq_restart_nesterov": _full(
        "naq",
        0,
        (10, 3, 0.03),
        memory_size=4,
        momentum=_NESTEROV,
        convergence_term=True,
        restart_window=1,
    ),
    "moq_restart": _full(
        "moq",
        0,
        (10, 10, 0.1),
        memory_size=4,
        momentum=0.9,
        convergence_term=False,
        restart_window=5,
    ),
    "moq_restart_dense": _full(
        "moq",
        0,
        (10, 10, 0.1),
        memory_size=None,
        momentum=0.9,
        convergence_term=False,
        restart_window=5,
    ),
    "moq_restart_clipped": _full(
        "moq",
        21,
        (10, 3, 0.3),
        clip_norm=1.0,
        memory_size=4,
        momentum=0.8,
        convergence_term=True,
        restart_window=1,
    ),
    "mnaq_restart": _full("mnaq", 36, (10, 3, 0.03), memory_size=4, momentum=0.9, restart_window=5),
    "mnaq_restart_dense": _full(
        "mnaq", 22, (30, 3, 0.1), memory_size=None, momentum=0.9, restart_window=5
    ),
    "bfgs_refused": _full(
        "bfgs", 0, (10, 10, 1), memory_size=4, convergence_term=False, learning_rate=3e4
    ),
    "bfgs_refused_dense": _full(
        "bfgs",
        0,
        (10, 10, 1),
        memory_size=None,
        convergence_term=True,
        learning_rate=3e4,
        initial_scale="first_pair",
    ),
    "naq_refused": _full(
        "naq",
        0,
        (10, 10, 1),
        memory_size=4,
        momentum=0.5,
        convergence_term=False,
        learning_rate=3e4,
    ),
    "naq_refused_restart_dense": _full(
        "naq",
        13,
        (1, 30, 0.3),
        memory_size=None,
        momentum=0.9,
        convergence_term=False,
        learning_rate=3e4,
        restart_window=5,
    ),
    "moq_refused": _full(
        "moq",
        0,
        (10, 10, 1),
        memory_size=4,
        momentum=0.5,
        convergence_term=False,
        learning_rate=3e4,
    ),
    "moq_refused_restart_dense": _full(
        "moq",
        4,
        (1, 30, 0.3),
        memory_size=None,
        momentum=0.9,
        convergence_term=False,
        learning_rate=3e4,
        restart_window=5,
    ),
    "bfgs_lowest": _full(
        "bfgs", 13, (1, 30, 0.03), memory_size=4, convergence_term=False, learning_rate=16370.0
    ),
    "naq_lowest_dense": _full(
        "naq",
        195,
        (3, 3, 1),
        memory_size=None,
        momentum=0.3,
        convergence_term=False,
        learning_rate=16370.0,
    ),
    "moq_lowest_dense": _full(
        "moq",
        27,
        (10, 10, 1),
        memory_size=None,
        momentum=0.3,
        convergence_term=False,
        learning_rate=3e4,
    ),
    "bfgs_clipped": _full(
        "bfgs", 21, (10, 3, 0.3), clip_norm=1.0, memory_size=4, convergence_term=False
    ),
    "naq_clipped_dense": _full(
        "naq",
        22,
        (30, 3, 0.1),
        clip_norm=0.3,
        memory_size=None,
        momentum=0.8,
        convergence_term=True,
    ),
    "moq_clipped": _full(
        "moq", 1, (30, 10, 0.01), clip_norm=1.0, memory_size=4, momentum=0.5, convergence_term=True
    ),
    "moq_clipped_dense": _full(
        "moq",
        0,
        (10, 30, 0.1),
        clip_norm=1.0,
        memory_size=None,
        momentum=0.5,
        convergence_term=False,
    ),
    "obfgs": _mini("obfgs", 1, memory_size=4, learning_rate=_HARMONIC),
    "obfgs_dense": _mini("obfgs", 6, memory_size=None, learning_rate=_HARMONIC),
    "obfgs_damped": _mini("obfgs", 1, memory_size=4, learning_rate=_HARMONIC, damping=2.0),
    "onaq": _mini("onaq", 0, memory_size=4, momentum=0.85, learning_rate=_ROOT),
    "onaq_dense": _mini("onaq", 0, memory_size=None, momentum=0.85, learning_rate=_ROOT),
    "onaq_nesterov": _mini("onaq", 7, memory_size=4, momentum=_NESTEROV, learning_rate=_HALF_ROOT),
    "onaq_nesterov_dense": _mini(
        "onaq", 4, memory_size=None, momentum=_NESTEROV, learning_rate=_HALF_ROOT
    ),
    "onaq_unnormalized": _mini(
        "onaq", 6, memory_size=4, momentum=0.85, learning_rate=0.2, normalize=False
    ),
    "onaq_unnormalized_dense": _mini(
        "onaq", 6, memory_size=None, momentum=0.85, learning_rate=0.2, normalize=False
    ),
    "onaq_no_momentum": _mini("onaq", 7, memory_size=4, momentum=0.0, learning_rate=_ROOT),
    "onaq_no_momentum_dense": _mini("onaq", 7, memory_size=None, momentum=0.0, learning_rate=_ROOT),
    "omoq": _mini("omoq", 3, memory_size=4, momentum=0.85, learning_rate=_HALF_ROOT),
    "omoq_dense": _mini("omoq", 4, memory_size=None, momentum=0.85, learning_rate=_HALF_ROOT),
    "omoq_no_momentum": _mini("omoq", 6, memory_size=4, momentum=0.0, learning_rate=_ROOT),
    "omoq_no_momentum_dense": _mini("omoq", 7, memory_size=None, momentum=0.0, learning_rate=_ROOT),
    "omoq_clipped": _mini(
        "omoq", 3, clip_norm=1.0, memory_size=4, momentum=0.85, learning_rate=_HALF_ROOT
    ),
    "omoq_clipped_dense": _mini(
        "omoq", 6, clip_norm=0.5, memory_size=None, momentum=0.85, learning_rate=_HALF_ROOT
    ),
    "onaq_clipped_dense": _mini(
        "onaq", 0, clip_norm=0.5, memory_size=None, momentum=0.85, learning_rate=_HALF_ROOT
    ),
}


def resolve(settings, schedules):
    """The settings with the tuples (name, arguments …) replaced by `schedules.name(arguments …)`.

    Args:
      settings: those of a `Run`.
      schedules: anything with the attributes `inverse_sqrt`, `harmonic`, `nesterov_momentum`.
    """
    return {
        key: getattr(schedules, value[0])(*value[1:]) if isinstance(value, tuple) else value
        for key, value in settings.items()
    }


def bowl_matrix(seed, steepness, condition):
    """K A, with singular values K√60 evenly spread in their logarithm down to K√60/condition."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.normal(size=(TERMS, PARAMETERS)))[0]
    right = np.linalg.qr(generator.normal(size=(PARAMETERS, PARAMETERS)))[0]
    singular_values = steepness * np.sqrt(TERMS) * np.geomspace(1.0, 1.0 / condition, PARAMETERS)
    return left * singular_values @ right


def bowl_loss(w, matrix, xp=np):
    """The loss of a bowl; `xp` is `numpy` or `jax.numpy`."""
    z = matrix @ w
    return xp.mean(z**2 / (1.0 + xp.sqrt(1.0 + z**2)))  # √(1 + z²) − 1 without cancellation


def bowl_grad(w, matrix):
    """Its gradient."""
    z = matrix @ w
    return matrix.T @ (z / np.sqrt(1.0 + z**2)) / TERMS


def problem(run):
    """The first parameters of a run, and per step its loss and gradient of a flat vector.

    Returns:
      The vector and a function from the count of steps to the pair (loss, grad).
    """
    if run.batches == "full":
        matrix = bowl_matrix(run.seed, run.bowl["steepness"], run.bowl["condition"])
        w = run.bowl["start"] * np.random.default_rng(100 + run.seed).normal(size=PARAMETERS)
        return w, lambda k: (lambda x: float(bowl_loss(x, matrix)), lambda x: bowl_grad(x, matrix))
    batches = network.batches(run.seed)

    def at_step(k):
        batch = batches[k % len(batches)]
        return lambda x: network.loss(x, batch), lambda x: network.grad(x, batch)

    return network.flatten(network.init(run.seed)), at_step


def clip(norm):
    """What `optax.clip_by_global_norm` does to a flat vector; `None` for no norm."""
    if norm is None:
        return None
    return lambda g: g if np.linalg.norm(g) < norm else g / np.linalg.norm(g) * norm


def trajectory(run, steps=STEPS, disturbance=0.0):
    """The states of a run, the first one included.

    Args:
      run: a value of `RUNS`.
      steps: how many to take.
      disturbance: standard deviation of an error of the first parameters.
    """
    settings = resolve(run.settings, quasi_newton)
    w, at_step = problem(run)
    w = w + disturbance * np.random.default_rng(9).normal(size=w.size)
    states = [quasi_newton.init(w)]
    for k in range(steps):
        loss, grad = at_step(k)
        states.append(
            quasi_newton.step(
                states[-1], loss, grad, method=run.method, clip=clip(run.clip_norm), **settings
            )
        )
    return states
