"""The time that it takes to trace, lower and compile a training step, and how long it becomes."""

import contextlib
import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.speed import calls, programs, stepping, tasks, timing
from benchmarks.speed.calls import ADAM, CALLS, LBFGS, SGD, Call
from benchmarks.speed.sizes import Sizes
from benchmarks.speed.tasks import Task
from benchmarks.speed.timing import Entry
from benchmarks.training.problem import Params

_HALF = ("obfgs", "onaq", "omoq", "svr_naq", "adaqn")  # which take no line search
_PICTURED = ("onaq-flat", "asnaq-flat")  # more lines would hide each other
_FLAT = "-flat"  # the end of a flattened call's name
GRADIENT = "loss and gradient"
_SGD, _SGD_FLAT = "sgd", "sgd-flat"  # what splitting and joining alone costs
_PEERS = (GRADIENT, "adam", _SGD, _SGD_FLAT)  # which have no target


def by_arrays(sizes: Sizes) -> list[Entry]:
    """Compares compile times with Optax's L-BFGS over the number of the params' arrays."""
    both_ways = _both_ways(sizes)
    compared = both_ways | {_SGD: SGD, _SGD_FLAT: calls.flat(SGD)}
    found, measured = [], {}
    for arrays, rounds in sizes.compile_rounds.items():
        task = tasks.tanh_network(arrays)
        entries, times = _compared(task, compared, rounds, tasks.plural(arrays, "array"), arrays)
        found += entries
        measured[arrays] = times
    one, most = min(measured), max(measured)
    flattened = {name: call for name, call in both_ways.items() if name.endswith(_FLAT)}
    return found + [_flatness(call, measured, one, most, name) for name, call in flattened.items()]


def _both_ways(sizes: Sizes) -> dict[str, Call]:
    """Returns Adam and the calls as they are and flattened."""
    return {"adam": ADAM} | _with_flat(calls.chosen(sizes.calls))


def _with_flat(compared: Mapping[str, Call]) -> dict[str, Call]:
    flattened = {name + _FLAT: calls.flat(call) for name, call in compared.items()}
    return {**compared, **flattened}


def by_network(sizes: Sizes) -> list[Entry]:
    """Compares compile times with Optax's L-BFGS on networks of many kinds of layers."""
    found = []
    for task in (
        tasks.resnet(sizes.residual_blocks),
        tasks.text_transformer(sizes.transformer_blocks),
    ):
        arrays = len(jax.tree.leaves(task.params))
        group = f"{task.title}, {tasks.plural(arrays, 'array')}"
        found += _compared(task, _both_ways(sizes), 1, group)[0]
    return found


def of_matrices(sizes: Sizes) -> list[Entry]:
    """Compares compile times of steps with a dense matrix with Optax's L-BFGS."""
    found, compared = [], _with_flat(calls.DENSE)
    for arrays, rounds in sizes.dense_compile_rounds.items():
        task = tasks.tanh_network(arrays)
        found += _compared(task, compared, rounds, f"compiling, {tasks.plural(arrays, 'array')}")[0]
    return found


def by_memory(sizes: Sizes) -> list[Entry]:
    """Compares compile times with Optax's L-BFGS over the memory size."""
    task = tasks.tanh_network(4)
    found = []
    for m in sizes.compile_memories:
        names = ["bfgs", "onaq"] + (["lsr1"] if m <= 100 else [])
        turns = {name: Compiling(task, CALLS[name].with_options(memory_size=m)) for name in names}
        peer = Compiling(task, LBFGS.with_options(memory_size=m))
        times = _timed({**turns, "lbfgs": peer}, 1, f"compile, m = {m}")
        for name, turn in turns.items():
            found.append(
                timing.ratio(
                    f"compiling {name} / optax.lbfgs",
                    f"compiling, m = {m}",
                    times[name],
                    times["lbfgs"],
                    1.5,
                    kernels=turn.kernels,
                )
            )
    return found


