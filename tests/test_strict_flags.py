"""JAX's strict modes, which forbid implicit broadcasting between ranks and between dtypes.

Both are looked at while a function is traced, so that nothing has to be compiled.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from optimizer_table import ROWS, enable_x64, init_params, transformation, types

import naqopt

MORE = {
    "bfgs_zoom": lambda: naqopt.bfgs(
        linesearch=optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")
    ),
    "bfgs_store_grad": lambda: naqopt.bfgs(store_grad=True),
    "naq_term": lambda: naqopt.naq(convergence_term=True),
    "naq_rising": lambda: naqopt.naq(momentum=naqopt.schedules.nesterov_momentum()),
    "lsr1_search": lambda: naqopt.lsr1(linesearch=naqopt.armijo()),
    "sr1n_exact": lambda: naqopt.sr1n(solver="exact"),
    "obfgs_inverse_sqrt": lambda: naqopt.obfgs(naqopt.schedules.inverse_sqrt(1.0)),
    "onaq_bfloat16_history": lambda: naqopt.onaq(history_dtype=jnp.bfloat16),
}
CASES = {row.name: lambda row=row: transformation(row) for row in ROWS} | MORE


def loss(params):
    """Without a promotion of its own."""
    return jnp.mean(jnp.stack([jnp.mean(jnp.square(leaf - 1)) for leaf in params.values()]))


def step(tx, params, state):
    value, grads = jax.value_and_grad(loss)(params)
    if hasattr(state, "take_snapshot"):
        state = naqopt.snapshot(state, params, grads)
    closures = {"value_fn": loss, "part_grads": (grads, grads, grads)}
    updates, state = tx.update(grads, state, params, value=value, grad=grads, **closures)
    naqopt.eval_params(state, params)
    naqopt.diagnostics(state)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize(
    "x64", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["x64", ""]
)
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_traced_under_strict_flags(name, x64):
    strict = jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict")
    with enable_x64(x64), strict[0], strict[1]:
        params = init_params(dtypes=jnp.float64 if x64 else jnp.float32)
        tx = CASES[name]()
        state = jax.eval_shape(tx.init, params)
        _, after = jax.eval_shape(lambda p, s: step(tx, p, s), params, state)
    assert types(after) == types(state)
