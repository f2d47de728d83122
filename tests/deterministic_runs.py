"""Runs of full-batch methods on functions, as users write them, and their records."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import naqopt


@functools.partial(jax.jit, static_argnames=("tx", "loss", "steps"))
def trajectory(tx, loss, start, steps):
    """Returns the iterates, the losses there, the losses at the params, and the last state."""
    tx = optax.with_extra_args_support(tx)

    def body(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        params = optax.apply_updates(params, updates)
        iterate = naqopt.eval_params(state, params)
        return (params, state), (iterate, loss(iterate), loss(params))

    start = jnp.asarray(start)
    (_, state), found = jax.lax.scan(body, (start, tx.init(start)), length=steps)
    return *found, state


def steps_to(tx, loss, start, target, steps):
    """Returns after how many steps the loss at the iterate is at most the target, or None."""
    losses = np.asarray(trajectory(tx, loss, start, steps)[1])
    there = np.flatnonzero(losses <= target)
    return int(there[0]) + 1 if len(there) else None
