"""Whole training steps as turns: the caller's gradient, the optimizer, and the new params."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import naqopt
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
    """Returns how many fused operations the compiled loop of a turn launches a step."""
    assert turn.start is not None
    lowered: Any = turn.function
    text = lowered.lower(turn.start, *turn.arguments).compile().as_text()
    return text.count(" fusion(")


def gradients(task: Task) -> Donating:
    """Returns the turn of as many gradients, with the cheapest of steps in between."""

    def descend(params: Params, data: Any) -> Params:
        grads = jax.grad(task.loss)(params, data)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)

    return Donating(_repeated(task, descend), copy(task.params), task.data)


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
