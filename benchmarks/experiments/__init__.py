"""The experiments by name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.experiments import (
    characters,
    classifiers,
    counting,
    digits,
    logistic,
    mnist,
    regression,
)
from benchmarks.problem import Experiment, Problem

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


EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment("counting", counting.build, epochs=75, quick_epochs=30, seeds=5),
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
            optimizers=("adam", "sgd", "olbfgs", "olnaq", "olmoq-halved"),
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
