"""The replay: a ring of transitions, full from the start of those along A*'s routes.

Everything in a transition is a small integer, so that one of them is 26 bytes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.routing import astar, environment
from benchmarks.routing.grid import Grid
from benchmarks.routing.netlists import Netlist

SIZE = 50_000


class Transition(NamedTuple):
    """One step, or a batch of them with an axis in front.

    Attributes:
      observation: (…, 12).
      action: (…,).
      reward: (…,); 100 marks the goal, behind which nothing comes.
      following: (…, 12), the observation behind the step.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    following: jax.Array


class Replay(NamedTuple):
    """A full ring.

    Attributes:
      rows: (size, 26), int8: observation, following, action, reward.
      oldest: the row that the next transition replaces.
    """

    rows: jax.Array
    oldest: jax.Array


def row(transition: Transition) -> jax.Array:
    """Returns a transition as int8."""
    observation, action, reward, following = transition
    return jnp.concatenate([observation, following, action[None], reward[None]]).astype(jnp.int8)


def begin(rows: np.ndarray, size: int = SIZE) -> Replay:
    """Returns a ring full of these rows, in their order again and again."""
    return Replay(jnp.asarray(np.resize(rows, (size, rows.shape[1]))), jnp.zeros((), jnp.int32))


def push(replay: Replay, transition: Transition) -> Replay:
    """Returns the ring with a transition in the place of the oldest."""
    return Replay(
        replay.rows.at[replay.oldest].set(row(transition)),
        (replay.oldest + 1) % len(replay.rows),
    )


def sample(replay: Replay, uniform: jax.Array) -> Transition:
    """Returns a batch, by numbers from [0, 1) with repetition."""
    chosen = replay.rows[(uniform * len(replay.rows)).astype(jnp.int32)]
    return Transition(chosen[:, :12], chosen[:, 24], chosen[:, 25], chosen[:, 12:24])


def demonstration(grid: Grid, netlist: Netlist, routes: astar.Routes) -> np.ndarray:
    """Returns the transitions along routes, (steps, 26), as the environment makes them."""
    actions = np.concatenate(routes)
    # Of one length, so that one program serves all netlists; the rest begins another episode.
    padded = np.zeros(len(routes) * environment.LIMIT, np.int32)
    padded[: len(actions)] = actions
    return np.asarray(_walk(grid, netlist, padded))[: len(actions)]


@jax.jit
def _walk(grid: Grid, netlist: Netlist, actions: jax.Array) -> jax.Array:
    def step(state: environment.State, action: jax.Array) -> tuple[environment.State, jax.Array]:
        outcome = environment.step(grid, netlist, state, action)
        transition = Transition(
            environment.observe(grid, netlist, state),
            action,
            outcome.reward,
            environment.observe(grid, netlist, outcome.state),
        )
        state, _ = environment.proceed(grid, netlist, outcome.state, outcome.ended)
        return state, row(transition)

    return jax.lax.scan(step, environment.reset(grid, netlist), actions)[1]
