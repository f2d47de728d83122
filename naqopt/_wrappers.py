"""Optax's wrappers that move the params otherwise than the optimizer within them says."""

from typing import Any, NamedTuple

import jax
import optax


class Inside(NamedTuple):
    """What stands in such a wrapper.

    Attributes:
      wrapper: its name.
      states: the states of what it moves otherwise.
      remedy: what to do in its place.
    """

    wrapper: str
    states: Any
    remedy: str


_WITHIN = (
    "Put an optimizer there whose steps stand for themselves: naqopt.obfgs, lsr1, svrg or svrg2."
)
_BY_RATE = (
    "Scale the learning rate in its place: optax.inject_hyperparams, or a schedule as the "
    "`learning_rate`."
)
_AROUND = {
    optax.contrib.ScheduleFreeState: "optax.contrib.schedule_free",
    optax.contrib.MechanicState: "optax.contrib.mechanize",
}
_BEHIND = {
    optax.contrib.ReduceLROnPlateauState: "optax.contrib.reduce_on_plateau",
    optax.ScaleByScheduleState: "optax.scale_by_schedule",
}


def _behind(node: Any) -> int:
    """Returns at which place of a chain's states the last one stands that scales updates, or 0."""
    if type(node) is not tuple:
        return 0
    return max((i for i, state in enumerate(node) if type(state) in _BEHIND), default=0)


def moved_otherwise(tree: Any) -> list[Inside]:
    """Returns what a tree of states holds inside the wrappers above, or in a chain before them."""
    found = []
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: type(node) in _AROUND or _behind(node) > 0)
    for node in nodes:
        last = _behind(node)
        if type(node) in _AROUND:
            found.append(Inside(_AROUND[type(node)], node.base_optimizer_state, _WITHIN))
        elif last:
            found.append(Inside(_BEHIND[type(node[last])], node[:last], _BY_RATE))
            found += moved_otherwise(node[last + 1 :])
    return found
