"""Whether a saved state is one that this version reads, and which version saved it."""

from collections.abc import Iterable

import jax
import numpy as np

from naqopt._tree import Tree

# What each version added to `naqopt.state.Info`, which every state has. By these names a checkpoint
# tells who saved it: a number of the version in the state would be an array more to carry through
# every step, and a static one is not saved.
ADDED = {
    "0.1.0": (
        "pairs_stored",
        "pairs_refused",
        "restorations",
        "steps_skipped",
        "steps_refused",
        "step_size",
        "momentum",
        "direction_norm",
    ),
    "0.2.0": (
        "skipped_in_a_row",
        "bad_points_left",
        "steps_uphill",
        "searches_failed",
        "search_trials",
        "snapshots_refused",
        "steps_without_snapshot",
        "steps_rejected",
        "momentum_restarts",
        "pairs_in_memory",
        "radius",
    ),
}
_SHOWN = 3  # entries in a message


def _entries(tree: Tree) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a tree's arrays by their path, which is alike for fields and keys."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _info(entries: Iterable[str]) -> set[str]:
    """Returns the names in every `info` of a state."""
    paths = (path.split("/") for path in entries)
    return {path[-1] for path in paths if len(path) > 1 and path[-2] == "info"}


def _writer(names: set[str]) -> str:
    """Returns the version that has these names in its `info`."""
    known: set[str] = set()
    last = None
    for version, added in ADDED.items():
        if not names.issuperset(added):
            break
        known, last = known.union(added), version
    if last is None:
        return "something else than naqopt"
    return f"naqopt {last}" if names == known else f"a version after naqopt {last}"


def _some(paths: Iterable[str]) -> str:
    found = sorted(paths)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(f"`{path}`" for path in found[:_SHOWN]) + more


def check_saved_state(saved: Tree, state: Tree) -> None:
    """Raises where a saved state is not of this version, and names the version that saved it.

    States change between versions. What a checkpoint holds is compared by names and shapes with
    what the optimizer makes now, before anything is read: Orbax tells what differs, but not why.

    Args:
      saved: the state as it was saved, or what is known of it without reading: of Orbax
        `checkpointer.metadata(folder).item_metadata["state"]`. Any tree whose keys are the names of
        the fields, as Flax's `to_state_dict` gives them.
      state: what is expected, `tx.init(params)` or `jax.eval_shape(tx.init, params)`.

    Raises:
      ValueError: if the names or the shapes differ. The message says which do, who saved the state
        where it was another version, and how to go on.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt
      >>> tx, params = naqopt.asnaq(), {"w": jnp.zeros(3)}
      >>> state = jax.eval_shape(tx.init, params)
      >>> naqopt.check_saved_state(state, state)
      >>> try:
      ...   naqopt.check_saved_state(jax.eval_shape(naqopt.onaq().init, params), state)
      ... except ValueError as error:
      ...   print(str(error)[26:84])
      the state was saved of another optimizer or with other arg

    Costs nothing: no array is looked into.
    """
    found, wanted = _entries(saved), _entries(state)
    if found == wanted:
        return
    expected = _info(wanted)
    if not expected:
        raise ValueError(
            "naqopt.check_saved_state: `state` holds no state of a naqopt optimizer; call "
            "check_saved_state(saved, tx.init(params))."
        )
    lacks, has = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    shapes = [path for path in wanted.keys() & found.keys() if found[path] != wanted[path]]
    parts = {"it lacks": lacks, "it has besides": has, "of another shape are": shapes}
    difference = "; ".join(f"{what} {_some(paths)}" for what, paths in parts.items() if paths)
    names = _info(found)
    if names != expected:
        raise ValueError(
            f"naqopt.check_saved_state: the state was saved by {_writer(names)}, whose states have "
            f"other entries than those of this version ({difference}). "
            "Keep the params that were saved with it and begin anew: state = tx.init(params)."
        )
    raise ValueError(
        "naqopt.check_saved_state: the state was saved of another optimizer or with other "
        f"arguments or params ({difference}). Make tx, its wrappers and params as they "
        "were then; or keep the params and begin anew: state = tx.init(params)."
    )