class Compiling:
    """A turn that compiles a donated training step as if for the first time.

    Attributes:
      kernels: how many the optimized program has, known after a turn.
    """

    def __init__(self, task: Task, call: Call | None):
        """Takes a task and a call; None for the loss and its gradient alone."""
        self.data, self.kernels = task.data, 0
        self.compiled: Any = None
        self.carry: Any = jax.eval_shape(lambda: task.params)
        if call is None:
            self.jitted: Any = jax.jit(jax.value_and_grad(task.loss))
            return

        def start(params: Params) -> stepping.Carry:
            return params, call.transformation().init(params)

        self.carry = jax.eval_shape(start, self.carry)
        self.jitted = jax.jit(stepping.step_of(task, call), donate_argnums=0)

    def prepare(self) -> None:
        """Forgets what has been traced and compiled."""
        jax.clear_caches()
        gc.collect()

    def __call__(self) -> None:
        """Compiles."""
        self.compiled = self.jitted.lower(self.carry, self.data).compile()

    def settle(self) -> None:
        """Counts the kernels and lets the program go: a full heap slows the next turn down."""
        self.kernels = programs.kernels(self.compiled.as_text())
        self.compiled = None


def _timed(turns: Mapping[str, Compiling], rounds: int, label: str) -> timing.Times:
    """Times compilations without JAX's cache on disk; one beforehand loads what they all need."""
    with _no_cache():
        first = next(iter(turns.values()))
        first.prepare()
        first()
        # Of the processor, which other work disturbs less; XLA compiles on the host.
        clock = time.process_time
        return timing.interleaved(turns, rounds, warm_up=False, label=label, clock=clock)


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Turns off the cache on disk.

    Whether there is one JAX asks once in its life, so that the option alone would come too late.
    """
    enabled = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def _compared(
    task: Task, compared: Mapping[str, Call], rounds: int, group: str, arrays: int | None = None
) -> tuple[list[Entry], timing.Times]:
    """Compares the compile times of calls with that of Optax's L-BFGS."""
    turns = {"lbfgs": Compiling(task, LBFGS), GRADIENT: Compiling(task, None)}
    turns |= {name: Compiling(task, call) for name, call in compared.items()}
    times = _timed(turns, rounds, f"compile, {group}")
    labels = {GRADIENT: GRADIENT} | {name: call.label for name, call in compared.items()}
    entries = []
    for name, label in labels.items():
        half = name.removesuffix(_FLAT) in _HALF
        target = None if name in _PEERS else 0.5 if half else 1.0
        entries.append(
            timing.ratio(
                f"{label} / optax.lbfgs",
                group,
                times[name],
                times["lbfgs"],
                target,
                kernels=turns[name].kernels,
                peer_kernels=turns["lbfgs"].kernels,
                line=None if name.endswith(_FLAT) and name not in _PICTURED else label,
                arrays=arrays,
            )
        )
    return entries, times


def _flatness(
    call: Call, measured: Mapping[int, timing.Times], one: int, most: int, name: str
) -> Entry:
    """Compares a flattened call's compile time with many arrays and with one.

    Every gradient that a step takes is a copy of the loss's own program, whose compile time grows
    with its layers; it is taken off. Part of the rest is nothing but the arrays' own number: the
    note has the ratio that one splitting and one joining of them would leave, which are what
    flattened SGD adds to SGD.
    """

    def seconds(arrays: int, gradients: int) -> float:
        times = measured[arrays]
        return statistics.median(times[name]) - gradients * statistics.median(times[GRADIENT])

    own = [seconds(arrays, call.gradients) for arrays in (most, one)]
    peers = [statistics.median(measured[most][name]) for name in (_SGD_FLAT, _SGD)]
    least = 1 + (peers[0] - peers[1]) / own[1]
    return timing.entry(
        f"{call.label}, {most} arrays / {tasks.plural(one, 'array')}",
        "less the gradients' own",
        own[0] / own[1],
        1.2,
        top_ms=1e3 * own[0],
        bottom_ms=1e3 * own[1],
        note=f"gradients included {seconds(most, 0) / seconds(one, 0):.3g}; "
        f"of splitting and joining alone {least:.3g}",
    )
