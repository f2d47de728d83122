"""SVRG, SVRG+II and SVR-NAQ: mini-batch gradients corrected by a full gradient once an epoch.

Recipes of the core in `_control_variate`, which tells how they differ. The formulas of the paper of
SVR-NAQ are not in its text; what stands here is their reconstruction from its prose.
"""

from typing import Any

import optax

from naqopt import _checks
from naqopt.curvature import pairs
from naqopt.optimizers._arguments import check_momentum, curvature_of
from naqopt.optimizers._control_variate import Method, transformation
from naqopt.steps import schedules
from naqopt.steps.schedules import Momentum


def svrg(
    learning_rate: optax.ScalarOrSchedule = 0.025,
) -> optax.GradientTransformationExtraArgs:
    r"""SVRG: gradient descent with stochastic variance reduced gradients.

    With the snapshot :math:`\tilde w` and its full gradient :math:`\Omega = \nabla E(\tilde w)`,
    which `naqopt.snapshot` takes once an epoch,

    .. math::
      G(w) = \nabla E(w; X) - \nabla E(\tilde w; X) + \Omega, \qquad w^+ = w - \alpha_k G(w)

    :math:`G(w)` is an unbiased estimate of :math:`\nabla E(w)`, and its variance vanishes as
    :math:`w` and :math:`\tilde w` approach a minimum. Steps before the first snapshot are plain
    gradient steps, counted as `steps_without_snapshot` in `naqopt.diagnostics`.

    Args:
      learning_rate: α_k ≥ 0, a number or an Optax schedule of the number of steps taken before
        (default: that of the paper of SVR-NAQ). SVRG is made for a constant one.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Its `update` needs the extra argument `value_fn`,
      the loss of this step's batch as a function of the params, or `grad_fn`, its gradient. A
      gradient that is not finite changes nothing but counters in `naqopt.diagnostics`, and the
      tenth in a row leads back to the snapshot (`bad_points_left`); if only the one at the snapshot
      is not, the params stay.

    Raises:
      ValueError: for a number out of range; by `update` for a missing `value_fn` or `params`, a
        loss that is no scalar, or params of another structure than init had.
      TypeError: for complex or integer params.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> data = jnp.arange(8.0).reshape(4, 2)  # 4 batches
      >>> loss = lambda p, batch: jnp.mean((p - batch) ** 2)
      >>> params = jnp.array(0.0)
      >>> tx = naqopt.svrg(learning_rate=0.1)
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state, batch):
      ...   value_fn = lambda p: loss(p, batch)
      ...   grad = jax.grad(value_fn)(params)
      ...   updates, state = tx.update(grad, state, params, grad=grad, value_fn=value_fn)
      ...   return optax.apply_updates(params, updates), state
      >>> for epoch in range(20):
      ...   full_grad = naqopt.full_gradient(loss, naqopt.eval_params(state, params), data)
      ...   state = naqopt.snapshot(state, params, full_grad)
      ...   for batch in data:
      ...     params, state = step(params, state, batch)
      >>> print(f"{params:.4f}")
      3.5000

    References:
      Johnson and Zhang, *Accelerating Stochastic Gradient Descent using Predictive Variance
      Reduction*, NIPS 2013.

    Costs two gradients a step, the caller's included, and the full gradient once an epoch, three
    epochs' worth of gradients an epoch in all; 2 copies of the params.

    **Do not clip in front**, nor anything else that is not linear: `clip(∇E(w; X)) − ∇E(w̃; X) + Ω`
    is biased, and does not vanish at a minimum. Clip the loss's gradient inside `value_fn` or
    `grad_fn` (the full gradient's too), or not at all. Weight decay in front is linear and right.
    Dropout and augmentation must be the same at both points, so bind the key in `value_fn`. Not for
    large networks, where batches at `w̃` soon tell little about those at `w` (Defazio and Bottou,
    2019), and not for one pass over the data, which has no full gradient.
    """
    _checks.learning_rate("svrg", learning_rate)
    return transformation(Method("svrg", learning_rate))


