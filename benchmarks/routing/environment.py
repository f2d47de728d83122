"""The environment: one two-pin net after the other is walked from its pin to the other.

A step costs −1, one that reaches the goal brings +100 instead. A move over an edge without capacity
stays where it is, and costs too. A net takes a place on each of its edges once; it keeps the
places, whether it arrives or not, until the episode ends. All functions are pure and run inside
compiled programs.

Decided here, where the published settings are silent: an edge that is full is closed for the nets
on it too, so that what is open is what is observed, as in the published code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.routing.grid import Grid
from benchmarks.routing.netlists import Netlist

STEP, GOAL = -1, 100
LIMIT = 50  # steps of a two-pin net


class State(NamedTuple):
    """Where an episode stands.

    Attributes:
      capacity: (edges + 1,), what is left of each edge.
      wires: (nets, edges + 1), the edges that each net has a place on.
      pair: the two-pin net that is being routed.
      cell: where it stands.
      taken: its steps.
    """

    capacity: jax.Array
    wires: jax.Array
    pair: jax.Array
    cell: jax.Array
    taken: jax.Array


class Outcome(NamedTuple):
    """What an action led to.

    Attributes:
      state: behind it, still of the same two-pin net.
      reward: −1, or 100 at the goal.
      wired: places that it took, 1 or 0.
      reached: whether this was the goal.
      ended: whether the two-pin net is done, or at its last step.
    """

    state: State
    reward: jax.Array
    wired: jax.Array
    reached: jax.Array
    ended: jax.Array


def reset(grid: Grid, netlist: Netlist) -> State:
    """Returns the begin of an episode."""
    return State(
        capacity=jnp.asarray(grid.capacity, jnp.int32),
        wires=jnp.zeros((len(netlist.net), len(grid.capacity)), bool),
        pair=jnp.zeros((), jnp.int32),
        cell=jnp.asarray(netlist.start[0], jnp.int32),
        taken=jnp.zeros((), jnp.int32),
    )


def observe(grid: Grid, netlist: Netlist, state: State) -> jax.Array:
    """Returns (12,) integers: x, y, z, what is left of the six edges there, the way to the goal."""
    positions, edges = jnp.asarray(grid.position, jnp.int32), jnp.asarray(grid.edge)
    here = positions[state.cell]
    to_goal = positions[netlist.goal[state.pair]] - here
    return jnp.concatenate([here, state.capacity[edges[state.cell]], to_goal])


def step(grid: Grid, netlist: Netlist, state: State, action: jax.Array) -> Outcome:
    """Returns what an action, 0 to 5 in the order of `grid.ACTIONS`, leads to."""
    edge = jnp.asarray(grid.edge)[state.cell, action]
    is_open = state.capacity[edge] > 0
    there = jnp.asarray(grid.neighbour, jnp.int32)[state.cell, action]
    cell = jnp.where(is_open, there, state.cell)
    net = netlist.net[state.pair]
    wired = is_open & ~state.wires[net, edge]
    state = state._replace(
        capacity=state.capacity.at[edge].add(-wired.astype(jnp.int32)),
        wires=state.wires.at[net, edge].max(is_open),
        cell=cell,
        taken=state.taken + 1,
    )
    reached = cell == netlist.goal[state.pair]
    return Outcome(
        state=state,
        reward=jnp.where(reached, GOAL, STEP),
        wired=wired.astype(jnp.int32),
        reached=reached,
        ended=reached | (state.taken == LIMIT),
    )


def proceed(
    grid: Grid, netlist: Netlist, state: State, ended: jax.Array
) -> tuple[State, jax.Array]:
    """Returns the begin of the next two-pin net where one has ended, and whether all have.

    Behind the last comes the first of another episode, on an empty grid.
    """
    pairs = len(netlist.start)
    over = ended & (state.pair == pairs - 1)
    pair = jnp.where(ended, (state.pair + 1) % pairs, state.pair)
    return State(
        capacity=jnp.where(over, jnp.asarray(grid.capacity, jnp.int32), state.capacity),
        wires=state.wires & ~over,
        pair=pair,
        cell=jnp.where(ended, netlist.start[pair], state.cell),
        taken=jnp.where(ended, 0, state.taken),
    ), over
