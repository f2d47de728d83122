"""20,000 steps on noisy data: nothing drifts, overflows or comes to a stop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import (
    EACH_ROW,
    init_params,
    own_state,
    part_gradients,
    regression_loss,
    stacked_batches,
    take_due_snapshot,
    total_loss,
)

import naqopt

STEPS = 20_000


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@EACH_ROW
def test_twenty_thousand_steps(row, dtype):
    tx = row.factory(**row.arguments)
    inputs, targets = jax.tree.map(jnp.asarray, stacked_batches())

    @jax.jit
    def run(params, state):
        def body(carry, k):
            params, state = carry
            batch = inputs[k % len(inputs)], targets[k % len(targets)]

            def batch_loss(p, batch):
                return regression_loss(jax.tree.map(lambda x: x.astype(jnp.float32), p), batch)

            def loss(p):
                return batch_loss(p, batch)

            state = take_due_snapshot(state, params, batch_loss)
            grads = jax.grad(loss)(params)
            parts = part_gradients(state, params, batch, batch_loss)
            updates, state = tx.update(grads, state, params, value_fn=loss, **parts)
            params = optax.apply_updates(params, updates)
            return (params, state), total_of(naqopt.eval_params(state, params))

        return jax.lax.scan(body, (params, state), jnp.arange(STEPS))

    def total_of(params):
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return regression_loss(params, (inputs, targets))

    params = init_params(dtypes=jnp.dtype(dtype))
    (params, state), losses = run(params, tx.init(params))
    assert np.all(np.isfinite(losses))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    state = own_state(state)
    assert int(state.count) == STEPS
    events = state.info.pairs_stored + state.info.pairs_refused + state.info.restorations
    if row.pairs_formed is not None:
        assert int(events) == row.pairs_formed(STEPS)
    else:
        # The last pair may still wait, and a refused or rejected step may form none. Nor does one
        # that leads back from the look-ahead point, where momentum begins anew.
        info = state.info
        without = info.steps_refused + info.steps_rejected
        if row.gradients == 2:
            without += info.momentum_restarts
        assert int(events) >= STEPS - 1 - int(without)
    final = np.median(losses[-1000:])
    if row.searches and (dtype == "bfloat16" or row.name == "ssbroyden_dense"):
        # With 8 bits a line search may soon find no decrease, and the run stands still. The same
        # where the matrix is scaled by the noise of other batches: it is for full batches.
        bound = 1.1 * total_loss(init_params())
        if row.name == "moq" and final >= bound:
            # Its momentum goes on where searches fail. Whether it comes to that is rounding.
            pytest.xfail("MoQ runs away where its line searches fail in bfloat16")
        assert final < bound
    else:
        assert final < 0.5 * total_loss(init_params())
        # Variance-reduced methods come to rest at a minimum, where there is nothing to store.
        enough = 20 if row.full_gradients(STEPS) else 100
        assert int(state.info.pairs_stored) > enough or row.pairs_formed(STEPS) == 0
