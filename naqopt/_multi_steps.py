"""A warning where `optax.MultiSteps` stands around what looks at more than a gradient.

It calls the optimizer on every mini-step, with the closures of that one, and takes what came of the
last: the updates are the mean of all mini-batches then, the loss is that of one. No step can tell,
as clipping and decay in front change the updates too. The wrapped state does.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import optax


def _accumulates(node: Any) -> bool:
    return isinstance(node, optax.MultiStepsState)


def warn_of_closures(function: str, state: optax.OptState, is_own: Callable[[Any], bool]) -> None:
    """Warns who has called a public function with a state so wrapped; `is_own` tells ours."""
    wrappers = filter(_accumulates, jax.tree.leaves(state, is_leaf=_accumulates))
    inside = [wrapper.inner_opt_state for wrapper in wrappers]
    own = filter(is_own, jax.tree.leaves(inside, is_leaf=is_own))
    if all(getattr(node, "of_gradients_alone", False) for node in own):
        return
    warnings.warn(
        f"naqopt.{function}: optax.MultiSteps stands around an optimizer that evaluates the loss "
        "or takes `part_grads`. It is given those of the last mini-batch alone, while the updates "
        "are the mean of all of them: pairs and searches mix two losses. Leave MultiSteps out and "
        "accumulate inside the loss, by a jax.lax.scan over the micro-batches in `value_fn`; or "
        "put naqopt.omoq(), which takes gradients alone, into MultiSteps.",
        stacklevel=3,
    )
