"""A*: the shortest route of each net through what the nets before it have left."""

import heapq
import itertools
import math

import numpy as np

from benchmarks.routing.grid import Grid

Routes = list[list[int]]


def distance(grid: Grid, cell: int, goal: int) -> int:
    """Returns the steps to a goal on layer 1 of an empty grid, no more than those of a full one.

    |dx| + |dy|, and the vias: from layer 1 two where dy is not 0, from layer 2 one.
    """
    (x, y, z), (goal_x, goal_y, _) = grid.position[cell], grid.position[goal]
    vias = 1 if z == 2 else 2 * int(y != goal_y)
    return int(abs(x - goal_x) + abs(y - goal_y)) + vias


def shortest(grid: Grid, capacity: np.ndarray, start: int, goal: int) -> list[int]:
    """Returns the actions of a shortest route over edges that are open; none where there is none.

    Of the cells with the lowest bound it goes on from the one found first, and tries the actions
    in their order.

    Args:
      grid: the tables.
      capacity: (edges + 1,), what is left of each edge.
      start: cell.
      goal: cell of layer 1.
    """
    steps: dict[int, int] = {start: 0}
    came_from: dict[int, tuple[int, int]] = {}
    found = itertools.count()
    heap = [(distance(grid, start, goal), next(found), start)]
    final: set[int] = set()
    while heap:
        *_, cell = heapq.heappop(heap)
        if cell == goal:
            break
        if cell in final:
            continue
        final.add(cell)
        for action, edge in enumerate(grid.edge[cell]):
            other, taken = int(grid.neighbour[cell, action]), steps[cell] + 1
            if capacity[edge] > 0 and taken < steps.get(other, math.inf):
                steps[other], came_from[other] = taken, (cell, action)
                heapq.heappush(heap, (taken + distance(grid, other, goal), next(found), other))
    actions: list[int] = []
    while goal in came_from:
        goal, action = came_from[goal]
        actions.insert(0, action)
    return actions


def route(grid: Grid, starts: np.ndarray, goals: np.ndarray, nets: np.ndarray) -> Routes:
    """Returns the actions of each two-pin net in its turn; none for one without a way.

    A net takes a place on each of its edges once, however many of its parts cross it.

    Args:
      grid: the tables.
      starts: (pairs,), cells.
      goals: (pairs,), cells.
      nets: (pairs,), to which net each belongs.
    """
    capacity, routes = grid.capacity.copy(), []
    held: set[tuple[int, int]] = set()
    for start, goal, net in zip(starts.tolist(), goals.tolist(), nets.tolist(), strict=True):
        actions, cell = shortest(grid, capacity, start, goal), start
        for action in actions:
            edge = int(grid.edge[cell, action])
            capacity[edge] -= (net, edge) not in held
            held.add((net, edge))
            cell = int(grid.neighbour[cell, action])
        routes.append(actions)
    return routes


def wires(grid: Grid, starts: np.ndarray, nets: np.ndarray, routes: Routes) -> np.ndarray:
    """Returns (pairs, edges + 1), the edges of each net; their number is the wire length."""
    found = np.zeros((len(starts), len(grid.capacity)), bool)
    for cell, net, actions in zip(starts, nets, routes, strict=True):
        for action in actions:
            found[net, grid.edge[cell, action]] = True
            cell = grid.neighbour[cell, action]
    return found
