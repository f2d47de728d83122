"""Sequence counting: how many ones does a binary string hold?"""

import functools

import jax.numpy as jnp

from benchmarks.data import sequences
from benchmarks.models import recurrent
from benchmarks.training import problem
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.optimizers import ASNAQ_VARIANTS
from benchmarks.training.problem import Problem

LENGTH = 20
HIDDEN = 24
BATCH_SIZE = 50
STRINGS = 5_000
TEST_STRINGS = 1_000


def build(quick: bool) -> Problem:
    """Sequence counting: binary strings of length 20, an RNN of 24, squared error.

    The paper (aSNAQ, NOLTA 2019, section 4.1): the count of ones in a binary string of length T =
    20; one tanh RNN layer of 24; batches of 50; weights from N(0, 0.01²); mean squared error over
    75 epochs.

    Decided here: 5,000 random training strings (the paper does not say how many), drawn once and
    the same for all seeds, and 1,000 others for testing; inputs 0 and 1; the target is the count
    itself, not scaled; a linear output reads the last state; biases start at zero.

    The quick form has the same size and fewer epochs.
    """
    del quick
    train = sequences.counting_sequences(0, STRINGS, LENGTH)
    test = sequences.counting_sequences(1, TEST_STRINGS, LENGTH)
    return Problem(
        title=f"counting ones, {STRINGS:,} strings of {LENGTH}, RNN {HIDDEN}, batch {BATCH_SIZE}",
        settings={
            "strings": STRINGS,
            "length": LENGTH,
            "model": f"tanh RNN {HIDDEN}, N(0, 0.01²)",
            "batch_size": BATCH_SIZE,
            "test_strings": TEST_STRINGS,
        },
        model=functools.partial(recurrent.SequenceModel, 1, HIDDEN, 1),
        train=tuple(map(jnp.asarray, train)),
        test=tuple(map(jnp.asarray, test)),
        batch_size=BATCH_SIZE,
        losses=problem.squared_errors,
    )


STUDIES = (
    MiniBatchStudy(
        "counting",
        build,
        epochs=75,
        quick_epochs=30,
        seeds=5,
        optimizers=("adam", "adam-cosine", "adagrad", "adaqn", "adaqn-monitored", "asnaq"),
    ),
    MiniBatchStudy(
        "counting-variants",
        build,
        epochs=100,
        quick_epochs=20,
        seeds=5,
        optimizers=ASNAQ_VARIANTS,
        equal_gradients=True,
    ),
)
