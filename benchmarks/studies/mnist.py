"""MNIST as a sequence: row by row, and pixel by pixel."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.data import labelled_images
from benchmarks.models import recurrent
from benchmarks.training import problem
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.problem import Problem

HIDDEN = 100
BATCH_SIZE = 128


def build_rows(quick: bool) -> Problem:
    """MNIST by rows: 28 steps of 28 pixels, an RNN of 100, cross entropy.

    The paper (aSNAQ, NOLTA 2019, section 4.2.1): 28 time steps of one row; one tanh RNN layer of
    100; batches of 128; weights from N(0, 0.01²); 35 epochs.

    Decided here: all 60,000 images, pixels in [0, 1], biases zero, the last state goes to a linear
    layer of 10. The rest of 60,000 / 128 (96 images, others each epoch) is dropped. The training
    loss is that of the first 10,000 images, the test is the usual one of 10,000.

    The quick form trains on the first 20,000 images and tests on 2,000.
    """
    count, tested = (20_000, 2_000) if quick else (60_000, 10_000)
    return _problem(f"MNIST by rows, {count:,} images", (28, 28), count, tested)


def build_pixels(quick: bool) -> Problem:
    """MNIST by pixels: 784 steps of one pixel, an RNN of 100, cross entropy.

    The paper (aSNAQ, NOLTA 2019, section 4.2.2): 784 time steps of one pixel in scanline order; one
    tanh RNN layer of 100; weights from N(0, 0.01²); 35 epochs.

    Decided here: the first 10,000 training images (all 60,000 would take hours on a small machine),
    batches of 128 as for the rows, pixels in [0, 1], biases zero, the last state goes to a linear
    layer of 10; tested on the first 2,000 test images.

    The quick form has images of 14 x 14, the means of 2 x 2 pixels, so 196 steps, and trains on the
    first 2,000.
    """
    if quick:
        return _problem("MNIST by pixels, 2,000 images of 14×14", (196, 1), 2_000, 1_000)
    return _problem("MNIST by pixels, 10,000 images", (784, 1), 10_000, 2_000)


def build_all_pixels(quick: bool) -> Problem:
    """MNIST by pixels at the paper's size: 784 steps, all 60,000 images, orthogonal recurrence.

    The paper's N(0, 0.01²) for all weights learns nothing (`mnist-pixels-14-small`); of the starts
    that were tried at 14×14 pixels the orthogonal one learns best, and the learning rates are those
    of that study.

    The quick form has images of 14×14 and trains on the first 2,000.
    """
    if quick:
        return _problem(
            "MNIST by pixels, 2,000 images of 14×14", (196, 1), 2_000, 1_000, ORTHOGONAL
        )
    return _problem("MNIST by pixels, 60,000 images", (784, 1), 60_000, 10_000, ORTHOGONAL)


def build_small_pixels(quick: bool, start: str) -> Problem:
    """MNIST by pixels of 14×14, by how the weights start.

    With all weights from N(0, 0.01²), as the paper has them, each step shrinks the state about
    tenfold: the last one tells of the last few pixels alone, which are black. This finds a start
    with which something is learnt, at a quarter of the steps.

    Decided here: images of 14×14, the means of 2×2 pixels, so 196 steps; the first 10,000 images
    and 10 epochs; the head from N(0, 0.01²) in every case.

    The quick form trains on the first 2,000 images.
    """
    count, tested = (2_000, 1_000) if quick else (10_000, 2_000)
    title = f"MNIST by pixels, {count:,} images of 14×14, {start}"
    return _problem(title, (196, 1), count, tested, start)


SMALL, ORTHOGONAL = "N(0, 0.01²)", "orthogonal"
_GLOROT = nnx.initializers.glorot_normal()
STARTS: Mapping[str, Mapping[str, Any]] = {
    SMALL: {},
    "Glorot": {"input_init": _GLOROT, "recurrent_init": _GLOROT},
    ORTHOGONAL: {"input_init": _GLOROT, "recurrent_init": nnx.initializers.orthogonal()},
    # Le, Jaitly and Hinton (2015), with tanh in place of their ReLU
    "identity": {
        "recurrent_init": lambda key, shape, dtype=jnp.float32: jnp.eye(*shape, dtype=dtype)
    },
}


def _problem(
    title: str, shape: tuple[int, int], count: int, tested: int, start: str = SMALL
) -> Problem:
    """Returns the task of classifying images read as so many steps of so many pixels."""
    mnist = labelled_images.load_mnist()

    def images(inputs: np.ndarray, length: int) -> jax.Array:
        inputs = inputs[:length]
        if shape[0] * shape[1] == 196:
            pooled = inputs.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float32)
            return jnp.asarray(pooled.reshape(-1, *shape))
        return jnp.asarray(inputs.reshape(-1, *shape))

    return Problem(
        title=f"{title}, RNN {HIDDEN}, batch {BATCH_SIZE}",
        settings={
            "images": count,
            "test_images": tested,
            "steps": f"{shape[0]} of {shape[1]}",
            "model": f"tanh RNN {HIDDEN}, {start}",
            "batch_size": BATCH_SIZE,
        },
        model=functools.partial(recurrent.SequenceModel, shape[1], HIDDEN, 10, **STARTS[start]),
        train=(images(mnist.train_inputs, count), jnp.asarray(mnist.train_targets[:count])),
        test=(images(mnist.test_inputs, tested), jnp.asarray(mnist.test_targets[:tested])),
        batch_size=BATCH_SIZE,
        losses=problem.cross_entropies,
        hits=problem.accuracies,
        prepare=lambda inputs: inputs.astype(jnp.float32) / 255,
    )


STUDIES = (
    MiniBatchStudy("mnist-rows", build_rows, epochs=35, quick_epochs=12, seeds=3),
    MiniBatchStudy("mnist-pixels", build_pixels, epochs=35, quick_epochs=25, seeds=1),
    MiniBatchStudy(
        "mnist-pixels-all",
        build_all_pixels,
        epochs=35,
        quick_epochs=5,
        seeds=1,
        optimizers=("adam", "adaqn", "asnaq"),
        known_rates={"adam": 0.001, "adaqn": 0.001, "asnaq": 0.0316},
    ),
    *(
        MiniBatchStudy(
            f"mnist-pixels-14-{name}",
            functools.partial(build_small_pixels, start=start),
            epochs=10,
            quick_epochs=5,
            seeds=1,
            optimizers=("adam", "adaqn", "adaqn-eps", "asnaq", "asnaq-eps"),
        )
        for name, start in {"small": SMALL, **{s.lower(): s for s in STARTS if s != SMALL}}.items()
    ),
)
