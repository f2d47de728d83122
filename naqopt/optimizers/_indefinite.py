"""The core of the rank-one family: one trust-region step, of which every method is a choice.

====== ======== ========= ==================================== ==================
method momentum gradients gradient ĝ of the model               y of the pair
====== ======== ========= ==================================== ==================
L-SR1  none     2         ∇E(w)                                ∇E(w + s) − ĝ
SR1-N  μ        2         ∇E(w + μv)                           ∇E(ŵ + s) − ĝ (+ ξs)
MoSR1  μ        1         (1+μ)∇E(w) − μ∇E(w_prev)             ∇E(w⁺) − ĝ (+ ξs)
====== ======== ========= ==================================== ==================

A step s minimises the model ĝᵀs + ½ sᵀB s over ‖s‖ ≤ Δ, from ŵ = w + μv. If the loss falls, by any
part of what the model predicts above η, then w⁺ = ŵ + s and v⁺ = μv + s; if not, w and v
stay, the momentum starts again and the radius shrinks. With two gradients a rejected step leaves a
pair as well. The recipes stand in `symmetric_rank_one`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from naqopt import _checks, _closures, _history, _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature.indefinite import Indefinite
from naqopt.optimizers import _trust_phases
from naqopt.optimizers._differences import (
    Pending,
    extrapolate,
    init_pending,
    settle,
    without_pair,
)
from naqopt.optimizers._stored import Stored, init_stored, update_stored, without_value
from naqopt.optimizers._subproblem import solve
from naqopt.state import Info, gathered, init_info, leaves_bad_point, record
from naqopt.steps import schedules, trust_region
from naqopt.steps.schedules import Momentum
from naqopt.steps.trust_region import RadiusRule


class Method(NamedTuple):
    """What a method is composed of.

    Attributes:
      optimizer: the call's name, for messages.
      curvature: what becomes of the pairs, and B.
      exact: whether the subproblem is solved by eigenvectors, or by conjugate gradients.
      two_gradients: whether the second gradient of a pair is taken within the step.
      momentum: μ, a number or a schedule of the steps since the last rejection; None for none.
      difference: (ε, s, ĝ) to y, where ε = ∇E(ŵ + s) − ĝ.
      radius_rule: when a step is accepted and the radius changes.
      initial_radius: Δ_0; None for the norm of the first gradient that is not zero.
      store_grad: whether the value and gradient at the new params are kept in the state.
    """

    optimizer: str
    curvature: Indefinite
    exact: bool
    two_gradients: bool
    momentum: Momentum | None
    difference: Callable[[Tree, Tree, Tree], Tree]
    radius_rule: RadiusRule
    initial_radius: float | None
    store_grad: bool = False


class TrustRegionState(NamedTuple):
    """State of the rank-one family; what a method does not need is None.

    Attributes:
      count: k, the steps taken; skipped ones do not count.
      since_rejection: steps since the last rejected one.
      momentum: μ, with which the present look-ahead point was made; None without look-ahead.
      velocity: v.
      curvature: the pairs, or the dense matrix.
      radius: Δ; 0 before the first gradient where that decides.
      pending: what a method with one gradient a step keeps for the next.
      stored: value and gradient at the params, with `store_grad`.
      info: scalars for `naqopt.diagnostics`.
    """

    count: jax.Array  # type: ignore[assignment]  # Optax's name for it
    since_rejection: jax.Array
    momentum: jax.Array | None
    velocity: Tree | None
    curvature: Any
    radius: jax.Array
    pending: Pending | None
    stored: Stored | None
    info: Info

    def lookahead(self) -> Tree:
        """Returns μ v, what the params are ahead of the iterate by."""
        assert self.momentum is not None
        return _tree.scale(self.momentum, self.velocity)

    def without_loss(self) -> "TrustRegionState":
        """Returns the state for a loss that has changed."""
        return self._replace(
            **without_pair(self.pending, self.velocity),
            stored=None if self.stored is None else without_value(self.stored),
        )


def _momentum(method: Method, since_rejection: Scalar, dtype: Any) -> Scalar:
    """Returns μ of a step, which begins again after a rejected one: θ = 1, and so μ = 0."""
    if method.momentum is None:
        return jnp.zeros((), dtype)
    momentum = schedules.evaluate("momentum", method.momentum, since_rejection, dtype)
    return jnp.where(since_rejection > 0, momentum, 0).astype(dtype)


def transformation(method: Method) -> optax.GradientTransformationExtraArgs:
    """Returns the method as an Optax transformation."""
    name = method.optimizer
    has_momentum = method.momentum is not None
    ahead = has_momentum and method.two_gradients
    behind = not method.two_gradients

    def init(params: optax.Params) -> TrustRegionState:
        params = _checks.params(name, params)
        dtype = _tree.scalar_dtype(params)
        mu = _momentum(method, jnp.zeros((), jnp.int32), dtype)
        radius = 0.0 if method.initial_radius is None else method.initial_radius
        return TrustRegionState(
            count=jnp.zeros((), jnp.int32),
            since_rejection=jnp.zeros((), jnp.int32),
            momentum=jnp.array(mu) if ahead else None,
            velocity=_tree.zeros(params) if has_momentum else None,
            curvature=method.curvature.init(params),
            radius=jnp.full((), radius, dtype),
            pending=init_pending(params, has_momentum) if behind else None,
            stored=init_stored(params) if method.store_grad else None,
            info=init_info(dtype, mu)._replace(radius=jnp.full((), radius, dtype)),
        )

    def update(
        updates: optax.Updates,
        state: TrustRegionState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        grad: optax.Updates | None = None,
        value_fn: Callable[[optax.Params], jax.Array] | None = None,
        grad_fn: Callable[[optax.Params], optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TrustRegionState]:
        del extra_args
        like = _history.row_like(method.curvature.rows(state.curvature))
        if _tree.is_empty(like):
            _checks.same_structure(name, "updates", updates, like)
            return updates, state
        given = _closures.arguments(name, like, updates, params, grad)
        g, raw, params, taken = given.updates, given.raw, given.params, given.taken
        loss = _closures.loss(name, "value_fn", value_fn)
        point = _tree.widen(params)
        g = own = _tree.cast_as(point, g)
        raw = g if given.raw is given.updates else _tree.cast_as(point, raw)
        dtype, count = state.radius.dtype, optax.safe_increment(state.count)

        curvature = state.curvature
        events: dict[str, Scalar] = {}
        # Of a method without momentum the gradient was finite at every accepted step's end.
        leaves = leaves_bad_point(state.info, taken, state.count) & has_momentum
        pending = state.pending
        if pending is not None:
            update_pair, difference = method.curvature.update, method.difference
            curvature, events, _ = settle(update_pair, difference, curvature, pending, raw, taken)

        # ŵ and ĝ: `g` makes the step, `measured` of raw gradients the prediction and the pair.
        measured = raw
        lookahead = state.lookahead() if ahead else None
        if behind:
            assert pending is not None
            assert pending.has_previous is not None
            mu = _momentum(method, state.since_rejection, dtype)
            # After the pair, which takes memory of its own meanwhile.
            mu, size = _tree.together(mu, curvature.size)
            curvature = curvature._replace(size=size)
            lookahead = _tree.scale(mu, state.velocity)
            point = _tree.add(point, lookahead)
            g, measured = extrapolate(pending, mu, g, raw)

        def loss_at(wide_point: Tree) -> jax.Array:
            return loss(_tree.cast_as(params, wide_point)).astype(dtype)

        here = loss_at(point) if behind or value is None else _checks.scalar(name, value)
        here = here.astype(dtype)

        # s = argmin ĝᵀs + ½ sᵀB s over ‖s‖ ≤ Δ; a zero gradient leaves all as it is.
        norm = (_tree.norm(g) if behind else given.norm).astype(dtype)
        moving = norm > 0
        radius = state.radius
        if method.initial_radius is None:
            radius = _trust_phases.first_radius(radius, measured, moving)
        radius_of_step = jnp.where(radius > 0, radius, 1)
        again = (state.since_rejection == 0) & (state.count > 0) if behind else None
        gamma = _trust_phases.first_gamma(curvature, norm, radius_of_step, again)
        curvature = method.curvature.begin(curvature, gamma, taken & moving)
        solution = solve(method.curvature, method.exact, curvature, g, radius_of_step)
        refused = taken & ~jnp.isfinite(solution.length)
        (moves,) = _tree.masks(moving & ~refused)
        step = _tree.choose((moves, solution.step))

        if behind:
            arrival = _tree.cast_as(params, _tree.add(point, step))
        else:
            arrival = optax.apply_updates(params, _tree.cast_as(params, step))
        s = _tree.subtract(_tree.widen(arrival), point)
        # A step that vanishes in the rounding of the params would be repeated for ever.
        vanishes = taken & moving & _tree.is_zero(s)
        refused = refused | vanishes
        # Without pairs it is the radius that is too small, and it begins anew too.
        begins = vanishes & (curvature.size == 0)
        there, gradient_there = _evaluate(method, name, loss, grad_fn, arrival)
        there = there.astype(dtype)
        usable = jnp.isfinite(there) & jnp.isfinite(here)
        if gradient_there is not None:
            usable = usable & _tree.is_finite(gradient_there)

        quadratic = solution.quadratic.astype(dtype)
        slope = _tree.dot(measured, step).astype(dtype)
        predicted = -(slope + 0.5 * quadratic)
        uphill = given.uphill(lambda: slope)
        ratio = _trust_phases.ratio(here, there, predicted, usable)
        accepted = moving & ~refused & (ratio > method.radius_rule.accept)
        # With a zero gradient the momentum goes on, though not from where the loss is infinite.
        coasts = ~moving & jnp.isfinite(here)
        taken, moving, refused, accepted, coasts, known, ratio = _tree.together(
            taken, moving, refused, accepted, coasts, _tree.mask(usable), ratio
        )
        rejected = taken & ~refused & ~accepted & ~coasts
        length = jnp.where(moves != 0, solution.length.astype(dtype), 0)
        next_radius = trust_region.next_radius(method.radius_rule, radius, ratio, length)
        if behind:
            # Where nothing is known a rejected step, which leaves no pair, blames γ and not Δ.
            next_radius = jnp.where(rejected & (curvature.size == 0), radius, next_radius)
        radius = jnp.where(moving & ~refused, next_radius, radius)
        radius = jnp.where(
            begins, 0.0 if method.initial_radius is None else method.initial_radius, radius
        )

        if method.two_gradients:
            assert gradient_there is not None
            epsilon = _tree.subtract(_tree.cast_as(point, gradient_there), measured)
            epsilon = _tree.choose((known, epsilon))
            y = method.difference(epsilon, s, measured)
            forms = taken & moving & ~refused & (known != 0)
            curvature, kept = method.curvature.update(curvature, s, y, forms)
            events = {"pairs_stored": kept, "pairs_refused": forms & ~kept}
        # A step that leaves a bad point, to w or to the iterate before, forgets the pairs as well.
        curvature = method.curvature.clear(curvature, refused | leaves)
        if behind:
            curvature = method.curvature.begin(curvature, jnp.zeros((), dtype), refused | leaves)
        shrunk = state.radius * method.radius_rule.shrink
        shrunk = jnp.where(radius > 0, jnp.maximum(shrunk, trust_region.MIN_RADIUS), radius)
        radius = jnp.where(taken, radius, jnp.where(leaves, shrunk, state.radius)).astype(dtype)

        # Accepted: w⁺ = ŵ + s, v⁺ = μv + s.
        goes_on = ~refused & (accepted | coasts)
        fates = _trust_phases.Fates(
            *_tree.masks(
                taken & goes_on,
                taken & ~goes_on,
                (~taken & ~leaves) | rejected,
                ~taken,
                taken & accepted,
                taken & ~accepted,
                leaves,
            )
        )
        accepts, skips = fates.accepts, fates.skips
        increment = optax.safe_increment(state.since_rejection)
        since_rejection = jnp.where(goes_on, increment, 0)
        next_momentum = _momentum(method, since_rejection, dtype)
        velocity, move = None, _tree.choose((accepts, step))
        if has_momentum:
            weight = jnp.where(taken, next_momentum, 0) if ahead else None
            velocity, move = _trust_phases.moved(fates, step, lookahead, state.velocity, weight)

        if pending is not None:
            assert pending.has_previous is not None
            pending = Pending(
                waits=jnp.where(taken, accepted, pending.waits & ~leaves),
                s=_tree.choose((accepts, s), (~accepts, pending.s)),
                extrapolated=_tree.choose((accepts, measured), (~accepts, pending.extrapolated)),
                previous=_tree.choose((~skips, raw), (skips, pending.previous)),
                previous_updates=_tree.choose((~skips, own), (skips, pending.previous_updates)),
                has_previous=taken | (pending.has_previous & ~leaves),
            )
        stored = state.stored
        if stored is not None:
            assert gradient_there is not None
            outcomes = accepts, fates.declines, skips
            ends = Stored(here, raw), Stored(there, gradient_there)
            stored = update_stored(stored, outcomes, *ends)
        info = record(
            state.info,
            taken,
            {**events, **uphill, "steps_refused": refused, "steps_rejected": rejected},
            leaves if has_momentum else None,
            step_size=jnp.where(accepted, 1, 0).astype(dtype),
            momentum=next_momentum,
            direction_norm=length,
            pairs_in_memory=curvature.size,
        )
        # An array of its own, so that both the state's and this one are donated.
        radius_there = jnp.where(taken | leaves, radius, state.info.radius)
        info = info._replace(radius=radius_there)
        new_state = TrustRegionState(
            count=jnp.where(taken, count, state.count),
            since_rejection=jnp.where(
                taken, since_rejection, jnp.where(leaves, 0, state.since_rejection)
            ),
            momentum=_tree.where(taken, next_momentum, state.momentum) if ahead else None,
            velocity=velocity,
            curvature=curvature,
            radius=radius,
            pending=pending,
            stored=stored,
            info=info,
        )
        return _tree.cast_as(params, move), gathered(new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _evaluate(
    method: Method, name: str, loss: Any, grad_fn: Any, arrival: Tree
) -> tuple[jax.Array, Tree | None]:
    """Returns the loss at the trial point, and the gradient where the method takes two a step."""
    if not method.two_gradients:
        return loss(arrival), None
    return _closures.value_and_gradient(name, loss, grad_fn, arrival)
