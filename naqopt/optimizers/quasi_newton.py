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

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from naqopt import _checks, _closures, _history, _tree
from naqopt._tree import Scalar, Tree
from naqopt.optimizers._differences import Pending, chain, extrapolate, init_pending, settle
from naqopt.optimizers._method import Method, QuasiNewtonState, unknown_loss
from naqopt.optimizers._stored import (
    Stored,
    init_stored,
    update_stored,
    value_and_grad,
    without_value,
)
from naqopt.state import gathered, init_info, leaves_bad_point, record
from naqopt.steps import schedules
from naqopt.steps.direction import descent
from naqopt.steps.line_search import Line

# The parts of a step.


def _momentum(method: Method, count: Scalar, dtype: Any) -> Scalar:
    """Returns μ of the step after `count` others; 0 for a method without momentum."""
    momentum = 0.0 if method.momentum is None else method.momentum
    return schedules.evaluate("momentum", momentum, count, dtype)


def _loss(method: Method, value_fn: Any, grad_fn: Any) -> Callable[[Tree], jax.Array]:
    """Returns the loss, which may be missing where the method does not need it."""
    needed = method.step_length.needs_loss or method.store_grad
    needed = needed or (method.two_gradients and grad_fn is None)
    if value_fn is None and not needed:
        return lambda params: jnp.zeros(())
    return _closures.loss(method.optimizer, "value_fn", value_fn)


def _first_scale(method: Method, norm_g: Scalar) -> Scalar:
    """Returns γ of H0 = γ I while no pair is stored."""
    if not method.scale_first:
        return jnp.ones_like(norm_g)
    return jnp.where(norm_g > 0, 1 / jnp.where(norm_g > 0, norm_g, 1), 1)


def _direction(
    method: Method, product: Tree, g: Tree, norm_g: Scalar, count: Scalar
) -> tuple[Tree, Scalar, Scalar, Scalar]:
    """Returns d = −H ĝ, normalised or not, times the rate; its length; ‖H ĝ‖ and the rate."""
    product = _tree.cast_as(g, product)
    norm = jnp.sqrt(_tree.squared_norm(product)).astype(norm_g.dtype)
    rate = 1.0 if method.learning_rate is None else method.learning_rate
    rate = schedules.evaluate("learning_rate", rate, count, norm.dtype)
    direction, length = descent(product, norm, g, norm_g, rate, method.normalize)
    return direction, length, norm, rate


def _pair(
    method: Method,
    curvature: Any,
    number: Any,
    ends: tuple[Tree, Tree],
    s: Tree,
    accept: Scalar,
    expected: Scalar | None,
) -> tuple[Any, Any, dict[str, Scalar]]:
    """Forms the pair of this very step, from the gradients at its ends ŵ and w⁺."""
    g, g_next = ends
    epsilon = _tree.subtract(g_next, g)
    y = method.difference(epsilon, s, g)
    numerator = None
    if method.plain_first_scale:
        plain = _tree.dot(s, epsilon)
        numerator = jnp.where(plain > 0, plain, _tree.dot(s, y))
    asked = {} if expected is None else {"expected": expected}
    curvature, stored = method.curvature.update(curvature, s, y, accept, numerator, **asked)
    number = method.step_length.learn(number, s, y, stored)
    return curvature, number, {"pairs_stored": stored, "pairs_refused": accept & ~stored}


