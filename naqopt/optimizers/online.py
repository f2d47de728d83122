"""oBFGS, oNAQ and oMoQ: training on mini-batches, limited memory or dense.

Recipes of the core in `quasi_newton`, which tells how they differ. Directions are normalised, steps
follow a schedule, and the gradients of a pair are of one batch; only oMoQ's are not, whose pairs
are guarded. oMoQ on overlapping batches stands in `multi_batch`.
"""

from typing import Any

import optax

from naqopt import _checks
from naqopt.curvature import pairs
from naqopt.optimizers._arguments import check_momentum, curvature_of
from naqopt.optimizers._differences import damped_difference
from naqopt.optimizers._method import Method
from naqopt.optimizers.quasi_newton import transformation
from naqopt.steps import schedules
from naqopt.steps.line_search import fixed
from naqopt.steps.schedules import Momentum


def online(
    optimizer: str,
    learning_rate: Any,
    momentum: Momentum | None,
    memory_size: int | None,
    damping: Any,
    normalize: Any,
    min_curvature: Any,
    history_dtype: Any,
    two_gradients: bool,
    has_parts: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Returns the online method with so many gradients a step."""
    _checks.learning_rate(optimizer, learning_rate)
    _checks.number(optimizer, "damping", damping, low=0)
    _checks.flag(optimizer, "normalize", normalize)
    return transformation(
        Method(
            optimizer=optimizer,
            curvature=curvature_of(
                optimizer, memory_size, min_curvature, history_dtype, pairs.mean_scale
            ),
            two_gradients=two_gradients,
            step_length=fixed(),
            learning_rate=learning_rate,
            momentum=momentum,
            difference=damped_difference(damping),
            normalize=normalize,
            scale_first=False,
            has_parts=has_parts,
        )
    )


def obfgs(
    learning_rate: optax.ScalarOrSchedule = schedules.harmonic(1.0, 10),  # noqa: B008
    *,
    memory_size: int | None = 4,
    damping: float = 1.0,
    normalize: bool = True,
    min_curvature: float | None = None,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Online BFGS (oBFGS, oLBFGS): both gradients of a pair on one mini-batch.

    .. math::
      d = -\frac{H g}{\lVert H g \rVert_2}, \quad g = \nabla E(w; X), \qquad w^+ = w + \alpha_k d,
      \qquad s = w^+ - w, \qquad y = \nabla E(w^+; X) - g + \lambda s

    with :math:`H` from the last pairs with :math:`s^\top y > c \lVert s \rVert \lVert y \rVert`,
    from :math:`H_0 = \gamma I` with :math:`\gamma` the mean of :math:`s^\top y / y^\top y` over
    them.

    Args:
      learning_rate: α_k ≥ 0, a number or an Optax schedule of the number of steps taken before; the
        length of a step while `normalize` holds (default: the papers' schedule).
      memory_size: m ≥ 1, curvature pairs kept (default: the papers'), oLBFGS; None for the dense
        matrix of d × d numbers, up to 4 GiB, oBFGS.
      damping: λ ≥ 0 (default: the papers').
      normalize: whether d is divided by its norm (the papers of oNAQ do).
      min_curvature: c ≥ 0, a cosine, which refuses pairs of negative curvature; None for 1e-8, in
        float32 1e-6 (default: ours).
      history_dtype: dtype of the stored pairs, `jax.numpy.bfloat16` to halve their place; None for
        that of the params and at least float32.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Its `update` needs the extra argument `value_fn`,
      the loss of this step's batch as a function of the params, or `grad_fn`, its gradient; and
      measures curvature by `grad`, the raw gradient at params, where transformations in front have
      changed the updates. A gradient that is not finite changes nothing but counters in
      `naqopt.diagnostics`; if only the second is not, the params stay and the pairs are forgotten.
      In `naqopt.onaq` the tenth in a row leads from the look-ahead point back to the iterate, and
      the pairs are forgotten (`bad_points_left`).

    Raises:
      ValueError: for a number out of range, or a dense matrix of more than 4 GiB; by `update` for a
        missing `value_fn` or `params`, a loss that is no scalar, or params of another structure
        than init had.
      TypeError: for a `memory_size` that is no int, and complex or integer params.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p - jnp.array([1.0, -2.0])) ** 2)
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.obfgs()
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(loss)(params)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...   params, state = step(params, state)
      >>> print(f"{loss(params):.3f}")
      0.000

    References:
      Schraudolph, Yu and Günter, *A Stochastic Quasi-Newton Method for Online Convex Optimization*,
      AISTATS 2007.

    Costs two gradients a step, the caller's included; 2 m copies of the params (8 by default).
    Slower than `naqopt.onaq` at the same cost in the papers and here. Under
    `optax.inject_hyperparams` name `memory_size` and `history_dtype` static.
    """
    return online(
        "obfgs",
        learning_rate,
        None,
        memory_size,
        damping,
        normalize,
        min_curvature,
        history_dtype,
        two_gradients=True,
    )


def onaq(
    learning_rate: optax.ScalarOrSchedule = schedules.inverse_sqrt(1.0),  # noqa: B008
    *,
    momentum: Momentum = 0.85,
    memory_size: int | None = 4,
    damping: float = 1.0,
    normalize: bool = True,
    min_curvature: float | None = None,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Online NAQ (oNAQ, oLNAQ): both gradients of a pair on one mini-batch.

    .. math::
      \hat w &= w + \mu v, & \hat g &= \nabla E(\hat w; X), &
      d &= -H \hat g / \lVert H \hat g \rVert_2, \\
      v^+ &= \mu v + \alpha_k d, & w^+ &= w + v^+, & s &= w^+ - \hat w, \quad
      y = \nabla E(w^+; X) - \hat g + \lambda s

    with :math:`H` as in `naqopt.obfgs`.

    **The params are the look-ahead point** :math:`\hat w`; `naqopt.eval_params(state, params)`
    gives :math:`w`.

    Args:
      learning_rate: as in `naqopt.obfgs` (default: the paper's schedule). A run moves by about
        α_k/(1 − μ) a step whatever the gradient, so give α_0 the scale of your params.
      momentum: μ in [0, 1), or a schedule of the number of steps taken before (default: one of the
        paper's, which takes 0.8 to 0.95).
      memory_size: as in `naqopt.obfgs`; a number is oLNAQ, None oNAQ.
      damping: as in `naqopt.obfgs`.
      normalize: as in `naqopt.obfgs`.
      min_curvature: as in `naqopt.obfgs`.
      history_dtype: as in `naqopt.obfgs`.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.obfgs`'s. If the second
      gradient is not finite, the iterate stays, the velocity is zeroed and the pairs are forgotten.

    Raises:
      ValueError: as `naqopt.obfgs`, and for a momentum outside [0, 1).
      TypeError: as `naqopt.obfgs`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p - jnp.array([1.0, -2.0])) ** 2)
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.onaq(naqopt.schedules.inverse_sqrt(0.3))
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(loss)(params)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...   params, state = step(params, state)
      >>> print(f"{loss(naqopt.eval_params(state, params)):.3f}")
      0.000

    References:
      Indrapriyadarsini, Mahboubi, Ninomiya and Asai, *A Stochastic Quasi-Newton Method with
      Nesterov's Accelerated Gradient*, ECML-PKDD 2019 (`arXiv:1909.03621
      <https://arxiv.org/abs/1909.03621>`_).

    Costs two gradients a step, the caller's included; 2 m + 1 copies of the params (9 by default).
    What is chained *behind* it must not change the updates: pairs and `eval_params` would be wrong.
    Clip in front. Under `optax.inject_hyperparams` name `memory_size`, `history_dtype` and a
    momentum schedule static.
    """
    check_momentum("onaq", momentum)
    return online(
        "onaq",
        learning_rate,
        momentum,
        memory_size,
        damping,
        normalize,
        min_curvature,
        history_dtype,
        two_gradients=True,
    )


def omoq(
    learning_rate: optax.ScalarOrSchedule = schedules.inverse_sqrt(1.0),  # noqa: B008
    *,
    momentum: Momentum = 0.85,
    memory_size: int | None = 4,
    damping: float = 1.0,
    normalize: bool = True,
    min_curvature: float | None = None,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Online MoQ (oMoQ, oLMoQ): online NAQ at one gradient a step.

    .. math::
      \hat g &= (1 + \mu) \nabla E(w_k; X_k) - \mu \nabla E(w_{k-1}; X_{k-1}), &
      d &= -H \hat g / \lVert H \hat g \rVert_2, \\
      v^+ &= \mu v + \alpha_k d, \qquad w^+ = w + v^+, & s &= w^+ - (w + \mu v), \\
      & & y &= \nabla E(w^+; X_{k+1}) - \hat g + \lambda s

    with :math:`H` as in `naqopt.obfgs`. The gradients of a pair are of different batches. Still
    :math:`s^\top y` is hardly ever negative, even with :math:`\lambda = 0`: :math:`s` goes against
    :math:`\hat g`, which stands in y with a minus, and so do the two with its noise, by which the
    curvature looks larger than it is. Pairs that are refused are counted. The params are the
    iterate :math:`w`.

    Args:
      learning_rate: as in `naqopt.onaq` (default: the paper's schedule; on convolutional networks
        the authors halve it every epoch).
      momentum: as in `naqopt.onaq` (default: the paper's).
      memory_size: as in `naqopt.obfgs`; a number is oLMoQ, None oMoQ.
      damping: as in `naqopt.obfgs`.
      normalize: as in `naqopt.obfgs`.
      min_curvature: as in `naqopt.obfgs`.
      history_dtype: as in `naqopt.obfgs`.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Its `update` needs no closure, so that it goes
      where `optax.adam` goes; it takes `grad`, the raw gradient at params, where transformations in
      front have changed the updates: each is extrapolated by itself, the updates for the direction.
      A gradient that is not finite changes nothing but counters in `naqopt.diagnostics`; the tenth
      in a row leads back to the iterate before, without velocity and pairs (`bad_points_left`).

    Raises:
      ValueError: as `naqopt.onaq`.
      TypeError: as `naqopt.onaq`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p - jnp.array([1.0, -2.0])) ** 2)
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.omoq(naqopt.schedules.inverse_sqrt(0.3))
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...   params, state = step(params, state)
      >>> print(f"{loss(params):.3f}")
      0.000

    References:
      Indrapriyadarsini, Mahboubi, Ninomiya, Kamio and Asai, *A Stochastic Momentum Accelerated
      Quasi-Newton Method for Neural Networks*, AAAI 2022 (student abstract).

    Costs one gradient a step, the caller's; 2 m + 5 copies of the params (13 by default). A step
    into a region where the gradient stays infinite or NaN is undone after ten skipped ones, not at
    once. Under `optax.inject_hyperparams` name `memory_size`, `history_dtype` and a momentum
    schedule static.
    """
    check_momentum("omoq", momentum)
    return online(
        "omoq",
        learning_rate,
        momentum,
        memory_size,
        damping,
        normalize,
        min_curvature,
        history_dtype,
        two_gradients=False,
    )
