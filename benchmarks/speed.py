"""The speed of the optimizers, as ratios of times taken in one run.

Machines differ and are seldom quiet, so what is reported is never a time alone: the functions of a
group take turns, round by round, and the ratio is the median of the rounds' ratios. Temporaries
come from the compiler and are exact.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import optax

from benchmarks import models, plots, problem, records, tables
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.problem import Examples, Params, Problem
from naqopt.curvature import lbfgs
from naqopt.curvature import pairs as pair_ring

MEMORY = 10
_STEPPED = ("adam", "adaqn", "asnaq", "asnaq-single")
Times = dict[str, list[float]]


def run(out: Path, quick: bool) -> Path:
    """Measures everything, prints a table and writes JSON and a plot.

    Args:
      out: folder for `speed/speed.json` and `speed/speed.png`.
      quick: fewer rounds and a smaller largest vector.

    Returns:
      The path of the plot.
    """
    rounds = 5 if quick else 21
    sizes = (100_000, 300_000) if quick else (100_000, 1_000_000)
    task = row_network()
    click.echo("steps …")
    ratios = steps(task, rounds)
    for size in sizes:
        click.echo(f"directions of {size:,} parameters …")
        ratios += directions(size, rounds)
    click.echo("compilation …")
    ratios += compilation(task, 1 if quick else 5)
    click.echo("temporaries …")
    ratios += temporaries(sizes[-1])
    content = {
        "schema": records.SCHEMA,
        "title": "Speed of the optimizers" + (" (QUICK form)" if quick else ""),
        "quick": quick,
        "rounds": rounds,
        **records.environment(),
        "ratios": ratios,
    }
    folder = out / "speed"
    records.write(folder / "speed.json", content)
    click.echo(f"\n{tables.ratios(ratios)}\n\nnumbers: {folder / 'speed.json'}")
    path = plots.bars(ratios, content["title"], folder / "speed.png")
    click.echo(f"plot: {path}")
    return path


def row_network() -> Problem:
    """Returns the network of the rows of MNIST (13,910 parameters) on random images."""
    inputs = jax.random.uniform(jax.random.key(0), (1280, 28, 28))
    targets = jax.random.randint(jax.random.key(1), (1280,), 0, 10)
    return Problem(
        title="rows",
        settings={},
        model=functools.partial(models.SequenceModel, 28, 100, 10),
        train=(inputs, targets),
        test=(inputs, targets),
        batch_size=128,
        losses=problem.cross_entropies,
    )


def steps(task: Problem, rounds: int, length: int = 20) -> list[dict[str, Any]]:
    """Compares whole training steps, the caller's gradient included, with gradients alone.

    A turn is a scan over `length` steps, whole cycles of adaQN and aSNAQ.
    """
    params = task.params(0)
    parameters = models.parameter_count(params)
    batch = tuple(x[: task.batch_size] for x in task.train)
    descend = jax.jit(functools.partial(_descend, task, length), donate_argnums=0)
    turns = {"gradient": _repeating(descend, _copy(params), batch)}
    for name in _STEPPED:
        advance = jax.jit(functools.partial(_advance, task, name, length), donate_argnums=0)
        start = _copy(params)
        carry = (start, OPTIMIZERS[name].transformation(1e-3).init(start))
        turns[name] = _repeating(advance, carry, batch)
    times = interleaved(turns, rounds)
    doubled = [2 * seconds for seconds in times["gradient"]]
    task_name = f"row RNN, {parameters:,} parameters"
    compared = (
        ("aSNAQ step / two gradients", times["asnaq"], doubled),
        ("aSNAQ one-gradient step / gradient", times["asnaq-single"], times["gradient"]),
        ("adaQN step / Adam step", times["adaqn"], times["adam"]),
        ("aSNAQ step / Adam step", times["asnaq"], times["adam"]),
        ("Adam step / gradient", times["adam"], times["gradient"]),
    )
    return [ratio(f"{name} ({task_name})", top, bottom, length) for name, top, bottom in compared]


def directions(size: int, rounds: int) -> list[dict[str, Any]]:
    """Compares the two-loop recursion with reading S and Y twice, and with Optax's L-BFGS."""
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
        state = _copy(peer_update(_copy(state), 2 * point, point)[0])
    times = interleaved(
        {
            "stream": lambda: stream(pairs, g, other),
            "coefficients": lambda: lbfgs.two_loop(pairs, g, h0),
            "pairs": lambda: lbfgs.two_loop_by_pairs(pairs, g, h0),
            "store": _donating(store, _copy(pairs), g, other),
            "optax": _donating(peer_update, state, g, other),
        },
        rounds,
    )
    compared = (
        ("two-loop by coefficients / reading S and Y twice", "coefficients", "stream"),
        ("two-loop and storing / reading S and Y twice", "store", "stream"),
        ("two-loop by pairs / reading S and Y twice", "pairs", "stream"),
        ("optax.scale_by_lbfgs / two-loop and storing", "optax", "store"),
    )
    return [
        ratio(f"{name} ({size:,} parameters)", times[top], times[bottom])
        for name, top, bottom in compared
    ]


