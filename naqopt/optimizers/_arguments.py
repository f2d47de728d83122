"""The arguments of the quasi-Newton calls, checked and turned into parts of the core."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from naqopt import _checks
from naqopt.curvature import Curvature
from naqopt.curvature.broyden import BFGS, UPDATES
from naqopt.curvature.dense import dense_matrix
from naqopt.curvature.lbfgs import limited_memory
from naqopt.steps.line_search import StepLength, fixed, search

FIRST_PAIR = "first_pair"  # sᵀy/yᵀy of the first pair as γ of the dense matrix's H0


def check_memory(optimizer: str, memory_size: Any, history_dtype: Any) -> tuple[int | None, Any]:
    """Returns the number of pairs, None for a dense matrix, and the dtype they are stored in.

    Raises:
      ValueError: if a number is out of range, or `history_dtype` is given with a dense matrix.
      TypeError: if `memory_size` is neither an int nor None.
    """
    history_dtype = _checks.history_dtype(optimizer, history_dtype)
    if memory_size is not None:
        return _checks.size(optimizer, "memory_size", memory_size), history_dtype
    if history_dtype is not None:
        raise ValueError(
            f"naqopt.{optimizer}: `history_dtype` is the dtype of stored pairs, and "
            "`memory_size=None` stores none; leave one of the two out."
        )
    return None, None


def curvature_of(
    optimizer: str,
    memory_size: Any,
    min_curvature: Any,
    history_dtype: Any,
    scale: Any,
    update: Any = BFGS,
    initial_scale: Any = None,
) -> Curvature:
    """Returns the limited or the dense curvature that a call asks for.

    Raises:
      ValueError: if a number is out of range, `history_dtype` is given with a dense matrix, or an
        `update` that there is not, or not without one.
      TypeError: if `memory_size` is neither an int nor None.
    """
    if min_curvature is not None:
        _checks.number(optimizer, "min_curvature", min_curvature, low=0)
    _check_initial_scale(optimizer, initial_scale)
    if not isinstance(update, str) or update not in UPDATES:
        raise ValueError(
            f"naqopt.{optimizer}: `update` must be one of {', '.join(UPDATES)}, got {update!r}."
        )
    memory_size, history_dtype = check_memory(optimizer, memory_size, history_dtype)
    if memory_size is None:
        gamma = None if isinstance(initial_scale, str) else initial_scale
        return dense_matrix(optimizer, min_curvature, update, gamma)
    if initial_scale is not None:
        raise ValueError(
            f"naqopt.{optimizer}: `initial_scale` needs the dense matrix, which is "
            "`memory_size=None`; with a limited memory γ is the newest pair's."
        )
    if update != BFGS:
        raise ValueError(
            f"naqopt.{optimizer}: `update={update!r}` needs the dense matrix, which is "
            "`memory_size=None`; of pairs in a limited memory there is BFGS alone."
        )
    return limited_memory(memory_size, min_curvature, scale, history_dtype)


def _check_initial_scale(optimizer: str, initial_scale: Any) -> None:
    """Raises unless it is None, the word for the first pair's, or a number > 0."""
    if isinstance(initial_scale, str):
        if initial_scale != FIRST_PAIR:
            raise ValueError(
                f'naqopt.{optimizer}: `initial_scale` must be a number or "{FIRST_PAIR}", got '
                f"{initial_scale!r}."
            )
    elif initial_scale is not None:
        _checks.number(optimizer, "initial_scale", initial_scale, low=_checks.SMALLEST)


def check_momentum(optimizer: str, momentum: Any) -> None:
    """Raises unless the momentum is a schedule or a number in [0, 1)."""
    if not callable(momentum):
        _checks.number(optimizer, "momentum", momentum, 0, 1, high_open=True)


def step_length_of(optimizer: str, learning_rate: Any, linesearch: Any) -> StepLength:
    """Returns the step length of a full-batch call.

    Raises:
      ValueError: if neither a learning rate nor a line search is given.
      TypeError: if the line search is something else than one of Optax's.
    """
    if isinstance(learning_rate, optax.GradientTransformation):
        raise TypeError(
            f"naqopt.{optimizer}: `learning_rate` is a transformation. A line search goes to "
            f"`linesearch`: naqopt.{optimizer}(linesearch=naqopt.armijo())."
        )
    if learning_rate is not None:
        _checks.learning_rate(optimizer, learning_rate)
    if linesearch is None:
        if learning_rate is None:
            raise ValueError(
                f"naqopt.{optimizer}: `learning_rate` and `linesearch` are both None, so nothing "
                f"decides how far to step. Give one: naqopt.{optimizer}(0.1, linesearch=None), or "
                f"naqopt.{optimizer}(linesearch=naqopt.armijo())."
            )
        return fixed()
    if not isinstance(linesearch, optax.GradientTransformation):
        raise TypeError(
            f"naqopt.{optimizer}: `linesearch` must be one of Optax's line searches, such as "
            "naqopt.armijo() or optax.scale_by_zoom_linesearch(max_linesearch_steps=20), got "
            f"{linesearch!r}."
        )
    if not hasattr(jax.eval_shape(linesearch.init, jnp.zeros(())), "learning_rate"):
        raise TypeError(
            f"naqopt.{optimizer}: `linesearch` keeps no step length, so it is no line search of "
            "Optax's. What transforms the gradient goes in front: "
            f"optax.chain(..., naqopt.{optimizer}(...))."
        )
    return search(linesearch)


def window_of(optimizer: str, restart_window: Any) -> int | None:
    """Returns the number of losses that are kept, checked."""
    if restart_window is None:
        return None
    return _checks.size(optimizer, "restart_window", restart_window)
