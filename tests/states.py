"""States of the library as the flat arrays that the NumPy listings keep."""

import dataclasses

import jax
import numpy as np

from naqopt.curvature.dense import Dense


def flat(tree):
    """All leaves one after the other."""
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in leaves])


def pairs_and_matrix(curvature):
    """The stored s and y, oldest first, and the dense matrix, or None while it holds nothing."""
    if isinstance(curvature, Dense):
        leaves = jax.tree.leaves(curvature.matrix)
        matrix = np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in leaves], axis=1)
        return [], [], matrix if int(curvature.size) > 0 else None
    size, slots = int(curvature.size), len(curvature.products)
    order = [(int(curvature.next) - size + i) % slots for i in range(size)]

    def rows(history):
        return [flat(jax.tree.map(lambda x: x[i], history)) for i in order]  # noqa: B023

    return rows(curvature.s), rows(curvature.y), None


def difference(actual, expected, left_out=()):
    """The largest deviations of points and of curvature, relative to 1 + the size of the field.

    Counts must agree. Once a run has converged its pairs are differences at the rounding of the
    points, so curvature agrees to fewer digits than points do.
    """
    worst = {"points": 0.0, "curvature": 0.0}
    for field in dataclasses.fields(expected):
        a, b = getattr(actual, field.name), getattr(expected, field.name)
        if field.name in left_out:
            continue
        assert (a is None) == (b is None), field.name
        if isinstance(b, int):
            assert a == b, field.name
        elif b is not None:
            a, b = np.asarray(a), np.asarray(b)
            assert a.shape == b.shape, field.name
            kind = "curvature" if field.name in ("s_list", "y_list", "H", "B") else "points"
            if b.size:
                worst[kind] = max(worst[kind], np.max(np.abs(a - b)) / (1 + np.max(np.abs(b))))
    return worst["points"], worst["curvature"]
