"""Steps with a dense matrix against reading and writing the matrix once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from benchmarks.reports.progress import progress_bar
from benchmarks.speed import compiling, stepping, tasks, timing
from benchmarks.speed.calls import DENSE, Call
from benchmarks.speed.sizes import Sizes
from benchmarks.speed.timing import Donating, Entry

TARGET = 1.5  # times reading and writing the matrix once
ONE_PASS = ("bfgs, dense", "ssbfgs", "ssbroyden")  # whose pair and direction share a pass


def measure(sizes: Sizes) -> list[Entry]:
    """Times steps on a quadratic, whose loss costs nothing beside a matrix, and their compiling."""
    found = compiling.of_matrices(sizes)
    with progress_bar("matrices", 2 * len(DENSE), unit="call") as bar:
        for bits in (32, 64):
            with jax.enable_x64(bits == 64):
                for call in DENSE.values():
                    found.append(_step(call, sizes, f"float{bits}"))
                    bar.update()
    return found


def _step(call: Call, sizes: Sizes, dtype: str) -> Entry:
    d = sizes.matrix
    # In a loop XLA would copy the matrix of every step.
    task = dataclasses.replace(tasks.quadratic(d), looped=False)

    @functools.partial(jax.jit, donate_argnums=0)
    def rewrite(matrix: jax.Array) -> jax.Array:
        return matrix * 1.0001

    read = jax.jit(jnp.sum)

    def several(matrix: jax.Array, reads: bool) -> jax.Array:
        for _ in range(task.steps):
            if reads:
                jax.block_until_ready(read(matrix))
            matrix = rewrite(matrix)
        return matrix

    turns = {
        "step": stepping.steps(task, call),
        "rewrite": Donating(several, jnp.full((d, d), 0.5), False, restarts=False),
        "read too": Donating(several, jnp.full((d, d), 0.5), True, restarts=False),
    }
    times = timing.interleaved(turns, 3 * sizes.rounds)
    # H y is needed before anything of H⁺ can be written.
    least = timing.ratio("", "", times["read too"], times["rewrite"])["value"]
    return timing.ratio(
        call.label,
        f"{d:,} parameters, {dtype}",
        times["step"],
        times["rewrite"],
        TARGET if call.label in ONE_PASS else None,
        repeated=task.steps,
        note=f"reading it and rewriting it alone {least:.3g}",
    )
