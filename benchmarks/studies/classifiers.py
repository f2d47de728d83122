"""Feed-forward networks that classify images: online and variance-reduced methods' experiments."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.data import Dataset, labelled_images
from benchmarks.models import convolutional, perceptron
from benchmarks.training import problem
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.optimizers import DENSE, LIMITED
from benchmarks.training.problem import Problem

# Of all the pixels of MNIST's training images, in [0, 1].
MEAN, DEVIATION = 0.13066, 0.30811
CIFAR_MEAN, CIFAR_DEVIATION = (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)


def build_digits_mlp(quick: bool) -> Problem:
    """Digits at once: scikit-learn's 8×8 images, 64-20-10-10 with batch normalization.

    The setting of the authors' notebooks: batches of 64, 25 epochs.

    Decided here: the fixed split of `labelled_images.load_digits`, pixels in [0, 1]; ReLU, and the
    normalization between a hidden layer and its ReLU; Flax's own initialization (LeCun normal);
    cross entropy.

    The quick form has the same size and fewer epochs.
    """
    del quick
    digits = labelled_images.load_digits()
    count = len(digits.train_inputs)
    return Problem(
        title=f"digits, {count:,} images, 64-20-10-10 with batch norm, batch 64",
        settings={
            "images": count,
            "test_images": len(digits.test_inputs),
            "model": "64-20-10-10, batch norm 0.9, ReLU",
            "batch_size": 64,
        },
        model=functools.partial(perceptron.MLP, (64, 20, 10, 10), batch_norm=True),
        train=(jnp.asarray(digits.train_inputs), jnp.asarray(digits.train_targets)),
        test=(jnp.asarray(digits.test_inputs), jnp.asarray(digits.test_targets)),
        batch_size=64,
        losses=problem.cross_entropies,
        hits=problem.accuracies,
    )


def build_mnist_mlp(quick: bool) -> Problem:
    """MNIST at once: 60,000 images, 784-100-50-10 with batch normalization.

    The setting of the authors' notebooks: batches of 128, 10 epochs, ReLU.

    Decided here: pixels normalized to mean 0 and deviation 1; the normalization of the batches
    between a hidden layer and its ReLU; Flax's own initialization (LeCun normal); cross entropy.
    The training loss is that of the first 10,000 images, by the running averages as the test's.

    The quick form trains on the first 10,000 images and tests on 2,000.
    """
    model = functools.partial(perceptron.MLP, (784, 100, 50, 10), batch_norm=True)
    return mnist("784-100-50-10 with batch norm", "batch norm 0.9, ReLU", model, 128, quick)


def build_mnist_cnn(quick: bool, initializer: Any = None) -> Problem:
    """MNIST by convolutions: two of 5×5 and 100 units, 26,068 parameters, sigmoid.

    The setting of the authors' notebooks: a CNN of 26,068 parameters, batches of 128, 10 epochs;
    weights and biases from N(0, 1), which `mnist-cnn-normal` has.

    Decided here: 3 and 5 filters of 5×5 that keep the image's size, each followed by the greatest
    of 2×2, 100 hidden units, sigmoid throughout. That has exactly their number of parameters, and
    is the CNN of their paper on variance reduction but for the size of the filters (3×3 there).
    Pixels normalized, Flax's own initialization, cross entropy. The first 30,000 images, half of
    them, so that it ends within the hour on two cores.

    The quick form trains on the first 10,000 images and tests on 2,000.
    """
    model = functools.partial(
        convolutional.CNN,
        (1, 3, 5),
        (245, 100, 10),
        activation=nnx.sigmoid,
        initializer=initializer,
    )
    description = "3 and 5 filters, 100, sigmoid" + (", N(0, 1)" if initializer else "")
    return mnist("CNN of 26,068 parameters", description, model, 128, quick, images=30_000)


def build_mnist_lenet(quick: bool) -> Problem:
    """MNIST by LeNet-5: 61,706 parameters, ReLU.

    The setting of the authors' slides: LeNet-5, batches of 256 (where they show SR1-N; they leave
    it open where they show oMoQ), 10 epochs.

    Decided here: 6 and 16 filters of 5×5, the first keeping the image's size, each followed by the
    greatest of 2×2, then 400-120-84-10; ReLU. Pixels normalized, Flax's own initialization, cross
    entropy. The first 20,000 images, a third, so that it ends within the hour on two cores.

    The quick form trains on the first 10,000 images and tests on 2,000.
    """
    model = functools.partial(convolutional.CNN, (1, 6, 16), (400, 120, 84, 10), paddings=(2, 0))
    description = "LeNet-5, ReLU, pooling by the greatest"
    return mnist("LeNet-5", description, model, 256, quick, images=20_000)


def build_mnist_svr_cnn(quick: bool) -> Problem:
    """MNIST by a small CNN, the paper on SVR-NAQ: 6,028 parameters, sigmoid, batches of 64.

    The paper's setting: 3 and 5 filters of 3×3, each followed by the greatest of 2×2, sigmoid,
    softmax cross entropy, weights from U(−0.5, 0.5), m = 4, 55,000 images and 25 epochs.

    Decided here: no padding and 43 hidden units, with which the parameters are exactly the 6,028
    of the paper's table (its text says 100 hidden units, which would make 13,780); biases from
    U(−0.5, 0.5) too; pixels normalized. The first 20,000 images, as far as two cores allow.

    The quick form trains on the first 10,000 images and tests on 2,000.
    """
    model = functools.partial(
        convolutional.CNN,
        (1, 3, 5),
        (125, 43, 10),
        activation=nnx.sigmoid,
        size=3,
        paddings=(0, 0),
        initializer=perceptron.symmetric_uniform(0.5),
    )
    description = "3 and 5 filters of 3×3, 43, sigmoid, U(−0.5, 0.5)"
    return mnist("CNN of 6,028 parameters", description, model, 64, quick, images=20_000)


def build_cifar_svr_cnn(quick: bool) -> Problem:
    """CIFAR-10 by a small CNN, the paper on SVR-NAQ: 13,170 parameters, sigmoid, batches of 128.

    The paper's setting: two convolutions, each followed by the greatest of 2×2, one hidden layer,
    13,170 parameters, sigmoid, softmax cross entropy, weights from U(−0.5, 0.5), m = 4, 50 epochs.

    Decided here: 3 and 3 filters of 3×3 that keep the image's size and 64 hidden units, which have
    exactly that number of parameters (the paper does not print its layers); biases from
    U(−0.5, 0.5) too; pixels normalized by channel, no augmentation. The first 10,000 images, as far
    as two cores allow.

    The quick form trains on the first 2,000 images and tests on 1,000.
    """
    model = functools.partial(
        convolutional.CNN,
        (3, 3, 3),
        (192, 64, 10),
        activation=nnx.sigmoid,
        size=3,
        paddings=(1, 1),
        initializer=perceptron.symmetric_uniform(0.5),
    )
    description = "3 and 3 filters of 3×3, 64, sigmoid, U(−0.5, 0.5)"
    return cifar("CNN of 13,170 parameters", description, model, 128, quick)


def mnist(
    name: str,
    description: str,
    model: Callable[..., Any],
    batch_size: int,
    quick: bool,
    images: int = 60_000,
    quick_images: int = 10_000,
    **options: Any,
) -> Problem:
    """Returns the task of classifying whole images of MNIST."""
    count, tested = (quick_images, 2_000) if quick else (images, 10_000)
    loaded = labelled_images.load_mnist()
    channel = loaded._replace(
        train_inputs=loaded.train_inputs[..., None], test_inputs=loaded.test_inputs[..., None]
    )
    task = _classified("MNIST", name, description, model, batch_size, channel, (count, tested))
    return dataclasses.replace(task, prepare=_normalized(MEAN, DEVIATION), **options)


def cifar(
    name: str,
    description: str,
    model: Callable[..., Any],
    batch_size: int,
    quick: bool,
    images: int = 10_000,
    tested: int = 10_000,
    **options: Any,
) -> Problem:
    """Returns the task of classifying images of CIFAR-10, normalized by channel."""
    sizes = (2_000, 1_000) if quick else (images, tested)
    loaded = labelled_images.load_cifar10()
    task = _classified("CIFAR-10", name, description, model, batch_size, loaded, sizes)
    prepare = _normalized(jnp.asarray(CIFAR_MEAN), jnp.asarray(CIFAR_DEVIATION))
    return dataclasses.replace(task, prepare=prepare, **options)


def _normalized(mean: Any, deviation: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda inputs: (inputs.astype(jnp.float32) / 255 - mean) / deviation


def _classified(
    source: str,
    name: str,
    description: str,
    model: Callable[..., Any],
    batch_size: int,
    loaded: Dataset,
    sizes: tuple[int, int],
) -> Problem:
    """Returns the task of classifying the first images, so many for training and for testing."""
    count, tested = sizes
    batch_size = min(batch_size, count)  # the quick form has fewer images than the largest batch
    return Problem(
        title=f"{source}, {count:,} images, {name}, batch {batch_size}",
        settings={
            "images": count,
            "test_images": tested,
            "model": f"{name}: {description}",
            "batch_size": batch_size,
        },
        model=model,
        train=tuple(jnp.asarray(x[:count]) for x in (loaded.train_inputs, loaded.train_targets)),
        test=tuple(jnp.asarray(x[:tested]) for x in (loaded.test_inputs, loaded.test_targets)),
        batch_size=batch_size,
        losses=problem.cross_entropies,
        hits=problem.accuracies,
    )


_REDUCED = ("adam", "adam-cosine", "svrg", "svrg2", "olnaq-80", "svr-lnaq")
STUDIES = (
    MiniBatchStudy(
        "digits-mlp",
        build_digits_mlp,
        epochs=25,
        quick_epochs=10,
        seeds=5,
        optimizers=("adam", "adam-cosine", "sgd", *DENSE, *LIMITED),
        published={"obfgs": "92.5%", "onaq": "92.5%", "omoq": "92.8%"},
    ),
    # The slides' figure on the effect of normalising the direction.
    MiniBatchStudy(
        "digits-normalize",
        build_digits_mlp,
        epochs=25,
        quick_epochs=10,
        seeds=5,
        optimizers=("onaq", "onaq-plain", "olnaq", "olnaq-plain"),
    ),
    MiniBatchStudy(
        "mnist-mlp",
        build_mnist_mlp,
        epochs=10,
        quick_epochs=3,
        seeds=3,
        optimizers=("adam", "adam-cosine", "sgd", *LIMITED),
        published={"olbfgs": "96.37%", "olnaq": "97.90%", "olmoq": "97.67%"},
    ),
    *(
        MiniBatchStudy(
            name,
            functools.partial(build_mnist_cnn, initializer=initializer),
            epochs=10,
            quick_epochs=3,
            seeds=1,
            optimizers=("adam", "adam-cosine", "sgd", "olbfgs", "olnaq-95", "olmoq-halved"),
            published={"olbfgs": "86.4%", "olnaq-95": "97.2%"},
        )
        for name, initializer in (
            ("mnist-cnn", None),
            ("mnist-cnn-normal", nnx.initializers.normal(1.0)),
        )
    ),
    MiniBatchStudy(
        "mnist-lenet",
        build_mnist_lenet,
        epochs=10,
        quick_epochs=3,
        seeds=1,
        optimizers=(
            "adam",
            "adam-cosine",
            "sgd",
            "olbfgs",
            "olnaq",
            "olmoq-halved",
            "lsr1",
            "lsr1-memory-8",
            "sr1n",
            "mosr1",
        ),
    ),
    MiniBatchStudy("mnist-svr-cnn", build_mnist_svr_cnn, 25, 3, seeds=1, optimizers=_REDUCED),
    MiniBatchStudy("cifar-svr-cnn", build_cifar_svr_cnn, 25, 3, seeds=1, optimizers=_REDUCED),
)