def svrg2(
    learning_rate: optax.ScalarOrSchedule = 0.025,
    *,
    memory_size: int | None = 4,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SVRG+II: SVRG preconditioned by the inverse Hessian of L-BFGS.

    .. math::
      w^+ = w - \alpha_k H G(w), \qquad s = \tilde w_{new} - \tilde w_{old}, \qquad
      y = \Omega_{new} - \Omega_{old}

    with :math:`G` as in `naqopt.svrg` and :math:`H` from the last pairs with :math:`s^\top y >
    10^{-8} \lVert s \rVert \lVert y \rVert` (in float32 :math:`10^{-6}`), from
    :math:`H_0 = \gamma I` with :math:`\gamma` the mean of :math:`s^\top y / y^\top y` over them. A
    pair comes with every snapshot but the first, so that H is fixed within an epoch and the first
    epoch is SVRG.

    Args:
      learning_rate: as in `naqopt.svrg` (default: the same).
      memory_size: m ≥ 1, curvature pairs kept (default: the paper's); None for the dense matrix of
        d × d numbers, up to 4 GiB.
      history_dtype: dtype of the stored pairs, `jax.numpy.bfloat16` to halve their place; None for
        that of the params and at least float32.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.svrg`'s. If the gradient
      at the snapshot is not finite, the params stay, and the pairs, which are of full gradients;
      where the step itself is not finite, the pairs are forgotten.

    Raises:
      ValueError: as `naqopt.svrg`, and for a dense matrix of more than 4 GiB.
      TypeError: as `naqopt.svrg`, and for a `memory_size` that is no int.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> data = jnp.arange(16.0).reshape(4, 2, 2)  # 4 batches of 2 points in the plane
      >>> loss = lambda p, batch: jnp.mean((p - batch) ** 2 * jnp.array([1.0, 20.0]))
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.svrg2(learning_rate=0.08)
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state, batch):
      ...   value_fn = lambda p: loss(p, batch)
      ...   grad = jax.grad(value_fn)(params)
      ...   updates, state = tx.update(grad, state, params, grad=grad, value_fn=value_fn)
      ...   return optax.apply_updates(params, updates), state
      >>> for epoch in range(40):
      ...   full_grad = naqopt.full_gradient(loss, naqopt.eval_params(state, params), data)
      ...   state = naqopt.snapshot(state, params, full_grad)
      ...   for batch in data:
      ...     params, state = step(params, state, batch)
      >>> print(params.round(2))
      [7. 8.]

    References:
      Kolte, Erdogdu and Özgür, *Accelerating SVRG via Second-Order Information*, NIPS Workshop on
      Optimization for Machine Learning 2015.

    Costs what `naqopt.svrg` costs; 2 m + 2 copies of the params (10 by default). What is said there
    of clipping and of large networks holds here. Under `optax.inject_hyperparams` name
    `memory_size` and `history_dtype` static.
    """
    _checks.learning_rate("svrg2", learning_rate)
    curvature = curvature_of("svrg2", memory_size, None, history_dtype, pairs.mean_scale)
    return transformation(Method("svrg2", learning_rate, curvature))


def svr_naq(
    learning_rate: optax.ScalarOrSchedule = schedules.inverse_sqrt(1.0),  # noqa: B008
    *,
    momentum: Momentum = 0.9,
    memory_size: int | None = 4,
    warmup_learning_rate: float = 0.025,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SVR-NAQ, SVR-LNAQ: Nesterov's accelerated quasi-Newton method with variance reduction.

    .. math::
      \hat w &= w + \mu v, & G(\hat w) &= \nabla E(\hat w; X) - \nabla E(\tilde w; X) + \Omega, &
      d &= -H G(\hat w) / \lVert H G(\hat w) \rVert_2, \\
      v^+ &= \mu v + \alpha_k d, & w^+ &= w + v^+, & s &= \tilde w_{new} - \tilde w_{old}, \quad
      y = \Omega_{new} - \Omega_{old}

    with :math:`H` as in `naqopt.svrg2`. The first epoch, up to the second snapshot, is SVRG at the
    warm-up's rate and :math:`v = 0`.

    **The params are the look-ahead point** :math:`\hat w`; `naqopt.eval_params(state, params)`
    gives :math:`w`, where the full gradient for `naqopt.snapshot` is to be taken.

    The paper's formulas are lost, and these are reconstructed from its prose. What each choice
    matters was measured on the paper's regressions (`python -m benchmarks run svr-choices`: median
    change of the final training loss over 5 seeds and three tasks, where rounding alone moves it by
    1 %). It matters to normalise (at :math:`\alpha_0 = 1` nearly every run diverges without, at 0.1
    it ends 3 to 5 % higher), to reduce the variance (7 to 11 % higher without), to let k count
    steps (counting epochs: 8 to 66 % higher), momentum (0: 3 to 5 % higher), and limited memory
    (dense: 6 to 9 % higher). It hardly matters how γ is made, whether v is kept over a snapshot,
    whether the first epoch is SVRG and at what rate, and how many pairs are kept, two at least.
    Lower by 2 % were snapshots at the mean of an epoch's iterates, and by 0 to 4 % pairs with
    :math:`y + s`, or **no pairs at all**, :math:`H = I`: there the acceleration and the variance
    reduction train, and the curvature of one pair an epoch does not help.

    Args:
      learning_rate: α_k ≥ 0, the length of a step, a number or an Optax schedule of the number of
        all steps taken before, the first epoch's included (default: the paper's).
      momentum: μ in [0, 1), or a schedule of the number of steps taken before (default: the
        paper's).
      memory_size: as in `naqopt.svrg2`; a number is SVR-LNAQ, None SVR-NAQ.
      warmup_learning_rate: α ≥ 0 of the first epoch (default: the paper's). If the loss does not
        fall in the first epoch, lower it.
      history_dtype: as in `naqopt.svrg2`.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.svrg`'s. If the gradient
      at the snapshot is not finite, the iterate stays and the velocity is zeroed; the pairs, which
      are of full gradients, stay as they are. Where the step itself is not finite they are
      forgotten.

    Raises:
      ValueError: as `naqopt.svrg2`, and for a momentum outside [0, 1).
      TypeError: as `naqopt.svrg2`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> data = jnp.arange(16.0).reshape(4, 2, 2)  # 4 batches of 2 points in the plane
      >>> loss = lambda p, batch: jnp.mean((p - batch) ** 2 * jnp.array([1.0, 20.0]))
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.svr_naq(momentum=0.5)
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state, batch):
      ...   value_fn = lambda p: loss(p, batch)
      ...   grad = jax.grad(value_fn)(params)
      ...   updates, state = tx.update(grad, state, params, grad=grad, value_fn=value_fn)
      ...   return optax.apply_updates(params, updates), state
      >>> for epoch in range(40):
      ...   full_grad = naqopt.full_gradient(loss, naqopt.eval_params(state, params), data)
      ...   state = naqopt.snapshot(state, params, full_grad)
      ...   for batch in data:
      ...     params, state = step(params, state, batch)
      >>> print(naqopt.eval_params(state, params).round(1))
      [7. 8.]

    References:
      Yasuda, Mahboubi, Indrapriyadarsini, Ninomiya and Asai, *A Stochastic Variance Reduced
      Nesterov's Accelerated Quasi-Newton Method*, ICMLA 2019 (`arXiv:1910.07939
      <https://arxiv.org/abs/1910.07939>`_).

    Costs what `naqopt.svrg` costs; 2 m + 3 copies of the params (11 by default). What is said there
    of clipping and of large networks holds here. What is chained *behind* it must not change the
    updates. Under `optax.inject_hyperparams` name `memory_size`, `history_dtype` and a momentum
    schedule static.
    """
    _checks.learning_rate("svr_naq", learning_rate)
    check_momentum("svr_naq", momentum)
    _checks.number("svr_naq", "warmup_learning_rate", warmup_learning_rate, low=0)
    curvature = curvature_of("svr_naq", memory_size, None, history_dtype, pairs.mean_scale)
    return transformation(
        Method("svr_naq", learning_rate, curvature, momentum, warmup_learning_rate)
    )
