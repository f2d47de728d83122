"""What adaQN and aSNAQ share: the memory of curvature and the check at the end of a cycle.

One cycle, two recipes. Both precondition with the two-loop recursion from H0 = diag 1/√(G + ε),
keep the last gradients in a Fisher ring, and every `cycle_length` steps compare the loss at the
cycle's mean iterate with that at the last anchor: worse, and they go back; otherwise the pair (s, y
= Fᵀ F s/|F|) may be stored. Nearly all steps end no cycle, so that what only its end needs stands
in one condition: they neither read nor write anchors and pairs.

Line numbers are those of aSNAQ's Algorithm 2; adaQN's listing has the same lines without velocity.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from naqopt import _checks, _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature import fisher as fisher_ring
from naqopt.curvature import lbfgs
from naqopt.curvature import pairs as pair_ring
from naqopt.curvature.fisher import Fisher
from naqopt.curvature.pairs import Pairs


class Settings(NamedTuple):
    """The arguments that both calls have; `optimizer` is the call's name for messages."""

    optimizer: str
    learning_rate: optax.ScalarOrSchedule
    memory_size: int
    fisher_size: int
    cycle_length: int
    max_increase: Any
    eps: Any
    min_curvature: Any
    accumulator_decay: Any
    history_dtype: Any

    def checked(self) -> "Settings":
        """Returns the settings, or raises for a value out of range."""
        name = self.optimizer
        _checks.learning_rate(name, self.learning_rate)
        _checks.number(name, "max_increase", self.max_increase, low=1)
        _checks.number(name, "eps", self.eps, low=_checks.SMALLEST)
        _checks.number(name, "min_curvature", self.min_curvature, low=0)
        if self.accumulator_decay is not None:
            _checks.number(name, "accumulator_decay", self.accumulator_decay, 0, 1, high_open=True)
        return self._replace(
            memory_size=_checks.size(name, "memory_size", self.memory_size),
            fisher_size=_checks.size(name, "fisher_size", self.fisher_size),
            cycle_length=_checks.size(name, "cycle_length", self.cycle_length),
            history_dtype=_checks.history_dtype(name, self.history_dtype),
        )


class Memory(NamedTuple):
    """What the steps leave behind: 2 m_L + m_F + 1 copies of the params.

    Attributes:
      accumulator: G, the accumulated squared gradients.
      pairs: (S, Y), the ring of curvature pairs.
      fisher: F, the ring of gradients.
    """

    accumulator: Tree
    pairs: Pairs
    fisher: Fisher


class Verdict(NamedTuple):
    """What the end of a cycle decided; all False within a cycle.

    Attributes:
      anchored: the first cycle ended, or a later one passed.
      passed: a later cycle ended no worse than its anchor.
      restored: a later cycle ended worse than its anchor.
      stored: its pair entered (S, Y).
    """

    anchored: Scalar
    passed: Scalar
    restored: Scalar
    stored: Scalar


def init_memory(settings: Settings, params: Tree) -> Memory:
    """Returns the empty memory."""
    dtype = settings.history_dtype
    return Memory(
        accumulator=_tree.zeros(params),
        pairs=pair_ring.init(params, settings.memory_size, dtype),
        fisher=fisher_ring.init(params, settings.fisher_size, dtype),
    )


def first_anchor(params: Tree) -> Tree:
    """Returns what stands for w_o before the first cycle has ended: a copy of the params.

    Raises:
      TypeError: for shapes without values.
    """
    if any(isinstance(p, jax.ShapeDtypeStruct) for p in jax.tree.leaves(params)):
        raise TypeError(
            "naqopt.adaqn, naqopt.asnaq: init keeps a copy of the params, which shapes alone do "
            "not give; take jax.eval_shape(tx.init, params)."
        )
    return jax.tree.map(lambda z, p: z + p.astype(z.dtype), _tree.zeros(params), params)


def sum_at(point: Tree, settings: Settings, count: Scalar) -> Tree:
    """Returns w_s as if all iterates of this cycle had been the point."""
    steps = count % settings.cycle_length
    return jax.tree.map(lambda x: jnp.where(steps > 0, steps.astype(x.dtype) * x, 0), point)


def is_summable(g: Tree) -> Scalar:
    """Returns whether Σ g² is finite: G could not hold it, and H would be 0 from then on."""
    return jnp.isfinite(_tree.squared_norm(g))


