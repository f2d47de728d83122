"""What users read from an optimizer's state, wherever Optax's wrappers have put it."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from naqopt import _tree, _wrappers
from naqopt._tree import Scalar, Tree
from naqopt.flatten import FlattenState, from_vectors


class Info(NamedTuple):
    """Scalars that say how the optimizer fares; every state of this library holds one as `info`.

    Attributes:
      pairs_stored: curvature pairs stored since init.
      pairs_refused: curvature pairs formed and not stored, for too little curvature.
      restorations: returns to the last anchor because the loss had risen.
      steps_skipped: steps not taken because the caller's gradient was not finite.
      skipped_in_a_row: those since the last step that was taken, or since the last bad point left.
      bad_points_left: returns from where ten gradients in a row were not finite, to the iterate
        before, the last anchor or the snapshot; obfgs and lsr1 in a trust region, which have none,
        stay.
      steps_uphill: steps that transformations in front have led where the loss of `grad` does not
        fall at first; counted where that loss judges the step. Weight decay belongs in the loss
        where these are many.
      steps_refused: steps taken back because the optimizer's own gradient or direction was not
        finite, or every trial of its line search failed.
      searches_failed: line searches that ended without sufficient decrease.
      search_trials: points at which the last line search evaluated the loss.
      snapshots_refused: calls of `naqopt.snapshot` whose full gradient was not finite.
      steps_without_snapshot: steps of a variance-reduced method before its first snapshot.
      steps_rejected: trust-region steps not taken because the loss fell too little.
      momentum_restarts: steps at whose look-ahead point the loss was above the last ones.
      pairs_in_memory: curvature pairs that H or B is made of now.
      radius: Δ of the next trust-region step; 0 for methods without one.
      step_size: α of the last step, schedules and back-off included.
      momentum: μ of the next step; 0 for methods without momentum.
      direction_norm: ‖H g‖ of the last step, before any normalisation.
    """

    pairs_stored: jax.Array
    pairs_refused: jax.Array
    restorations: jax.Array
    steps_skipped: jax.Array
    skipped_in_a_row: jax.Array
    bad_points_left: jax.Array
    steps_uphill: jax.Array
    steps_refused: jax.Array
    searches_failed: jax.Array
    search_trials: jax.Array
    snapshots_refused: jax.Array
    steps_without_snapshot: jax.Array
    steps_rejected: jax.Array
    momentum_restarts: jax.Array
    pairs_in_memory: jax.Array
    radius: jax.Array
    step_size: jax.Array
    momentum: jax.Array
    direction_norm: jax.Array


def init_info(dtype: Any, momentum: Any = 0) -> Info:
    """Returns the counters at zero; no two of them share a buffer."""
    return Info(
        pairs_stored=jnp.zeros((), jnp.int32),
        pairs_refused=jnp.zeros((), jnp.int32),
        restorations=jnp.zeros((), jnp.int32),
        steps_skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        bad_points_left=jnp.zeros((), jnp.int32),
        steps_uphill=jnp.zeros((), jnp.int32),
        steps_refused=jnp.zeros((), jnp.int32),
        searches_failed=jnp.zeros((), jnp.int32),
        search_trials=jnp.zeros((), jnp.int32),
        snapshots_refused=jnp.zeros((), jnp.int32),
        steps_without_snapshot=jnp.zeros((), jnp.int32),
        steps_rejected=jnp.zeros((), jnp.int32),
        momentum_restarts=jnp.zeros((), jnp.int32),
        pairs_in_memory=jnp.zeros((), jnp.int32),
        radius=jnp.zeros((), dtype),
        step_size=jnp.zeros((), dtype),
        momentum=jnp.array(momentum, dtype),
        direction_norm=jnp.zeros((), dtype),
    )


MOST_SKIPPED = 10  # steps in a row, after which the params are no longer thought sound


def leaves_bad_point(info: Info, taken: Scalar, count: Scalar) -> Scalar:
    """Returns whether this skipped step is one too many in a row, and not the run's start."""
    return ~taken & (info.skipped_in_a_row >= MOST_SKIPPED - 1) & (count > 0)


