"""Whole training steps of networks, the caller's gradient included, beside gradients alone."""

import functools

from benchmarks.reports.progress import progress_bar
from benchmarks.speed import calls, stepping, tasks, timing
from benchmarks.speed.calls import ADAM, Call
from benchmarks.speed.sizes import Sizes
from benchmarks.speed.tasks import Task
from benchmarks.speed.timing import Donating, Entry, Times

# What a step may cost at most, in its gradients; and in Adam's steps.
GRADIENTS = {"asnaq": 1.10, "onaq": 1.10, "asnaq-single": 1.15, "adaqn": 1.15}
ADAMS = {"omoq": 1.25}
# The parameters of the MLP are many beside its work, so that reading memories takes longer there.
MLP_GRADIENTS = {"asnaq": 1.6, "onaq": 1.3}
MLP_ADAMS = {"omoq": 1.5}
_FLATTENED = (*GRADIENTS, *ADAMS)


def measure(sizes: Sizes) -> list[Entry]:
    """Compares whole training steps with the gradients that they take."""
    compared = {"adam": ADAM} | calls.chosen(sizes.calls)
    found = []
    for network in sizes.networks:
        task = tasks.NETWORKS[network]()
        gradients = MLP_GRADIENTS if network == "MLP" else GRADIENTS
        adams = MLP_ADAMS if network == "MLP" else ADAMS
        with progress_bar(f"steps, {network}", len(compared), unit="call") as bar:
            for name, call in compared.items():
                found += _steps(
                    task, name, call, gradients.get(name), adams.get(name), sizes.rounds
                )
                bar.update()
    return found


def _steps(
    task: Task,
    name: str,
    call: Call,
    target: float | None,
    adam_target: float | None,
    rounds: int,
) -> list[Entry]:
    """Compares one call's steps, flattened where that is faster."""
    with_adam = adam_target is not None
    least = stepping.least(task, call) if target or with_adam else None
    time = functools.partial(_times, task, least=least, rounds=rounds, with_adam=with_adam)
    times, note = time(call), None
    # A loop of single steps is for convolutions, whose few kernels gain nothing.
    if name in _FLATTENED and task.looped:
        flat = calls.flat(call)
        flat_times = time(flat)
        plain, vector = (_of_gradients(task, call, t)["value"] for t in (times, flat_times))
        if vector < plain:
            call, times, note = flat, flat_times, f"not flattened {plain:.3g}"
    if least is not None:
        alone = _of_gradients(task, call, {**times, "step": times["least"]})["value"]
        note = f"evaluations and reading memories alone {alone:.3g}" + (f"; {note}" if note else "")
    found = [_of_gradients(task, call, times, target, note)]
    if adam_target is not None:
        found.append(
            timing.ratio(
                f"{call.label} step / optax.adam step",
                task.title,
                times["step"],
                times["adam"],
                adam_target,
                repeated=task.steps,
            )
        )
    return found


def _times(task: Task, call: Call, least: Donating | None, rounds: int, with_adam: bool) -> Times:
    turns = {"gradient": stepping.gradients(task), "step": stepping.steps(task, call)}
    if least is not None:
        turns["least"] = least
    if with_adam:
        turns["adam"] = stepping.steps(task, ADAM)
    return timing.interleaved(turns, rounds)


def _of_gradients(
    task: Task, call: Call, times: Times, target: float | None = None, note: str | None = None
) -> Entry:
    taken = [call.gradients * seconds for seconds in times["gradient"]]
    peer = tasks.plural(call.gradients, "gradient")
    return timing.ratio(
        f"{call.label} step / {peer}",
        task.title,
        times["step"],
        taken,
        target,
        repeated=task.steps,
        note=note,
    )
