"""`optax.MultiSteps` around what looks at more than a gradient: what goes wrong, and what warns."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import ROWS, batch, init_params, regression_loss, transformation

import naqopt

MESSAGE = "optax.MultiSteps stands around an optimizer that evaluates the loss"


def accumulated(tx, steps=2):
    return optax.MultiSteps(tx, steps).gradient_transformation()


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_it_is_warned_of_where_the_loss_or_parts_are_looked_at(row):
    """Where gradients alone are, MultiSteps is right, and nothing is said."""
    alone = row.gradients == 1 and not (row.searches or row.has_parts or row.restores)
    alone = alone and not row.rejects
    params, tx = init_params(), transformation(row)

    def read_params(state):  # traced anew, as what was traced before warns no more
        return jax.eval_shape(lambda *given: naqopt.eval_params(*given), state, params)

    for wrapped in (accumulated(tx), optax.chain(optax.clip(1.0), accumulated(tx))):
        state = jax.eval_shape(wrapped.init, params)
        for read in (naqopt.diagnostics, read_params):
            if alone:
                read(state)
            else:
                with pytest.warns(UserWarning, match=MESSAGE):
                    read(state)
    # Nothing is said of the same optimizer without it, nor beside another that is in it.
    labels = {"bias": "adam", "gain": "ours", "weight": "ours"}
    beside = optax.partition({"adam": accumulated(optax.adam(0.1)), "ours": tx}, labels)
    for right in (tx, beside):
        naqopt.diagnostics(jax.eval_shape(right.init, params))


CALLS = {
    "omoq": (naqopt.omoq(), True),
    "bfgs": (naqopt.bfgs(), False),
    "bfgs without a search": (naqopt.bfgs(0.1, linesearch=None), True),
    "bfgs that stores": (naqopt.bfgs(0.1, linesearch=None, store_grad=True), False),
    "moq without a search": (naqopt.moq(0.1, linesearch=None), True),
    "moq": (naqopt.moq(), False),
    "naq": (naqopt.naq(0.1, linesearch=None), False),
    "obfgs": (naqopt.obfgs(), False),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("flat", [False, True], ids=["", "flat"])
def test_what_of_a_call_decides(name, flat):
    tx, right = CALLS[name]
    wrapped = naqopt.flatten(accumulated(tx)) if flat else accumulated(naqopt.flatten(tx))
    state = jax.eval_shape(wrapped.init, init_params())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        naqopt.diagnostics(state)
    assert [x.filename for x in said] == ([] if right else [__file__])


def test_a_snapshot_warns_too():
    params = {"w": jnp.ones(2)}
    state = accumulated(naqopt.svrg()).init(params)
    with pytest.warns(UserWarning, match=r"naqopt\.snapshot: optax.MultiSteps"):
        naqopt.snapshot(state, params, params)


@pytest.mark.slow
def test_the_closures_run_on_every_mini_step_and_see_its_batch_alone():
    """Of four mini-steps three are thrown away; the fourth's batch is all that the loss sees."""
    tx, params, seen = accumulated(naqopt.onaq(0.1), 4), init_params(), []

    @jax.jit
    def step(params, state, k, batch):
        def value_fn(p):
            jax.debug.callback(lambda k: seen.append(int(k)), k)
            return regression_loss(p, batch)

        grads = jax.grad(regression_loss)(params, batch)
        return tx.update(grads, state, params, grad=grads, value_fn=value_fn)

    state, ends = tx.init(params), []
    for k in range(4):
        updates, state = step(params, state, k, batch(k))
        jax.block_until_ready(updates)
        jax.effects_barrier()
        ends.append(state.inner_opt_state.count)
    assert seen == [0, 1, 2, 3]
    np.testing.assert_array_equal(ends, [0, 0, 0, 1])
    mean = jax.tree.map(
        lambda *g: sum(g) / 4, *(jax.grad(regression_loss)(params, batch(k)) for k in range(4))
    )
    last = lambda p: regression_loss(p, batch(3))  # noqa: E731
    inner = naqopt.onaq(0.1)
    expected, _ = inner.update(
        mean, inner.init(params), params, grad=jax.grad(last)(params), value_fn=last
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updates, expected
    )


@pytest.mark.slow
def test_the_ways_that_the_warning_names_find_what_it_misses():
    """Searches that judge the mean by one mini-batch fail; those of the whole batch do not."""
    draw = np.random.default_rng(0)
    scale = np.logspace(0, 1, 8)
    inputs = (draw.normal(size=(32, 8, 8, 8)) * scale).astype(np.float32)
    noise = 0.5 * draw.normal(size=inputs.shape[:-1])
    targets = (inputs @ (np.arange(1.0, 9.0) / scale) + noise).astype(np.float32)

    def mean_loss(params, batch):
        return jnp.mean(jnp.square(batch[0] @ params - batch[1]))

    def scanned(params, batch):
        def add(total, part):
            return total + mean_loss(params, part) / len(batch[1]), None

        return jax.lax.scan(add, jnp.zeros(()), batch)[0]

    @functools.partial(jax.jit, static_argnames=("tx", "loss"))
    def train(tx, batches, loss):
        def step(carry, batch):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(
                grads, state, params, value=value, grad=grads, value_fn=lambda p: loss(p, batch)
            )
            return (optax.apply_updates(params, updates), state), None

        start = jnp.zeros(8)
        batches = jax.tree.map(lambda x: jnp.concatenate([x] * 4), batches)
        return jax.lax.scan(step, (start, tx.init(start)), batches)[0]

    whole = inputs, targets
    minis = inputs.reshape(-1, 8, 8), targets.reshape(-1, 8)
    params, state = train(naqopt.bfgs(), whole, scanned)
    right = mean_loss(params, minis)
    assert state.info.searches_failed == 0
    assert state.info.steps_uphill == 0
    params, state = train(accumulated(naqopt.bfgs(), 8), minis, mean_loss)
    info = state.inner_opt_state.info
    assert info.searches_failed > 5
    assert info.steps_uphill > 5
    assert mean_loss(params, minis) > 1.05 * right
    params, state = train(accumulated(naqopt.omoq(), 8), minis, mean_loss)
    assert state.inner_opt_state.count == 128
    assert mean_loss(params, minis) < 0.1 * mean_loss(jnp.zeros(8), minis)
