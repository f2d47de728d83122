"""A routing grid of two layers as tables: cells, their neighbours, the edges between them.

Layer 1 has wires along x only, layer 2 along y only, and vias join the two. The tables are NumPy
arrays, which A* reads and compiled programs hold as constants.
"""

from typing import NamedTuple

import numpy as np

# +x, −x, +y, −y, +z, −z: the order of the published code, in observations too.
ACTIONS = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)])


class Grid(NamedTuple):
    """Cells by number, and edges by number, each of which one action crosses from either side.

    Attributes:
      position: (cells, 3), x and y from 0, the layer z from 1.
      neighbour: (cells, 6), where an action leads; the cell itself where no edge is.
      edge: (cells, 6), the edge that an action crosses; where none is, the last one.
      capacity: (edges + 1,), how many nets an edge takes; 0 for the last, which is no edge.
    """

    position: np.ndarray
    neighbour: np.ndarray
    edge: np.ndarray
    capacity: np.ndarray

    def cell(self, x: int, y: int, z: int = 1) -> int:
        """Returns the number of a cell."""
        return int(np.flatnonzero((self.position == (x, y, z)).all(axis=1))[0])


def make(width: int = 8, height: int = 8, capacity: int = 4, vias: int = 10) -> Grid:
    """Returns a grid whose edges take `capacity` nets along a layer and `vias` between them."""
    position = [(x, y, z) for z in (1, 2) for y in range(height) for x in range(width)]
    number = {place: cell for cell, place in enumerate(position)}
    neighbour = np.repeat(np.arange(len(position))[:, None], len(ACTIONS), axis=1)
    edge = np.full_like(neighbour, -1)
    capacities: list[int] = []
    for cell, place in enumerate(position):
        along = (0, 4) if place[2] == 1 else (2,)
        for action in along:  # the action behind each is the way back
            other = number.get(tuple((place + ACTIONS[action]).tolist()))
            if other is None:
                continue
            neighbour[cell, action], neighbour[other, action + 1] = other, cell
            edge[cell, action] = edge[other, action + 1] = len(capacities)
            capacities.append(vias if action == 4 else capacity)
    edge[edge < 0] = len(capacities)
    return Grid(np.array(position), neighbour, edge, np.array([*capacities, 0]))
