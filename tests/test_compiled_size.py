"""How compiled code grows with the number of arrays: linearly, and with `flatten` hardly at all."""

import functools

import jax
import jax.numpy as jnp
import optax
from optimizer_table import ROWS, each, transformation

import naqopt


def loss(params):
    """As cheap to compile as may be: what is measured is the optimizer."""
    sums = [jnp.sum(jnp.square(leaf - 0.5)) for leaf in params.values()]
    return jnp.sum(jnp.stack(sums) ** 1.5)


# Compiling a hundred arrays takes long: for CI one row is enough.
EACH_ROW = each(ROWS, ("onaq",))


@functools.cache
def instructions(tx, arrays):
    """Returns how many instructions the optimized step has; their number is exact."""
    params = {}
    for layer in range(arrays // 2):
        params[f"weight{layer}"] = jax.ShapeDtypeStruct((8, 8), jnp.float32)
        params[f"bias{layer}"] = jax.ShapeDtypeStruct((8,), jnp.float32)

    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        closures = {"value_fn": loss, "part_grads": (grads, grads, grads)}
        updates, state = tx.update(grads, state, params, value=value, grad=grads, **closures)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, jax.eval_shape(tx.init, params))
    # Machine code is not looked at, and may be made in the quickest way.
    quickly = {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    compiled = lowered.compile(compiler_options=quickly)
    return sum(" = " in line for line in compiled.as_text().splitlines())


@EACH_ROW
def test_compiled_code_grows_linearly_with_the_arrays(row):
    tx = transformation(row)
    assert instructions(tx, 100) <= 2.2 * instructions(tx, 50)


@EACH_ROW
def test_with_flatten_it_grows_as_the_losses_and_gradients_do(row):
    """The optimizer itself is that of one vector; SGD tells what a gradient takes."""
    tx = naqopt.flatten(transformation(row))
    growth = instructions(tx, 40) - instructions(tx, 20)
    a_gradient = instructions(optax.sgd(0.1), 40) - instructions(optax.sgd(0.1), 20)
    # Beside its gradients a method evaluates up to two losses, and the arrays are put together and
    # taken apart once for each.
    assert growth <= 2 * (row.gradients + 2) * a_gradient
