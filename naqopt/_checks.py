"""Checks of what users hand in, with errors that name the argument and the remedy.

Concrete numbers are checked; traced ones (under `optax.inject_hyperparams`, say) cannot be.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from naqopt._tree import Tree, accumulation_dtype

_KEEP_OUT = "keep it out of the params that are trained"
_KEEP_ARRAYS = (
    f"{_KEEP_OUT}, of an Equinox model by eqx.filter(model, eqx.is_inexact_array), and put the "
    "model together in the loss"
)
SMALLEST = float(np.finfo(np.float32).tiny)  # what does not vanish in float32
LARGEST = float(np.finfo(np.float32).max)  # what is finite in it


def _is_real(value: Any) -> bool:
    """Returns whether a value is a real number, of Python or an array's."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(
    optimizer: str,
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = LARGEST,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raises a ValueError unless a concrete number lies between the bounds."""
    if np.shape(value) != ():
        raise ValueError(
            f"naqopt.{optimizer}: `{name}` must be a single number, got shape {np.shape(value)}."
        )
    if not _is_real(value):
        raise TypeError(f"naqopt.{optimizer}: `{name}` must be a number, got {value!r}.")
    if isinstance(value, jax.Array):
        return
    left = value > low if low_open else value >= low
    right = value < high if high_open else value <= high
    if not (left and right and math.isfinite(value)):
        interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise ValueError(
            f"naqopt.{optimizer}: `{name}` must be a finite number in {interval}, got {value!r}."
        )


def ordered(optimizer: str, low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raises a ValueError where two concrete numbers are out of order."""
    traced = isinstance(low, jax.Array) or isinstance(high, jax.Array)
    if not traced and low > high:
        raise ValueError(
            f"naqopt.{optimizer}: `{low_name}` must not exceed `{high_name}`, "
            f"got {low!r} > {high!r}."
        )


def learning_rate(optimizer: str, value: Any) -> None:
    """Raises unless the learning rate is an Optax schedule or a number that is not negative."""
    if not callable(value):
        number(optimizer, "learning_rate", value, low=0)


def size(optimizer: str, name: str, value: Any) -> int:
    """Returns a positive integer, or raises."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"naqopt.{optimizer}: `{name}` sets the shape of the state, so it must be a Python int "
            "and not a JAX array. Under optax.inject_hyperparams name it static: "
            f"optax.inject_hyperparams(naqopt.{optimizer}, static_args=('{name}', ...))."
        )
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"naqopt.{optimizer}: `{name}` must be an int, got {value!r}.") from None
    if isinstance(value, bool) or result < 1:
        raise ValueError(f"naqopt.{optimizer}: `{name}` must be at least 1, got {value!r}.")
    return result


def flag(optimizer: str, name: str, value: Any) -> None:
    """Raises unless the value is True or False: a truthy array or string would pass unnoticed."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"naqopt.{optimizer}: `{name}` must be True or False, got {value!r}.")


def history_dtype(optimizer: str, dtype: Any) -> Any:
    """Returns the dtype as NumPy's, or raises if large gradients would overflow in it."""
    if dtype is None:
        return None
    try:
        result = None if isinstance(dtype, (np.ndarray, jax.Array)) else jnp.dtype(dtype)
    except TypeError:
        result = None
    if result is None:
        raise TypeError(
            f"naqopt.{optimizer}: `history_dtype` must be a dtype such as jnp.bfloat16, got "
            f"{dtype!r}."
        )
    if not jnp.issubdtype(result, jnp.floating):
        raise TypeError(
            f"naqopt.{optimizer}: `history_dtype` must be a floating dtype, got {dtype!r}."
        )
    if jnp.finfo(result).max < jnp.finfo(jnp.bfloat16).max:
        raise ValueError(
            f"naqopt.{optimizer}: `history_dtype` must have the range of float32, which "
            f"{result.name} has not: use jnp.bfloat16, which takes as little memory."
        )
    return result