def compilation(task: Problem, rounds: int) -> list[dict[str, Any]]:
    """Compares the time to trace and compile one training step, with no cache at hand."""
    params = task.params(0)
    batch = tuple(x[: task.batch_size] for x in task.train)

    def compile_step(name: str) -> None:
        jax.clear_caches()
        advance = functools.partial(_advance, task, name, None)
        state = OPTIMIZERS[name].transformation(1e-3).init(params)
        jax.jit(advance, donate_argnums=0).lower((params, state), batch).compile()

    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        turns = {name: functools.partial(compile_step, name) for name in ("adam", "adaqn", "asnaq")}
        times = interleaved(turns, rounds)
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
    return [
        ratio(f"compiling {OPTIMIZERS[name].label} / Adam (row RNN)", times[name], times["adam"])
        for name in ("adaqn", "asnaq")
    ]


def temporaries(size: int) -> list[dict[str, Any]]:
    """Counts a step's temporaries in copies of the parameters, on a quadratic, state donated."""
    params = jnp.zeros(size)

    def loss(params: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(params - 1))

    found = []
    for name in ("adam", "adaqn", "asnaq", "asnaq-single"):
        tx = OPTIMIZERS[name].transformation(1e-3)

        def step(carry: tuple[Params, Any], tx: Any = tx) -> tuple[Params, Any]:
            return _one_step(tx, loss, carry)

        carry = jax.eval_shape(lambda tx=tx: (params, tx.init(params)))
        compiled = jax.jit(step, donate_argnums=0).lower(carry).compile()
        analysis = compiled.memory_analysis()
        state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry[1]))
        label = OPTIMIZERS[name].label
        for what, amount in (("temporaries", analysis.temp_size_in_bytes), ("state", state)):
            copies = records.rounded(amount / (size * params.dtype.itemsize))
            unit = f"{what} of {label}, parameter copies ({size:,} parameters)"
            found.append({"name": unit, "ratio": copies})
    return found


def interleaved(turns: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """Lets functions take turns, and times each turn; the first round only warms up."""
    times: Times = {name: [] for name in turns}
    for round_ in range(rounds + 1):
        for name, turn in turns.items():
            started = time.perf_counter()
            jax.block_until_ready(turn())
            seconds = time.perf_counter() - started
            if round_:
                times[name].append(seconds)
    return times


def ratio(
    name: str, top: Sequence[float], bottom: Sequence[float], repeated: int = 1
) -> dict[str, Any]:
    """Returns the median of the rounds' ratios, their quartiles and both median times in ms."""
    values = sorted(a / b for a, b in zip(top, bottom, strict=True))
    low, high = values[len(values) // 4], values[-1 - len(values) // 4]
    numbers = {
        "ratio": statistics.median(values),
        "low": low,
        "high": high,
        "top_ms": 1e3 * statistics.median(top) / repeated,
        "bottom_ms": 1e3 * statistics.median(bottom) / repeated,
    }
    return {"name": name} | {key: records.rounded(value) for key, value in numbers.items()}


def _one_step(
    tx: optax.GradientTransformationExtraArgs,
    loss: Callable[[Params], jax.Array],
    carry: tuple[Params, Any],
) -> tuple[Params, Any]:
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
    return optax.apply_updates(params, updates), state


def _advance(
    task: Problem, name: str, length: int | None, carry: tuple[Params, Any], batch: Examples
) -> tuple[Params, Any]:
    """Takes that many steps by a scan; None for one without."""
    tx = OPTIMIZERS[name].transformation(1e-3)
    step = functools.partial(_one_step, tx, lambda params: task.loss(params, batch))
    if length is None:
        return step(carry)
    return jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=length)[0]


def _descend(task: Problem, length: int, params: Params, batch: Examples) -> Params:
    """Takes gradients one after the other, with the cheapest step in between."""

    def step(params: Params, _: None) -> tuple[Params, None]:
        grads = jax.grad(task.loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), None

    return jax.lax.scan(step, params, length=length)[0]


def _repeating(function: Callable[..., Any], carry: Any, *arguments: Any) -> Callable[[], Any]:
    """Returns a turn that goes on from the carry that the last turn has returned."""

    def turn() -> Any:
        nonlocal carry
        carry = function(carry, *arguments)
        return carry

    return turn


def _donating(function: Callable[..., Any], carry: Any, *arguments: Any) -> Callable[[], Any]:
    """Likewise for a function that returns the carry and something else."""

    def turn() -> Any:
        nonlocal carry
        carry, result = function(carry, *arguments)
        return carry, result

    return turn


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


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
