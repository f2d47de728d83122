"""Optax's wrappers in which an optimizer of this library does not do what its users expect."""

from typing import Any, NamedTuple

import jax
import optax


class Inside(NamedTuple):
    """What stands in a wrapper that moves the params otherwise than the optimizer in it says.

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
_AROUND = {  # by the state: the wrapper's name, and what holds the state of what is inside
    optax.contrib.ScheduleFreeState: ("optax.contrib.schedule_free", "base_optimizer_state"),
    optax.contrib.MechanicState: ("optax.contrib.mechanize", "base_optimizer_state"),
    optax.LookaheadState: ("optax.lookahead", "fast_state"),
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
    """Returns what a tree of states holds inside such wrappers, or in a chain before them."""
    found = []
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: type(node) in _AROUND or _behind(node) > 0)
    for node in nodes:
        last = _behind(node)
        if type(node) in _AROUND:
            wrapper, field = _AROUND[type(node)]
            found.append(Inside(wrapper, getattr(node, field), _WITHIN))
        elif last:
            found.append(Inside(_BEHIND[type(node[last])], node[:last], _BY_RATE))
            found += moved_otherwise(node[last + 1 :])
    return found


def accumulated(tree: Any) -> list[Any]:
    """Returns the states inside each `optax.MultiSteps` of a tree of states.

    It calls the optimizer on every mini-step, with the closures of that one, and takes what came of
    the last: the updates are the mean of all mini-batches then, the loss is that of one. No step
    can tell, as clipping and decay in front change the updates too. The wrapped state does.
    """

    def accumulates(node: Any) -> bool:
        return isinstance(node, optax.MultiStepsState)

    nodes = jax.tree.leaves(tree, is_leaf=accumulates)
    return [node.inner_opt_state for node in nodes if accumulates(node)]
