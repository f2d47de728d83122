"""The core of the quasi-Newton family: one step, of which every method is a choice of parts.

A method is **curvature × where the gradient is taken × step length × momentum**:

====== ======== ========= ==================================== ============ =====================
method momentum gradients gradient ĝ of the direction          step length  y of the pair
====== ======== ========= ==================================== ============ =====================
BFGS   none     1         ∇E(w)                                line search  ∇E(w⁺) − ĝ
NAQ    μ        2         ∇E(w + μv)                           line search  ∇E(w⁺) − ĝ (+ ξs)
MoQ    μ        1         (1+μ)∇E(w) − μ∇E(w_prev)             line search  ∇E(w⁺) − ĝ (+ ξs)
mNAQ   μ        2         ∇E(w + μv)                           explicit     ∇E(w⁺) − ĝ + ξs
oBFGS  none     2         ∇E(w; X)                             schedule     ∇E(w⁺; X) − ĝ + λs
oNAQ   μ        2         ∇E(w + μv; X)                        schedule     ∇E(w⁺; X) − ĝ + λs
oMoQ   μ        1         (1+μ)∇E(w; X) − μ∇E(w_prev; X_prev)  schedule     ∇E(w⁺; X⁺) − ĝ + λs
====== ======== ========= ==================================== ============ =====================

With two gradients a step the pair is formed at once, on the step's own batch; with one it waits
for the gradient of the next step. Two gradients and a momentum: the params are the look-ahead
point ŵ = w + μv. Multi-batch oMoQ is oMoQ but for y, whose gradients are all of one part Ω that
three batches share. The recipes stand in `full_batch` and `online`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from naqopt import _checks, _closures, _history, _tree
from naqopt._tree import Scalar, Tree
from naqopt.optimizers import _phases
from naqopt.optimizers._differences import chain, extrapolate, init_pending
from naqopt.optimizers._method import Method, QuasiNewtonState, unknown_loss
from naqopt.optimizers._stored import (
    Stored,
    init_stored,
    update_stored,
    value_and_grad,
    without_value,
)
from naqopt.state import gathered, init_info, leaves_bad_point, record
from naqopt.steps.line_search import Line


def transformation(method: Method) -> optax.GradientTransformationExtraArgs:
    """Returns the method as an Optax transformation."""
    name = method.optimizer
    has_momentum = method.momentum is not None

    def init(params: optax.Params) -> QuasiNewtonState:
        params = _checks.params(name, params)
        dtype = _tree.scalar_dtype(params)
        mu = _phases.momentum(method, jnp.zeros((), jnp.int32), dtype)
        return QuasiNewtonState(
            count=jnp.zeros((), jnp.int32),
            momentum=jnp.array(mu) if method.ahead else None,
            velocity=_tree.zeros(params) if has_momentum else None,
            curvature=method.curvature.init(params),
            pending=None
            if method.two_gradients
            else init_pending(
                params, has_momentum, method.curvature.asks_expected, method.has_parts
            ),
            step_length=method.step_length.init(dtype),
            losses=None
            if method.restart_window is None
            else jnp.full((method.restart_window,), unknown_loss(dtype), dtype),
            stored=init_stored(params) if method.store_grad else None,
            info=init_info(dtype, mu),
        )

    def update(
        updates: optax.Updates,
        state: QuasiNewtonState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        grad: optax.Updates | None = None,
        value_fn: Callable[[optax.Params], jax.Array] | None = None,
        grad_fn: Callable[[optax.Params], optax.Updates] | None = None,
        part_grads: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, QuasiNewtonState]:
        del extra_args
        like = _history.row_like(method.curvature.rows(state.curvature))
        if _tree.is_empty(like):
            _checks.same_structure(name, "updates", updates, like)
            return updates, state
        given = _closures.arguments(name, like, updates, params, grad)
        if method.has_parts:
            given = _closures.with_parts(name, given, part_grads)
        loss = _phases.loss_function(method, value_fn, grad_fn)
        return _step(method, state, given, loss, value, grad_fn)

    return optax.GradientTransformationExtraArgs(init, update)


def _step(
    method: Method,
    state: QuasiNewtonState,
    given: _closures.Given,
    loss: Callable[[Tree], jax.Array],
    value: Any,
    grad_fn: Any,
) -> tuple[optax.Updates, QuasiNewtonState]:
    """Takes one step, or skips it; see `_closures.Given`."""
    name, params, taken, norm_g = method.optimizer, given.params, given.taken, given.norm
    ahead, behind = method.ahead, method.behind
    point = _tree.widen(params)
    g = raw = updates = _tree.cast_as(point, given.updates)
    if given.raw is not given.updates:
        raw = _tree.cast_as(point, given.raw)
    # The gradients at w of which pairs are made: all one, but of batches in parts.
    parts = _closures.Parts(raw, raw, raw)
    if given.parts is not None:
        parts = _closures.Parts(*(_tree.cast_as(point, part) for part in given.parts))
    dtype, count = state.info.step_size.dtype, optax.safe_increment(state.count)

    def loss_at(wide_point: Tree) -> jax.Array:
        return loss(_tree.cast_as(params, wide_point)).astype(dtype)

    def loss_at_params() -> jax.Array:
        return loss_at(point) if value is None else _checks.scalar(name, value).astype(dtype)

    # One gradient, or one of a look-ahead point: nothing has shown that it is finite there.
    can_leave = ahead or not method.two_gradients
    leaves = leaves_bad_point(state.info, taken, state.count) & can_leave

    line_loss = _closures.with_gradient(name, loss, grad_fn)
    curvature = state.curvature
    events: dict[str, Scalar] = {}
    product = None
    if state.pending is not None:
        curvature, events, product = _phases.settle_pending(
            method, state, parts.oldest, taken, g, norm_g
        )

    # ŵ and ĝ: `g` makes the direction, `extrapolated` of raw gradients the pair.
    extrapolated = parts.middle
    lookahead = state.lookahead() if ahead else None
    here, restarts = None, jnp.zeros((), bool)
    if ahead and state.losses is not None:
        here = loss_at_params()
        restarts = _phases.overshoots(state.losses, here)
    if behind:
        assert state.pending is not None
        mu = _phases.momentum(method, state.count, dtype)
        # After the pair, which takes memory of its own meanwhile.
        mu, size = _tree.together(mu, curvature.size)
        curvature = curvature._replace(size=size)
        if state.losses is not None:
            # Where the momentum restarts, ŵ is w and ĝ the gradient there.
            here = loss_at(_tree.add(point, _tree.scale(mu, state.velocity)))
            restarts = _phases.overshoots(state.losses, here)
            (restarts,) = _tree.together(restarts)
            mu, here = jnp.where(restarts, 0, mu), jnp.where(restarts, loss_at_params(), here)
        lookahead = _tree.scale(mu, state.velocity)
        point = _tree.add(point, lookahead)
        g, extrapolated = extrapolate(state.pending, mu, g, parts.middle)
        norm_g = _tree.norm(g)
    if product is None:
        scale = _phases.first_scale(method, norm_g)
        product = method.curvature.precondition(curvature, g, scale)
    direction, length, norm, rate = _phases.direction(method, product, g, norm_g, state.count)

    def loss_at_point() -> jax.Array:
        if here is not None:
            return here
        return loss_at(point) if behind else loss_at_params()

    line = Line(
        loss=lambda wide_point: line_loss(_tree.cast_as(params, wide_point)).astype(dtype),
        point=point,
        direction=direction,
        loss_at_point=loss_at_point,
        gradient=extrapolated,
        unscaled=curvature.size <= 0,
    )
    choice, number = method.step_length.choose(state.step_length, line)
    if method.step_length.needs_loss:
        # A search by values has computed it already.
        events |= given.uphill(lambda: _tree.dot(extrapolated, direction))
    step, step_size, refused = direction, rate, ~jnp.isfinite(length)
    if choice.alpha is not None:
        finite = jnp.isfinite(choice.alpha * length)
        refused = ~finite | (choice.failed & (choice.alpha == 0))
        step_size = choice.alpha * rate
        step = _tree.scale(jnp.where(finite, choice.alpha, 0), direction)

    # v⁺ = μ v + α d;  w⁺ = w + v⁺ = ŵ + α d;  s = w⁺ − ŵ
    velocity = step if lookahead is None else _tree.add(lookahead, step)
    arrival = optax.apply_updates(params, _tree.cast_as(params, step if ahead else velocity))
    s = _tree.subtract(_tree.widen(arrival), point)
    if method.step_length.needs_loss:
        # A step that vanishes in the rounding of the params would be repeated for ever.
        refused = refused | ((step_size * length != 0) & _tree.is_zero(s))

    expected = None
    if method.curvature.asks_expected:
        # s = −α H ĝ and so sᵀBs = −α sᵀĝ, unless H ĝ was not finite and another direction taken:
        # then a negative number, with which a pair is refused.
        expected = -(step_size * _tree.dot(s, g).astype(dtype))
        expected = jnp.where(jnp.isfinite(norm) & jnp.isfinite(expected), expected, -1)

    loss_next = choice.loss
    if method.two_gradients:
        g_next = choice.gradient
        if g_next is None:
            loss_next, g_next = _phases.gradient_at(method, loss, grad_fn, arrival, loss_next)
        refused = refused | ~_tree.is_finite(g_next)
        if state.losses is not None:
            assert loss_next is not None
            assert here is not None
            # A search has seen to it that the loss does not rise, or, by slopes, by no more than
            # its rounding; an explicit step has not.
            rises = ~(loss_next <= jnp.maximum(jnp.max(state.losses), here))
            if choice.gradient is not None:
                rises = rises & choice.failed
            refused = refused | rises | ~jnp.isfinite(loss_next)
        ends, formed = (extrapolated, _tree.cast_as(point, g_next)), taken & ~refused & ~restarts
        curvature, number, pairs = _phases.pair(
            method, curvature, number, ends, s, formed, expected
        )
        events |= pairs

    # A refused step leads back to w and stops there, and the pairs go. Where a momentum whose
    # look-ahead point the params are restarts, the step does no more than lead back.
    goes, refused = taken & ~refused, taken & refused
    if ahead:
        restarts = restarts & taken
        goes, refused = goes & ~restarts, refused & ~restarts
    # So does one that leaves a bad point, to w or to the iterate before.
    curvature = method.curvature.clear(curvature, refused | leaves)
    goes, stops, skips, back = _tree.masks(goes, taken & ~goes, ~taken & ~leaves, leaves)
    fates = _phases.Fates(goes, stops, skips, back)
    next_momentum = _phases.momentum(method, count, dtype)
    move = _phases.move(method, state, fates, step, lookahead, velocity, next_momentum)

    pending = state.pending
    if pending is not None:
        waits, follows = chain(pending, ~refused, taken)
        kept = pending._replace(
            waits=waits & ~leaves,
            s=_tree.choose((goes, s), (skips, pending.s)),
            extrapolated=_tree.choose((goes, extrapolated), (skips, pending.extrapolated)),
            expected=None if expected is None else _tree.where(taken, expected, pending.expected),
            follows=follows,
        )
        if behind:
            assert pending.has_previous is not None
            kept = kept._replace(
                previous=_tree.choose((~skips, parts.newest), (skips, pending.previous)),
                previous_updates=_tree.choose((~skips, updates), (skips, pending.previous_updates)),
                has_previous=taken | (pending.has_previous & ~leaves),
            )
        pending = kept
    stored = state.stored
    if stored is not None:
        there = value_and_grad(name, choice, loss, grad_fn, arrival)
        here_now = Stored(loss_at_point(), raw)
        stored = update_stored(stored, (goes, stops, skips | back), here_now, there)
        unknown = without_value(stored).value
        stored = stored._replace(value=jnp.where(leaves, unknown, stored.value))
    losses = state.losses
    if losses is not None:
        assert loss_next is not None
        losses = _phases.next_losses(losses, fates, restarts, loss_next)
    info = record(
        state.info,
        taken,
        {
            **events,
            "steps_refused": refused,
            "searches_failed": choice.failed & ~restarts if ahead else choice.failed,
            "momentum_restarts": restarts,
        },
        leaves if can_leave else None,
        search_trials=choice.trials,
        step_size=jnp.where(goes != 0, step_size, 0),
        momentum=next_momentum,
        direction_norm=norm,
        pairs_in_memory=jnp.maximum(curvature.size, 0),
    )
    new_state = QuasiNewtonState(
        count=jnp.where(taken, count, state.count),
        momentum=_tree.where(taken, next_momentum, state.momentum) if ahead else None,
        velocity=None
        if lookahead is None
        else _tree.choose((goes, velocity), (skips, state.velocity)),
        curvature=curvature,
        pending=pending,
        step_length=_tree.where(taken, number, state.step_length),
        losses=losses,
        stored=stored,
        info=info,
    )
    return _tree.cast_as(params, move), gathered(new_state, state)
