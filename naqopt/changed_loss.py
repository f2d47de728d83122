"""States for a loss that has changed: new collocation points, new data, another weight."""

from typing import Any

import jax
import optax

from naqopt.flatten import FlattenState
from naqopt.state import find_states, is_found


def forget_loss(state: optax.OptState) -> optax.OptState:
    r"""Forgets what a full-batch optimizer knows of its loss, and keeps what it knows of curvature.

    Call it when the loss has changed a little: a physics-informed network that draws new
    collocation points every few hundred steps, data that have been added, a penalty that has
    grown. What goes is what would be compared with numbers of another function,

    * value and gradient at the params (`store_grad`), which
      `optax.value_and_grad_from_state` would serve;
    * the pair that waits for the next gradient, as y would be the difference of gradients of two
      functions;
    * the gradient that MoQ, oMoQ and MoSR1 extrapolate from, and with it their velocity;
    * the losses with which a momentum's look-ahead point is compared, and
      :math:`E(w_{prev})`, of which `naqopt.wolfe` makes its first trial.

    What stays is the matrix or the pairs, the velocity of the others, a trust region's radius and
    the counters. To forget the curvature as well, take `tx.init(params)`.

    Args:
      state: the optimizer's state; states of `naqopt.bfgs`, `naqopt.ssbroyden`, `naqopt.ssbfgs`,
        `naqopt.naq`, `naqopt.moq`, `naqopt.mnaq`, `naqopt.lsr1`, `naqopt.sr1n`, `naqopt.mosr1` and
        of the online methods are found by type inside Optax's wrappers, as by `naqopt.diagnostics`.

    Returns:
      The state, of the same structure, so that nothing is compiled anew. A pure function, for use
      under `jax.jit` as well.

    Raises:
      ValueError: if no such state is found. `naqopt.asnaq` and `naqopt.adaqn` compare losses on one
        and the same batch and keep none; the variance-reduced methods want a new
        `naqopt.snapshot`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> def loss(p, points):
      ...   return jnp.mean((p[0] + p[1] * points - jnp.exp(points)) ** 2)
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.ssbroyden()
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state, points):
      ...   value_fn = lambda p: loss(p, points)
      ...   value, grad = optax.value_and_grad_from_state(value_fn)(params, state=state)
      ...   updates, state = tx.update(
      ...     grad, state, params, value=value, grad=grad, value_fn=value_fn)
      ...   return optax.apply_updates(params, updates), state
      >>> for block in range(3):
      ...   points = jax.random.uniform(jax.random.key(block), 100)
      ...   state = naqopt.forget_loss(state)
      ...   for _ in range(5):
      ...     params, state = step(params, state, points)
      >>> print(f"{loss(params, points):.4f}", int(naqopt.diagnostics(state)["pairs_stored"]))
      0.0039 12

    Costs a gradient at the next step, where one was stored, and one pair.
    """
    if not any(_knows_loss(found.state) for found in find_states(state)):
        raise ValueError(
            "naqopt.forget_loss: `state` holds no state of a full-batch or online quasi-Newton "
            "optimizer of this library. Optax's optimizers, naqopt.asnaq and naqopt.adaqn keep "
            "nothing of a loss and go on as they are; naqopt.svrg, naqopt.svrg2 and naqopt.svr_naq "
            "want a new full gradient: naqopt.snapshot(state, params, full_grad)."
        )
    return _forget(state)


def _knows_loss(node: Any) -> bool:
    return hasattr(node, "without_loss")


def _forget(tree: Any) -> Any:
    """Returns a tree of states without their losses."""

    def forget(node: Any) -> Any:
        if isinstance(node, FlattenState):
            return node._replace(inner_state=_forget(node.inner_state))
        return node.without_loss() if _knows_loss(node) else node

    return jax.tree.map(forget, tree, is_leaf=is_found)
