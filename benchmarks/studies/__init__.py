"""The experiments by name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.studies import (
    characters,
    classifiers,
    counting,
    digits,
    lenets,
    logistic,
    mnist,
    regression,
)
from benchmarks.training.experiment import Experiment
from benchmarks.training.problem import Problem

VARIANTS = (
    "adam",
    "asnaq",
    "asnaq-backoff",
    "asnaq-rms",
    "asnaq-rms-backoff",
    "asnaq-single",
    "asnaq-single-backoff",
    "asnaq-single-backoff-rms",
)

DENSE = ("obfgs", "onaq", "omoq")
LIMITED = ("olbfgs", "olnaq", "olmoq")


VARIANCE_REDUCED = ("adam", "svrg", "svrg2", "onaq-80", "olnaq-80", "svr-naq", "svr-lnaq")


def _regression(name: str, build: Callable[..., Problem], batch_size: int, **options: Any):
    """Returns a regression of the paper on SVR-NAQ, at one size of its batches."""
    small = functools.partial(build, batch_size=batch_size)
    functools.update_wrapper(small, build)
    options = {"epochs": 20, "quick_epochs": 5, "optimizers": VARIANCE_REDUCED} | options
    suffix = "-equal" if options.get("equal_gradients") else ""
    return Experiment(f"{name}-{batch_size}{suffix}", small, seeds=5, **options)


# As many gradients for Adam as a variance-reduced method takes in 20 epochs.
_EQUAL = {
    "epochs": 60,
    "quick_epochs": 9,
    "equal_gradients": True,
    "optimizers": ("adam", "svrg", "olnaq-80", "svr-lnaq"),
}


def _logistic(batch_size: int) -> Experiment:
    """Returns the case that breaks `optax.lbfgs`, at one size of its batches."""
    build = functools.partial(logistic.build, batch_size=batch_size)
    functools.update_wrapper(build, logistic.build)
    optimizers = ("adam", "sgd", "lbfgs", "adaqn", "asnaq", *DENSE, *LIMITED)
    return Experiment(f"logistic-{batch_size}", build, 60, 20, 5, optimizers)


_LENETS = {"mnist": lenets.build_mnist, "cifar": lenets.build_cifar}
_FIRST_ORDER_BATCHES = {"mnist": 20, "cifar": 96}
# The paper's sizes, which it trains for 50, 50 and 200 epochs.
_BATCHES_AND_EPOCHS = ((500, 10), (1000, 10), (10_000, 30))
_TARGET_ERRORS = {"mnist": (0.05, 0.03, 0.02), "cifar": (0.6, 0.5, 0.45)}


def _lenet(source: str, batch_norm: bool) -> Experiment:
    """Returns an experiment of the paper on L-SR1, the first-order methods at their own batches."""
    build = functools.partial(_LENETS[source], batch_norm=batch_norm)
    functools.update_wrapper(build, _LENETS[source])
    batches = dict.fromkeys(("adam", "sgd"), _FIRST_ORDER_BATCHES[source])
    name = f"{source}-lsr1" + ("-bn" if batch_norm else "")
    optimizers = ("lsr1", "sr1n", "adam", "sgd")
    return Experiment(name, build, 10, 3, 1, optimizers, batch_sizes=batches)


def _scaled_batches(source: str, batch_size: int, epochs: int) -> Experiment:
    """Returns a cell of the table of that paper on the size of the batches."""
    build = functools.partial(
        _LENETS[source], batch_norm=True, batch_size=batch_size, images=20_000
    )
    functools.update_wrapper(build, _LENETS[source])
    return Experiment(
        f"{source}-batch-{batch_size}",
        build,
        epochs=epochs,
        quick_epochs=3,
        seeds=1,
        optimizers=("lsr1", "adam", "sgd"),
        target_errors=_TARGET_ERRORS[source],
    )


EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "counting",
            counting.build,
            epochs=75,
            quick_epochs=30,
            seeds=5,
            optimizers=("adam", "adagrad", "adaqn", "adaqn-monitored", "asnaq"),
        ),
        Experiment("mnist-rows", mnist.build_rows, epochs=35, quick_epochs=12, seeds=3),
        Experiment("mnist-pixels", mnist.build_pixels, epochs=35, quick_epochs=25, seeds=1),
        Experiment("char-rnn", characters.build_rnn, epochs=10, quick_epochs=15, seeds=3),
        Experiment("char-lstm", characters.build_lstm, epochs=10, quick_epochs=15, seeds=3),
        Experiment(
            "counting-variants",
            counting.build,
            epochs=100,
            quick_epochs=20,
            seeds=5,
            optimizers=VARIANTS,
            equal_gradients=True,
        ),
        Experiment(
            "digits-variants",
            digits.build,
            epochs=100,
            quick_epochs=20,
            seeds=5,
            optimizers=VARIANTS,
            equal_gradients=True,
        ),
        Experiment(
            "digits-mlp",
            classifiers.build_digits_mlp,
            epochs=25,
            quick_epochs=10,
            seeds=5,
            optimizers=("adam", "sgd", *DENSE, *LIMITED),
            published={"obfgs": "92.5%", "onaq": "92.5%", "omoq": "92.8%"},
        ),
        Experiment(
            "mnist-mlp",
            classifiers.build_mnist_mlp,
            epochs=10,
            quick_epochs=3,
            seeds=3,
            optimizers=("adam", "sgd", *LIMITED),
            published={"olbfgs": "96.37%", "olnaq": "97.90%", "olmoq": "97.67%"},
        ),
        Experiment(
            "mnist-cnn",
            classifiers.build_mnist_cnn,
            epochs=10,
            quick_epochs=3,
            seeds=1,
            optimizers=("adam", "sgd", "olbfgs", "olnaq-95", "olmoq-halved"),
            published={"olbfgs": "86.4%", "olnaq-95": "97.2%"},
        ),
        Experiment(
            "mnist-lenet",
            classifiers.build_mnist_lenet,
            epochs=10,
            quick_epochs=3,
            seeds=1,
            optimizers=("adam", "sgd", "olbfgs", "olnaq", "olmoq-halved", "lsr1", "sr1n"),
        ),
        *(_lenet(images, batch_norm) for images in _LENETS for batch_norm in (False, True)),
        *(_scaled_batches(images, *size) for images in _LENETS for size in _BATCHES_AND_EPOCHS),
        Experiment(
            "cifar-resnet20",
            lenets.build_resnet,
            epochs=4,
            quick_epochs=1,
            seeds=1,
            optimizers=("lsr1", "adam", "sgd"),
        ),
        _regression("wine", regression.build_wine, 8),
        _regression("wine", regression.build_wine, 32),
        _regression("casp", regression.build_casp, 16),
        _regression("casp", regression.build_casp, 64),
        _regression("wine", regression.build_wine, 8, **_EQUAL),
        _regression("wine", regression.build_wine, 32, **_EQUAL),
        _regression("casp", regression.build_casp, 16, **_EQUAL),
        _regression("casp", regression.build_casp, 64, **_EQUAL),
        Experiment(
            "mnist-svr-cnn",
            classifiers.build_mnist_svr_cnn,
            epochs=25,
            quick_epochs=3,
            seeds=1,
            optimizers=("adam", "svrg", "svrg2", "olnaq-80", "svr-lnaq"),
        ),
        Experiment(
            "cifar-svr-cnn",
            classifiers.build_cifar_svr_cnn,
            epochs=25,
            quick_epochs=3,
            seeds=1,
            optimizers=("adam", "svrg", "svrg2", "olnaq-80", "svr-lnaq"),
        ),
        _logistic(16),
        _logistic(64),
    )
}
