"""The networks of the paper on L-SR1 (Ramamurthy and Duffy, 2017)."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx

from benchmarks.models import convolutional
from benchmarks.studies import classifiers
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.optimizers import BATCH_CHOICES, MEMORY_CHOICES, RADIUS_CHOICES
from benchmarks.training.problem import Problem


def build_mnist(
    quick: bool, batch_norm: bool = False, batch_size: int = 400, images: int = 10_000
) -> Problem:
    """MNIST by the LeNet of the paper on L-SR1: 431,080 parameters.

    The paper's setting: 20 and 50 filters of 5×5 without padding and with ReLU, each followed by
    the greatest of 2×2, and 500 units of tanh; the filters' and the outputs' weights from
    N(0, 0.1²); ½ 0.0001 ‖w‖² added to the softmax cross entropy; with and without batch
    normalization behind the activations; m = 5; 20 epochs of 60,000 images, 10 runs. The
    second-order methods had batches of 400, the first-order ones of 20.

    Decided here: pixels normalized; the hidden layer's weights LeCun normal; the running averages
    forget 0.1 a step; the first 10,000 images, 10 epochs and one seed, as far as two cores allow;
    20,000 images for the table of batch sizes, and 30 epochs at the largest.

    The quick form tests on 2,000 images and has fewer epochs.
    """
    model = functools.partial(
        convolutional.LeNet,
        28,
        (1, 20, 50),
        500,
        padding=0,
        deviation=0.1,
        hidden_init=nnx.initializers.lecun_normal(),
        activation=jnp.tanh,
        batch_norm=batch_norm,
    )
    return classifiers.mnist(
        _named(batch_norm),
        "20 and 50 filters, 500 tanh, weight decay 0.0001",
        model,
        batch_size,
        quick,
        images=images,
        **_options(1e-4),
    )


def build_cifar(
    quick: bool, batch_norm: bool = False, batch_size: int = 400, images: int = 10_000
) -> Problem:
    """CIFAR-10 by the LeNet of the paper on L-SR1: 145,578 parameters.

    The paper's setting: 32, 32 and 64 filters of 5×5 that keep the image's size, with ReLU, each
    followed by the greatest of 2×2, and 64 units of ReLU; the filters' weights from N(0, 0.01²),
    the others' from N(0, 0.1²); ½ 0.001 ‖w‖² added to the softmax cross entropy; with and without
    batch normalization behind the activations; m = 5; 20 epochs of 50,000 images, 10 runs. The
    second-order methods had batches of 400, the first-order ones of 96.

    Decided here: pixels normalized by channel, no augmentation; the second ReLU that the paper
    lists behind the first pooling is left out; the running averages forget 0.1 a step; the first
    10,000 images, tested on 5,000, 10 epochs and one seed, as far as two cores allow; 20,000 images
    for the table of batch sizes, and 30 epochs at the largest.

    The quick form trains on 2,000 images and tests on 1,000.
    """
    model = functools.partial(
        convolutional.LeNet,
        32,
        (3, 32, 32, 64),
        64,
        padding=2,
        deviation=0.01,
        hidden_init=nnx.initializers.normal(0.1),
        activation=nnx.relu,
        batch_norm=batch_norm,
    )
    return classifiers.cifar(
        _named(batch_norm),
        "32, 32 and 64 filters, 64 ReLU, weight decay 0.001",
        model,
        batch_size,
        quick,
        images=images,
        tested=5_000,
        **_options(1e-3),
    )


def build_resnet(quick: bool) -> Problem:
    """CIFAR-10 by a residual network of 20 layers, batches of 128.

    The paper's setting: He et al.'s network with n = 3, its initialization and batch normalization;
    batches of 128, m = 5, 200 epochs of 50,000 images; SGD with momentum by He et al.'s rates, Adam
    by its defaults.

    Decided here: shortcuts without parameters (option A) and ½ 0.0001 ‖w‖², as He et al.; no
    augmentation; pixels normalized by channel; the running averages forget 0.1 a step. The first
    5,000 images, tested on 2,000, and 4 epochs: a thousandth of the paper's images.

    The quick form trains on 2,000 images and tests on 1,000.
    """
    return classifiers.cifar(
        "ResNet-20",
        "16, 32, 64 channels, 3 blocks each, shortcuts A, weight decay 0.0001",
        convolutional.ResNet,
        128,
        quick,
        images=5_000,
        tested=2_000,
        **_options(1e-4),
    )


def _named(batch_norm: bool) -> str:
    return "LeNet of the L-SR1 paper" + (" with batch norm" if batch_norm else "")


def _options(weight_decay: float) -> dict[str, Any]:
    return {"weight_decay": weight_decay, "stepwise": True, "evaluated": 2_000}


_BUILDS = {"mnist": build_mnist, "cifar": build_cifar}
_FIRST_ORDER = ("adam", "adam-cosine", "sgd", "sgd-plain", "momentum", "adadelta")
_PRINTED_RATES = {"mnist": 0.003, "cifar": 0.01}
_FIRST_ORDER_BATCHES = {"mnist": 20, "cifar": 96}
# The paper's sizes, which it trains for 50, 50 and 200 epochs.
_BATCHES_AND_EPOCHS = ((500, 10), (1000, 10), (10_000, 30))
_TARGET_ERRORS = {"mnist": (0.05, 0.03, 0.02), "cifar": (0.6, 0.5, 0.45)}


def _with_and_without_norm(source: str, batch_norm: bool) -> MiniBatchStudy:
    """Returns an experiment of the paper, the first-order methods at their own batches."""
    return MiniBatchStudy(
        f"{source}-lsr1" + ("-bn" if batch_norm else ""),
        functools.partial(_BUILDS[source], batch_norm=batch_norm),
        epochs=10,
        quick_epochs=3,
        seeds=1,
        optimizers=("lsr1", "sr1n", "lbfgs-search", "lbfgs-forgetting", *_FIRST_ORDER),
        batch_sizes=dict.fromkeys(_FIRST_ORDER, _FIRST_ORDER_BATCHES[source]),
        printed_rates=dict.fromkeys(("sgd", "sgd-plain", "momentum"), _PRINTED_RATES[source]),
    )


def _scaled_batches(source: str, batch_size: int, epochs: int) -> MiniBatchStudy:
    """Returns a cell of the paper's table on the size of the batches."""
    options = {"batch_norm": True, "batch_size": batch_size, "images": 20_000}
    return MiniBatchStudy(
        f"{source}-batch-{batch_size}",
        functools.partial(_BUILDS[source], **options),
        epochs=epochs,
        quick_epochs=3,
        seeds=1,
        optimizers=("lsr1", "adam", "adam-cosine", "sgd"),
        target_errors=_TARGET_ERRORS[source],
    )


STUDIES = (
    *(_with_and_without_norm(images, norm) for images in _BUILDS for norm in (False, True)),
    *(_scaled_batches(images, *size) for images in _BUILDS for size in _BATCHES_AND_EPOCHS),
    # The paper's figure 6, which has ResNet-20 on CIFAR-10 and 200 epochs.
    MiniBatchStudy(
        "mnist-lsr1-choices",
        functools.partial(build_mnist, batch_norm=True, batch_size=128),
        epochs=10,
        quick_epochs=3,
        seeds=1,
        optimizers=("lsr1", *RADIUS_CHOICES, *MEMORY_CHOICES, *BATCH_CHOICES),
        batch_sizes=BATCH_CHOICES,
    ),
    MiniBatchStudy(
        "cifar-resnet20",
        build_resnet,
        epochs=4,
        quick_epochs=1,
        seeds=1,
        optimizers=("lsr1", "adam", "adam-cosine", "sgd"),
    ),
)
