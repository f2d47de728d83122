"""JAX's flags for debugging, and 64-bit numbers turned on or off midway.

With `jax_disable_jit` every operation runs by itself, so that `jax_debug_nans` looks at every
number on the way, also at those that are not chosen in the end. `jax_debug_infs` looks at what
compiled functions return; a search has infinite numbers within, which stand for no loss.
"""

import contextlib
import gc

import chex
import jax
import jax.numpy as jnp
import pytest
from optimizer_table import (
    EACH_ROW,
    EACH_ROW_FEW_IN_CI,
    after,
    batch,
    enable_x64,
    init_params,
    own_state,
    plain_run,
    states_of_plain_run,
    take_step,
    transformation,
    types,
)

import naqopt

STEPS = 7


@EACH_ROW
def test_clean_data_make_no_nan_in_any_operation(row):
    tx = transformation(row)
    expected = after(plain_run(row)[2], STEPS)
    with jax.disable_jit(), jax.debug_nans(True):
        params = init_params()
        state = tx.init(params)
        for k in range(STEPS):
            params, state, _ = take_step(tx, params, state, batch(k))
    tolerance = 1e-4 * row.rounding
    chex.assert_trees_all_close(params, expected, rtol=tolerance, atol=tolerance)


@EACH_ROW
def test_clean_data_raise_no_alarm_in_what_is_returned(row):
    with jax.debug_nans(True), jax.debug_infs(True):
        points = states_of_plain_run(row, STEPS)
    chex.assert_trees_all_equal_shapes(points[-1][0], init_params())


def test_the_flags_find_what_is_there():
    tx, params = naqopt.onaq(memory_size=2), init_params()
    state, (inputs, targets) = tx.init(params), batch(0)
    flags = jax.disable_jit(), jax.debug_nans(True)
    with flags[0], flags[1], pytest.raises(FloatingPointError):
        take_step(tx, params, state, (jnp.nan * inputs, targets))


@contextlib.contextmanager
def checking_leaks():
    """`jax.checking_leaks`, which collects garbage after each trace, of new objects alone."""
    gc.collect()
    gc.freeze()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()


def test_a_leak_is_found():
    leaked = []
    with checking_leaks(), pytest.raises(Exception, match="Leaked"):
        jax.eval_shape(lambda x: leaked.append(x + 1), jnp.ones(()))


@EACH_ROW
def test_no_tracer_leaks(row):
    tx, params = transformation(row), init_params()
    with checking_leaks():
        state = jax.eval_shape(tx.init, params)
        step = lambda p, s, b: take_step(tx, p, s, b)[:2]  # noqa: E731
        after_step = jax.eval_shape(step, params, state, batch(0))
    assert types(after_step) == types((params, state))


@EACH_ROW
@pytest.mark.parametrize("later", [True, False], ids=["turned_on", "turned_off"])
def test_x64_is_switched_between_init_and_update(row, later):
    """The state keeps its dtypes, so that nothing is compiled twice."""
    tx = transformation(row)
    with enable_x64(not later):
        params = init_params()
        state = jax.eval_shape(tx.init, params)
    with enable_x64(later):
        step = lambda p, s, b: take_step(tx, p, s, b)[:2]  # noqa: E731
        found = jax.eval_shape(step, params, state, batch(0))
    assert types(found) == types((params, state))


@EACH_ROW_FEW_IN_CI
def test_training_does_not_see_that_x64_was_switched(row):
    tx, half = transformation(row), STEPS // 2
    params = init_params()
    state = tx.init(params)
    step = jax.jit(lambda p, s, b: take_step(tx, p, s, b)[:2])
    for k in range(STEPS):
        with enable_x64(k >= half):
            params, state = step(params, state, batch(k))
    expected = after(plain_run(row)[2], STEPS)
    chex.assert_trees_all_close(params, expected, rtol=1e-4, atol=1e-5)
    assert own_state(state).count == STEPS
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
