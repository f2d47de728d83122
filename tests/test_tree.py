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
