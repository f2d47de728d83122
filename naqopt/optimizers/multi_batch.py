"""Multi-batch oMoQ: batches overlap, and all gradients of a pair are of one part."""

from typing import Any

import optax

from naqopt.optimizers._arguments import check_momentum
from naqopt.optimizers.online import online
from naqopt.steps import schedules
from naqopt.steps.schedules import Momentum


def multi_batch_omoq(
    learning_rate: optax.ScalarOrSchedule = schedules.inverse_sqrt(1.0),  # noqa: B008
    *,
    momentum: Momentum = 0.85,
    memory_size: int | None = 4,
    damping: float = 1.0,
    normalize: bool = True,
    min_curvature: float | None = None,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multi-batch oMoQ, oLMoQ: batches overlap, and all gradients of a pair are of one part.

    A batch :math:`X_k` has three parts :math:`(X_k^{(1)}, X_k^{(2)}, X_k^{(3)})`, the newest, the
    middle and the oldest, and batches slide on by one of them:
    :math:`X_{k+1}^{(3)} = X_k^{(2)} = X_{k-1}^{(1)} = \Omega`. Step and direction are those of
    `naqopt.omoq` on the whole batches; only

    .. math::
      y = \nabla E(w_{k+1}; \Omega) - \left[ (1 + \mu) \nabla E(w_k; \Omega)
      - \mu \nabla E(w_{k-1}; \Omega) \right] + \lambda s, \qquad s = w_{k+1} - (w_k + \mu v_k)

    is free of the noise of different batches. A step takes one gradient of each example of its
    batch, part by part, and an example serves in three steps.

    Args:
      learning_rate: as in `naqopt.omoq`.
      momentum: as in `naqopt.omoq`. 0 makes it a multi-batch L-BFGS with normalised steps.
      memory_size: as in `naqopt.omoq`; None is the dense matrix.
      damping: as in `naqopt.omoq`.
      normalize: as in `naqopt.omoq`.
      min_curvature: as in `naqopt.omoq`.
      history_dtype: as in `naqopt.omoq`.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose `update` needs the extra argument
      `part_grads`, a tuple of the raw gradients at the params of the newest, the middle and the
      oldest part, in this order; updates are the gradient of the whole batch, their mean.
      Transformations in front change the direction alone.

    Raises:
      ValueError: as `naqopt.omoq`; by `update` also for `part_grads` that are missing, not three,
        or of another structure than the params.
      TypeError: as `naqopt.omoq`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> points = jax.random.normal(jax.random.key(0), (60, 2)) + jnp.array([1.0, -2.0])
      >>> loss = lambda p, batch: jnp.mean((p - batch) ** 2)
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.multi_batch_omoq(naqopt.schedules.inverse_sqrt(0.3))
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state, rows):  # of the three parts
      ...   part_grads = tuple(jax.grad(loss)(params, points[part]) for part in rows)
      ...   grads = jax.tree.map(lambda *g: sum(g) / 3, *part_grads)
      ...   updates, state = tx.update(grads, state, params, part_grads=part_grads)
      ...   return optax.apply_updates(params, updates), state
      >>> order = None
      >>> for epoch in range(50):
      ...   before, order = order, jax.random.permutation(jax.random.key(epoch), len(points))
      ...   for rows in naqopt.sliding_batches(order, 5, before):
      ...     params, state = step(params, state, rows)
      >>> print(f"{loss(params, points) - loss(points.mean(0), points):.2f}")
      0.00

    References:
      The slides of the authors of `naqopt.omoq` name it as future work. Overlapping batches are
      those of Berahas, Nocedal and Takáč, *A Multi-Batch L-BFGS Method for Machine Learning*, NIPS
      2016 (`arXiv:1605.06049 <https://arxiv.org/abs/1605.06049>`_).

    **Which parts overlap.** That the oldest part of a batch is the newest of the next, as one could
    read "consecutive batches share Ω", would give two gradients of one Ω and not the three that y
    has: Ω must be in three consecutive batches, as in the slides.

    **When a pair is formed.** At the first step :math:`v = 0` and :math:`w_{-1} = w_0`, so that the
    middle part's gradient stands for both, and there is a pair for every step that was taken, but:
    a gradient that is not finite, of a part or of the whole, lets its batch go by. Such a step
    changes nothing else than a counter, but the pair of the step before it, which waited for a part
    that is gone, is dropped, and the next step gives none. Nor does a step that is refused.
    `naqopt.forget_loss` drops the pair that waits, and pairs begin again with the next step.

    Every call counts as the next batch. So let batches slide on from one epoch into the next, as
    `naqopt.sliding_batches` does, or call `naqopt.forget_loss` where they do not; and leave out
    wrappers that drop whole steps with their state (`optax.apply_if_finite`): this optimizer skips
    them itself. With batch normalization the gradient of a part is that by its own statistics.

    **On several devices** each may hold a part, or a share of all three: their gradients, summed
    over devices, are what travels. In `jax.shard_map` sum them yourself.

    It is a call of its own, as in `naqopt.omoq`, which takes any gradient, a forgotten `part_grads`
    would go unnoticed.

    Costs one gradient a step, the caller's; 2 m + 5 copies of the params (13 by default), and two
    more while the gradients of the parts are there. At equal gradients it sees a third of the
    examples, each three times: not for a single pass over the data. Under
    `optax.inject_hyperparams` name `memory_size`, `history_dtype` and a momentum schedule static.
    """
    check_momentum("multi_batch_omoq", momentum)
    return online(
        "multi_batch_omoq",
        learning_rate,
        momentum,
        memory_size,
        damping,
        normalize,
        min_curvature,
        history_dtype,
        two_gradients=False,
        has_parts=True,
    )