def record(
    info: Info,
    taken: Scalar,
    events: Mapping[str, Scalar],
    leaves: Scalar | None = None,
    **scalars: Scalar,
) -> Info:
    """Moves the counters of events and sets scalars; a skipped step moves only those of skips.

    A scalar that is not finite keeps its last value: its step was refused or fell back.
    """

    def add(name: str, event: Scalar) -> jax.Array:
        counter = getattr(info, name)
        return jnp.where(event, optax.safe_increment(counter), counter)

    new = {name: add(name, taken & event) for name, event in events.items()}
    new["steps_skipped"] = add("steps_skipped", ~taken)
    new["skipped_in_a_row"] = jnp.where(taken, 0, add("skipped_in_a_row", ~taken))
    if leaves is not None:
        new["bad_points_left"] = add("bad_points_left", leaves)
        new["skipped_in_a_row"] = jnp.where(leaves, 0, new["skipped_in_a_row"])
    for name, scalar in scalars.items():
        new[name] = jnp.where(taken & jnp.isfinite(scalar), scalar, getattr(info, name))
    return info._replace(**new)


def gathered(new: Any, old: Any) -> Any:
    """Returns the new state with the numbers that have changed computed in one place.

    Each of them would be a kernel to compile and to launch, with the step's decisions in it anew.
    """
    leaves, structure = jax.tree.flatten(new)
    changed = [
        i
        for i, (leaf, before) in enumerate(zip(leaves, jax.tree.leaves(old), strict=True))
        if leaf.ndim == 0 and leaf is not before
    ]
    numbers = _tree.together(*(leaves[i] for i in changed))
    for i, number in zip(changed, numbers, strict=True):
        leaves[i] = number
    return jax.tree.unflatten(structure, leaves)


def _is_state(node: Any) -> bool:
    return isinstance(getattr(node, "info", None), Info)


class Found(NamedTuple):
    """A state of this library and where it was found.

    Attributes:
      path: its place in the tree, for people.
      layouts: those of the `naqopt.flatten` around it, the outermost first.
      state: the state.
    """

    path: str
    layouts: tuple[Tree, ...]
    state: Any


def is_found(node: Any) -> bool:
    """Returns whether a node is a state of this library, or one inside `naqopt.flatten`."""
    return _is_state(node) or isinstance(node, FlattenState)


def find_states(tree: Any, path: str = "", layouts: tuple[Tree, ...] = ()) -> list[Found]:
    """Returns the states of this library in a tree."""
    found = []
    for keys, node in jax.tree.leaves_with_path(tree, is_leaf=is_found):
        here = path + jax.tree_util.keystr(keys, simple=True, separator="/")
        if _is_state(node):
            found.append(Found(here, layouts, node))
        elif isinstance(node, FlattenState):
            inner = f"{here}/inner_state/" if here else "inner_state/"
            found += find_states(node.inner_state, inner, (*layouts, node.layout))
    return found


def check_wrappers(function: str, state: Any) -> None:
    """Raises where a wrapper moves the params otherwise than a state in it goes by.

    That is one of a look-ahead point, of a pair that waits for the next gradient, or of an anchor
    that steps lead back to.
    """
    for wrapper, states, remedy in _wrappers.moved_otherwise(state):
        for _, _, node in find_states(states):
            if any(getattr(node, x, None) is not None for x in ("momentum", "pending", "anchor")):
                raise ValueError(
                    f"naqopt.{function}: {wrapper} moves the params otherwise than the optimizer "
                    f"in front of it or inside it ({type(node).__name__}) goes by, so that its "
                    f"pairs, its iterate or its restorations are wrong. {remedy} The guide of "
                    "Optax's wrappers has a table."
                )


def warn_of_closures(function: str, state: Any) -> None:
    """Warns where `optax.MultiSteps` stands around what looks at more than a gradient.

    Called by a public function directly, whose caller the warning names.
    """
    own = find_states(_wrappers.accumulated(state))
    if all(getattr(found.state, "of_gradients_alone", False) for found in own):
        return
    warnings.warn(
        f"naqopt.{function}: optax.MultiSteps stands around an optimizer that evaluates the loss "
        "or takes `part_grads`. It is given those of the last mini-batch alone, while the updates "
        "are the mean of all of them: pairs and searches mix two losses. Leave MultiSteps out and "
        "accumulate inside the loss, by a jax.lax.scan over the micro-batches in `value_fn`; or "
        "put naqopt.omoq(), which takes gradients alone, into MultiSteps.",
        stacklevel=3,
    )


def eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """Returns the iterate w to evaluate or deploy, given the params that are trained.

    The params of a Nesterov method are the look-ahead point ŵ = w + μ v, where the next gradient is
    taken, so this gives::

        w = ŵ − μ v

    For methods without look-ahead, Optax's own included, the params are the iterate and come back
    as they are, so one evaluation loop serves every optimizer.

    Args:
      state: the optimizer's state; states of this library are found by type inside
        `naqopt.flatten`, `optax.chain`, `masked`, `partition`, `inject_hyperparams`,
        `apply_if_finite` and `MultiSteps`. Of a `flax.nnx.Optimizer` pass
        `nnx.as_pure(optimizer.opt_state)`.
      params: the params that belong to this state, that is, after `optax.apply_updates`.

    Returns:
      A tree of the structure and dtypes of params.

    Raises:
      ValueError: if the arguments are swapped, the params are not those of the state, or a wrapper
        moves them otherwise than the optimizer goes by: `optax.contrib.schedule_free`, `mechanize`
        and `optax.lookahead` around, `reduce_on_plateau` and `optax.scale_by_schedule` behind one
        with a look-ahead point, one gradient a step or anchors.

    Warns:
      UserWarning: if `MultiSteps` stands around what needs the loss, as in `naqopt.diagnostics`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p["w"] - 1.0) ** 2)
      >>> params = {"w": jnp.zeros(2)}
      >>> tx = naqopt.asnaq(learning_rate=0.1, min_momentum=0.5)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
      >>> params = optax.apply_updates(params, updates)
      >>> print(params["w"].round(4), naqopt.eval_params(state, params)["w"].round(4))
      [0.1061 0.1061] [0.0707 0.0707]

    Costs one pass over the params; nothing is stored.
    """
    found = find_states(state)
    if not found and find_states(params):
        raise ValueError(
            "naqopt.eval_params: the arguments are swapped; call eval_params(state, params)."
        )
    check_wrappers("eval_params", state)
    warn_of_closures("eval_params", state)
    for _, layouts, node in found:
        # A method whose params are a look-ahead point keeps the momentum that it was made with.
        if getattr(node, "momentum", None) is not None:
            if node.momentum.ndim:
                raise ValueError(
                    "naqopt.eval_params: the state is that of several runs under vmap; call "
                    "jax.vmap(naqopt.eval_params)(state, params)."
                )
            lookahead = node.lookahead()
            for layout in reversed(layouts):
                lookahead = from_vectors(layout, lookahead)
            params = _subtract(params, lookahead)
    return params


def _subtract(params: Tree, displacement: Tree) -> Tree:
    """Returns params − displacement, except where a mask gives a leaf to another optimizer."""

    def masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def subtract(v: Any, p: Any) -> Any:
        if masked(v):
            return p
        if jnp.shape(v) != jnp.shape(p):
            raise ValueError(f"{jnp.shape(p)} is not {jnp.shape(v)}")
        return (p - v).astype(jnp.asarray(p).dtype)

    try:
        return jax.tree.map(subtract, displacement, params, is_leaf=masked)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "naqopt.eval_params: `params` are not the params that this state was made for (under "
            "flax.nnx.Optimizer pass nnx.as_pure(optimizer.opt_state) and "
            f"nnx.as_pure(nnx.state(model, nnx.Param))): {error}"
        ) from error


def diagnostics(state: optax.OptState) -> dict[str, jax.Array]:
    """Returns the scalars of the state's `Info` as a flat dict for a logger.

    Args:
      state: the optimizer's state, wrapped or not; `nnx.as_pure(optimizer.opt_state)` of a
        `flax.nnx.Optimizer`.

    Returns:
      A dict from the names of `naqopt.state.Info`'s fields to scalars. Where several states of this
      library are found (under `optax.partition`, say), each key is prefixed by its state's path and
      a slash.

    Raises:
      ValueError: if no state of this library is found.

    Warns:
      UserWarning: if `MultiSteps` stands around an optimizer that evaluates the loss or takes
        `part_grads`, of which it hands on those of the last mini-batch alone.

    Example:
      >>> import jax.numpy as jnp, naqopt
      >>> state = naqopt.asnaq().init({"w": jnp.zeros(2)})
      >>> {name: float(x) for name, x in naqopt.diagnostics(state).items() if x}
      {'momentum': 0.10000000149011612}

    Costs nothing: the scalars are already in the state.
    """
    found = find_states(state)
    if not found:
        raise ValueError(
            "naqopt.diagnostics: no state of a naqopt optimizer was found; pass the state that "
            "tx.init or tx.update returned."
        )
    warn_of_closures("diagnostics", state)
    if len(found) == 1:
        return dict(found[0].state.info._asdict())
    return {
        f"{path}/{name}": value
        for path, _, node in found
        for name, value in node.info._asdict().items()
    }