def observe(settings: Settings, memory: Memory, g: Tree, accept: Scalar) -> Memory:
    """Pushes g into F and adds g² to G where `accept` holds.

    G ← G + g² (Eq. 8), or G ← β G + (1 − β) g² with `accumulator_decay` β. G saturates where
    it would overflow.
    """
    decay, accepted = settings.accumulator_decay, _tree.mask(accept)

    def add(total: jax.Array, x: jax.Array) -> jax.Array:
        x = x.astype(total.dtype)
        new = total + x * x if decay is None else decay * total + (1 - decay) * (x * x)
        new = lax.min(new, jnp.full_like(new, jnp.finfo(total.dtype).max)).astype(total.dtype)
        return _tree.choose((accepted, new), (~accepted, total))

    return memory._replace(
        accumulator=jax.tree.map(add, memory.accumulator, g),
        fisher=fisher_ring.push(memory.fisher, g, settings.fisher_size, accept),
    )


def precondition(settings: Settings, memory: Memory, g: Tree) -> tuple[Tree, Scalar]:
    """Returns H g by Algorithm 1 with H0 = diag 1/√(G + ε) (Eq. 8), and its norm."""
    h0 = jax.tree.map(
        lambda total: lax.rsqrt(total + settings.eps).astype(total.dtype), memory.accumulator
    )
    product = _tree.cast_as(h0, lbfgs.two_loop(memory.pairs, g, h0))
    return product, jnp.sqrt(_tree.squared_norm(product)).astype(memory.pairs.products.dtype)


def forget_pairs(memory: Memory, condition: Scalar) -> Memory:
    """Clears (S, Y) where the condition holds."""
    return memory._replace(pairs=pair_ring.clear(memory.pairs, condition))


def _worse(loss: Callable[[Tree], jax.Array], new: Tree, old: Tree, max_increase: Any) -> Scalar:
    """E(w_n) > γ E(w_o) of line 14, so written that it holds for losses of either sign and for NaN.

    One `lax.map` over the two points compiles the loss once.
    """
    dtype = _tree.scalar_dtype(new)

    def point(i: Scalar) -> Tree:
        return jax.tree.map(lambda x, y: lax.select(i == 0, x, y), new, old)

    e_new, e_old = lax.map(lambda i: loss(point(i)).astype(dtype), jnp.arange(2))
    within = e_new <= e_old + (max_increase - 1) * jnp.abs(e_old)
    return ~jnp.isfinite(e_new) | (jnp.isfinite(e_old) & ~within)


def ends(settings: Settings, count: Scalar, taken: Scalar) -> Scalar:
    """Returns whether the k-th step ends a cycle (line 10); a skipped one does not."""
    return taken & (count % settings.cycle_length == 0)


def end_cycle(
    settings: Settings,
    loss: Callable[[Tree], jax.Array],
    params: Tree,
    memory: Memory,
    count: Scalar,
    mean: Tree,
    anchor: Tree,
) -> tuple[Pairs, Verdict]:
    """Compares the mean iterate with the anchor, then stores the pair or forgets all pairs.

    Args:
      settings: the optimizer's arguments.
      loss: the loss that decides.
      params: gives the dtypes at which the loss is evaluated.
      memory: the memory before.
      count: k, this step included.
      mean: w_n.
      anchor: w_o.

    Returns:
      The pairs after and the verdict.
    """

    def loss_at(point: Tree) -> jax.Array:
        return loss(_tree.cast_as(params, point))

    compare = count > settings.cycle_length  # line 13, t > 0
    worse = compare & _tree.cond(
        compare,
        lambda: _worse(loss_at, mean, anchor, settings.max_increase),  # line 14
        lambda: jnp.zeros((), bool),
    )
    passed = compare & ~worse

    s = _tree.subtract(mean, anchor)  # line 20
    y = fisher_ring.product(memory.fisher, s)  # line 21
    new = pair_ring.products(memory.pairs, s, y)
    stored = (
        passed & pair_ring.is_usable(new) & (new.sy > settings.min_curvature * new.yy)
    )  # line 23
    (stored,) = _tree.together(stored)
    pairs = pair_ring.store(memory.pairs, s, y, new, stored)  # line 24
    return pair_ring.clear(pairs, worse), Verdict(~worse, passed, worse, stored)  # line 15


def goes_on(memory: Memory) -> tuple[Pairs, Verdict]:
    """Returns the pairs and the verdict of a step that ends no cycle."""
    no = jnp.zeros((), bool)
    return memory.pairs, Verdict(no, no, no, no)


def settle(memory: Memory, pairs: Pairs, verdict: Verdict) -> Memory:
    """Returns the memory with the pairs that an end of a cycle has left."""
    fisher = fisher_ring.clear(memory.fisher, verdict.restored)  # line 15
    return memory._replace(pairs=pairs, fisher=fisher)


def events(refused: Scalar, verdict: Verdict) -> dict[str, Scalar]:
    """Returns what happened, for the counters of `naqopt.state.Info`."""
    return {
        "pairs_stored": verdict.stored,
        "pairs_refused": verdict.passed & ~verdict.stored,
        "restorations": verdict.restored,
        "steps_refused": refused,
    }
