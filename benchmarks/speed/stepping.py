"""Whole training steps as turns: the caller's gradient, the optimizer, and the new params."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import naqopt
from benchmarks.speed import programs
from benchmarks.speed.calls import Call
from benchmarks.speed.tasks import Task
from benchmarks.speed.timing import Donating, copy
from benchmarks.training.problem import Params

Carry = tuple[Params, Any]
WARM_STEPS = 20  # before the clock runs: two to five memories full
RESTARTED_BYTES = 2**30  # a larger carry is not kept twice


def one_step(
    tx: optax.GradientTransformationExtraArgs, loss: Callable[[Params], jax.Array], carry: Carry
) -> Carry:
    """Takes a step."""
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
    return optax.apply_updates(params, updates), state


def step_of(task: Task, call: Call) -> Callable[[Carry, Any], Carry]:
    """Returns the function from a carry and the task's data to the carry after one step."""
    tx = call.transformation()

    def step(carry: Carry, data: Any) -> Carry:
        return one_step(tx, lambda params: task.loss(params, data), carry)

    return step


def steps(task: Task, call: Call) -> Donating:
    """Returns the turn of several steps, warmed up so that memories are filled."""
    advance = _repeated(task, step_of(task, call))
    params = copy(task.params)
    carry = (params, call.transformation().init(params))
    for turn in range(max(WARM_STEPS // task.steps, 2)):
        carry = advance(carry, task.data)
        # The second is what their pairs are made of; steps before the first take one gradient.
        if call.takes_snapshots and turn < 2:
            carry = _with_snapshot(task, carry)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
    return Donating(advance, carry, task.data, restarts=size <= RESTARTED_BYTES)


def kernels(turn: Donating) -> int:
    """Returns how many kernels the compiled loop of a turn launches a step."""
    assert turn.start is not None
    lowered: Any = turn.function
    return programs.kernels(lowered.lower(turn.start, *turn.arguments).compile().as_text())


def gradients(task: Task) -> Donating:
    """Returns the turn of as many gradients, with the cheapest of steps in between."""

    def descend(params: Params, data: Any) -> Params:
        return _moved(params, jax.grad(task.loss)(params, data))

    return Donating(_repeated(task, descend), copy(task.params), task.data)


def least(task: Task, call: Call) -> Donating:
    """Returns the turn of what no step of a call can do without.

    Its gradients; S and Y read twice for a direction; and of adaQN and aSNAQ at the end of every
    cycle the two losses that are compared, and F read once. Memories hold zeros, which take as long
    as any other numbers.
    """
    options = call.arguments
    m, rows, cycle = (options.get(x, 0) for x in ("memory_size", "fisher_size", "cycle_length"))

    def history(count: int) -> Params:
        return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), task.params)

    def step(carry: Any, data: Any) -> Any:
        params, s, y, fisher, count = carry
        for _ in range(call.gradients):
            direction = jax.grad(task.loss)(params, data)
            params = _moved(params, direction)
        if m:
            direction = _moved(direction, _combined(_products(s, direction), y))
            params = _moved(params, _combined(_products(y, direction), s))

        def end_of_cycle() -> jax.Array:
            losses = task.loss(params, data) - task.loss(_moved(params, direction), data)
            return losses + jnp.sum(_products(fisher, params))

        if cycle:
            ends = (count + 1) % cycle == 0
            found = jax.lax.cond(ends, end_of_cycle, lambda: jnp.zeros(()))
            # What is found is needed, so that none of it is left out.
            params = jax.tree.map(lambda p: p + 1e-30 * found.astype(p.dtype), params)
        return params, s, y, fisher, count + 1

    carry = copy(task.params), history(m), history(m), history(rows), jnp.zeros((), jnp.int32)
    return Donating(_repeated(task, step), carry, task.data)


def _moved(params: Params, direction: Params) -> Params:
    """Returns the params a little further against a direction."""
    return jax.tree.map(lambda p, d: p - 1e-3 * d, params, direction)


def _products(history: Params, vector: Params) -> jax.Array:
    """Returns the products of the rows of a memory with a vector."""
    products = jax.tree.map(lambda rows, x: jnp.tensordot(rows, x, x.ndim), history, vector)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def _combined(weights: jax.Array, history: Params) -> Params:
    """Returns the weighted sum of the rows of a memory."""
    return jax.tree.map(lambda rows: jnp.tensordot(weights, rows, 1), history)


def _repeated(task: Task, step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Returns the compiled steps of a turn, the carry donated."""
    if task.looped:

        @functools.partial(jax.jit, donate_argnums=0)
        def loop(carry: Any, data: Any) -> Any:
            return jax.lax.scan(lambda x, _: (step(x, data), None), carry, length=task.steps)[0]

        return loop

    compiled = jax.jit(step, donate_argnums=0)

    def several(carry: Any, data: Any) -> Any:
        for _ in range(task.steps):
            carry = compiled(carry, data)
        return carry

    return several


def _with_snapshot(task: Task, carry: Carry) -> Carry:
    params, state = carry
    full_grad = jax.jit(jax.grad(task.loss))(naqopt.eval_params(state, params), task.data)
    return params, naqopt.snapshot(state, params, full_grad)
