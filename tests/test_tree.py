"""What the sums over leaves and the numbers that decide something pass through."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import naqopt
from naqopt import _tree

NUMBERS = [0.0, -0.0, 1.5, -3e4, np.inf, -np.inf, np.nan]
FLOAT16 = pytest.param("float16", marks=pytest.mark.default_compiler)
EACH_DTYPE = pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16, "float64"])


@EACH_DTYPE
@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "with others"])
def test_together_keeps_every_bit(dtype, beside, x64):
    number = jnp.asarray(NUMBERS, dtype)
    others = [number > 0, jnp.arange(len(NUMBERS)) - 3][: 2 * beside]
    found = jax.jit(_tree.together)(number, *others)
    for x, y in zip(found, (number, *others), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_together_is_differentiated_as_the_identity():
    def function(x):
        (alone,) = _tree.together(x**2)
        first, flag, second = _tree.together(x**3, x > 0, 2 * x)
        return alone + jnp.where(flag, first + second, 0.0)

    assert jax.grad(function)(3.0) == 6 + 27 + 2
    assert jax.jvp(function, (3.0,), (1.0,))[1] == 35
    assert jnp.array_equal(jax.vmap(jax.grad(function))(jnp.array([3.0, -1.0])), [35.0, -2.0])


@EACH_DTYPE
def test_choose_takes_the_bits_of_the_tree_whose_mask_is_set(dtype, x64):
    a, b = jnp.asarray(NUMBERS, dtype), jnp.full(len(NUMBERS), jnp.nan, dtype)

    @jax.jit
    def chosen(first, second):
        masks = _tree.masks(first, second)
        return _tree.choose((masks[0], {"leaf": a}), (masks[1], {"leaf": b}))["leaf"]

    for conditions, expected in {(True, False): a, (False, True): b, (False, False): 0 * b}.items():
        found = np.asarray(chosen(*map(jnp.array, conditions)))
        expected = np.zeros_like(found) if not any(conditions) else np.asarray(expected)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.default_compiler
def test_a_choice_between_dtypes_has_the_wider_of_them():
    """Of equal width too: their bits must not be mixed."""
    half, brain = jnp.full(3, 1.5, jnp.float16), jnp.full(3, 2.5, jnp.bfloat16)
    for condition in (True, False):
        found = _tree.where(jnp.array(condition), half, brain)
        assert found.dtype == jnp.float32
        assert jnp.array_equal(found, jnp.full(3, 1.5 if condition else 2.5))


@pytest.mark.parametrize("condition", [True, False])
def test_choose_is_differentiated_as_a_choice(condition):
    def function(x):
        (mask,) = _tree.masks(x > 0)
        return jnp.sum(_tree.choose((mask, x**2), (~mask, 3 * x)))

    x = jnp.array(2.0 if condition else -2.0)
    expected = 4 if condition else 3
    assert jax.grad(function)(x) == expected
    assert jax.jvp(function, (x,), (jnp.ones(()),))[1] == expected
    both = jax.vmap(jax.grad(function))(jnp.array([2.0, -2.0]))
    assert jnp.array_equal(both, [4, 3])


def test_a_choice_among_arrays_leaves_no_selection_to_compile():
    """Of which each doubles the loops that a CPU compiles."""

    def function(x, a, b):
        masks = _tree.masks(x > 0, x < 0)
        return _tree.choose((masks[0], a), (masks[1], b))

    shapes = jax.ShapeDtypeStruct((), jnp.float32), *[jax.ShapeDtypeStruct((64,), jnp.float32)] * 2
    text = jax.jit(function).lower(*shapes).compile().as_text()
    assert "pred[64]" not in text
    assert " and(" in text


TINY = {"float32": 1e-30, "float64": 1e-200}
HUGE = {"float32": 1e25, "float64": 1e200}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [3, 100_000])
def test_zero_finite_and_norm_where_squares_are_neither(dtype, size, x64):
    """Compiled, and with zeros beside: 0 times a square that has overflown is no number."""

    @jax.jit
    def seen(x):
        tree = [(x, jnp.zeros(2, dtype)), jnp.ones((2, 2), dtype) * x[0]]
        return _tree.is_zero(tree), _tree.is_finite(tree), _tree.norm(tree)

    def vector(first):
        return np.concatenate([[first], np.zeros(size - 1)]).astype(dtype)

    for scale, zero in ((0.0, True), (TINY[dtype], False), (1.0, False), (HUGE[dtype], False)):
        found = seen(vector(scale))
        assert bool(found[0]) is zero
        assert bool(found[1])
        if scale != TINY[dtype]:  # whose square is 0
            np.testing.assert_allclose(found[2], 5**0.5 * scale, rtol=1e-5)
    for bad in (np.nan, np.inf, -np.inf):
        found = seen(vector(bad))
        assert not found[0]
        assert not found[1]
        assert not np.isfinite(found[2])


def test_a_param_that_does_not_matter_stops_nothing(x64):
    """Its coordinate of every step is 0."""
    for tx in (naqopt.bfgs(), naqopt.naq(), naqopt.moq(), naqopt.lsr1(), naqopt.sr1n()):

        def loss(params):
            return jnp.sum((params["used"] - 1) ** 2)

        @jax.jit
        def step(params, state, tx=tx, loss=loss):
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            return optax.apply_updates(params, updates), state

        params = {"used": jnp.zeros((20, 3)), "unused": jnp.zeros(1)}
        state = tx.init(params)
        for _ in range(3):
            params, state = step(params, state)
        assert naqopt.diagnostics(state)["steps_refused"] == 0
        assert loss(naqopt.eval_params(state, params)) < 60
