"""Logistic regression on mini-batches, the case that breaks `optax.lbfgs`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.optimizers import DENSE, LIMITED
from benchmarks.training.problem import Problem

EXAMPLES = 512
FEATURES = 20


def build(quick: bool, batch_size: int) -> Problem:
    """Logistic regression of 512 × 20 on mini-batches, where `optax.lbfgs` fails.

    In no paper: the smallest case in which curvature pairs of two different batches go wrong.
    `optax.lbfgs(0.1, linesearch=None)` takes 300 steps and ends above log 2, where it began.

    Inputs from N(0, 1), labels drawn by the logistic model of random weights from N(0, 2²), another
    512 examples for testing; weights start at zero; the least loss is 0.147. An epoch here is 5
    batches of a fresh order of the examples, so that 60 epochs make 300 steps for every batch size.

    The quick form has the same size and fewer epochs.
    """
    del quick
    draw = np.random.default_rng(0)
    weights = draw.normal(0, 2, size=FEATURES)

    def examples() -> tuple[jax.Array, jax.Array]:
        inputs = draw.normal(size=(EXAMPLES, FEATURES))
        labels = draw.random(EXAMPLES) < 1 / (1 + np.exp(-inputs @ weights))
        return jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.float32)[:, None]

    return Problem(
        title=f"logistic regression, {EXAMPLES} × {FEATURES}, batch {batch_size}, 5 steps an epoch",
        settings={
            "examples": EXAMPLES,
            "features": FEATURES,
            "model": "logistic regression from zero",
            "true_weights": "N(0, 2²)",
            "steps_per_epoch": 5,
            "batch_size": batch_size,
        },
        model=functools.partial(
            nnx.Linear, FEATURES, 1, use_bias=False, kernel_init=nnx.initializers.zeros
        ),
        train=examples(),
        test=examples(),
        batch_size=batch_size,
        losses=lambda logits, labels: optax.sigmoid_binary_cross_entropy(logits, labels)[:, 0],
        hits=lambda logits, labels: ((logits > 0) == (labels > 0))[:, 0].astype(jnp.float32),
        steps=5,
    )


STUDIES = tuple(
    MiniBatchStudy(
        f"logistic-{batch_size}",
        functools.partial(build, batch_size=batch_size),
        epochs=60,
        quick_epochs=20,
        seeds=5,
        optimizers=("adam", "adam-cosine", "sgd", "lbfgs", "adaqn", "asnaq", *DENSE, *LIMITED),
    )
    for batch_size in (16, 64)
)
