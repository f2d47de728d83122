"""aSNAQ: adaQN with Nesterov's accelerated gradient and an adaptive momentum.

The cycle, which it shares with adaQN, stands in `_cycle`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from naqopt import _checks, _closures, _tree
from naqopt._tree import Tree
from naqopt.optimizers import _cycle
from naqopt.optimizers._cycle import Memory, Settings
from naqopt.state import Info, gathered, init_info, leaves_bad_point, record
from naqopt.steps import schedules
from naqopt.steps.direction import descent


class AsnaqState(NamedTuple):
    """State of aSNAQ: 2 m_L + m_F + 6 copies of the params.

    Attributes:
      count: k, the steps taken; skipped ones do not count.
      momentum: μ, with which the present look-ahead point was made.
      step_scale: c of the back-off; the step is α c.
      velocity: v.
      iterate_sum: w_s, the sum of this cycle's iterates.
      velocity_sum: v_s, the sum of this cycle's velocities.
      anchor: w_o, the mean iterate of the last cycle that passed.
      velocity_anchor: v_o, the mean velocity of that cycle.
      memory: the accumulator G, the pairs (S, Y) and the gradients F.
      info: scalars for `naqopt.diagnostics`.
    """

    count: jax.Array  # type: ignore[assignment]  # Optax's name for it
    momentum: jax.Array
    step_scale: jax.Array
    velocity: Tree
    iterate_sum: Tree
    velocity_sum: Tree
    anchor: Tree
    velocity_anchor: Tree
    memory: Memory
    info: Info

    def lookahead(self) -> Tree:
        """Returns μ v, what the params are ahead of the iterate by."""
        return _tree.scale(self.momentum, self.velocity)


def asnaq(
    learning_rate: optax.ScalarOrSchedule = 0.01,
    *,
    min_momentum: float = 0.1,
    max_momentum: float = 0.99,
    momentum_factor: float = 1.1,
    memory_size: int = 10,
    fisher_size: int = 100,
    cycle_length: int = 5,
    max_increase: float = 1.01,
    eps: float = 1e-4,
    min_curvature: float = 1e-4,
    accumulator_decay: float | None = None,
    single_gradient: bool = False,
    backoff: float = 1.0,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""aSNAQ: adaQN with Nesterov's accelerated gradient, adaptive momentum and normalised steps.

    A step on each mini-batch, with :math:`H` the two-loop recursion from
    :math:`H_0 = \mathrm{diag}(1/\sqrt{G + \varepsilon})` and :math:`G` the sum of all
    :math:`(g^+)^2`:

    .. math::
      \hat g &= \nabla E(w + \mu v), & d &= -H \hat g / \lVert H \hat g \rVert_2, \\
      v^+ &= \mu v + \alpha d, & w^+ &= w + v^+, \qquad g^+ = \nabla E(w^+)

    Every :math:`L` steps, with :math:`w_n, v_n` the means of the cycle and :math:`w_o, v_o` the
    anchor: where the loss on this batch has risen, :math:`E(w_n) > \gamma E(w_o)`, all pairs and
    gradients are forgotten, :math:`w^+, v^+ = w_o, v_o` and
    :math:`\mu = \max(\mu/\phi, \mu_{min})`; otherwise
    :math:`\mu = \min(\mu\phi, \mu_{max})`, the anchor moves to :math:`w_n, v_n`, and with :math:`F`
    the last :math:`m_F` gradients :math:`g^+` as rows

    .. math::
      s = w_n - w_o, \qquad y = F^\top (F s) / |F|

    is stored if :math:`s^\top y > c\, y^\top y`.

    **The params are the look-ahead point** :math:`w + \mu v`; `naqopt.eval_params(state, params)`
    gives :math:`w`.

    **G only grows**, and a step does not shorten with it, as its direction is normalised: on a
    noisy quadratic of 50 parameters the median step is 0.038 long after 1,000 steps, 0.039 after
    20,000 and 0.031 with the G of 10⁶, while :math:`\lVert H \hat g \rVert` falls from 0.42 to
    0.083 and 0.066: what the pairs span weighs more. Steps that are to shorten need a schedule.

    Decided against the printed listing: k advances on a rejection too (read literally the run would
    lock up); a cycle is L full steps (printed, the first anchor is w/L); the sums take :math:`w^+,
    v^+`; line 10 of the two-loop recursion has a plus; losses below zero and NaN are compared as
    :math:`E_n \not\le E_o + (\gamma - 1)|E_o|`.

    Args:
      learning_rate: α ≥ 0, the length of a step before momentum, in the params' units; a number or
        an Optax schedule of the number of steps taken before (default: the paper's). Tune it: the
        best of our experiments lie between 0.003 and 1.
      min_momentum: μ_min, the momentum at the start, 0 ≤ μ_min ≤ μ_max (default: the paper's).
      max_momentum: μ_max < 1 (default: the paper's).
      momentum_factor: φ ≥ 1 (default: the paper's).
      memory_size: m_L ≥ 1, curvature pairs kept (default: the paper's).
      fisher_size: m_F ≥ 1, gradients kept (default: the paper's).
      cycle_length: L ≥ 1, steps between two pairs (default: the paper's).
      max_increase: γ ≥ 1, how far the loss may rise over a cycle (default: the paper's).
      eps: ε > 0 in H0, in units of squared gradients.
      min_curvature: c ≥ 0 of the test of a pair, in units of an inverse curvature (default:
        adaQN's).
      accumulator_decay: β in [0, 1) for :math:`G \leftarrow \beta G + (1-\beta) (g^+)^2` in place
        of the sum (adaQN's RMS form).
      single_gradient: let :math:`\hat g` enter F and G too, and spend one gradient a step instead
        of two (a variant of ours).
      backoff: in (0, 1]; the step is α c, where c shrinks by this factor on a restoration, to 0.01
        at least, and grows back by it, to 1 at most, when a cycle passes (a variant of ours; 1.0 is
        the paper, 0.9 the value we measured).
      history_dtype: dtype of the stored pairs and gradients, `jax.numpy.bfloat16` to halve
        their place in the state (a CPU widens them to float32 while it works, so peak memory
        does not fall there); None for that of the params and at least float32.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Its `update` needs the extra argument `value_fn`,
      the loss of this step's batch as a function of the params; takes `grad_fn`, its gradient,
      where that is not to be derived from it; and `grad`, the raw gradient at params, for
      `single_gradient` where transformations in front have changed the updates. A gradient that is
      not finite, or the sum of whose squares is not, changes nothing but counters in
      `naqopt.diagnostics`; the tenth in a row leads back to the anchor, before the first cycle's
      end to the start (`bad_points_left`). If only the second is not, the iterate stays. Of both
      the velocity is zeroed and the pairs are forgotten.

    Raises:
      ValueError: for a number out of range; by `update` for a missing `value_fn` or `params`, a
        loss that is no scalar, or params of another structure than init had.
      TypeError: for sizes that are not ints, and complex or integer params.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p - jnp.array([1.0, -2.0])) ** 2)
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.asnaq(learning_rate=0.01)
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
      Indrapriyadarsini, Mahboubi, Ninomiya and Asai, *An Adaptive Stochastic Nesterov Accelerated
      Quasi Newton Method for Training RNNs*, NOLTA 2019; extended as
      `aSNAQ, NOLTA 11(4), 409-421, 2020 <https://www.jstage.jst.go.jp/article/nolta/11/4/11_409/_article/-char/en>`_.

    Costs two gradients a step, the caller's included (one with `single_gradient`), and two losses a
    cycle; 2 m_L + m_F + 6 copies of the params (126 by default). What is chained *behind* it must
    not change the updates: pairs and `eval_params` would be wrong. Clip in front. bfloat16 params
    stall under its small normalised steps: keep the params in float32 and compute in bfloat16.
    Under `optax.inject_hyperparams` name `memory_size`, `fisher_size`, `cycle_length` and
    `history_dtype` static.
    """
    settings = Settings(
        optimizer="asnaq",
        learning_rate=learning_rate,
        memory_size=memory_size,
        fisher_size=fisher_size,
        cycle_length=cycle_length,
        max_increase=max_increase,
        eps=eps,
        min_curvature=min_curvature,
        accumulator_decay=accumulator_decay,
        history_dtype=history_dtype,
    ).checked()
    _checks.number("asnaq", "momentum_factor", momentum_factor, low=1)
    _checks.number("asnaq", "backoff", backoff, 0, 1, low_open=True)
    _checks.number("asnaq", "max_momentum", max_momentum, 0, 1, high_open=True)
    _checks.number("asnaq", "min_momentum", min_momentum, 0, 1, high_open=True)
    _checks.ordered("asnaq", "min_momentum", min_momentum, "max_momentum", max_momentum)
    _checks.flag("asnaq", "single_gradient", single_gradient)

    def init(params: optax.Params) -> AsnaqState:
        params = _checks.params("asnaq", params)
        dtype = _tree.scalar_dtype(params)
        return AsnaqState(
            count=jnp.zeros((), jnp.int32),
            momentum=jnp.array(min_momentum, dtype),
            step_scale=jnp.ones((), dtype),
            velocity=_tree.zeros(params),
            iterate_sum=_tree.zeros(params),
            velocity_sum=_tree.zeros(params),
            anchor=_cycle.first_anchor(params),
            velocity_anchor=_tree.zeros(params),
            memory=_cycle.init_memory(settings, params),
            info=init_info(dtype, min_momentum),
        )

    def update(
        updates: optax.Updates,
        state: AsnaqState,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[[optax.Params], jax.Array] | None = None,
        grad_fn: Callable[[optax.Params], optax.Updates] | None = None,
        grad: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AsnaqState]:
        del extra_args
        if _tree.is_empty(state.anchor):
            _checks.same_structure("asnaq", "updates", updates, state.anchor)
            return updates, state
        loss = _closures.loss("asnaq", "value_fn", value_fn)
        given = _closures.arguments("asnaq", state.anchor, updates, params, grad)
        g, raw, params, taken = given.updates, given.raw, given.params, given.taken
        if single_gradient:
            taken = taken & _cycle.is_summable(raw)
        count = optax.safe_increment(state.count)
        mu = state.momentum
        dtype = mu.dtype

        # lines 2 to 4: the caller's gradient is the one at w + μ v
        product, norm = _cycle.precondition(settings, state.memory, g)
        alpha = schedules.evaluate("learning_rate", learning_rate, state.count, dtype)
        alpha = alpha * state.step_scale

        # lines 5 and 6: w⁺ = (w + μ v) + α d, so that w itself is not needed
        step, length = descent(product, norm, g, given.norm, alpha)
        # line 7
        if single_gradient:
            g_next, refused = raw, taken & ~jnp.isfinite(length)
        else:
            trial = _tree.cast_as(params, _tree.add(params, step))
            g_next = _closures.gradient("asnaq", loss, grad_fn, trial)
            refused = taken & ~(_cycle.is_summable(g_next) & jnp.isfinite(length))
        leaves = leaves_bad_point(state.info, taken, state.count)
        goes, stops, skips = _tree.masks(taken & ~refused, refused, ~taken)
        memory = _cycle.observe(settings, state.memory, g_next, goes != 0)

        # A refused step leads back to w and stops there, and the pairs go.
        uphill = given.uphill(lambda: _tree.dot(raw, step))
        velocity = _tree.add(state.lookahead(), step)
        velocity = _tree.choose((goes, velocity), (skips, state.velocity))
        step = _tree.choose((goes, step), (stops, _tree.scale(-mu, state.velocity)))
        memory = _cycle.forget_pairs(memory, refused | leaves)

        # lines 8 to 11
        iterate_sum = jax.tree.map(jnp.add, state.iterate_sum, _tree.add(params, step))
        velocity_sum = jax.tree.map(jnp.add, state.velocity_sum, velocity)
        sums = _tree.choose(
            (~skips, (iterate_sum, velocity_sum)), (skips, (state.iterate_sum, state.velocity_sum))
        )
        anchors = state.anchor, state.velocity_anchor

        def end() -> Any:
            means = jax.tree.map(lambda x: x / cycle_length, sums)
            pairs, verdict = _cycle.end_cycle(
                settings, loss, params, memory, count, means[0], state.anchor
            )
            back = _tree.subtract(state.anchor, params), state.velocity_anchor
            # Not chosen number by number: less to compile. Of the anchors that would take a copy
            # of the params more.
            moved = _tree.cond(verdict.restored, lambda: back, lambda: (step, velocity))
            return (
                (pairs, verdict),
                moved,  # lines 16 and 17
                _tree.zeros(sums),
                _tree.where(verdict.restored, anchors, means),  # line 27
            )

        outcome, (step, velocity), sums, anchors = _tree.cond(
            _cycle.ends(settings, count, taken),
            end,
            lambda: (_cycle.goes_on(memory), (step, velocity), sums, anchors),
        )

        def leave() -> Any:
            # From a bad point to w_o, as if this cycle had stood there so far.
            still = _tree.zeros(velocity)
            back = _tree.subtract(state.anchor, params), still
            return back, (_cycle.sum_at(state.anchor, settings, state.count), still)

        (step, velocity), sums = _tree.cond(leaves, leave, lambda: ((step, velocity), sums))
        verdict = outcome[1]

        # lines 16 or 22; the next look-ahead point is made with the new μ
        lowered = jnp.maximum(mu / momentum_factor, min_momentum)
        raised = jnp.minimum(mu * momentum_factor, max_momentum)
        momentum = jnp.where(verdict.restored, lowered, jnp.where(verdict.passed, raised, mu))
        momentum = momentum.astype(dtype)
        smaller = jnp.maximum(state.step_scale * backoff, 0.01)
        larger = jnp.minimum(state.step_scale / backoff, 1)
        scale = jnp.where(
            verdict.restored, smaller, jnp.where(verdict.passed, larger, state.step_scale)
        )

        new_state = AsnaqState(
            count=jnp.where(taken, count, state.count),
            momentum=momentum,
            step_scale=scale.astype(dtype),
            velocity=velocity,
            iterate_sum=sums[0],
            velocity_sum=sums[1],
            anchor=anchors[0],
            velocity_anchor=anchors[1],
            memory=_cycle.settle(memory, *outcome),
            info=record(
                state.info,
                taken,
                _cycle.events(refused, verdict) | uphill,
                leaves,
                step_size=alpha,
                momentum=momentum,
                direction_norm=norm,
                pairs_in_memory=outcome[0].size,
            ),
        )
        # w⁺ + μ⁺ v⁺ − (w + μ v); nothing where the step is skipped
        step = _tree.add(step, _tree.scale(jnp.where(taken, momentum, 0), velocity))
        return _tree.cast_as(params, step), gathered(new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)
