"""mNAQ and amNAQ: NAQ with an explicit step length in place of the line search."""

from typing import Any

import optax

from naqopt.curvature import pairs
from naqopt.curvature.broyden import BFGS
from naqopt.optimizers._arguments import check_momentum, curvature_of, window_of
from naqopt.optimizers._differences import convergent_difference
from naqopt.optimizers._method import Method
from naqopt.optimizers.quasi_newton import transformation
from naqopt.steps.line_search import explicit
from naqopt.steps.schedules import Momentum


def mnaq(
    *,
    momentum: Momentum = 0.9,
    memory_size: int | None = 10,
    restart_window: int | None = 5,
    history_dtype: Any = None,
    update: str = BFGS,
) -> optax.GradientTransformationExtraArgs:
    r"""Modified NAQ (mNAQ, amNAQ): an explicit step length in place of the line search.

    All as in `naqopt.naq`, with the term :math:`\xi s`, and

    .. math::
      \alpha = \begin{cases}
      1 & \text{if } E(\hat w + d) \le E(\hat w) + 10^{-3}\, \hat g^\top d, \\
      -\delta\, \hat g^\top d / (L \lVert d \rVert^2) & \text{otherwise}
      \end{cases}

    where :math:`L = 100 \lVert y \rVert / \lVert s \rVert` of the pair stored last (1 before the
    first) and :math:`\delta = 10^{-4}` (:math:`10^{-7}` where :math:`\lVert d \rVert > 1000`). A
    step that vanishes in the rounding of the params is refused, and the pairs are forgotten; one
    that vanishes while there is no pair is searched for as in `naqopt.naq` (ours: it would be the
    same for ever). The dense matrix starts from :math:`\gamma = s^\top \varepsilon / y^\top y` of
    the first pair, or :math:`s^\top y / y^\top y` where that is not positive.

    **The params are the look-ahead point** :math:`w + \mu v`; `naqopt.eval_params(state, params)`
    gives :math:`w`.

    Args:
      momentum: μ in [0, 1), or a schedule of the number of steps taken before;
        `naqopt.schedules.nesterov_momentum()` makes it amNAQ, 0 mBFGS (default: one of the paper's,
        which takes 0.8 to 0.95).
      memory_size: m ≥ 1, curvature pairs kept; None for the dense matrix of d × d numbers, up to 4
        GiB, which is the paper's.
      restart_window: as in `naqopt.naq`.
      history_dtype: as in `naqopt.bfgs`.
      update: as in `naqopt.bfgs`.

    Returns:
      An `optax.GradientTransformationExtraArgs` that is called as `naqopt.naq`'s.

    Raises:
      ValueError: for a number out of range, or a dense matrix of more than 4 GiB; by `update` as
        `naqopt.bfgs`.
      TypeError: for a `memory_size` that is no int, and complex or integer params.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p - jnp.array([1.0, -2.0])) ** 4)
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.mnaq(memory_size=None)
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(loss)(params)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...   params, state = step(params, state)
      >>> print(f"{loss(naqopt.eval_params(state, params)):.4f}")
      0.0000

    References:
      Indrapriyadarsini, Mahboubi, Ninomiya and Asai, *Implementation of a modified Nesterov's
      Accelerated quasi-Newton Method on Tensorflow*, ICMLA 2018, 1147-1154
      (`arXiv:1910.09158 <https://arxiv.org/abs/1910.09158>`_).

    Costs two gradients a step, the caller's included, and one loss; 2 m + 1 copies of the params
    (21 by default), d + 1 with the dense matrix. Not for mini-batches: take `naqopt.onaq`. Not for
    float32 to high accuracy: explicit steps may be so short that they vanish in the rounding of the
    params, and the pairs go with them. Under
    `optax.inject_hyperparams` name `memory_size`, `restart_window`, `history_dtype` and a momentum
    schedule static.
    """
    check_momentum("mnaq", momentum)
    return transformation(
        Method(
            optimizer="mnaq",
            curvature=curvature_of(
                "mnaq", memory_size, None, history_dtype, pairs.newest_scale, update
            ),
            two_gradients=True,
            step_length=explicit(),
            learning_rate=None,
            momentum=momentum,
            difference=convergent_difference,
            normalize=False,
            scale_first=True,
            plain_first_scale=True,
            restart_window=window_of("mnaq", restart_window),
        )
    )
