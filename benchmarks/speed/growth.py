"""How the time of a step grows with the arrays, the memory and the parameters."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.reports.progress import progress_bar
from benchmarks.speed import calls, compiling, stepping, tasks, timing
from benchmarks.speed.calls import ADAM, CALLS, Call
from benchmarks.speed.sizes import Sizes
from benchmarks.speed.tasks import Task
from benchmarks.speed.timing import Entry

LINEAR = 1.05  # the exponent that passes for linear growth
SPLIT = 1.5  # what many arrays may cost at most, as against a single one
_NETWORK_CALLS = ("adaqn", "asnaq", "bfgs", "onaq", "omoq")
_MEMORIES = ("bfgs", "onaq", "lsr1", "asnaq")
ROUNDS = 5  # of turns that take seconds
ARRAY_PARAMETERS = 1000  # in each array, where their number grows


def by_split(sizes: Sizes) -> list[Entry]:
    """Compares steps on many arrays with steps on one array of as many numbers."""
    total, arrays = sizes.array_parameters, sizes.arrays
    many, one = tasks.quadratic(total, arrays, cycles=4), tasks.quadratic(total, cycles=4)
    compared = {"adam": ADAM} | calls.chosen(sizes.calls)
    pairs = [(call, many, one, name in CALLS) for name, call in compared.items()]
    width = round((total / (arrays / 2)) ** 0.5 - 0.5)
    network = tasks.tanh_network(arrays, width, cycles=4)
    one = tasks.packed(network)
    pairs += [(CALLS[name], network, one, True) for name in _NETWORK_CALLS]
    found = []
    with progress_bar("arrays", len(pairs), unit="call") as bar:
        for call, many, one, aimed in pairs:
            found += _split(call, many, one, SPLIT if aimed else None, sizes.rounds)
            bar.update()
    return found


def by_memory(sizes: Sizes) -> list[Entry]:
    """Compares compile times at large memories, and fits the growth of steps with the memory."""
    task = tasks.quadratic(sizes.memory_parameters)

    def turn(call: Call, m: int) -> stepping.Donating:
        return stepping.steps(task, call.with_options(memory_size=m))

    return compiling.by_memory(sizes) + [
        _growth(f"{CALLS[name].label}, memory size", sizes.memories, CALLS[name], turn, task.steps)
        for name in _MEMORIES
    ]


def by_size(sizes: Sizes) -> list[Entry]:
    """Fits the growth of steps with the number of parameters and of arrays."""
    small = {"fisher_size": 20}  # so that ten million parameters fit
    measured: Mapping[str, Call] = {"optax.adam": ADAM} | {
        "asnaq, m_F = 20": CALLS["asnaq"].with_options(**small),
        "onaq": CALLS["onaq"],
        "omoq": CALLS["omoq"],
        "bfgs": CALLS["bfgs"],
    }

    def long(call: Call, d: int) -> stepping.Donating:
        return stepping.steps(tasks.quadratic(d), call)

    def split(call: Call, arrays: int) -> stepping.Donating:
        return stepping.steps(tasks.quadratic(ARRAY_PARAMETERS * arrays, arrays), call)

    steps = tasks.quadratic(1).steps
    found = [
        _growth(f"{label}, parameters", sizes.lengths, call, long, steps)
        for label, call in measured.items()
    ]
    for name in ("onaq", "asnaq"):
        label = f"{CALLS[name].label}, arrays"
        found.append(_growth(label, sizes.array_counts, CALLS[name], split, steps))
    return found


def _split(call: Call, many: Task, one: Task, target: float | None, rounds: int) -> list[Entry]:
    turns = {"many": stepping.steps(many, call), "one": stepping.steps(one, call)}
    # A snapshot is handed a tree, which a flattened state does not hold.
    if call is not ADAM and not call.takes_snapshots:
        turns["flat"] = stepping.steps(many, calls.flat(call))
    times = timing.interleaved(turns, rounds)
    kernels = {name: stepping.kernels(turn) for name, turn in turns.items()}
    found = []
    for name in [name for name in turns if name != "one"]:
        label = call.label if name == "many" else calls.flat(call).label
        more = kernels[name] - kernels["one"]
        slower = statistics.median(times[name]) - statistics.median(times["one"])
        each = 1e6 * slower / many.steps / max(more, 1)
        found.append(
            timing.ratio(
                f"{label} / 1 array",
                many.title,
                times[name],
                times["one"],
                target,
                repeated=many.steps,
                note=f"{more:,} kernels more, {each:.2g} µs each",
            )
        )
    return found


def _growth(
    label: str,
    over: Sequence[int],
    call: Call,
    turn: Callable[[Call, int], stepping.Donating],
    steps: int,
) -> Entry:
    """Fits the exponent of one call; the sizes take turns."""
    turns = {size: turn(call, size) for size in over}
    times = timing.interleaved(turns, ROUNDS, label=label)
    name, _, group = label.rpartition(", ")
    # Caches make the peer's time grow faster than linearly too: no target, but a measure.
    target = None if call is ADAM else LINEAR
    return timing.growth(name, f"steps over {group}", over, times, target, repeated=steps)
