"""The full gradient of a variance-reduced optimizer, given once an epoch."""

from typing import Any

import jax
import optax

from naqopt import _checks, _closures
from naqopt._tree import Tree
from naqopt.flatten import FlattenState, shapes, to_vectors
from naqopt.state import eval_params, find_states, is_found, warn_of_closures


def snapshot(
    state: optax.OptState, params: optax.Params, full_grad: optax.Updates
) -> optax.OptState:
    r"""Gives a variance-reduced optimizer its full gradient: call it once an epoch.

    With the iterate :math:`w` of now, that is `eval_params(state, params)`,

    .. math::
      s = w - \tilde w, \qquad y = \nabla E(w) - \Omega, \qquad
      \tilde w \leftarrow w, \qquad \Omega \leftarrow \nabla E(w)

    and, from the second snapshot on, the pair :math:`(s, y)` goes to the curvature of
    `naqopt.svrg2` and `naqopt.svr_naq` if
    :math:`s^\top y > 10^{-8} \lVert s \rVert \lVert y \rVert` (in float32 :math:`10^{-6}`). Nothing
    else changes, the params in particular.

    Args:
      state: the optimizer's state; states of `naqopt.svrg`, `naqopt.svrg2` and `naqopt.svr_naq` are
        found by type inside `naqopt.flatten`, `optax.chain`, `masked`, `partition`,
        `inject_hyperparams`, `apply_if_finite` and `MultiSteps`. Of a `flax.nnx.Optimizer` pass
        `nnx.as_pure(optimizer.opt_state)` and put the result back by
        `nnx.update(optimizer.opt_state, nnx.state(new_state))`.
      params: the params that belong to this state, as they are trained.
      full_grad: the gradient of the loss over all training examples **at
        `naqopt.eval_params(state, params)`**, which for `svr_naq` are not the params;
        `naqopt.full_gradient` takes it from a data loader. A tree like the params, in their dtypes
        or at least float32. If it is not finite the state keeps its last snapshot and counts that.

    Returns:
      The state with the snapshot. It shares no memory with params and full_grad, so that all can be
      donated. A pure function, for use under `jax.jit` as well.

    Raises:
      ValueError: if the state is of no variance-reduced optimizer, the arguments are swapped, or
        params or full_grad have another structure or other shapes than init was given.
      TypeError: if full_grad has another dtype than the params.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> batches = [jnp.array([1.0]), jnp.array([3.0])]
      >>> loss = lambda p, batch: jnp.mean((p - batch) ** 2)
      >>> params = jnp.array(0.0)
      >>> tx = naqopt.svrg(learning_rate=0.1)
      >>> state = tx.init(params)
      >>> full_grad = naqopt.full_gradient(loss, naqopt.eval_params(state, params), batches)
      >>> state = naqopt.snapshot(state, params, full_grad)
      >>> for batch in batches:  # both move as the full gradient does
      ...   value_fn = lambda p: loss(p, batch)
      ...   grad = jax.grad(value_fn)(params)
      ...   updates, state = tx.update(grad, state, params, value_fn=value_fn)
      ...   params = optax.apply_updates(params, updates)
      ...   print(f"{updates:.2f}")
      0.40
      0.32

    Costs a copy of both, and with curvature the storing of a pair: a pass over S, or d² numbers.
    """
    found = _takers(state)
    if not found and _takers(params):
        raise ValueError(
            "naqopt.snapshot: the arguments are swapped; call snapshot(state, params, full_grad)."
        )
    if not found:
        raise ValueError(
            "naqopt.snapshot: `state` holds no state of naqopt.svrg, naqopt.svrg2 or "
            "naqopt.svr_naq; other optimizers take no snapshots. Pass the state that tx.init or "
            "tx.update returned."
        )
    warn_of_closures("snapshot", state)
    params = _checks.params("snapshot", params)
    return _take(state, params, _checks.gradients("snapshot", "full_grad", full_grad))


def _takers(tree: Any) -> list[Any]:
    """Returns the states in a tree that take snapshots."""
    return [found.state for found in find_states(tree) if hasattr(found.state, "take_snapshot")]


def _take(tree: Any, params: Tree, full_grad: Tree) -> Any:
    """Returns a tree of states after a snapshot."""

    def own(like: Tree) -> tuple[Tree, Tree]:
        """What belongs to a state made for such params, checked."""
        own_params = _closures.pruned("snapshot", "params", params, like)
        own_grad = _closures.pruned("snapshot", "full_grad", full_grad, like)
        _checks.gradient_dtypes("snapshot", "full_grad", own_grad, own_params)
        return own_params, own_grad

    def take(node: Any) -> Any:
        if not _takers(node):
            return node
        if isinstance(node, FlattenState):
            vectors = (to_vectors(node.layout, x) for x in own(shapes(node.layout)))
            return node._replace(inner_state=_take(node.inner_state, *vectors))
        own_params, own_grad = own(node.snapshot_params)
        return node.take_snapshot(eval_params(node, own_params), own_grad)

    return jax.tree.map(take, tree, is_leaf=is_found)
