"""The dtypes of params, state and updates, for every optimizer of `optimizer_table.ROWS`."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from optimizer_table import (
    EACH_ROW,
    EACH_ROW_FEW_IN_CI,
    assert_finite,
    batch,
    enable_x64,
    init_params,
    regression_loss,
    run,
    stacked_batches,
    take_step,
    total_loss,
    transformation,
    types,
)

import naqopt

pytestmark = pytest.mark.default_compiler

BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = "bfloat16", "float16", "float32", "float64"
MIXED = {"bias": BFLOAT16, "gain": FLOAT16, "weight": FLOAT32}
MIXED_WIDE = {"bias": FLOAT32, "gain": BFLOAT16, "weight": FLOAT64}

NARROW = {BFLOAT16: BFLOAT16, FLOAT16: FLOAT16, FLOAT32: FLOAT32, "mixed": MIXED}
WIDE = {FLOAT64: FLOAT64, "mixed_wide": MIXED_WIDE}
DTYPE_CASES = [
    *(pytest.param(False, dtypes, False, id=name) for name, dtypes in NARROW.items()),
    *(
        pytest.param(True, dtypes, False, id=f"{name}-x64")
        for name, dtypes in {**NARROW, **WIDE}.items()
    ),
    # With gradients as wide as the widest param.
    pytest.param(False, MIXED, True, id="mixed-wide-gradients"),
    pytest.param(True, MIXED_WIDE, True, id="mixed_wide-x64-wide-gradients"),
]


@EACH_ROW
@pytest.mark.parametrize(("x64", "dtypes", "wide_gradients"), DTYPE_CASES)
def test_dtypes_are_kept(row, x64, dtypes, wide_gradients):
    """Of state and updates, in a step, a scan and a cond; only traced, so that it takes no time."""
    with enable_x64(x64):
        tx, params = transformation(row), init_params(dtypes=dtypes)
        widest = jnp.result_type(FLOAT32, *(x.dtype for x in params.values()))
        batches = jax.tree.map(lambda x: x.astype(widest), stacked_batches())
        state = tx.init(params)

        @jax.jit  # traced once for all three
        def one_step(params, state, batch):
            def value_fn(p):
                return regression_loss(p, batch)

            grads = jax.grad(value_fn)(params)
            if wide_gradients:
                grads = jax.tree.map(lambda x: x.astype(widest), grads)
            parts = (grads, grads, grads)
            return tx.update(grads, state, params, grad=grads, value_fn=value_fn, part_grads=parts)

        first = jax.tree.map(lambda x: x[0], batches)
        updates, new_state = jax.eval_shape(one_step, params, state, first)
        assert {name: (x.shape, x.dtype) for name, x in updates.items()} == {
            name: (x.shape, x.dtype) for name, x in params.items()
        }
        assert types(new_state) == types(state)

        # Sums are at least float32, and 64 bits come from the params and not from the flag.
        for path, leaf in jax.tree.leaves_with_path(state):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                assert leaf.dtype == FLOAT32 or leaf.dtype == widest, path
            else:
                assert leaf.dtype in (jnp.int32, jnp.bool), path

        def scanned(params, state):
            def body(carry, batch):
                updates, state = one_step(*carry, batch)
                return (optax.apply_updates(carry[0], updates), state), None

            return jax.lax.scan(body, (params, state), batches)[0]

        end = jax.eval_shape(scanned, params, state)
        assert types(end) == types(jax.eval_shape(lambda: (params, state)))
        maybe = jax.eval_shape(
            lambda flag, p, s: jax.lax.cond(flag, one_step, lambda p, s, _: (p, s), p, s, first),
            True,
            params,
            state,
        )
        assert types(maybe[1]) == types(state)


@EACH_ROW_FEW_IN_CI
def test_weakly_typed_params_do_not_compile_again(row):
    """`jnp.asarray(1.0)` is weakly typed; a state that was strong after it would compile twice."""
    tx = transformation(row)
    params = {**init_params(), "gain": jnp.asarray(1.0)}
    assert params["gain"].weak_type
    state = tx.init(params)
    _, new_state, _ = jax.eval_shape(functools.partial(take_step, tx), params, state, batch(0))
    assert types(new_state) == types(state)


@EACH_ROW_FEW_IN_CI
@pytest.mark.parametrize("x64", [False, True])
def test_params_of_mixed_dtypes_are_trained(row, x64):
    dtypes = MIXED_WIDE if x64 else MIXED
    with enable_x64(x64):
        params = init_params(dtypes=dtypes)
        before = total_loss(params)
        params, state, _ = run(transformation(row), params, stacked_batches())
        assert {name: x.dtype.name for name, x in params.items()} == dtypes
        assert_finite((params, state))
        assert total_loss(naqopt.eval_params(state, params)) < 0.2 * before
