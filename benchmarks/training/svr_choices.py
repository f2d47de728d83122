"""SVR-NAQ with switches, whole trainings as one compiled function over all seeds.

What a switch does is decided while the function is traced, so that the baseline does the work of
`naqopt.svr_naq` and no more. Initial parameters and the order of the examples are those of
`benchmarks.training.mini_batches` for the same seed. The guards of the library against numbers that
are not finite are left out: a run that loses them has diverged.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.training.problem import Examples, Problem
from naqopt.curvature import lbfgs, pairs

# What k of the step size 1/√k counts.
ALL_STEPS, AFTER_WARMUP, WITHIN_EPOCH, EPOCHS, NOTHING = (
    "all steps",
    "steps after the SVRG epoch",
    "steps within the epoch",
    "epochs",
    "nothing",
)
# γ of H0 = γ I.
MEAN, NEWEST, ONE = "mean", "newest", "one"
# What is added to y.
CONVERGENCE = "convergence term"

BASELINE = "baseline"  # the name of the variant that the others are compared with


@dataclasses.dataclass(frozen=True)
class Choices:
    """One reading of SVR-NAQ; the defaults are those of `naqopt.svr_naq`.

    Attributes:
      warmup_rate: α of the SVRG epoch; None for no such epoch.
      learning_rate: α_0.
      counted: what k of α_k = α_0/√k counts; `NOTHING` for a constant α.
      normalized: whether the direction has length 1.
      momentum: μ.
      keep_velocity: whether v goes on over a snapshot, rather than from 0.
      variance_reduced: whether G is the control variate, rather than the mini-batch gradient.
      snapshot_average: whether a snapshot is taken at the mean of the epoch's iterates.
      memory_size: m; None for a dense matrix, 0 for H = I.
      scale: γ from the stored pairs: `MEAN`, `NEWEST` or `ONE`.
      by_pairs: whether the two-loop recursion goes pair by pair; rounding alone depends on that.
      damping: λ of y + λ s; `CONVERGENCE` for the ξ of global convergence.
    """

    warmup_rate: float | None = 0.025
    learning_rate: float = 1.0
    counted: str = ALL_STEPS
    normalized: bool = True
    momentum: float = 0.9
    keep_velocity: bool = True
    variance_reduced: bool = True
    snapshot_average: bool = False
    memory_size: int | None = 4
    scale: str = MEAN
    by_pairs: bool = False
    damping: float | str = 0.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """A line of the tables.

    Attributes:
      group: which choice it varies.
      label: how.
      choices: all of them.
    """

    group: str
    label: str
    choices: Choices

    @property
    def title(self) -> str:
        """The group and the label."""
        return f"{self.group}: {self.label}"


class Trained(NamedTuple):
    """What became of the runs, seeds along the first axis.

    Attributes:
      params: the final iterates as vectors.
      train_losses: (seeds, epochs + 1), at the iterate, before the first epoch and after each.
      test_losses: (seeds,), after the last.
      pairs_stored: (seeds,).
    """

    params: np.ndarray
    train_losses: np.ndarray
    test_losses: np.ndarray
    pairs_stored: np.ndarray


class _Dense(NamedTuple):
    """The dense H, and how many pairs it holds."""

    matrix: jax.Array
    size: jax.Array


class _State(NamedTuple):
    """What an epoch hands to the next; `mean` is that of its iterates."""

    w: jax.Array
    v: jax.Array
    mean: jax.Array
    snapshot: jax.Array
    full_grad: jax.Array
    curvature: Any
    stored: jax.Array


def train(problem: Problem, choices: Choices, seeds: Sequence[int], epochs: int) -> Trained:
    """Trains from several seeds at once.

    Args:
      problem: what is learnt; it keeps no statistics.
      choices: the reading of the method.
      seeds: of the initial parameters and of the order of the examples.
      epochs: length of a run.

    Returns:
      Losses and final parameters, also of runs that diverged.
    """
    dtype = problem.train[0].dtype
    starts = [jax.tree.map(lambda x: x.astype(dtype), problem.params(seed)) for seed in seeds]
    unravel = ravel_pytree(starts[0])[1]
    vectors = jnp.stack([ravel_pytree(start)[0] for start in starts])
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])

    def loss(w: jax.Array, examples: Examples) -> jax.Array:
        return problem.loss(unravel(w), examples)

    def run(key: jax.Array, start: jax.Array, given: Examples, test: Examples) -> Trained:
        zeros = jnp.zeros_like(start)
        state = _State(
            start, zeros, start, zeros, zeros, _no_pairs(choices, start), jnp.zeros((), jnp.int32)
        )

        def epoch(state: _State, index: jax.Array) -> tuple[_State, jax.Array]:
            state = _take_snapshot(choices, loss, state, given, index)
            rows = problem.rows(jax.random.fold_in(key, index))
            state = _steps(choices, loss, state, given, rows, index)
            return state, loss(state.w, given)

        state, losses = jax.lax.scan(epoch, state, jnp.arange(epochs))
        losses = jnp.concatenate([loss(start, given)[None], losses])
        return Trained(state.w, losses, loss(state.w, test), state.stored)

    whole = jax.jit(jax.vmap(run, in_axes=(0, 0, None, None)))
    return Trained(*map(np.asarray, whole(keys, vectors, problem.train, problem.test)))


def step_size(choices: Choices, epoch: jax.Array, place: jax.Array, steps: int) -> jax.Array:
    """Returns α_k of a step after the SVRG epoch.

    Args:
      choices: the reading of the method.
      epoch: counted from 0.
      place: of the step in its epoch, counted from 0.
      steps: of an epoch.
    """
    k = {
        ALL_STEPS: epoch * steps + place + 1,
        AFTER_WARMUP: (epoch - (choices.warmup_rate is not None)) * steps + place + 1,
        WITHIN_EPOCH: place + 1,
        EPOCHS: epoch + 1,
        NOTHING: 1,
    }[choices.counted]
    # In the SVRG epoch itself, where it is not used, the second k is negative.
    return choices.learning_rate * jax.lax.rsqrt(jnp.maximum(k, 1).astype(jnp.result_type(float)))


def _take_snapshot(
    choices: Choices, loss: Any, state: _State, given: Examples, index: jax.Array
) -> _State:
    """Returns the state with the snapshot of now, and from the second on with a pair."""
    point = state.mean if choices.snapshot_average else state.w
    full_grad = jax.grad(loss)(point, given)
    s, y = point - state.snapshot, full_grad - state.full_grad
    if choices.damping == CONVERGENCE:
        y += _convergence(state.full_grad, s, y) * s
    elif choices.damping:
        y += choices.damping * s
    curvature, stored = _learn(state.curvature, s, y, index > 0)
    return state._replace(
        v=state.v if choices.keep_velocity else jnp.zeros_like(state.v),
        snapshot=point,
        full_grad=full_grad,
        curvature=curvature,
        stored=state.stored + stored,
    )


def _steps(
    choices: Choices,
    loss: Any,
    state: _State,
    given: Examples,
    rows: jax.Array,
    index: jax.Array,
) -> _State:
    """Returns the state after the epoch whose batches have these rows."""
    warmup = choices.warmup_rate is not None
    warming = (index == 0) & warmup
    mu, count = choices.momentum, len(rows)

    def step(carry: Any, xs: Any) -> tuple[Any, None]:
        w, v, total = carry
        batch = tuple(x[xs[0]] for x in given)
        ahead = w + mu * v
        if choices.variance_reduced:
            both = jnp.stack([ahead, state.snapshot])
            here, there = jax.vmap(jax.grad(loss), (0, None))(both, batch)
            control = here - there + state.full_grad
        else:
            control = jax.grad(loss)(ahead, batch)
        product = _precondition(choices, state.curvature, control)
        if choices.normalized:
            norm = jnp.linalg.norm(product)
            product = product / jnp.where(norm > 0, norm, 1)
        rate = step_size(choices, index, xs[1], count).astype(w.dtype)
        # The SVRG epoch has neither H nor momentum.
        move = mu * v - rate * product
        if warmup:
            v = jnp.where(warming, 0, move)
            move = jnp.where(warming, -choices.warmup_rate * control, move)
        else:
            v = move
        return (w + move, v, total + w + move), None

    carry = (state.w, state.v, jnp.zeros_like(state.w))
    (w, v, total), _ = jax.lax.scan(step, carry, (rows, jnp.arange(count)))
    return state._replace(w=w, v=v, mean=total / count)


def _no_pairs(choices: Choices, start: jax.Array) -> Any:
    """Returns what keeps the pairs, empty; None for H = I."""
    if choices.memory_size is None:
        return _Dense(jnp.eye(start.size, dtype=start.dtype), jnp.zeros((), jnp.int32))
    return pairs.init(start, choices.memory_size) if choices.memory_size else None


def _learn(curvature: Any, s: jax.Array, y: jax.Array, formed: jax.Array) -> tuple[Any, jax.Array]:
    """Returns the pairs with a new one where it was formed and is usable, and whether it was."""
    if curvature is None:
        return None, jnp.zeros((), bool)
    if not isinstance(curvature, _Dense):
        return lbfgs.update(curvature, s, y, formed)
    sy, yy = s @ y, y @ y
    stored = formed & jnp.isfinite(yy) & pairs.is_curved(sy, s @ s, yy)
    rho = 1 / jnp.where(stored, sy, 1)
    unit = jnp.eye(s.size, dtype=s.dtype)
    gamma = sy / jnp.where(yy > 0, yy, 1)
    old = jnp.where(curvature.size == 0, gamma * unit, curvature.matrix)
    left = unit - rho * jnp.outer(s, y)
    new = left @ old @ left.T + rho * jnp.outer(s, s)
    return _Dense(jnp.where(stored, new, curvature.matrix), curvature.size + stored), stored


def _precondition(choices: Choices, curvature: Any, g: jax.Array) -> jax.Array:
    """Returns H g; g itself until the first pair."""
    if curvature is None:
        return g
    if isinstance(curvature, _Dense):
        return curvature.matrix @ g  # the identity at first
    one = jnp.ones((), g.dtype)
    gamma = {
        MEAN: pairs.mean_scale,
        NEWEST: pairs.newest_scale,
        ONE: lambda _: one,
    }[choices.scale](curvature)
    two_loop = lbfgs.two_loop_by_pairs if choices.by_pairs else lbfgs.two_loop
    return two_loop(curvature, g, jnp.where(curvature.size > 0, gamma, one))


def _convergence(full_grad: jax.Array, s: jax.Array, y: jax.Array) -> jax.Array:
    """Returns ξ = ω‖∇E‖ + max(−yᵀs/‖s‖², 0) with ω = 2 where ‖∇E‖² > 10⁻², else 100."""
    squared, ss = full_grad @ full_grad, s @ s
    omega = jnp.where(squared > 1e-2, 2, 100)
    return omega * jnp.sqrt(squared) + jnp.maximum(-(y @ s) / jnp.where(ss > 0, ss, 1), 0)
