"""What the sums over leaves and the numbers that decide something pass through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from naqopt import _tree

NUMBERS = [0.0, -0.0, 1.5, -3e4, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
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
