"""Character language models of Shakespeare."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data import sequences
from benchmarks.models import recurrent
from benchmarks.training import problem
from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.problem import Problem

HIDDEN = 100
LENGTH = 50
BATCH_SIZE = 50


def build_rnn(quick: bool) -> Problem:
    """Next character of Shakespeare: a tanh RNN of 5 layers of 100 over windows of 50.

    The paper's slides show a 5-layer RNN on a character task in which aSNAQ is ahead; data,
    sizes and settings are not published.

    Decided here: the first 250,000 characters of the training part in 5,000 windows of T = 50
    that do not overlap, each read from a zero state; one-hot inputs; the output at every step;
    cross entropy per character in nats; batches of 50, 100 steps an epoch, 10 epochs; both losses
    are those of the first 25,000 characters of their part. The weights start as in Flax's own cells
    (LeCun normal for the inputs, orthogonal for the recurrence): five layers of N(0, 0.01²) pass
    nothing on. Biases zero.

    The quick form has 50,000 characters and evaluates on 10,000.
    """
    return _problem("5-layer RNN", recurrent.Elman, 5, quick)


def build_lstm(quick: bool) -> Problem:
    """Next character of Shakespeare: an LSTM of 2 layers of 100 over windows of 50.

    The paper's slides show a 2-layer LSTM on a character task in which aSNAQ is ahead; data,
    sizes and settings are not published.

    Decided here: everything as for the RNN of 5 layers; the forget gates' biases are zero too.
    """
    return _problem("2-layer LSTM", recurrent.LSTM, 2, quick)


def build_gru(quick: bool) -> Problem:
    """Next character of Shakespeare: gated recurrent units, 2 layers of 100 over windows of 50.

    Not in the papers, between their two networks.

    Decided here: everything as for the LSTM; the reset gate behind the product with the state.
    """
    return _problem("2-layer GRU", recurrent.GRU, 2, quick)


def _problem(name: str, cell: recurrent.Cell, depth: int, quick: bool) -> Problem:
    """Returns the task of predicting each next character of the windows."""
    characters, tested = (50_000, 10_000) if quick else (250_000, 25_000)
    text = sequences.load_shakespeare()
    symbols = len(text.symbols)

    def windows(codes: np.ndarray, length: int) -> tuple[jax.Array, jax.Array]:
        codes = codes[: length + 1]
        shape = (length // LENGTH, LENGTH)
        return jnp.asarray(codes[:-1].reshape(shape)), jnp.asarray(codes[1:].reshape(shape))

    return Problem(
        title=(
            f"Shakespeare, {characters:,} characters, {name} {HIDDEN}, windows of {LENGTH}, "
            f"batch {BATCH_SIZE}"
        ),
        settings={
            "characters": characters,
            "test_characters": tested,
            "length": LENGTH,
            "symbols": symbols,
            "model": f"{name} {HIDDEN}, LeCun normal and orthogonal",
            "batch_size": BATCH_SIZE,
        },
        model=functools.partial(
            recurrent.SequenceModel,
            symbols,
            HIDDEN,
            symbols,
            cell=cell,
            depth=depth,
            every_step=True,
            **recurrent.as_in_flax(),
        ),
        train=windows(text.train, characters),
        test=windows(text.test, tested),
        batch_size=BATCH_SIZE,
        losses=problem.cross_entropies,
        hits=problem.accuracies,
        evaluated=tested // LENGTH,
        prepare=lambda codes: jax.nn.one_hot(codes, symbols),
    )


STUDIES = (
    MiniBatchStudy("char-rnn", build_rnn, epochs=10, quick_epochs=15, seeds=3),
    MiniBatchStudy("char-lstm", build_lstm, epochs=10, quick_epochs=15, seeds=3),
    MiniBatchStudy("char-gru", build_gru, epochs=10, quick_epochs=15, seeds=3),
)
