"""Parts of a step on one long vector: the direction, the temporaries, and what the papers count."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.reports import records
from benchmarks.reports.progress import progress_bar
from benchmarks.speed import calls, stepping, tasks, timing
from benchmarks.speed.calls import ADAM, Call
from benchmarks.speed.sizes import Sizes
from benchmarks.speed.timing import Donating, Entry, copy
from benchmarks.training.problem import Params
from naqopt.curvature import lbfgs
from naqopt.curvature import pairs as pair_ring

MEMORY = 10
LARGE = 1_000_000  # from here on the targets of the direction hold
TEMPORARIES = 8  # copies of the params, at most


def directions(sizes: Sizes) -> list[Entry]:
    """Compares the two-loop recursion with reading S and Y twice, and with Optax's L-BFGS."""
    return [entry for size in sizes.directions for entry in _direction(size, sizes.rounds)]


def temporaries(sizes: Sizes) -> list[Entry]:
    """Counts a donated update's temporaries in copies of the params, the gradient's taken off."""
    d = sizes.temporaries
    params = {"kernel": jax.ShapeDtypeStruct((d // 1000, 1000), jnp.float32)}
    compared = [ADAM, *calls.chosen(()).values()]

    def loss(params: Params) -> jax.Array:
        return jnp.sum(jnp.square(jnp.tanh(params["kernel"]) - 1))

    gradient = _temporary_bytes(jax.jit(jax.grad(loss)), params)
    found = []
    with progress_bar("temporaries", len(compared), unit="call") as bar:
        for call in compared:
            tx = call.transformation()

            def update(grads: Params, state: Any, params: Params, tx: Any = tx) -> Any:
                return tx.update(grads, state, params, value_fn=loss)

            state = jax.eval_shape(tx.init, params)
            step = jax.jit(update, donate_argnums=(0, 1))
            amount = _temporary_bytes(step, params, state, params) - gradient
            kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
            found.append(
                timing.entry(
                    call.label,
                    f"{d:,} parameters",
                    amount / (4 * d),
                    None if call is ADAM else TEMPORARIES,
                    state=records.rounded(kept / (4 * d)),
                )
            )
            bar.update()
    return found


def costs(sizes: Sizes) -> list[Entry]:
    """Sets the optimizer's part of a step beside the papers' count, in passes over a vector."""
    d = sizes.costs
    task = tasks.quadratic(d)
    rows = jax.random.normal(jax.random.key(0), (2 * MEMORY, d))
    vector = jnp.ones(d)
    stream = jax.jit(jnp.matmul)
    compared = [ADAM, *calls.chosen(sizes.calls).values()]
    found = []
    with progress_bar("costs", len(compared), unit="call") as bar:
        for call in compared:
            turns = {
                "gradient": stepping.gradients(task),
                "step": stepping.steps(task, call),
                "stream": functools.partial(stream, rows, vector),
            }
            found.append(_passes(call, timing.interleaved(turns, sizes.rounds), task))
            bar.update()
    return found


def _passes(call: Call, times: timing.Times, task: tasks.Task) -> Entry:
    own = [
        (step - call.gradients * gradient) / task.steps
        for step, gradient in zip(times["step"], times["gradient"], strict=True)
    ]
    return timing.ratio(
        call.label,
        task.title,
        own,
        [seconds / (2 * MEMORY) for seconds in times["stream"]],
        formula=call.cost.formula if call.cost else None,
        count=call.count,
    )


def _direction(size: int, rounds: int) -> list[Entry]:
    pairs = _filled_ring(size)
    g, other = jax.random.normal(jax.random.key(5), (2, size))
    h0 = jnp.full((size,), 0.5)

    @jax.jit
    def stream(pairs: pair_ring.Pairs, g: jax.Array, other: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(rows @ vector for rows in (pairs.s, pairs.y) for vector in (g, other))

    @functools.partial(jax.jit, donate_argnums=0)
    def store(
        pairs: pair_ring.Pairs, g: jax.Array, other: jax.Array
    ) -> tuple[pair_ring.Pairs, jax.Array]:
        step = lbfgs.two_loop(pairs, g, h0)
        return _store(pairs, other, 0.5 * other + 0.1 * step / jnp.linalg.norm(step)), step

    peer = optax.scale_by_lbfgs(memory_size=MEMORY)

    @functools.partial(jax.jit, donate_argnums=0)
    def peer_update(state: Any, g: jax.Array, params: jax.Array) -> tuple[Any, jax.Array]:
        step, state = peer.update(g, state, params)
        return state, step

    state = peer.init(jnp.zeros(size))
    for k in range(MEMORY + 1):
        point = jax.random.normal(jax.random.key(k), (size,))
        # Its fresh state holds one buffer twice, which cannot be donated.
        state = copy(peer_update(copy(state), 2 * point, point)[0])
    donating = functools.partial(Donating, keeps=False, restarts=False)
    group = f"{size:,} parameters"
    times = timing.interleaved(
        {
            "stream": functools.partial(stream, pairs, g, other),
            "coefficients": functools.partial(lbfgs.two_loop, pairs, g, h0),
            "pairs": functools.partial(lbfgs.two_loop_by_pairs, pairs, g, h0),
            "store": donating(store, copy(pairs), g, other),
            "optax": donating(peer_update, state, g, other),
        },
        3 * rounds,  # short turns
        label=f"direction, {group}",
    )
    large = size >= LARGE
    compared = (
        ("two-loop by coefficients / reading S and Y twice", "coefficients", "stream", 1.15),
        ("two-loop and storing / reading S and Y twice", "store", "stream", 1.4),
        ("two-loop by pairs / reading S and Y twice", "pairs", "stream", None),
        ("optax.scale_by_lbfgs / two-loop and storing", "optax", "store", None),
    )
    return [
        timing.ratio(name, group, times[top], times[bottom], target if large else None)
        for name, top, bottom, target in compared
    ]


def _temporary_bytes(function: Any, *shapes: Any) -> int:
    return function.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def _store(pairs: pair_ring.Pairs, s: jax.Array, y: jax.Array) -> pair_ring.Pairs:
    new = pair_ring.products(pairs, s, y)
    return pair_ring.store(pairs, s, y, new, pair_ring.is_usable(new))


def _filled_ring(size: int) -> pair_ring.Pairs:
    """Returns a full ring of pairs with positive curvature."""
    keys = jax.random.split(jax.random.key(3), MEMORY)

    @jax.jit
    def fill(pairs: pair_ring.Pairs, key: jax.Array) -> pair_ring.Pairs:
        s, noise = jax.random.normal(key, (2, size))
        return _store(pairs, s, 0.5 * s + 0.1 * noise)

    return functools.reduce(fill, keys, pair_ring.init(jnp.zeros(size), MEMORY))
