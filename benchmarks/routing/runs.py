"""Runs: one method at one rate learns to route one netlist."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.routing import astar, learning, netlists, replay
from benchmarks.routing.grid import Grid
from benchmarks.routing.methods import Method

CHUNK = 10  # episodes between two reports
CURVE = 5  # episodes that a point of the curve is the mean of


class Task(NamedTuple):
    """A netlist, and what A* makes of it.

    Attributes:
      seed: of the netlist, of the params and of all random choices.
      netlist: what is to be routed.
      wires: (nets, edges + 1), A*'s.
      rows: the transitions along A*'s routes.
    """

    seed: int
    netlist: netlists.Netlist
    wires: np.ndarray
    rows: np.ndarray


def task(grid: Grid, seed: int, nets: int) -> Task:
    """Returns a netlist of so many two-pin nets by its seed."""
    netlist, routes = netlists.draw(grid, seed, nets)
    wires = astar.wires(grid, netlist.start, netlist.net, routes)
    rows = replay.demonstration(grid, netlist, routes)
    return Task(seed, jax.tree.map(jnp.asarray, netlist), wires, rows)


class Router:
    """A method with its compiled loop: one program for all rates and all netlists of one size."""

    def __init__(self, method: Method, grid: Grid, episodes: int):
        self.grid, self.episodes = grid, episodes

        def transformation(rate: Any) -> optax.GradientTransformationExtraArgs:
            return optax.with_extra_args_support(method.make(rate))

        self.begun = transformation(method.middle_rate)
        self.advance = jax.jit(
            lambda rate, netlist, learner, until: learning.advance(
                transformation(rate), grid, netlist, learner, until
            )
        )

    def run(self, task: Task, rate: float, report: Callable[[int], Any] = lambda done: None) -> Any:
        """Returns what the episodes came to, and the processor's seconds without compiling.

        Args:
          task: the netlist.
          rate: the learning rate.
          report: called with the number of episodes since the last call.
        """
        learner = learning.begin(
            self.begun, self.grid, task.netlist, task.rows, task.seed, self.episodes
        )
        rate = jnp.float32(rate)
        # No episode: compiles, the first time.
        learner = jax.block_until_ready(self.advance(rate, task.netlist, learner, 0))
        started, done = time.process_time(), 0
        while done < self.episodes:
            chunk = min(CHUNK, self.episodes - done)
            done += chunk
            learner = jax.block_until_ready(self.advance(rate, task.netlist, learner, done))
            report(chunk)
        return learner, time.process_time() - started


def told(learner: learning.Learner, seconds: float, with_wires: bool = False) -> dict[str, Any]:
    """Returns a run as plain JSON: its best episode, counted from 1, and what it took."""
    rewards, arrived, lengths, steps = np.asarray(learner.log.totals).T
    best = int(np.argmax(learning.score(rewards, arrived)))
    blocks = np.split(rewards, range(CURVE, len(rewards), CURVE))
    found = {
        "reward": int(rewards[best]),
        "episode": best + 1,
        "arrived": int(arrived[best]),
        "length": int(lengths[best]),
        "steps": int(steps.sum()),
        "seconds": float(f"{seconds:.4g}"),
        "rewards": [float(block.mean()) for block in blocks],
    }
    if with_wires:
        found["wires"] = [np.flatnonzero(net).tolist() for net in np.asarray(learner.log.wires)]
    return found
