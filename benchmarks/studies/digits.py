"""The small digits of scikit-learn, read row by row."""

import functools

import jax.numpy as jnp

from benchmarks.data import labelled_images
from benchmarks.models import recurrent
from benchmarks.training import problem
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.optimizers import ASNAQ_VARIANTS
from benchmarks.training.problem import Problem

HIDDEN = 32
BATCH_SIZE = 32


def build(quick: bool) -> Problem:
    """Digits by rows: scikit-learn's images, 8 steps of 8 pixels, an RNN of 32, cross entropy.

    In no paper: a small version of the rows of MNIST, to compare the variants of aSNAQ on many
    seeds. One tanh RNN layer of 32, weights from N(0, 0.01²), biases zero, batches of 32, pixels in
    [0, 1], the fixed split of `labelled_images.load_digits`.

    The quick form has the same size and fewer epochs.
    """
    del quick
    digits = labelled_images.load_digits()
    count = len(digits.train_inputs)
    return Problem(
        title=f"digits by rows, {count:,} images, RNN {HIDDEN}, batch {BATCH_SIZE}",
        settings={
            "images": count,
            "test_images": len(digits.test_inputs),
            "steps": "8 of 8",
            "model": f"tanh RNN {HIDDEN}, N(0, 0.01²)",
            "batch_size": BATCH_SIZE,
        },
        model=functools.partial(recurrent.SequenceModel, 8, HIDDEN, 10),
        train=(jnp.asarray(digits.train_inputs), jnp.asarray(digits.train_targets)),
        test=(jnp.asarray(digits.test_inputs), jnp.asarray(digits.test_targets)),
        batch_size=BATCH_SIZE,
        losses=problem.cross_entropies,
        hits=problem.accuracies,
    )


STUDIES = (
    MiniBatchStudy(
        "digits-variants",
        build,
        epochs=100,
        quick_epochs=20,
        seeds=5,
        optimizers=ASNAQ_VARIANTS,
        equal_gradients=True,
    ),
)