def transformation(method: Method) -> optax.GradientTransformationExtraArgs:
    """Returns the method as an Optax transformation."""
    name = method.optimizer
    has_momentum = method.momentum is not None

    def init(params: optax.Params) -> QuasiNewtonState:
        params = _checks.params(name, params)
        dtype = _tree.scalar_dtype(params)
        mu = _momentum(method, jnp.zeros((), jnp.int32), dtype)
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
        loss = _loss(method, value_fn, grad_fn)
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
        update_pair: Callable[..., Any] = method.curvature.update
        product_now = None
        if method.curvature.update_then_precondition is not None and not behind:
            # ĝ is here already: the pair and the direction are of one pass over the matrix.
            scale = _first_scale(method, norm_g)
            update_pair = functools.partial(
                method.curvature.update_then_precondition, g=g, first_scale=scale
            )
            product_now = functools.partial(method.curvature.precondition, curvature, g, scale)
        curvature, events, product = settle(
            update_pair,
            method.difference,
            curvature,
            state.pending,
            parts.oldest,
            taken,
            product_now,
        )

    # ŵ and ĝ: `g` makes the direction, `extrapolated` of raw gradients the pair.
    extrapolated = parts.middle
    lookahead = state.lookahead() if ahead else None
    here, restarts = None, jnp.zeros((), bool)
    if ahead and state.losses is not None:
        here = loss_at_params()
        restarts = _overshoots(state.losses, here)
    if behind:
        assert state.pending is not None
        mu = _momentum(method, state.count, dtype)
        # After the pair, which takes memory of its own meanwhile.
        mu, size = _tree.together(mu, curvature.size)
        curvature = curvature._replace(size=size)
        if state.losses is not None:
            # Where the momentum restarts, ŵ is w and ĝ the gradient there.
            here = loss_at(_tree.add(point, _tree.scale(mu, state.velocity)))
            restarts = _overshoots(state.losses, here)
            (restarts,) = _tree.together(restarts)
            mu, here = jnp.where(restarts, 0, mu), jnp.where(restarts, loss_at_params(), here)
        lookahead = _tree.scale(mu, state.velocity)
        point = _tree.add(point, lookahead)
        g, extrapolated = extrapolate(state.pending, mu, g, parts.middle)
        norm_g = _tree.norm(g)
    if product is None:
        scale = _first_scale(method, norm_g)
        product = method.curvature.precondition(curvature, g, scale)
    direction, length, norm, rate = _direction(method, product, g, norm_g, state.count)

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
        unscaled=curvature.size == 0,
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
            loss_next, g_next = _gradient_at(method, loss, grad_fn, arrival, loss_next)
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
        curvature, number, pairs = _pair(method, curvature, number, ends, s, formed, expected)
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
    next_momentum = _momentum(method, count, dtype)
    if ahead:
        # to the next look-ahead point: w⁺ + μ⁺ v⁺ − ŵ
        onward = _tree.add(step, _tree.scale(next_momentum, velocity))
        move = _tree.choose((goes, onward), (stops | back, jax.tree.map(jnp.negative, lookahead)))
    elif method.two_gradients:
        move = _tree.choose((goes, velocity))
    else:
        assert state.pending is not None
        last = state.pending.s if state.velocity is None else state.velocity
        move = _tree.choose((goes, velocity), (back, jax.tree.map(jnp.negative, last)))

    pending = state.pending
    if pending is not None:
        waits, follows = chain(pending, ~refused, taken)
        pending = Pending(
            waits=waits & ~leaves,
            s=_tree.choose((goes, s), (skips, pending.s)),
            extrapolated=_tree.choose((goes, extrapolated), (skips, pending.extrapolated)),
            previous=_tree.choose((~skips, parts.newest), (skips, pending.previous))
            if behind
            else None,
            previous_updates=_tree.choose((~skips, updates), (skips, pending.previous_updates))
            if behind
            else None,
            has_previous=None
            if pending.has_previous is None
            else taken | (pending.has_previous & ~leaves),
            expected=None if expected is None else _tree.where(taken, expected, pending.expected),
            follows=follows,
        )
    stored = state.stored
    if stored is not None:
        there = value_and_grad(name, choice, loss, grad_fn, arrival)
        fates = goes, stops, skips | back
        stored = update_stored(stored, fates, Stored(loss_at_point(), raw), there)
        unknown = without_value(stored).value
        stored = stored._replace(value=jnp.where(leaves, unknown, stored.value))
    losses = state.losses
    if losses is not None:
        assert loss_next is not None
        kept = jnp.where(restarts, unknown_loss(dtype), losses)
        pushed = jnp.append(kept[1:], loss_next.astype(dtype))
        pushed = jnp.where(jnp.isfinite(loss_next), pushed, kept)
        ended = (stops | back) != 0
        losses = jnp.where(goes != 0, pushed, jnp.where(ended, unknown_loss(dtype), losses))
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
        pairs_in_memory=curvature.size,
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


def _overshoots(losses: jax.Array, here: Scalar) -> Scalar:
    """Returns whether one of the last losses is known, and E(ŵ) above all, or not finite."""
    highest = jnp.max(losses)
    return (highest > unknown_loss(losses.dtype)) & ~(here <= highest)


def _gradient_at(
    method: Method, loss: Any, grad_fn: Any, arrival: Tree, known: Scalar | None
) -> tuple[Scalar | None, Tree]:
    """Returns the loss at the new iterate where it is asked for, and the gradient there."""
    if method.restart_window is None or known is not None:
        return known, _closures.gradient(method.optimizer, loss, grad_fn, arrival)
    return _closures.value_and_gradient(method.optimizer, loss, grad_fn, arrival)
