"""BFGS, NAQ and MoQ: full-batch training with a line search, limited memory or dense.

Recipes of the core in `quasi_newton`, which tells how they differ.
"""

from typing import Any

import optax

from naqopt import _checks
from naqopt.curvature import pairs
from naqopt.curvature.broyden import BFGS
from naqopt.optimizers._arguments import (
    check_momentum,
    curvature_of,
    step_length_of,
    window_of,
)
from naqopt.optimizers._differences import convergent_difference, plain_difference
from naqopt.optimizers._method import Method
from naqopt.optimizers.quasi_newton import transformation
from naqopt.steps.armijo import armijo
from naqopt.steps.schedules import Momentum


def searching(
    optimizer: str,
    learning_rate: Any,
    momentum: Momentum | None,
    memory_size: int | None,
    linesearch: Any,
    convergence_term: Any,
    history_dtype: Any,
    two_gradients: bool,
    restart_window: int | None = None,
    store_grad: bool = False,
    update: Any = BFGS,
    initial_scale: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the method with so many gradients a step whose step length is searched for."""
    _checks.flag(optimizer, "convergence_term", convergence_term)
    curvature = curvature_of(
        optimizer, memory_size, None, history_dtype, pairs.newest_scale, update, initial_scale
    )
    window = window_of(optimizer, restart_window)
    return transformation(
        Method(
            optimizer=optimizer,
            curvature=curvature,
            two_gradients=two_gradients,
            step_length=step_length_of(optimizer, learning_rate, linesearch),
            learning_rate=learning_rate,
            momentum=momentum,
            difference=convergent_difference if convergence_term else plain_difference,
            normalize=False,
            scale_first=True,
            restart_window=window if linesearch else None,  # without a search no loss is known
            store_grad=store_grad,
        )
    )


def bfgs(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    memory_size: int | None = 10,
    linesearch: optax.GradientTransformationExtraArgs | None = armijo(),  # noqa: B008
    convergence_term: bool = False,
    history_dtype: Any = None,
    store_grad: bool = False,
    update: str = BFGS,
    initial_scale: float | str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Limited-memory BFGS (dense with `memory_size=None`).

    .. math::
      d = -H \nabla E(w), \qquad w^+ = w + \alpha d, \qquad
      s = w^+ - w, \qquad y = \nabla E(w^+) - \nabla E(w)

    with :math:`\alpha` by the line search and :math:`H` from the last pairs :math:`(s, y)` with
    :math:`s^\top y > 10^{-8} \lVert s \rVert \lVert y \rVert` (in float32 :math:`10^{-6}`), from
    :math:`H_0 = \gamma I` with :math:`\gamma = s^\top y / y^\top y` of the newest, and
    :math:`1/\lVert\nabla E(w)\rVert` while there is none, when `naqopt.armijo` also lengthens. The
    pair of a step is formed when the next gradient arrives, so that a step takes one gradient. A
    step that no trial of the search can make lower the loss is not taken, and the pairs are
    forgotten.

    With `linesearch=optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")` it is
    `optax.lbfgs`, except that pairs of negative curvature are refused, bad steps survived, and that
    the first direction has length 1 also where the gradient is shorter.

    Args:
      learning_rate: what d is scaled by, a number ≥ 0 or an Optax schedule of the number of steps
        taken before; None for 1. With `linesearch=None` it is the step length.
      memory_size: m ≥ 1, curvature pairs kept (default: Optax's); None for the dense matrix of
        d × d numbers, up to 4 GiB.
      linesearch: one of Optax's line searches (default: the papers', `naqopt.armijo`), or None.
      convergence_term: whether y has mNAQ's term, see `naqopt.naq` (BFGS of the papers has not;
        mNAQ's authors call it mBFGS with the term).
      history_dtype: dtype of the stored pairs, `jax.numpy.bfloat16` to halve their place; None for
        that of the params and at least float32.
      store_grad: whether value and gradient at the new params are kept in the state, where
        `optax.value_and_grad_from_state` finds them. For deterministic losses alone: with another
        batch they would be another loss's.
      update: "bfgs", or "dfp", "ssbfgs", "ssbroyden" with the dense matrix alone, see
        `naqopt.ssbroyden` (default: the papers').
      initial_scale: γ > 0 of the dense matrix's :math:`H_0 = \gamma I`, in units of an inverse
        curvature; None for 1, which suits losses and params of the order of 1 (default: that of the
        papers and of SciPy's BFGS), but :math:`s^\top y / y^\top y` of the first pair after a
        refused step, as a scale with which a search fails would fail again; "first_pair" for that
        from the beginning, which has no units, but is the inverse curvature of the stiffest
        direction, and all others keep it until the matrix has seen them. Convection (`python -m
        benchmarks run pinn-convection`, 600 gradients behind 1,500 steps of Adam) ends at a loss of
        3e-3, by SciPy's BFGS at 5e-3 and with the first pair's γ at 1.6.

    Returns:
      An `optax.GradientTransformationExtraArgs`. With a line search its `update` needs the extra
      argument `value_fn`, the loss as a function of the params, and uses `value`, the loss at the
      params, where it is given. A gradient that is not finite changes nothing but counters in
      `naqopt.diagnostics`; the tenth in a row leads back to the iterate before, and the pairs are
      forgotten (`bad_points_left`). Where no trial of the line search lies below the loss the
      params stay, the pairs are forgotten, and the next search starts anew.

    Raises:
      ValueError: for a number out of range, neither learning rate nor line search, or a dense
        matrix of more than 4 GiB; by `update` for a missing `value_fn` or `params`, a loss that is
        no scalar, or params of another structure than init had.
      TypeError: for a `memory_size` that is no int, a `linesearch` that is none, and complex or
        integer params.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p - jnp.array([1.0, -2.0])) ** 4) + jnp.prod(p) ** 2
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.bfgs()
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(loss)(params)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(20):
      ...   params, state = step(params, state)
      >>> print(f"{jnp.linalg.norm(jax.grad(loss)(params)):.3f}")
      0.000

    References:
      Nocedal and Wright, *Numerical Optimization*, second edition, Algorithms 6.1 and 7.5.

    Costs one gradient a step, the caller's, and a loss a trial of the line search; 2 m + 2 copies
    of the params (22 by default), one more with `store_grad`. Not for mini-batches, whose gradients
    differ by noise: take `naqopt.obfgs` or `naqopt.onaq`. Not for bfloat16 params, in which a line
    search soon finds no decrease: keep them in float32 and compute in bfloat16. Under
    `optax.inject_hyperparams` name `memory_size` and `history_dtype` static.
    """
    _checks.flag("bfgs", "store_grad", store_grad)
    if memory_size is None and initial_scale is None:
        initial_scale = 1.0
    return searching(
        "bfgs",
        learning_rate,
        None,
        memory_size,
        linesearch,
        convergence_term,
        history_dtype,
        two_gradients=False,
        store_grad=store_grad,
        update=update,
        initial_scale=initial_scale,
    )


def naq(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    momentum: Momentum = 0.9,
    memory_size: int | None = 10,
    linesearch: optax.GradientTransformationExtraArgs | None = armijo(),  # noqa: B008
    convergence_term: bool = False,
    restart_window: int | None = 1,
    history_dtype: Any = None,
    update: str = BFGS,
) -> optax.GradientTransformationExtraArgs:
    r"""NAQ and LNAQ: BFGS with Nesterov's accelerated gradient, limited memory or dense.

    .. math::
      \hat w &= w + \mu v, & \hat g &= \nabla E(\hat w), & d &= -H \hat g, \\
      v^+ &= \mu v + \alpha d, & w^+ &= w + v^+, & s &= w^+ - \hat w, \\
      y &= \nabla E(w^+) - \hat g

    with :math:`\alpha` by the line search from :math:`\hat w` along :math:`d` and :math:`H` as in
    `naqopt.bfgs`. With the `convergence_term` of the authors' mNAQ

    .. math::
      y = \varepsilon + \xi s, \qquad \varepsilon = \nabla E(w^+) - \hat g, \qquad
      \xi = \omega \lVert \hat g \rVert
      + \max\left(-\frac{\varepsilon^\top s}{\lVert s \rVert^2}, 0\right)

    and :math:`\omega = 2` where :math:`\lVert \hat g \rVert^2 > 10^{-2}`, else 100.

    Nothing in the papers compares :math:`E(\hat w)` with :math:`E(w)`, so that momentum can carry a
    run away. Here, where the loss at :math:`\hat w` is above the last `restart_window` ones at
    :math:`w`, or not finite, the step only leads back to :math:`w`, and the momentum begins anew.
    Measured without / with ξ by `python -m benchmarks run restarts`, in 10 pairs: of 100 runs on 20
    standard test functions those that end, and their evaluations, median; of 50 runs on ten hard
    least-squares problems those that find the lowest value; of all these and five of a cluster of
    13 atoms those that end above their start:

    ====  =========  ===========  =============  ======
    M     ended      evaluations  least squares  above
    ====  =========  ===========  =============  ======
    None  81 / 92    190 / 212    15 / 23        25 / 1
    1     100 / 95   115 / 132    47 / 32        0 / 0
    5     100 / 95   135 / 172    47 / 34        0 / 0
    ====  =========  ===========  =============  ======

    **The params are the look-ahead point** :math:`\hat w`; `naqopt.eval_params(state, params)`
    gives :math:`w`.

    Args:
      learning_rate: as in `naqopt.bfgs`.
      momentum: μ in [0, 1), or a schedule of the number of steps taken before (default: one of the
        papers', who take 0.8 to 0.95); LNAQ's authors use `naqopt.schedules.nesterov_momentum()`.
      memory_size: as in `naqopt.bfgs`; None is NAQ, a number LNAQ.
      linesearch: as in `naqopt.bfgs`. A search that computes gradients, such as
        `optax.scale_by_zoom_linesearch`, spares the second gradient of the step.
      convergence_term: whether y has the term ξ s (default: the slides, which have none). It has
        units: it caps a step at about ½ in those of the params, and far from the minimum a run
        hardly moves. Small networks with a dense matrix want it, see above.
      restart_window: M ≥ 1 losses (default: by measuring, above); None for the papers' method.
        Without a line search it is off.
      history_dtype: as in `naqopt.bfgs`.
      update: as in `naqopt.bfgs`.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.bfgs`'s, takes `grad_fn`,
      the loss's gradient, where that is not to be derived from `value_fn`, and measures curvature
      by `grad`, the raw gradient at params, where transformations in front have changed the
      updates. If the second gradient is not finite, the iterate stays, the velocity is zeroed and
      the pairs are forgotten.

    Raises:
      ValueError: as `naqopt.bfgs`, and for a momentum outside [0, 1).
      TypeError: as `naqopt.bfgs`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> rosenbrock = lambda p: 100 * (p[1] - p[0] ** 2) ** 2 + (1 - p[0]) ** 2
      >>> params = jnp.array([-1.2, 1.0])
      >>> tx = naqopt.naq(momentum=0.8)
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(rosenbrock)(params)
      ...   updates, state = tx.update(
      ...     grad, state, params, value=value, grad=grad, value_fn=rosenbrock)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(150):
      ...   params, state = step(params, state)
      >>> print(naqopt.eval_params(state, params).round(2))
      [1. 1.]

    References:
      Ninomiya, *A novel quasi-Newton-based optimization for neural network training incorporating
      Nesterov's accelerated gradient*, NOLTA 8(4), 289-301, 2017.

    Costs two gradients a step, the caller's included, and a loss a trial of the line search; 2 m +
    1 copies of the params (21 by default). Made for networks: on standard test functions it takes
    twice the evaluations of `naqopt.bfgs`. Not for mini-batches: take `naqopt.onaq`. Under
    `optax.inject_hyperparams` name `memory_size`, `restart_window`, `history_dtype` and a momentum
    schedule static.
    """
    check_momentum("naq", momentum)
    return searching(
        "naq",
        learning_rate,
        momentum,
        memory_size,
        linesearch,
        convergence_term,
        history_dtype,
        two_gradients=True,
        restart_window=restart_window,
        update=update,
    )


def moq(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    momentum: Momentum = 0.9,
    memory_size: int | None = 10,
    linesearch: optax.GradientTransformationExtraArgs | None = armijo(),  # noqa: B008
    convergence_term: bool = False,
    restart_window: int | None = 5,
    history_dtype: Any = None,
    update: str = BFGS,
) -> optax.GradientTransformationExtraArgs:
    r"""MoQ and LMoQ: NAQ at one gradient a step, limited memory or dense.

    The gradient at the look-ahead point :math:`\hat w = w + \mu v` is extrapolated from the last
    two,

    .. math::
      \hat g = (1 + \mu) \nabla E(w) - \mu \nabla E(w_{prev})

    which is exact where :math:`E` is quadratic and :math:`v` the last displacement. All else is as
    in `naqopt.naq`; the line search starts from :math:`\hat w`, and the pair of a step is formed
    when the next gradient arrives. The params are the iterate :math:`w`.

    Args:
      learning_rate: as in `naqopt.bfgs`.
      momentum: as in `naqopt.naq`; LMoQ's authors use `naqopt.schedules.nesterov_momentum()`.
      memory_size: as in `naqopt.bfgs`; None is MoQ, a number LMoQ.
      linesearch: as in `naqopt.bfgs`.
      convergence_term: as in `naqopt.naq` (default: the slides' formulas, which have none). Of 100
        runs on standard test functions 100 ended without, 95 with it; dense, on small networks it
        is better with it, as in `naqopt.naq`.
      restart_window: as in `naqopt.naq`; here the step goes on from w with the gradient there
        (default: of 100 runs 100 ended with 5 and 99 with 1, see `naqopt.naq`).
      history_dtype: as in `naqopt.bfgs`.
      update: as in `naqopt.bfgs`.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.bfgs`'s. Transformations
      in front change the direction alone: updates and `grad` are each extrapolated by itself.

    Raises:
      ValueError: as `naqopt.bfgs`, and for a momentum outside [0, 1).
      TypeError: as `naqopt.bfgs`.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> rosenbrock = lambda p: 100 * (p[1] - p[0] ** 2) ** 2 + (1 - p[0]) ** 2
      >>> params = jnp.array([-1.2, 1.0])
      >>> tx = naqopt.moq(momentum=0.8)
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(rosenbrock)(params)
      ...   updates, state = tx.update(
      ...     grad, state, params, value=value, grad=grad, value_fn=rosenbrock)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(150):
      ...   params, state = step(params, state)
      >>> print(params.round(2))
      [1. 1.]

    References:
      Mahboubi, Indrapriyadarsini, Ninomiya and Asai, *Momentum acceleration of quasi-Newton
      Training for Neural Networks*, PRICAI 2019, 268-281.

    Costs one gradient a step, the caller's, a loss at ŵ and one a trial of the line search; 2 m + 5
    copies of the params (25 by default). Not for mini-batches: take `naqopt.omoq`. Under
    `optax.inject_hyperparams` name `memory_size`, `restart_window`, `history_dtype` and a momentum
    schedule static.
    """
    check_momentum("moq", momentum)
    return searching(
        "moq",
        learning_rate,
        momentum,
        memory_size,
        linesearch,
        convergence_term,
        history_dtype,
        two_gradients=False,
        restart_window=restart_window,
        update=update,
    )
