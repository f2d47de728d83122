"""What `store_grad` keeps: value and gradient at the new params, for a loss that stays the same."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from naqopt import _closures, _tree
from naqopt._tree import Mask, Tree
from naqopt.steps.line_search import Choice


class Stored(NamedTuple):
    """Value and gradient at the params, named as `optax.value_and_grad_from_state` asks.

    Attributes:
      value: E at the params; infinite before the first step.
      grad: its gradient.
    """

    value: jax.Array
    grad: Tree


def init_stored(params: Tree) -> Stored:
    """Returns what stands for nothing stored: an infinite value."""
    leaves = jax.tree.leaves(params)
    dtype = _tree.common_dtype(*(leaf.dtype for leaf in leaves)) if leaves else jnp.float32
    return Stored(jnp.full((), jnp.inf, dtype), jax.tree.map(jnp.zeros_like, params))


def without_value(stored: Stored) -> Stored:
    """Returns it so that nothing counts as stored."""
    return stored._replace(value=jnp.full_like(stored.value, jnp.inf))


def value_and_grad(
    optimizer: str, choice: Choice, loss: Any, grad_fn: Any, arrival: Tree
) -> Stored:
    """Value and gradient at the new params: the line search's where it has them."""
    if choice.gradient is not None and choice.loss is not None:
        return Stored(choice.loss, choice.gradient)
    return Stored(*_closures.value_and_gradient(optimizer, loss, grad_fn, arrival))


def update_stored(old: Stored, fates: tuple[Mask, ...], here: Stored, there: Stored) -> Stored:
    """Keeps what holds at the params after a step that goes, stops or is skipped."""
    goes, stops, skips = fates
    there, here = _tree.cast_as(old, there), _tree.cast_as(old, here)  # the dtypes of before
    return _tree.choose((goes, there), (stops, here), (skips, old))
