"""The core of the variance-reduced methods: one step by the control variate, and the snapshot.

======== ========= ========= =============== ==========
method   momentum  curvature direction       first epoch
======== ========= ========= =============== ==========
SVRG     none      none      −G(w)           the same
SVRG+II  none      pairs     −H G(w)         SVRG
SVR-NAQ  μ         pairs     −H G(w + μv),   SVRG
                             normalised
======== ========= ========= =============== ==========

with G(z) = ∇E(z; X) − ∇E(w̃; X) + Ω, where w̃ is the snapshot and Ω = ∇E(w̃) its full gradient. One
pair an epoch, of full gradients: s = w̃_new − w̃_old, y = Ω_new − Ω_old. The recipes stand in
`variance_reduced`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from naqopt import _checks, _closures, _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature import Curvature, dense, lbfgs
from naqopt.state import Info, gathered, init_info, leaves_bad_point, record
from naqopt.steps import schedules
from naqopt.steps.direction import descent
from naqopt.steps.schedules import Momentum


class Method(NamedTuple):
    """What a method is composed of.

    Attributes:
      optimizer: the call's name, for messages.
      learning_rate: α_k, a number or a schedule of the number of steps taken before.
      curvature: what becomes of the pairs, and H; None for H = I.
      momentum: μ, a number or a schedule; None for none. With momentum directions are normalised.
      warmup_learning_rate: α up to the second snapshot, where that differs.
    """

    optimizer: str
    learning_rate: optax.ScalarOrSchedule
    curvature: Curvature | None = None
    momentum: Momentum | None = None
    warmup_learning_rate: Any = None


class VarianceReducedState(NamedTuple):
    """State of SVRG and its accelerations; what a method does not need is None.

    Attributes:
      count: k, the steps taken; skipped ones do not count.
      momentum: μ, with which the present look-ahead point was made; None without look-ahead.
      velocity: v; zero until the second snapshot.
      curvature: the pairs, or the dense matrix.
      snapshots: how many snapshots were taken; the first epoch is over with the second.
      snapshot_params: w̃, zeros before the first snapshot.
      full_grad: Ω, likewise.
      info: scalars for `naqopt.diagnostics`.
    """

    count: jax.Array  # type: ignore[assignment]  # Optax's name for it
    momentum: jax.Array | None
    velocity: Tree | None
    curvature: Any
    snapshots: jax.Array
    snapshot_params: Tree
    full_grad: Tree
    info: Info

    def lookahead(self) -> Tree:
        """Returns μ v, what the params are ahead of the iterate by."""
        assert self.momentum is not None
        return _tree.scale(self.momentum, self.velocity)

    def take_snapshot(self, iterate: Tree, full_grad: Tree) -> "VarianceReducedState":
        """Returns the state with the snapshot at the iterate, and the pair since the last one."""
        if _tree.is_empty(self.snapshot_params):
            return self
        iterate = _tree.cast_as(self.snapshot_params, iterate)
        full_grad = _tree.cast_as(self.full_grad, full_grad)
        nan = [jnp.any(jnp.isnan(x)) for x in jax.tree.leaves(iterate)]
        usable = _tree.is_finite(full_grad) & ~jnp.any(jnp.array(nan, bool))

        curvature, events = self.curvature, {"snapshots_refused": ~usable}
        if curvature is not None:
            s = _tree.subtract(iterate, self.snapshot_params)
            y = _tree.subtract(full_grad, self.full_grad)
            formed = usable & (self.snapshots > 0)
            if isinstance(curvature, dense.Dense):
                curvature, stored = dense.update(curvature, s, y, formed)
            else:
                curvature, stored = lbfgs.update(curvature, s, y, formed)
            events |= {"pairs_stored": stored, "pairs_refused": formed & ~stored}
        snapshot_params, full_grad = _tree.where(
            usable, (iterate, full_grad), (self.snapshot_params, self.full_grad)
        )
        taken = self._replace(
            curvature=curvature,
            snapshots=jnp.where(usable, optax.safe_increment(self.snapshots), self.snapshots),
            snapshot_params=snapshot_params,
            full_grad=full_grad,
            info=record(
                self.info, jnp.ones((), bool), events, pairs_in_memory=_known(curvature)
            )._replace(skipped_in_a_row=self.info.skipped_in_a_row),
        )
        return gathered(taken, self)


def _known(curvature: Any) -> Scalar:
    """Returns how many pairs the curvature is made of."""
    return jnp.zeros((), jnp.int32) if curvature is None else jnp.maximum(curvature.size, 0)


def _direction(
    method: Method, state: VarianceReducedState, control: Tree, warming: Scalar
) -> tuple[Tree, Scalar, Scalar, Scalar]:
    """Returns α d with d = −H G, in SVR-NAQ normalised after the first epoch; its length.

    ‖H G‖ and α as well.
    """
    norm_g = norm = _tree.norm(control)
    product = control
    if method.curvature is not None:
        product = method.curvature.precondition(state.curvature, control, jnp.ones_like(norm))
        product = _tree.cast_as(control, product)
        norm = jnp.sqrt(_tree.squared_norm(product)).astype(norm.dtype)
    rate = schedules.evaluate("learning_rate", method.learning_rate, state.count, norm.dtype)
    normalize: Any = False
    if method.momentum is not None:
        normalize = ~warming
        rate = jnp.where(warming, jnp.asarray(method.warmup_learning_rate, rate.dtype), rate)
    step, length = descent(product, norm, control, norm_g, rate, normalize)
    return step, length, norm, rate


def transformation(method: Method) -> optax.GradientTransformationExtraArgs:
    """Returns the method as an Optax transformation."""
    name = method.optimizer
    ahead = method.momentum is not None

    def init(params: optax.Params) -> VarianceReducedState:
        params = _checks.params(name, params)
        dtype = _tree.scalar_dtype(params)
        return VarianceReducedState(
            count=jnp.zeros((), jnp.int32),
            momentum=jnp.zeros((), dtype) if ahead else None,
            velocity=_tree.zeros(params) if ahead else None,
            curvature=None if method.curvature is None else method.curvature.init(params),
            snapshots=jnp.zeros((), jnp.int32),
            snapshot_params=_tree.zeros(params),
            full_grad=_tree.zeros(params),
            info=init_info(dtype),
        )

    def update(
        updates: optax.Updates,
        state: VarianceReducedState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates | None = None,
        value_fn: Callable[[optax.Params], jax.Array] | None = None,
        grad_fn: Callable[[optax.Params], optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, VarianceReducedState]:
        del extra_args
        if _tree.is_empty(state.snapshot_params):
            _checks.same_structure(name, "updates", updates, state.snapshot_params)
            return updates, state
        like = state.snapshot_params
        given = _closures.arguments(name, like, updates, params, grad)
        g, params, taken = _tree.cast_as(like, given.updates), given.params, given.taken
        loss: Any = None
        if grad_fn is None:
            loss = _closures.loss(name, "value_fn", value_fn)
        dtype, count = state.info.step_size.dtype, optax.safe_increment(state.count)
        begun, warming = state.snapshots > 0, state.snapshots < 2

        # G = ∇E(ŵ; X) − ∇E(w̃; X) + Ω; before the first snapshot there is nothing to evaluate.
        def control_variate() -> Tree:
            at_snapshot = _closures.gradient(name, loss, grad_fn, _tree.cast_as(params, like))
            at_snapshot = _tree.cast_as(like, at_snapshot)
            return jax.tree.map(lambda a, b, c: a - b + c, g, at_snapshot, state.full_grad)

        control = _tree.cond(begun, control_variate, lambda: g)
        step, length, norm, rate = _direction(method, state, control, warming)
        # So long a step that its square is infinite leaves no loss either.
        measured = _tree.is_finite(control)
        refused = taken & ~(measured & jnp.isfinite(length * length))
        leaves = leaves_bad_point(state.info, taken, state.count) & begun
        goes, runs, stops, skips, back = _tree.masks(
            taken & ~refused, taken & ~refused & ~warming, refused, ~taken & ~leaves, leaves
        )

        # A refused step leads back to w and stops there; from a bad point to w̃.
        to_snapshot = _tree.subtract(state.snapshot_params, _tree.cast_as(like, params))
        move = _tree.choose((goes, step), (back, to_snapshot))
        momentum = state.momentum
        velocity = state.velocity
        next_momentum = jnp.zeros((), dtype)
        if method.momentum is not None:
            # v⁺ = μ v + α d, zero in the first epoch; w⁺ = w + v⁺, and on to w⁺ + μ⁺ v⁺ from ŵ.
            lookahead = state.lookahead()
            velocity = _tree.add(lookahead, step)
            next_momentum = schedules.evaluate("momentum", method.momentum, count, dtype)
            next_momentum = jnp.where(warming, 0, next_momentum)
            onward = _tree.add(step, _tree.scale(next_momentum, velocity))
            to_iterate = jax.tree.map(jnp.negative, lookahead)
            move = _tree.choose((goes, onward), (stops, to_iterate), (back, to_snapshot))
            velocity = _tree.choose((runs, velocity), (skips, state.velocity))
            momentum = _tree.where(taken, next_momentum, state.momentum)
        curvature = state.curvature
        if method.curvature is not None:
            # H, of snapshots alone, is fixed in the epoch: a batch's gradients say nothing of it.
            # Where they are finite and the step is not, it is of H, and its pairs go.
            curvature = method.curvature.clear(curvature, (refused & measured) | leaves)
        new_state = state._replace(
            count=jnp.where(taken, count, state.count),
            momentum=momentum,
            velocity=velocity,
            curvature=curvature,
            info=record(
                state.info,
                taken,
                {"steps_refused": refused, "steps_without_snapshot": ~begun},
                leaves,
                step_size=rate,
                momentum=next_momentum,
                direction_norm=norm,
                pairs_in_memory=_known(curvature),
            ),
        )
        return _tree.cast_as(params, move), gathered(new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)
