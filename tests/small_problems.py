"""Learning tasks so small that an epoch takes no time."""

import functools

import jax.numpy as jnp
import numpy as np

from benchmarks.models import perceptron
from benchmarks.training import problem
from benchmarks.training.problem import Problem


def normalized_problem(network=None, batch_size=8, **changes) -> Problem:
    """Three classes of 40 points in a plane, for a small network with batch normalization."""
    draw = np.random.default_rng(0)
    targets = jnp.asarray(draw.integers(0, 3, 40))
    inputs = jnp.asarray(draw.normal(2.0, 3.0, (40, 2)), jnp.float32) + targets[:, None]
    return Problem(
        title="tiny",
        settings={},
        model=network or functools.partial(perceptron.MLP, (2, 4, 3), batch_norm=True),
        train=(inputs, targets),
        test=(inputs[:9], targets[:9]),
        batch_size=batch_size,
        losses=problem.cross_entropies,
        **changes,
    )
