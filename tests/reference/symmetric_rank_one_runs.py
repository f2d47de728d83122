"""Runs of the symmetric-rank-one references in which much happens and errors hardly grow.

All train the small classifier of `network`, on all its batches together or on batch `k mod 12` at
step k.
"""

from dataclasses import dataclass

import numpy as np

from . import network, quasi_newton, symmetric_rank_one
from .quasi_newton_runs import clip, resolve
from .trust_region import DEFAULT_RULE, RadiusRule

STEPS = 40
_NESTEROV = ("nesterov_momentum", 0.95)
_RULE = RadiusRule(
    accept=0.05, shrink_below=0.2, grow_above=0.6, boundary=0.5, shrink=0.25, grow=3.0
)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      method: one of `symmetric_rank_one.METHODS`.
      seed: of the data and the start.
      settings: hyperparameters; a schedule is a tuple (name, arguments …), see
        `quasi_newton_runs.resolve`.
      batches: "full" for all batches together, "mini" for one after the other.
      clip_norm: the norm to which the gradient is clipped in front of the method, or `None`.
      loss_scale: a factor of loss and gradient.
      radius_rule: what becomes of trial points and of the radius.
    """

    method: str
    seed: int
    settings: dict
    batches: str = "full"
    clip_norm: float | None = None
    loss_scale: float = 1.0
    radius_rule: RadiusRule = DEFAULT_RULE


def _run(method, seed, settings, options):
    """A run of these settings and of those options that are settings too."""
    fields = ("batches", "clip_norm", "loss_scale", "radius_rule")
    more = {name: value for name, value in options.items() if name not in fields}
    return Run(
        method,
        seed,
        {**settings, **more},
        **{name: options[name] for name in fields if name in options},
    )


def _lsr1(seed, memory_size, **options):
    return _run("lsr1", seed, {"memory_size": memory_size}, options)


def _search(seed, **options):
    return _run("lsr1_search", seed, {"memory_size": 3}, options)


def _momentum(method, seed, memory_size=3, momentum=_NESTEROV, solver="cg", **options):
    settings = {"memory_size": memory_size, "momentum": momentum, "solver": solver}
    return _run(method, seed, settings, options)


# In the runs called refused the first pair, and no other, is refused, as its sᵀr is 0 up to
# rounding: the first radius ends where sᵀ∇E is 0, so that sᵀy = ‖g‖Δ = γsᵀs; for the line search
# with H0 = I the loss is scaled so that yᵀ(s − y) = 0.
RUNS = {
    "lsr1_two": _lsr1(2, 2),
    "lsr1_five": _lsr1(9, 5),
    "lsr1_clipped": _lsr1(6, 3, clip_norm=0.3),
    "lsr1_refused": _lsr1(0, 3, initial_radius=1.7727419515227911),
    "lsr1_scale": _lsr1(1, 3, initial_scale=0.1),
    "lsr1_radius": _lsr1(1, 3, initial_radius=None),
    "search": _search(2),
    "search_clipped": _search(6, clip_norm=0.3),
    "search_refused": _search(10, loss_scale=1.5163343589629898, initial_scale=1.0),
    "search_scale": _search(1, initial_scale=0.3),
    "sr1n": _momentum("sr1n", 4),
    "sr1n_exact": _momentum("sr1n", 0, solver="exact"),
    "sr1n_dense": _momentum("sr1n", 113, None),
    "sr1n_dense_exact": _momentum("sr1n", 7, None, solver="exact"),
    "sr1n_half": _momentum("sr1n", 7, momentum=0.5),
    "sr1n_term": _momentum("sr1n", 0, convergence_term=True),
    "sr1n_scale": _momentum("sr1n", 2, initial_scale=0.3),
    "sr1n_dense_scale": _momentum("sr1n", 172, None, initial_scale=0.3, initial_radius=None),
    "sr1n_radius": _momentum("sr1n", 11, initial_radius=None),
    "sr1n_rule": _momentum("sr1n", 2, radius_rule=_RULE),
    "sr1n_clipped": _momentum("sr1n", 18, clip_norm=0.3),
    "sr1n_refused": _momentum("sr1n", 6, initial_radius=1.672825662654323),
    "sr1n_mini": _momentum("sr1n", 7, batches="mini"),
    "sr1n_mini_exact": _momentum("sr1n", 13, solver="exact", batches="mini"),
    "sr1n_mini_dense": _momentum("sr1n", 7, None, momentum=0.5, solver="exact", batches="mini"),
    "sr1n_mini_half": _momentum("sr1n", 34, momentum=0.5, batches="mini"),
    "mosr1": _momentum("mosr1", 9),
    "mosr1_exact": _momentum("mosr1", 7, solver="exact"),
    "mosr1_dense": _momentum("mosr1", 1, None),
    "mosr1_dense_exact": _momentum("mosr1", 0, None, solver="exact"),
    "mosr1_half": _momentum("mosr1", 9, momentum=0.5),
    "mosr1_term": _momentum("mosr1", 9, convergence_term=True),
    "mosr1_scale": _momentum("mosr1", 9, initial_scale=0.1),
    "mosr1_dense_scale": _momentum("mosr1", 1, None, initial_scale=0.3),
    "mosr1_radius": _momentum("mosr1", 9, initial_radius=None),
    "mosr1_clipped": _momentum("mosr1", 0, clip_norm=0.3),
    "mosr1_clipped_dense": _momentum("mosr1", 3, None, clip_norm=0.3),
    "mosr1_refused": _momentum("mosr1", 3, initial_radius=1.1527259369005909),
    "mosr1_mini": _momentum("mosr1", 2, batches="mini"),
    "mosr1_mini_clipped": _momentum("mosr1", 72, batches="mini", clip_norm=0.3),
    "mosr1_mini_dense": _momentum("mosr1", 1, None, solver="exact", batches="mini"),
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
    radius = settings.pop("initial_radius", 1.0)
    w, at_step = problem(run)
    w = w + disturbance * np.random.default_rng(9).normal(size=w.size)
    states = [symmetric_rank_one.init(w, run.method, radius, settings.get("initial_scale"))]
    for k in range(steps):
        loss, grad = at_step(k)
        states.append(
            symmetric_rank_one.step(
                states[-1],
                loss,
                grad,
                method=run.method,
                radius_rule=run.radius_rule,
                clip=clip(run.clip_norm),
                **settings,
            )
        )
    return states
