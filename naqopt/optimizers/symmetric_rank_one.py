"""L-SR1, SR1-N and MoSR1: indefinite curvature by the symmetric rank-one update.

Recipes of the core in `_indefinite`, which tells how they differ.
"""

import math
from typing import Any

import optax

from naqopt import _checks
from naqopt.curvature import sr1
from naqopt.curvature.indefinite import dense_rank_one, limited
from naqopt.optimizers import _indefinite, quasi_newton
from naqopt.optimizers._arguments import check_memory, check_momentum, step_length_of
from naqopt.optimizers._differences import convergent_difference, plain_difference
from naqopt.optimizers._method import Method
from naqopt.steps import schedules, trust_region
from naqopt.steps.schedules import Momentum
from naqopt.steps.trust_region import RadiusRule


def lsr1(
    *,
    memory_size: int = 5,
    initial_scale: float | None = None,
    initial_radius: float | None = 1.0,
    radius_rule: RadiusRule = RadiusRule(),  # noqa: B008
    linesearch: optax.GradientTransformationExtraArgs | None = None,
    store_grad: bool = False,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""L-SR1: limited-memory symmetric rank one, in a trust region or along a line.

    .. math::
      s = \arg\min_{\lVert s \rVert \le \Delta} g^\top s + \tfrac12 s^\top B s, \qquad
      w^+ = w + s \text{ if } \frac{E(w) - E(w + s)}{-g^\top s - \frac12 s^\top B s} > \eta,
      \qquad y = \nabla E(w + s) - g

    with :math:`B` from the last pairs by the symmetric rank-one update, from :math:`B_0 = \gamma
    I`, :math:`\gamma = \frac12 \max s^\top y / s^\top s` over them. Unlike a BFGS matrix it may be
    indefinite, so that the step leads away from saddle points. The radius :math:`\Delta` begins at
    `initial_radius` and follows the `radius_rule`; before the first pair a step leads to the
    boundary, :math:`\gamma = \lVert g\rVert / \Delta`. A rejected step moves nothing but leaves its
    pair. Reductions of the loss beneath its rounding count as what is predicted: both get
    :math:`\epsilon\, |E|`.

    With a `linesearch` in place of the trust region, the step is along :math:`-H g` with the
    inverse :math:`H` of the same pairs from :math:`H_0 = I/\gamma`, or along :math:`-H_0 g` where
    that leads uphill. There :math:`\gamma` is half the mean of the positive numbers :math:`s^\top y
    / s^\top s`, and :math:`\lVert g \rVert` before the first pair.

    Args:
      memory_size: m ≥ 1, curvature pairs kept (default: the paper's).
      initial_scale: γ > 0 of B_0 and H_0; None for the rules above (default: ours, by measuring;
        the paper leaves γ to its user, and 1 is its typical choice with a `linesearch`).
      initial_radius: Δ_0 in [1e-10, 1e10], in the params' units (default: SR1-N's); None for the
        norm of the first gradient, the paper's, which is tiny beside a saddle point, and so long
        on steep losses that the first step ends on a plateau.
      radius_rule: when a step is accepted and the radius changes (default: the paper's numbers).
      linesearch: one of Optax's line searches, such as `naqopt.armijo()`; None for the trust region
        (default: the paper's choice). The paper's search begins at min(1, 2λ) of the last λ:
        `optax.scale_by_backtracking_linesearch(13, slope_rtol=1e-3, decrease_factor=0.5,
        increase_factor=2.0)`.
      store_grad: whether value and gradient at the new params are kept in the state, where
        `optax.value_and_grad_from_state` finds them; for losses that are the same at every step.
      history_dtype: dtype of the stored pairs, `jax.numpy.bfloat16` to halve their place; None for
        that of the params and at least float32.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Its `update` needs the extra argument `value_fn`,
      the loss of this step's batch as a function of the params, and takes `value`, the loss at the
      params. A gradient that is not finite changes nothing but counters in `naqopt.diagnostics`,
      a loss or gradient at the trial point that is not makes the step a rejected one. In
      `naqopt.sr1n` and `naqopt.mosr1` the tenth in a row leads back to the iterate, or to the one
      before, with a smaller radius and without pairs (`bad_points_left`); so it does by a line
      search, without a radius.
      `steps_rejected` and `radius` tell how the trust region fares.

    Raises:
      ValueError: for a number out of range; by `update` for a missing `value_fn` or `params`, a
        loss that is no scalar, or params of another structure than init had. What belongs to the
        trust region, given together with a `linesearch`, which has none, is an error too.
      TypeError: for a `memory_size` that is no int, and complex or integer params.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: p[0] ** 2 - p[1] ** 2 + p[1] ** 4 / 4  # a saddle at 0
      >>> params = jnp.array([1.0, 1e-3])
      >>> tx = naqopt.lsr1()
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(loss)(params)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(20):
      ...   params, state = step(params, state)
      >>> print(f"{loss(params):.4f}")
      -1.0000

    References:
      Ramamurthy and Duffy, *L-SR1: A Second Order Optimization Method for Deep Learning*, 2017.
      Brust, Erway and Marcia, *On Solving L-SR1 Trust-Region Subproblems*, Computational
      Optimization and Applications 66, 2017 (`arXiv:1506.07222
      <https://arxiv.org/abs/1506.07222>`_).

    Costs two gradients a step, the caller's included, or one with `store_grad` or a line search;
    2 m copies of the params (10 by default), with a line search 2 m + 2, and one more with
    `store_grad`. Exactly at a saddle point the gradient is zero and nothing moves. On mini-batches
    the ratio is noise as much as it is the model's fault, and keeps the radius small: on its
    paper's LeNets a tuned Nesterov momentum learns more for the same gradients (as much on MNIST
    at batches of 10,000). Under `optax.inject_hyperparams` name all arguments static.
    """
    memory_size = _checks.size("lsr1", "memory_size", memory_size)
    _checks.flag("lsr1", "store_grad", store_grad)
    history_dtype = _checks.history_dtype("lsr1", history_dtype)
    _check_region("lsr1", initial_scale, initial_radius, radius_rule)
    if linesearch is not None:
        given = {
            "initial_radius": initial_radius != 1.0,
            "radius_rule": radius_rule != RadiusRule(),
        }
        for name in (name for name, changed in given.items() if changed):
            raise ValueError(
                f"naqopt.lsr1: `{name}` is that of the trust region, which a `linesearch` takes "
                "the place of: give one of them."
            )
    if linesearch is None:
        return _indefinite.transformation(
            _indefinite.Method(
                optimizer="lsr1",
                curvature=limited(memory_size, history_dtype, initial_scale),
                exact=True,
                two_gradients=True,
                momentum=None,
                difference=plain_difference,
                radius_rule=radius_rule,
                initial_radius=initial_radius,
                store_grad=store_grad,
            )
        )
    return quasi_newton.transformation(
        Method(
            optimizer="lsr1",
            curvature=sr1.inverse_memory(memory_size, history_dtype, initial_scale),
            two_gradients=False,
            step_length=step_length_of("lsr1", None, linesearch),
            learning_rate=None,
            momentum=None,
            difference=plain_difference,
            normalize=False,
            scale_first=initial_scale is None,
            store_grad=store_grad,
        )
    )


def _check_region(optimizer: str, scale: Any, radius: Any, rule: Any) -> None:
    """Raises unless these are arguments of a trust region."""
    if scale is not None:
        _checks.number(optimizer, "initial_scale", scale, low=_checks.SMALLEST)
    if radius is not None:
        low, high = trust_region.MIN_RADIUS, trust_region.MAX_RADIUS
        _checks.number(optimizer, "initial_radius", radius, low=low, high=high)
    if not isinstance(rule, RadiusRule):
        raise TypeError(
            f"naqopt.{optimizer}: `radius_rule` must be a naqopt.RadiusRule, such as "
            f"naqopt.RadiusRule(shrink=0.25), got {rule!r}."
        )
    for name, low, high in (
        ("grow_above", 0.0, math.inf),
        ("shrink_below", 0.0, rule.grow_above),
        ("accept", 0.0, rule.shrink_below),
        ("boundary", 0.0, 1.0),
        ("grow", 1.0, math.inf),
    ):
        _checks.number(optimizer, f"radius_rule.{name}", getattr(rule, name), low, high)
    _checks.number(
        optimizer, "radius_rule.shrink", rule.shrink, 0, 1, low_open=True, high_open=True
    )


def _method(
    optimizer: str,
    momentum: Momentum,
    memory_size: int | None,
    initial_scale: float | None,
    initial_radius: float | None,
    radius_rule: RadiusRule,
    convergence_term: Any,
    solver: str,
    history_dtype: Any,
    two_gradients: bool,
) -> optax.GradientTransformationExtraArgs:
    """Returns SR1-N or MoSR1."""
    check_momentum(optimizer, momentum)
    _check_region(optimizer, initial_scale, initial_radius, radius_rule)
    _checks.flag(optimizer, "convergence_term", convergence_term)
    if not isinstance(solver, str) or solver not in ("cg", "exact"):
        raise ValueError(f'naqopt.{optimizer}: `solver` must be "cg" or "exact", got {solver!r}.')
    memory_size, history_dtype = check_memory(optimizer, memory_size, history_dtype)
    if memory_size is None:
        curvature = dense_rank_one(optimizer, initial_scale)
    else:
        curvature = limited(memory_size, history_dtype, initial_scale)
    return _indefinite.transformation(
        _indefinite.Method(
            optimizer=optimizer,
            curvature=curvature,
            exact=solver == "exact",
            two_gradients=two_gradients,
            momentum=momentum,
            difference=convergent_difference if convergence_term else plain_difference,
            radius_rule=radius_rule,
            initial_radius=initial_radius,
        )
    )


def sr1n(
    *,
    momentum: Momentum = schedules.nesterov_momentum(),  # noqa: B008
    memory_size: int | None = 10,
    initial_scale: float | None = None,
    initial_radius: float | None = 1.0,
    radius_rule: RadiusRule = RadiusRule(),  # noqa: B008
    convergence_term: bool = False,
    solver: str = "cg",
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SR1-N, L-SR1-N: symmetric rank one with Nesterov's acceleration, in a trust region.

    .. math::
      \hat w &= w + \mu v, & s &= \arg\min_{\lVert s \rVert \le \Delta} \hat g^\top s +
      \tfrac12 s^\top B s, \qquad \hat g = \nabla E(\hat w), \\
      v^+ &= \mu v + s, & w^+ &= \hat w + s, \qquad
      y = \nabla E(\hat w + s) - \hat g

    where the loss falls by more than 1e-6 of the predicted reduction; otherwise :math:`w` and
    :math:`v` stay, the momentum begins again and the radius shrinks. :math:`B` and the radius go as
    in `naqopt.lsr1`.

    **The params are the look-ahead point** :math:`\hat w`; `naqopt.eval_params(state, params)`
    gives :math:`w`.

    Args:
      momentum: μ in [0, 1), or a schedule of the number of steps since the last rejected one; 0 in
        the step after one, whatever is given (default: the papers'; on mini-batches the authors cap
        it at 0.9, `naqopt.schedules.nesterov_momentum(0.9)`).
      memory_size: m ≥ 1, curvature pairs kept (default: the paper's for full batches; 8 for
        mini-batches), L-SR1-N; None for the dense matrix of d × d numbers, up to 4 GiB, SR1-N.
      initial_scale: as in `naqopt.lsr1`.
      initial_radius: as in `naqopt.lsr1` (default: the authors').
      radius_rule: as in `naqopt.lsr1`.
      convergence_term: whether y has mNAQ's term ξ s, see `naqopt.naq`, as in the authors' code but
        not in their paper. It makes sᵀy positive, so that negative curvature is learnt only where
        B has too much of it.
      solver: "cg" for Steihaug's conjugate gradients (default: the authors'), at most 2 m + 2
        products with B, or "exact" for the global minimum by the eigenvectors of B.
      history_dtype: as in `naqopt.lsr1`.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.lsr1`'s.

    Raises:
      ValueError: as `naqopt.lsr1`, for a momentum outside [0, 1), another solver, or a dense matrix
        of more than 4 GiB.
      TypeError: as `naqopt.lsr1`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: 100 * (p[1] - p[0] ** 2) ** 2 + (1 - p[0]) ** 2  # Rosenbrock's valley
      >>> params = jnp.array([-1.2, 1.0])
      >>> tx = naqopt.sr1n()
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(loss)(params)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(100):
      ...   params, state = step(params, state)
      >>> print(f"{loss(naqopt.eval_params(state, params)):.4f}")
      0.0000

    References:
      Indrapriyadarsini, Mahboubi, Ninomiya, Kamio and Asai, *Accelerating Symmetric Rank-1
      Quasi-Newton Method with Nesterov's Gradient for Training Neural Networks*, Algorithms 15(1),
      2022.

    Costs two gradients a step, the caller's included; 2 m + 1 copies of the params (21 by default),
    or d + 1 with a dense matrix. What is chained *behind* it must not change the updates. Under
    `optax.inject_hyperparams` name `memory_size`, `solver`, `history_dtype` and a momentum schedule
    static.
    """
    return _method(
        "sr1n",
        momentum,
        memory_size,
        initial_scale,
        initial_radius,
        radius_rule,
        convergence_term,
        solver,
        history_dtype,
        two_gradients=True,
    )


def mosr1(
    *,
    momentum: Momentum = schedules.nesterov_momentum(),  # noqa: B008
    memory_size: int | None = 10,
    initial_scale: float | None = None,
    initial_radius: float | None = 1.0,
    radius_rule: RadiusRule = RadiusRule(),  # noqa: B008
    convergence_term: bool = False,
    solver: str = "cg",
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""MoSR1: SR1-N at one gradient a step.

    .. math::
      \hat g &= (1 + \mu) \nabla E(w_k) - \mu \nabla E(w_{k-1}), &
      s &= \arg\min_{\lVert s \rVert \le \Delta} \hat g^\top s + \tfrac12 s^\top B s, \\
      v^+ &= \mu v + s, \qquad w^+ = w + v^+, & y &= \nabla E(w^+) - \hat g

    and the rest as in `naqopt.sr1n`. The losses before and after the step are those at :math:`w +
    \mu v` and :math:`w + \mu v + s`; a rejected step leaves no pair. The params are the iterate.

    Args:
      momentum: as in `naqopt.sr1n`.
      memory_size: as in `naqopt.sr1n`.
      initial_scale: as in `naqopt.lsr1`.
      initial_radius: as in `naqopt.sr1n`.
      radius_rule: as in `naqopt.lsr1`.
      convergence_term: as in `naqopt.sr1n`.
      solver: as in `naqopt.sr1n`.
      history_dtype: as in `naqopt.lsr1`.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.lsr1`'s.

    Raises:
      ValueError: as `naqopt.sr1n`.
      TypeError: as `naqopt.lsr1`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: 100 * (p[1] - p[0] ** 2) ** 2 + (1 - p[0]) ** 2  # Rosenbrock's valley
      >>> params = jnp.array([-1.2, 1.0])
      >>> tx = naqopt.mosr1()
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(loss)(params)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...   params, state = step(params, state)
      >>> print(f"{loss(params):.4f}")
      0.0000

    References:
      Indrapriyadarsini, *Nesterov's and momentum acceleration of quasi-Newton methods*, slides,
      2022.

    Costs one gradient a step, the caller's, and two losses; 2 m + 5 copies of the params (25 by
    default), or d + 5 with a dense matrix, and up to 10 in a step. On mini-batches its pairs mix
    two batches. Under `optax.inject_hyperparams` name what `naqopt.sr1n` names.
    """
    return _method(
        "mosr1",
        momentum,
        memory_size,
        initial_scale,
        initial_radius,
        radius_rule,
        convergence_term,
        solver,
        history_dtype,
        two_gradients=False,
    )
