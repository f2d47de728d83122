"""What all the transcriptions do with vectors: finite or not, norms, and lists of the last few."""

from dataclasses import replace

import numpy as np

MOST_SKIPPED = 10  # steps in a row, after which a point is left

quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")


def is_finite(vector):
    """Whether every coordinate is finite."""
    return bool(np.all(np.isfinite(vector)))


def norm(vector):
    """The Euclidean norm, by way of the largest coordinate, so that no square overflows."""
    largest = np.max(np.abs(vector))
    if not 0.0 < largest < np.inf:
        return float(largest)
    return float(largest * np.linalg.norm(vector / largest))


def normalized(vector):
    """The finite vector with norm 1; 0 stays 0."""
    if not np.any(vector):
        return vector
    scaled = vector / np.max(np.abs(vector))
    return scaled / np.linalg.norm(scaled)


def skip(state):
    """The state after a step whose gradient was not finite, and whether its point is left now."""
    in_a_row = state.skipped_in_a_row + 1
    state = replace(state, skipped=state.skipped + 1, skipped_in_a_row=in_a_row)
    return state, in_a_row >= MOST_SKIPPED and state.k > 0


def leave(state, **changes):
    """The state after a point has been left."""
    return replace(state, **changes, skipped_in_a_row=0, left=state.left + 1)


def push(fifo, entry, size):
    """A new FIFO with the entry at its end, the oldest one dropped where it is full."""
    return [*fifo, entry][-size:]
