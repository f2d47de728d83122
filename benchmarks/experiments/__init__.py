"""The experiments by name."""

from collections.abc import Mapping

from benchmarks.experiments import characters, counting, digits, mnist
from benchmarks.problem import Experiment

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
    )
}
