"""Runs of the symmetric-rank-one references in which much happens and errors hardly grow.

All train the small classifier of `network`, on all its batches together or on batch `k mod 12` at
step k.
"""

from dataclasses import dataclass

import numpy as np

from . import network, quasi_newton, symmetric_rank_one
from .quasi_newton_runs import clip, resolve

STEPS = 60
_NESTEROV = ("nesterov_momentum", 0.95)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      method: one of `symmetric_rank_one.METHODS`.
      seed: of the data and the start.
      settings: hyperparameters of a step; a schedule is a tuple (name, arguments …), see
        `quasi_newton_runs.resolve`.
      batches: "full" for all batches together, "mini" for one after the other.
      clip_norm: the norm to which the gradient is clipped in front of the method, or `None`.
      loss_scale: a factor of loss and gradient.
    """

    method: str
    seed: int
    settings: dict
    batches: str = "full"
    clip_norm: float | None = None
    loss_scale: float = 1.0


def _lsr1(seed, memory_size, **options):
    return Run("lsr1", seed, {"memory_size": memory_size}, **options)


def _search(seed, **options):
    return Run("lsr1_search", seed, {"memory_size": 3}, **options)


def _momentum(method, seed, memory_size=3, momentum=_NESTEROV, solver="cg", **options):
    settings = {"memory_size": memory_size, "momentum": momentum, "solver": solver}
    return Run(method, seed, settings, **options)


# In the runs called refused the loss is scaled so that the y of the first pair has sᵀ(y − s) = 0,
# or yᵀ(s − y) = 0 for the line search, up to rounding: that pair is refused, and no other.
RUNS = {
    "lsr1_two": _lsr1(2, 2),
    "lsr1_five": _lsr1(9, 5),
    "lsr1_clipped": _lsr1(4, 3, clip_norm=0.3),
    "lsr1_refused": _lsr1(1, 3, loss_scale=1.3219012905369836),
    "search": _search(2),
    "search_clipped": _search(1, clip_norm=0.3),
    "search_refused": _search(2, loss_scale=1.2863455939059647),
    "sr1n": _momentum("sr1n", 2),
    "sr1n_exact": _momentum("sr1n", 2, solver="exact"),
    "sr1n_dense": _momentum("sr1n", 7, None),
    "sr1n_dense_exact": _momentum("sr1n", 6, None, solver="exact"),
    "sr1n_half": _momentum("sr1n", 6, momentum=0.5),
    "sr1n_clipped": _momentum("sr1n", 3, clip_norm=0.3),
    "sr1n_refused": _momentum("sr1n", 7, loss_scale=0.5031877634644889),
    "sr1n_mini": _momentum("sr1n", 6, batches="mini"),
    "sr1n_mini_exact": _momentum("sr1n", 5, solver="exact", batches="mini"),
    "sr1n_mini_dense": _momentum("sr1n", 7, None, batches="mini"),
    "sr1n_mini_half": _momentum("sr1n", 2, momentum=0.5, batches="mini"),
    "mosr1": _momentum("mosr1", 9),
    "mosr1_exact": _momentum("mosr1", 7, solver="exact"),
    "mosr1_dense": _momentum("mosr1", 6, None),
    "mosr1_dense_exact": _momentum("mosr1", 6, None, solver="exact"),
    "mosr1_half": _momentum("mosr1", 9, momentum=0.5),
    "mosr1_clipped": _momentum("mosr1", 6, clip_norm=0.3),
    "mosr1_refused": _momentum("mosr1", 0, loss_scale=0.7344867639638337),
    "mosr1_mini": _momentum("mosr1", 0, batches="mini"),
    "mosr1_mini_dense": _momentum("mosr1", 7, None, solver="exact", batches="mini"),
}


def problem(run):
    """The first parameters of a run, and per step its loss and gradient of a flat vector.

    Returns:
      The vector and a function from the count of steps to the pair (loss, grad).
    """
    batches = network.batches(run.seed)
    if run.batches == "full":
        batches = [tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))]

    def at_step(k):
        batch, factor = batches[k % len(batches)], run.loss_scale
        return lambda x: factor * network.loss(x, batch), lambda x: factor * network.grad(x, batch)

    return network.flatten(network.init(run.seed)), at_step


def trajectory(run, disturbance=0.0, steps=STEPS):
    """The states of a run: the first one and those after each step.

    Args:
      run: a value of `RUNS`.
      disturbance: standard deviation of an error of the first parameters.
      steps: how many to take.
    """
    settings = resolve(run.settings, quasi_newton)
    w, at_step = problem(run)
    w = w + disturbance * np.random.default_rng(9).normal(size=w.size)
    states = [symmetric_rank_one.init(w, run.method)]
    for k in range(steps):
        loss, grad = at_step(k)
        states.append(
            symmetric_rank_one.step(
                states[-1], loss, grad, method=run.method, clip=clip(run.clip_norm), **settings
            )
        )
    return states
