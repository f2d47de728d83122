"""What is to be connected: netlists drawn by a seed, cut into nets of two pins.

Decided here, where the published settings are silent: pins lie in any cell of layer 1 with equal
chance, those of a net in different ones; a netlist that A* does not route whole is drawn again. All
nets of the studies have two pins. The slides count two-pin nets; of nets with more pins, which the
spanning tree makes short, the wires would be too short for theirs.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csgraph

from benchmarks.routing import astar
from benchmarks.routing.grid import Grid


class Netlist(NamedTuple):
    """Nets of two pins in the order in which they are routed.

    Attributes:
      start: (pairs,), the cell where each begins.
      goal: (pairs,), the cell to be reached.
      net: (pairs,), to which net it belongs; the parts of a net share its wires.
    """

    start: np.ndarray
    goal: np.ndarray
    net: np.ndarray


def draw(grid: Grid, seed: int, count: int, most_pins: int = 2) -> tuple[Netlist, astar.Routes]:
    """Returns a netlist of so many two-pin nets, and the routes that A* finds for it.

    Args:
      grid: where the pins lie.
      seed: of the pins.
      count: two-pin nets in all; the last net is drawn small enough.
      most_pins: a net has 2 to so many pins, each number with the same chance.
    """
    layer = np.flatnonzero(grid.position[:, 2] == 1)
    for attempt in itertools.count():
        random = np.random.default_rng((seed, attempt))
        nets: list[list[int]] = []
        left = count
        while left:
            pins = min(int(random.integers(2, most_pins + 1)), left + 1)
            nets.append(random.choice(layer, pins, replace=False).tolist())
            left -= pins - 1
        netlist = cut(grid, nets)
        routes = astar.route(grid, *netlist)
        if all(routes):
            break
    return netlist, routes


def cut(grid: Grid, nets: Sequence[Sequence[int]]) -> Netlist:
    """Returns nets of two pins each, those of the net with the largest half perimeter first.

    Args:
      grid: gives the positions.
      nets: the cells of the pins, by net.
    """
    places = [grid.position[list(cells)] for cells in nets]
    halves = [np.ptp(pins[:, :2], axis=0).sum() for pins in places]
    rows = [
        (nets[net][a], nets[net][b], number)
        for number, net in enumerate(sorted(range(len(nets)), key=lambda net: -halves[net]))
        for a, b in tree(places[net])
    ]
    return Netlist(*np.array(rows, np.int32).T)


def tree(pins: np.ndarray) -> list[tuple[int, int]]:
    """Returns the edges of the minimum spanning tree of pins, from the first pin outwards.

    Args:
      pins: (pins, 3), positions, no two the same; the distance is Manhattan's.
    """
    distances = np.abs(pins[:, None] - pins).sum(axis=-1)
    found = csgraph.minimum_spanning_tree(distances)
    order, before = csgraph.breadth_first_order(found, 0, directed=False)
    return [(int(before[pin]), int(pin)) for pin in order[1:]]
