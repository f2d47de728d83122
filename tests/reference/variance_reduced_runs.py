"""Runs of the variance-reduced references in which much happens and errors hardly grow.

All train the small classifier of `network` on batch `k mod 12` at step k: five plain steps, then
eight epochs, each of which starts with a snapshot and the exact gradient over the twelve batches.
"""

from dataclasses import dataclass

import numpy as np

from . import network, quasi_newton, variance_reduced
from .quasi_newton_runs import clip, resolve

BATCHES = 12
PLAIN_STEPS = 5
EPOCHS = 8
STEPS = PLAIN_STEPS + EPOCHS * BATCHES


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      method: one of `variance_reduced.METHODS`.
      seed: of the data and the start.
      settings: hyperparameters of a step; a schedule is a tuple (name, arguments …), see
        `quasi_newton_runs.resolve`.
      memory_size: m, the pairs kept; `None` is the dense matrix.
      clip_norm: the norm to which the gradient is clipped in front of the method, or `None`.
    """

    method: str
    seed: int
    settings: dict
    memory_size: int | None = 2
    clip_norm: float | None = None


def _naq(seed, memory_size=2, clip_norm=None, alpha=0.3, **settings):
    settings = {"learning_rate": ("inverse_sqrt", alpha), "momentum": 0.8, **settings}
    return Run("svr_naq", seed, settings, memory_size, clip_norm)


# A pair is refused in the runs of that name: the first one, the third and the fifth of seven.
RUNS = {
    "svrg": Run("svrg", 0, {"learning_rate": 0.1}),
    "svrg_harmonic": Run("svrg", 1, {"learning_rate": ("harmonic", 0.5, 20)}),
    "svrg_clipped": Run("svrg", 3, {"learning_rate": 0.3}, clip_norm=0.7),
    "svrg2": Run("svrg2", 0, {"learning_rate": 0.1}),
    "svrg2_dense": Run("svrg2", 2, {"learning_rate": 0.1}, memory_size=None),
    "svrg2_refused": Run("svrg2", 5, {"learning_rate": ("harmonic", 2.0, 5)}),
    "svrg2_refused_clipped": Run("svrg2", 9, {"learning_rate": ("harmonic", 3.0, 3)}, 2, 0.5),
    "svr_naq": _naq(0),
    "svr_naq_dense": _naq(1, memory_size=None),
    "svr_naq_four": _naq(3, memory_size=4, alpha=1.0),
    "svr_naq_nesterov": _naq(0, momentum=("nesterov_momentum", 0.95)),
    "svr_naq_nesterov_dense": _naq(
        6, memory_size=None, momentum=("nesterov_momentum", 0.95), warmup_learning_rate=0.1
    ),
    "svr_naq_clipped": _naq(0, clip_norm=0.7),
    "svr_naq_refused": _naq(10, clip_norm=1.0, warmup_learning_rate=2.0),
}


def takes_snapshot(count):
    """Whether a snapshot is taken before the step with this count of steps before it."""
    return count >= PLAIN_STEPS and (count - PLAIN_STEPS) % BATCHES == 0


def problem(run):
    """The data of a run.

    Returns:
      The first parameters, a function from the count of steps to the gradient of that step's
      batch, and the full gradient; the gradients are functions of a flat vector.
    """
    batches = network.batches(run.seed, count=BATCHES)

    def at_step(k):
        return lambda x: network.grad(x, batches[k % BATCHES])

    def full_grad(x):
        return np.mean([network.grad(x, batch) for batch in batches], axis=0)

    return network.flatten(network.init(run.seed)), at_step, full_grad


def trajectory(run, disturbance=0.0, steps=STEPS):
    """The states of a run: the first one and those after each step.

    Args:
      run: a value of `RUNS`.
      disturbance: standard deviation of an error of the first parameters.
      steps: how many to take.
    """
    settings = {"method": run.method, **resolve(run.settings, quasi_newton)}
    w, at_step, full_grad = problem(run)
    w = w + disturbance * np.random.default_rng(9).normal(size=w.size)
    states = [variance_reduced.init(w)]
    for k in range(steps):
        state = states[-1]
        if takes_snapshot(k):
            state = variance_reduced.take_snapshot(
                state, full_grad(state.w), method=run.method, memory_size=run.memory_size
            )
        states.append(
            variance_reduced.step(state, at_step(k), clip=clip(run.clip_norm), **settings)
        )
    return states
