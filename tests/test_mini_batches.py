"""The case that breaks `optax.lbfgs`: logistic regression of 512 × 20 on mini-batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import naqopt

EXAMPLES, FEATURES, STEPS = 512, 20, 300
SEEDS = 5
ONLINE = {
    f"{name}_{form}": functools.partial(getattr(naqopt, name), memory_size=memory_size)
    for name in ("obfgs", "onaq", "omoq")
    for form, memory_size in (("limited", 4), ("dense", None))
}


@functools.cache
def examples():
    draw = np.random.default_rng(0)
    weights = draw.normal(0, 2, FEATURES)
    inputs = draw.normal(size=(EXAMPLES, FEATURES))
    labels = draw.random(EXAMPLES) < 1 / (1 + np.exp(-inputs @ weights))
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.float32)


def loss(weights, inputs, labels):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(inputs @ weights, labels))


def losses_after_training(tx, batch_size):
    """The loss on all examples after 300 steps on random batches, for every seed."""
    inputs, labels = examples()

    def train(seed):
        batches = jax.random.randint(jax.random.key(seed), (STEPS, batch_size), 0, EXAMPLES)

        def step(carry, rows):
            params, state = carry

            def value_fn(p):
                return loss(p, inputs[rows], labels[rows])

            value, grads = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(
                grads, state, params, value=value, grad=grads, value_fn=value_fn
            )
            return (optax.apply_updates(params, updates), state), None

        params = jnp.zeros(FEATURES)
        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return loss(naqopt.eval_params(state, params), inputs, labels)

    return np.asarray(jax.jit(lambda: jax.lax.map(train, jnp.arange(SEEDS)))())


@pytest.mark.parametrize("batch_size", [16, 64])
@pytest.mark.parametrize("name", ONLINE)
def test_every_online_method_ends_below_half_its_initial_loss(name, batch_size):
    """With its defaults, from every seed."""
    assert np.all(losses_after_training(ONLINE[name](), batch_size) < np.log(2) / 2)


@pytest.mark.parametrize("batch_size", [16, 64])
def test_optax_lbfgs_ends_above_it(batch_size):
    """In some of the runs, else the test above would show nothing."""
    lbfgs = optax.with_extra_args_support(optax.lbfgs(0.1, linesearch=None))
    losses = losses_after_training(lbfgs, batch_size)
    assert np.max(losses) > np.log(2)
