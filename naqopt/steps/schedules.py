"""The papers' step sizes as Optax schedules.

The papers count steps from 1; Optax hands a schedule 0 first. Every schedule here adds the 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def evaluate(rate: optax.ScalarOrSchedule, count: jax.Array, dtype: Any) -> jax.Array:
    """Returns a learning rate, a number or a schedule of the 0-based count, as a scalar."""
    value = jnp.asarray(rate(count) if callable(rate) else rate, dtype)
    if value.shape != ():
        raise ValueError(f"naqopt: `learning_rate` must give one number, got shape {value.shape}.")
    return value