def arrays(optimizer: str, name: str, tree: Tree) -> Tree:
    """Returns a tree's leaves as arrays, or raises where one is none: a function, a word."""

    def array(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf  # of shapes alone Optax's `init` makes a state too
        try:
            return jnp.asarray(leaf)
        except (TypeError, ValueError, OverflowError):
            remedy = _KEEP_ARRAYS if name == "params" else _remedy(name).removeprefix("; ")
            raise TypeError(
                f"naqopt.{optimizer}: `{name}{jax.tree_util.keystr(path)}` must be an array, got "
                f"{type(leaf).__name__}: {remedy}."
            ) from None

    return jax.tree.map_with_path(array, tree)


def gradients(optimizer: str, name: str, tree: Tree) -> Tree:
    """Returns gradients as arrays, or raises where they are no real floating numbers."""
    result = arrays(optimizer, name, tree)
    for path, leaf in jax.tree.leaves_with_path(result):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"naqopt.{optimizer}: `{name}{jax.tree_util.keystr(path)}` has dtype "
                f"{leaf.dtype.name}, and a gradient is of real floating numbers{_remedy(name)}."
            )
    return result


def params(optimizer: str, tree: Tree) -> Tree:
    """Returns the params as arrays, or raises if they are missing or not real floating numbers."""
    if tree is None:
        raise ValueError(
            f"naqopt.{optimizer}: `params` is missing. Pass the current params: "
            "tx.update(grads, state, params, ...)."
        )
    result = arrays(optimizer, "params", tree)
    for path, leaf in jax.tree.leaves_with_path(result):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            remedy = (
                'train {"re": z.real, "im": z.imag} in its place, and join them in the loss: '
                'z = p["re"] + 1j * p["im"]'
                if jnp.issubdtype(leaf.dtype, jnp.complexfloating)
                else _KEEP_OUT
            )
            raise TypeError(
                f"naqopt.{optimizer}: `params{jax.tree_util.keystr(path)}` has dtype "
                f"{leaf.dtype.name}, but only real floating parameters can be trained: {remedy}."
            )
    return result


def _remedy(name: str) -> str:
    if name == "params":
        return "; call tx.init(params) again after changing the params"
    return "; pass what jax.grad of the loss by these params returns"


def same_structure(optimizer: str, name: str, tree: Tree, expected: Tree) -> None:
    """Raises a ValueError where a tree has not the structure and shapes that init was given."""
    found: Any = jax.tree.structure(tree)
    wanted: Any = jax.tree.structure(expected)
    if found != wanted:
        raise ValueError(
            f"naqopt.{optimizer}: `{name}` has another structure than the params given to init"
            f"{_remedy(name)}. Got {found}, expected {wanted}."
        )
    for (path, leaf), reference in zip(
        jax.tree.leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        if jnp.shape(leaf) != reference.shape:
            raise ValueError(
                f"naqopt.{optimizer}: `{name}{jax.tree_util.keystr(path)}` has shape "
                f"{jnp.shape(leaf)}, but the params given to init had {reference.shape} there"
                f"{_remedy(name)}."
            )


def scalar(optimizer: str, value: Any) -> jax.Array:
    """Returns the value at the params as an array, or raises unless it is one real number."""
    leave_out = "leave it out: `value_fn` is evaluated then"
    what = f"naqopt.{optimizer}: `value` must be the loss at the params, one number, got"
    # NumPy makes arrays of objects of what is none.
    if not isinstance(value, (int, float, complex, np.ndarray, np.generic, jax.Array)):
        raise TypeError(f"{what} {type(value).__name__}. Give the number, or {leave_out}.")
    if jnp.shape(value) != ():
        raise ValueError(f"{what} shape {jnp.shape(value)}. Average it, or {leave_out}.")
    result = jnp.asarray(value)
    if jnp.issubdtype(result.dtype, jnp.complexfloating):
        raise TypeError(f"{what} {result.dtype.name}. Take the real part, or {leave_out}.")
    return result


def gradient_dtypes(optimizer: str, name: str, tree: Tree, params: Tree) -> None:
    """Raises a TypeError unless a gradient has the dtypes of the params, or at least float32."""
    for (path, leaf), param in zip(
        jax.tree.leaves_with_path(tree), jax.tree.leaves(params), strict=True
    ):
        dtypes = dict.fromkeys(str(d) for d in (param.dtype, accumulation_dtype(param.dtype)))
        if leaf.dtype.name not in dtypes:
            raise TypeError(
                f"naqopt.{optimizer}: `{name}{jax.tree_util.keystr(path)}` has dtype "
                f"{leaf.dtype.name}, but the params have {param.dtype.name} there. Give it in "
                f"{' or '.join(dtypes)}, as jax.grad of the loss by these params does."
            )
