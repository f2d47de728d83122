"""Times, and what is made of them.

Machines differ and are seldom quiet, so what is reported is never a time alone: the functions of a
group take turns, in another order each round, and a ratio is the median of the rounds' ratios.
"""

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.reports import records
from benchmarks.reports.progress import progress_bar

Entry = dict[str, Any]
Times = dict[Any, list[float]]
Turns = Mapping[Any, Callable[[], Any]]


class Donating:
    """A turn of a function whose first argument is donated and given back.

    What a line search or a trust region does depends on where it stands, and at a minimum there is
    nothing left to do; so every turn begins anew from the same start, copied before the clock runs.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        start: Any,
        *arguments: Any,
        keeps: bool = True,
        restarts: bool = True,
    ):
        """Takes the function and its arguments.

        Args:
          function: (carry, *arguments) to the carry, or to the carry and something else.
          start: the first carry; it is not donated if turns begin anew.
          *arguments: the other arguments.
          keeps: whether the function returns the carry alone.
          restarts: whether every turn begins anew; otherwise it goes on from where the last ended,
            so that a large carry needs no second copy.
        """
        self.function, self.arguments = function, arguments
        self.start = start if restarts else None
        self.carry = None if restarts else start
        self.keeps = keeps

    def prepare(self) -> None:
        """Copies the start."""
        if self.start is not None:
            self.carry = jax.block_until_ready(copy(self.start))

    def __call__(self) -> Any:
        """Takes the turn."""
        # Not held here while it runs, so that what is donated can be used again.
        carry, self.carry = self.carry, None
        result = self.function(carry, *self.arguments)
        if self.start is None:
            self.carry = result if self.keeps else result[0]
        return result


def copy(tree: Any) -> Any:
    """Returns a tree of arrays that shares no memory with this one."""
    return jax.tree.map(jax.numpy.copy, tree)


def interleaved(
    turns: Turns,
    rounds: int,
    *,
    warm_up: bool = True,
    label: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Lets functions take turns, and times each turn.

    Args:
      turns: the functions; where one has a method `prepare`, that is called before the clock runs,
        and `settle` after it.
      rounds: how many turns of each are timed.
      warm_up: whether another round comes first that is not timed.
      label: what a progress bar is called, if there is to be one.
      clock: what tells the seconds.

    Returns:
      By the functions' names, the seconds of each round.
    """
    times: Times = {name: [] for name in turns}
    order, shuffle = list(turns), random.Random(0).shuffle
    bar = progress_bar(label, len(turns) * (rounds + warm_up), unit="turn") if label else None
    with bar or contextlib.nullcontext():
        for round_ in range(-warm_up, rounds):
            shuffle(order)  # whatever a turn leaves to the next, it is not always the same one
            for name in order:
                turn = turns[name]
                getattr(turn, "prepare", lambda: None)()
                started = clock()
                jax.block_until_ready(turn())
                seconds = clock() - started
                getattr(turn, "settle", lambda: None)()
                if round_ >= 0:
                    times[name].append(seconds)
                if bar is not None:
                    bar.update()
    return times


def entry(name: str, group: str, value: float | None, target: float | None = None, **more: Any):
    """Returns a line of a table.

    Args:
      name: what is measured.
      group: on what it is measured; lines of one group come into one panel.
      value: the number.
      target: what it shall not be above.
      **more: other numbers and texts; those of None are left out.

    Returns:
      The entry, its numbers rounded.
    """
    content = {"target": target} | more
    return {"name": name, "group": group, "value": records.rounded(value)} | {
        key: records.rounded(item) if isinstance(item, float) else item
        for key, item in content.items()
        if item is not None
    }


def ratio(
    name: str,
    group: str,
    top: Sequence[float],
    bottom: Sequence[float],
    target: float | None = None,
    *,
    repeated: int = 1,
    **more: Any,
) -> Entry:
    """Returns the median of the rounds' ratios, their quartiles and both median times in ms.

    Args:
      name: see `entry`.
      group: see `entry`.
      top: seconds of each round.
      bottom: likewise.
      target: see `entry`.
      repeated: how many steps there are in a turn.
      **more: see `entry`.

    Returns:
      The entry.
    """
    times = {
        "top_ms": 1e3 * statistics.median(top) / repeated,
        "bottom_ms": 1e3 * statistics.median(bottom) / repeated,
    }
    values = [a / b for a, b in zip(top, bottom, strict=True)]
    return median(name, group, values, target, **times, **more)


def median(
    name: str, group: str, values: Sequence[float], target: float | None = None, **more: Any
) -> Entry:
    """Returns the entry of the median of numbers of which each round gives one."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    spread = {"low": ordered[quarter], "high": ordered[-1 - quarter]} if len(values) > 1 else {}
    rounds = len(values)
    return entry(name, group, statistics.median(values), target, **spread, rounds=rounds, **more)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, list[float]]:
    """Returns b of t ~ n^b by least squares on logarithms, and the sizes that it is fitted to.

    What any size costs would hide the growth, so sizes count from where the time is twice the
    shortest on, and at least the three largest.
    """
    shortest = min(seconds)
    beyond = [i for i, t in enumerate(seconds) if t >= 2 * shortest]
    first = min([*beyond, max(len(sizes) - 3, 0)])
    logarithms = [(math.log(n), math.log(t)) for n, t in zip(sizes, seconds, strict=True)]
    x, y = np.array(logarithms[first:]).T
    return float(np.polyfit(x, y, 1)[0]), list(sizes[first:])


def growth(
    name: str,
    group: str,
    sizes: Sequence[int],
    times: Times,
    target: float | None,
    *,
    repeated: int,
) -> Entry:
    """Returns the entry of a fitted exponent, with the points for a picture.

    Args:
      name: see `entry`.
      group: see `entry`.
      sizes: what the time depends on.
      times: by size, the seconds of each round.
      target: see `entry`.
      repeated: how many steps there are in a turn.

    Returns:
      The entry.
    """
    seconds = [statistics.median(times[size]) / repeated for size in sizes]
    value, used = exponent(sizes, seconds)
    return entry(
        name,
        group,
        value,
        target,
        rounds=len(times[sizes[0]]),
        points=f"{used[0]:,} to {used[-1]:,}",
        sizes=list(sizes),
        step_ms=[records.rounded(1e3 * t) for t in seconds],
    )
