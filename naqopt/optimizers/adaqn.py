"""adaQN: L-BFGS on every batch, with a pair once a cycle from the accumulated Fisher matrix.

The cycle, which it shares with aSNAQ, stands in `_cycle`.
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


class AdaqnState(NamedTuple):
    """State of adaQN: 2 m_L + m_F + 3 copies of the params.

    Attributes:
      count: k, the steps taken; skipped ones do not count.
      iterate_sum: w_s, the sum of this cycle's iterates.
      anchor: w_o, the mean iterate that the last stored pair led to; at first the params.
      memory: the accumulator G, the pairs (S, Y) and the gradients F.
      info: scalars for `naqopt.diagnostics`.
    """

    count: jax.Array  # type: ignore[assignment]  # Optax's name for it
    iterate_sum: Tree
    anchor: Tree
    memory: Memory
    info: Info


def adaqn(
    learning_rate: optax.ScalarOrSchedule = 0.01,
    *,
    memory_size: int = 10,
    fisher_size: int = 100,
    cycle_length: int = 5,
    max_increase: float = 1.01,
    eps: float = 1e-8,
    min_curvature: float = 1e-4,
    accumulator_decay: float | None = None,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""adaQN: stochastic L-BFGS with curvature from the accumulated Fisher matrix.

    A step on each mini-batch k, with the gradient :math:`g` at :math:`w`, :math:`G` the sum of all
    :math:`g^2` so far and :math:`H` the two-loop recursion from
    :math:`H_0 = \mathrm{diag}(1/\sqrt{G + \varepsilon})`:

    .. math::
      w^+ = w - \alpha H g

    Every :math:`L` steps, with :math:`w_n` the mean of the cycle's iterates and :math:`w_o` the
    anchor: where the loss has risen, :math:`E(w_n) > \gamma E(w_o)`, all pairs and gradients are
    forgotten and :math:`w^+ = w_o`; otherwise, with :math:`F` the last :math:`m_F` gradients as
    rows,

    .. math::
      s = w_n - w_o, \qquad y = F^\top (F s) / |F|

    is stored, and :math:`w_o` moved to :math:`w_n`, if :math:`s^\top y > c\, y^\top y`.

    **G only grows**: what H0 gives of a step falls as :math:`1/\sqrt{k}`, as in Adagrad, while the
    pairs have a scale of their own. On a noisy quadratic of 50 parameters the median step is 4.1e-3
    long after 1,000 steps, 1.4e-3 after 20,000 and 1.2e-3 with the G of 10⁶; with
    `accumulator_decay=0.9` 7.4e-2, 7.4e-2 and 7.2e-2.

    Decided where the paper leaves it open: losses below zero and NaN are compared as
    :math:`E_n \not\le E_o + (\gamma - 1)|E_o|`; a restoration keeps :math:`G`.

    Args:
      learning_rate: α ≥ 0, a number or an Optax schedule of the number of steps taken before. The
        default is aSNAQ's; tune it, as the size of H g is the optimizer's own.
      memory_size: m_L ≥ 1, curvature pairs kept (default: the paper's).
      fisher_size: m_F ≥ 1, gradients kept (default: the paper's).
      cycle_length: L ≥ 1, steps between two pairs (default: the paper's).
      max_increase: γ ≥ 1, how far the loss may rise over a cycle (default: the paper's).
      eps: ε > 0 in H0, in units of squared gradients (default: by measuring; the authors' code has
        1.5e-8. Against 1e-4 the median loss is lower on counting, 0.49 and 1.21, and on characters,
        1.82 and 1.85 by an RNN and 1.65 and 1.79 by an LSTM, and higher on rows of digits, 0.30 and
        0.25; only on the LSTM the seeds do not overlap).
      min_curvature: c ≥ 0 of the test of a pair, in units of an inverse curvature (default: the
        authors').
      accumulator_decay: β in [0, 1) for :math:`G \leftarrow \beta G + (1-\beta) g^2` in place of
        the sum; the authors offer it as the RMS form.
      history_dtype: dtype of the stored pairs and gradients, `jax.numpy.bfloat16` to halve
        their place in the state (a CPU widens them to float32 while it works, so peak memory
        does not fall there); None for that of the params and at least float32.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Its `update` needs the extra argument `value_fn`,
      the loss of this step's batch as a function of the params, or `monitor_fn`, a loss on a fixed
      monitoring set as the paper has it (of one batch it restores as often to four times as often,
      and ends higher on three of four tasks), and uses `grad`, the raw gradient at params, for F
      and G where transformations in front have changed the updates. A gradient that is not finite,
      or the sum of whose squares is not, changes nothing but counters in `naqopt.diagnostics`; the
      tenth in a row leads back to the anchor, before the first cycle's end to the start, and the
      pairs are forgotten (`bad_points_left`).

    Raises:
      ValueError: for a number out of range; by `update` for a missing `value_fn` or `params`, a
        loss that is no scalar, or params of another structure than init had.
      TypeError: for sizes that are not ints, and complex or integer params.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: jnp.sum((p - jnp.array([1.0, -2.0])) ** 2)
      >>> params = jnp.zeros(2)
      >>> tx = naqopt.adaqn(learning_rate=0.1)
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
      Keskar and Berahas, `adaQN: An Adaptive Quasi-Newton Algorithm for Training RNNs
      <https://arxiv.org/abs/1511.01169>`_, ECML-PKDD 2016.

    Costs one gradient a step, the caller's, and two losses a cycle; 2 m_L + m_F + 3 copies of the
    params (123 by default). Not for full-batch problems, where `optax.lbfgs` forms exact pairs, nor
    where that much memory is not to be had. Under `optax.inject_hyperparams` name `memory_size`,
    `fisher_size`, `cycle_length` and `history_dtype` static.
    """
    settings = Settings(
        optimizer="adaqn",
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

    def init(params: optax.Params) -> AdaqnState:
        params = _checks.params("adaqn", params)
        return AdaqnState(
            count=jnp.zeros((), jnp.int32),
            iterate_sum=_tree.zeros(params),
            anchor=_cycle.first_anchor(params),
            memory=_cycle.init_memory(settings, params),
            info=init_info(_tree.scalar_dtype(params)),
        )

    def update(
        updates: optax.Updates,
        state: AdaqnState,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[[optax.Params], jax.Array] | None = None,
        monitor_fn: Callable[[optax.Params], jax.Array] | None = None,
        grad: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdaqnState]:
        del extra_args
        if _tree.is_empty(state.anchor):
            _checks.same_structure("adaqn", "updates", updates, state.anchor)
            return updates, state
        if monitor_fn is None:
            loss = _closures.loss("adaqn", "value_fn", value_fn)
        else:
            loss = _closures.loss("adaqn", "monitor_fn", monitor_fn)
        given = _closures.arguments("adaqn", state.anchor, updates, params, grad)
        g, raw, params = given.updates, given.raw, given.params
        taken = given.taken & _cycle.is_summable(raw)
        count = optax.safe_increment(state.count)

        # F and G hold this step's gradient before H0 is used.
        memory = _cycle.observe(settings, state.memory, raw, taken)
        product, norm = _cycle.precondition(settings, memory, g)
        alpha = schedules.evaluate("learning_rate", learning_rate, state.count, norm.dtype)

        # w⁺ = w − α H g; with a direction that is not finite the iterate stays and the pairs go.
        refused = taken & ~jnp.isfinite(alpha * norm)
        leaves = leaves_bad_point(state.info, taken, state.count)
        goes, skips, factor = _tree.together(
            _tree.mask(taken & ~refused), _tree.mask(~taken), -alpha
        )
        memory = _cycle.forget_pairs(memory, refused | leaves)
        step = _tree.choose((goes, _tree.scale(factor, product)))

        # w_s += w⁺ and, at a cycle's end, w_n = w_s/L
        iterate_sum = jax.tree.map(jnp.add, state.iterate_sum, _tree.add(params, step))
        iterate_sum = _tree.choose((~skips, iterate_sum), (skips, state.iterate_sum))

        def end() -> Any:
            mean = jax.tree.map(lambda x: x / cycle_length, iterate_sum)
            pairs, verdict = _cycle.end_cycle(
                settings, loss, params, memory, count, mean, state.anchor
            )
            # w⁺ = w_o on a restoration; w_o = w_n after the first cycle and with a stored pair.
            anchored = verdict.anchored & (~verdict.passed | verdict.stored)
            back = _tree.subtract(state.anchor, params)
            return (
                (pairs, verdict),
                _tree.cond(verdict.restored, lambda: back, lambda: step),
                _tree.zeros(iterate_sum),
                _tree.cond(anchored, lambda: mean, lambda: state.anchor),
            )

        outcome, step, iterate_sum, anchor = _tree.cond(
            _cycle.ends(settings, count, taken),
            end,
            lambda: (_cycle.goes_on(memory), step, iterate_sum, state.anchor),
        )

        def leave() -> Any:
            # From a bad point to w_o, as if all of this cycle's iterates had been there.
            back = _tree.subtract(state.anchor, params)
            return back, _cycle.sum_at(state.anchor, settings, state.count)

        step, iterate_sum = _tree.cond(leaves, leave, lambda: (step, iterate_sum))
        verdict = outcome[1]
        new_state = AdaqnState(
            count=jnp.where(taken, count, state.count),
            iterate_sum=iterate_sum,
            anchor=anchor,
            memory=_cycle.settle(memory, *outcome),
            info=record(
                state.info,
                taken,
                _cycle.events(refused, verdict) | given.uphill(lambda: -_tree.dot(raw, product)),
                leaves,
                step_size=alpha,
                direction_norm=norm,
                pairs_in_memory=outcome[0].size,
            ),
        )
        return _tree.cast_as(params, step), gathered(new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)
