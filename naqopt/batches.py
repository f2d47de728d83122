"""Batches: a gradient summed over all of them, and those of an epoch that overlap."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from naqopt import _checks, _closures, _tree
from naqopt._tree import Tree


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add(
    loss_fn: Callable[[Tree, Any], jax.Array], total: Tree, params: Tree, batch: Any, examples: Any
) -> Tree:
    """Returns total + b g, with g the gradient of the mean loss of a batch of b examples."""
    loss = _closures.loss("full_gradient", "loss_fn", lambda p: loss_fn(p, batch), "p, batch")
    grads = jax.grad(loss)(params)
    return jax.tree.map(lambda t, g: t + examples.astype(t.dtype) * g.astype(t.dtype), total, grads)


def full_gradient(
    loss_fn: Callable[[optax.Params, Any], jax.Array], params: optax.Params, batches: Iterable[Any]
) -> optax.Updates:
    r"""The gradient over all examples of a data loader, batch by batch.

    .. math::
      \Omega = \nabla E(w) = \frac{\sum_j b_j \, \nabla E(w; X_j)}{\sum_j b_j}

    over batches :math:`X_j` of :math:`b_j` examples, so that a last batch with fewer of them weighs
    no more than it should.

    Args:
      loss_fn: from the params and a batch to the **mean** loss over the batch's examples. Compiled
        once for every shape of a batch, and kept for the next call with the same function: define
        it once, not anew every epoch.
      params: the point w; for a snapshot `naqopt.eval_params(state, params)`.
      batches: the batches of one epoch; in each of them, any tree of arrays, every leaf has the
        examples along its first axis. Larger batches than those trained on are faster. Any
        iterable, so that `tqdm.tqdm(batches)` shows a bar.

    Returns:
      The gradient, a tree like params in at least float32, as `naqopt.snapshot` takes it.

    Raises:
      ValueError: if there is no batch, a batch's leaves are of unequal length or have no first
        axis, or the loss is no scalar.
      TypeError: if the params are not real floating numbers.

    Example:
      >>> import jax.numpy as jnp, naqopt
      >>> loss_fn = lambda p, batch: jnp.mean((p - batch) ** 2)
      >>> batches = [jnp.array([1.0, 2.0]), jnp.array([6.0])]  # of mean 3
      >>> print(naqopt.full_gradient(loss_fn, jnp.array(0.0), batches))
      -6.0

    Costs a gradient of every example and two copies of the params. Where all examples are on the
    device in one array, `jax.grad` of the loss over all of it does as well.
    """
    if not callable(loss_fn):
        raise TypeError(
            "naqopt.full_gradient: `loss_fn` must be a function of params and batch, got "
            f"{type(loss_fn).__name__}; call full_gradient(loss_fn, params, batches)."
        )
    try:
        hash(loss_fn)
    except TypeError as error:
        raise TypeError(
            f"naqopt.full_gradient: `loss_fn`, a {type(loss_fn).__name__}, has no hash, by which "
            "it is compiled once and kept. Wrap it, once and outside of the loop: "
            "`loss_fn=lambda p, batch: loss(p, batch)`."
        ) from error
    params = _checks.params("full_gradient", params)
    total, count = _tree.zeros(params), 0
    for batch in batches:
        examples = _examples(batch)
        if not examples:
            continue  # of nothing there is no mean
        count += examples
        total = _add(loss_fn, total, params, batch, jnp.asarray(examples))
    if not count:
        raise ValueError(
            "naqopt.full_gradient: `batches` gave no example. A generator that an earlier epoch "
            "has used up gives none: make it anew."
        )
    return jax.tree.map(lambda x: x / count, total)


def _examples(batch: Any) -> int:
    """Returns how many examples a batch has."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            "naqopt.full_gradient: every leaf of a batch must have its examples along the first "
            f"axis, got leaves of shapes {[jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]}. "
            "Bind what is no example in `loss_fn`."
        )
    return lengths.pop()[0]


def sliding_batches(order: Any, part_size: int, before: Any = None) -> jax.Array:
    r"""The overlapping batches of an epoch that `naqopt.multi_batch_omoq` asks for, in three parts.

    The order is cut into parts :math:`P_1, P_2, \dots` of so many examples, and the batches are

    .. math::
      X_k = (P_k, P_{k-1}, P_{k-2}), \qquad k = 1, 2, \dots

    with the last two parts of the epoch before as :math:`P_0` and :math:`P_{-1}`, so that batches
    slide on from one epoch into the next, and every part is in three of them.

    Args:
      order: the indices of all examples in this epoch's order, one axis.
      part_size: how many examples a part has, a third of those of a batch. What does not fill the
        last part is left out.
      before: the order of the epoch before; None for the first, which begins with the last two
        parts of its own.

    Returns:
      Indices of shape (parts, 3, part_size): by batch its newest, its middle and its oldest part.

    Raises:
      ValueError: if an order has not one axis, or less than three parts.
      TypeError: if `part_size` is no int.

    Example:
      >>> import jax.numpy as jnp, naqopt
      >>> print(naqopt.sliding_batches(jnp.arange(6), 2).tolist())
      [[[0, 1], [4, 5], [2, 3]], [[2, 3], [0, 1], [4, 5]], [[4, 5], [2, 3], [0, 1]]]

    Costs three copies of the order. A pure function of the orders, so that a run goes on from any
    epoch whose order and the one before can be drawn again.
    """
    part_size = _checks.size("sliding_batches", "part_size", part_size)
    parts = _parts("order", order, part_size)
    first = parts if before is None else _parts("before", before, part_size)
    parts = jnp.concatenate([first[-2:], parts])
    return jnp.stack([parts[2:], parts[1:-1], parts[:-2]], axis=1)


def _parts(name: str, order: Any, part_size: int) -> jax.Array:
    """Returns the parts of an order that are full."""
    order = jnp.asarray(order)
    if order.ndim != 1 or len(order) < 3 * part_size:
        raise ValueError(
            f"naqopt.sliding_batches: `{name}` must be a vector of at least three times "
            f"`part_size` = {part_size} indices, got shape {order.shape}."
        )
    count = len(order) // part_size
    return order[: count * part_size].reshape(count, part_size)
