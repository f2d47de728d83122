"""Multi-batch oLMoQ beside oLMoQ and oLNAQ, at equal numbers of examples' gradients."""

import functools

from benchmarks.models import convolutional, perceptron
from benchmarks.studies import classifiers
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.problem import Problem


def build_mlp(quick: bool) -> Problem:
    """MNIST by the perceptron of `mnist-mlp`, for batches in three overlapping parts.

    The slides on the family name multi-batch oLMoQ as future work, without a setting.

    Decided here: the network and the data of `mnist-mlp`; batches of 129, which three parts of 43
    make. Every method takes as many gradients of examples, and oLMoQ and its multi-batch form as
    many steps of as many examples, of which the latter sees a third, each of them three times. With
    batch normalization a part's gradient is that by its own 43 examples, and the running averages
    move by the mean of the three. λ is the papers' 1 and also 0, where the share of the pairs that
    are refused is that of negative curvature. (Of two batches sᵀy is hardly ever negative: s goes
    against ĝ, which stands in y with a minus, and so do the two with ĝ's noise.)

    The quick form trains on the first 10,000 images and tests on 2,000.
    """
    model = functools.partial(perceptron.MLP, (784, 100, 50, 10), batch_norm=True)
    return classifiers.mnist(
        "784-100-50-10 with batch norm", "batch norm 0.9, ReLU", model, 129, quick
    )


def build_lenet(quick: bool) -> Problem:
    """MNIST by LeNet-5 of `mnist-lenet`, for batches in three overlapping parts.

    As `mnist-mlp-multibatch`; batches of 258, which three parts of 86 make, and the first 20,000
    images, as `mnist-lenet`.

    The quick form trains on the first 3,096 images, 12 batches, and tests on 2,000.
    """
    model = functools.partial(convolutional.CNN, (1, 6, 16), (400, 120, 84, 10), paddings=(2, 0))
    description = "LeNet-5, ReLU, pooling by the greatest"
    sizes = {"images": 20_000, "quick_images": 3_096}
    return classifiers.mnist("LeNet-5", description, model, 258, quick, **sizes)


# A multiple of 2 and of 3, so that each has the same number of gradients.
_EPOCHS, _QUICK_EPOCHS = 12, 6
_METHODS = ("adam", "olmoq", "olmoq-multi", "olmoq-undamped", "olmoq-multi-undamped", "olnaq")
STUDIES = tuple(
    MiniBatchStudy(
        name,
        build,
        epochs=_EPOCHS,
        quick_epochs=_QUICK_EPOCHS,
        seeds=seeds,
        optimizers=_METHODS,
        equal_gradients=True,
    )
    for name, build, seeds in (
        ("mnist-mlp-multibatch", build_mlp, 5),
        ("mnist-lenet-multibatch", build_lenet, 3),
    )
)
