"""The phases of a step of the quasi-Newton family, in the order of `quasi_newton`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from naqopt import _closures, _tree
from naqopt._tree import Scalar, Tree
from naqopt.optimizers._differences import settle
from naqopt.optimizers._method import Method, QuasiNewtonState, unknown_loss
from naqopt.steps import schedules
from naqopt.steps.direction import descent


class Fates(NamedTuple):
    """What becomes of a step, as masks of which one is set.

    Attributes:
      goes: it is taken.
      stops: it leads to the iterate and no further.
      skips: nothing happens.
      back: it leaves a bad point, to where the gradient was finite.
    """

    goes: Scalar
    stops: Scalar
    skips: Scalar
    back: Scalar


def momentum(method: Method, count: Scalar, dtype: Any) -> Scalar:
    """Returns μ of the step after `count` others; 0 for a method without momentum."""
    value = 0.0 if method.momentum is None else method.momentum
    return schedules.evaluate("momentum", value, count, dtype)


def loss_function(method: Method, value_fn: Any, grad_fn: Any) -> Callable[[Tree], jax.Array]:
    """Returns the loss, which may be missing where the method does not need it."""
    needed = method.step_length.needs_loss or method.store_grad
    needed = needed or (method.two_gradients and grad_fn is None)
    if value_fn is None and not needed:
        return lambda params: jnp.zeros(())
    return _closures.loss(method.optimizer, "value_fn", value_fn)


def first_scale(method: Method, norm_g: Scalar) -> Scalar:
    """Returns γ of H0 = γ I while no pair is stored."""
    if not method.scale_first:
        return jnp.ones_like(norm_g)
    return jnp.where(norm_g > 0, 1 / jnp.where(norm_g > 0, norm_g, 1), 1)


def direction(
    method: Method, product: Tree, g: Tree, norm_g: Scalar, count: Scalar
) -> tuple[Tree, Scalar, Scalar, Scalar]:
    """Returns d = −H ĝ, normalised or not, times the rate; its length; ‖H ĝ‖ and the rate."""
    product = _tree.cast_as(g, product)
    norm = jnp.sqrt(_tree.squared_norm(product)).astype(norm_g.dtype)
    rate = 1.0 if method.learning_rate is None else method.learning_rate
    rate = schedules.evaluate("learning_rate", rate, count, norm.dtype)
    d, length = descent(product, norm, g, norm_g, rate, method.normalize)
    return d, length, norm, rate


def pair(
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


def settle_pending(
    method: Method, state: QuasiNewtonState, raw: Tree, taken: Scalar, g: Tree, norm_g: Scalar
) -> tuple[Any, dict[str, Scalar], Tree | None]:
    """Forms the pair that waits; returns the curvature, what is counted, and H ĝ if it is due."""
    assert state.pending is not None
    curvature = state.curvature
    update_pair: Callable[..., Any] = method.curvature.update
    product_now = None
    if method.curvature.update_then_precondition is not None and not method.behind:
        # ĝ is here already: the pair and the direction are of one pass over the matrix.
        scale = first_scale(method, norm_g)
        update_pair = functools.partial(
            method.curvature.update_then_precondition, g=g, first_scale=scale
        )
        product_now = functools.partial(method.curvature.precondition, curvature, g, scale)
    return settle(update_pair, method.difference, curvature, state.pending, raw, taken, product_now)


def move(
    method: Method,
    state: QuasiNewtonState,
    fates: Fates,
    step: Tree,
    lookahead: Tree | None,
    velocity: Tree,
    next_momentum: Scalar,
) -> Tree:
    """Returns by what the params move."""
    goes, stops, _, back = fates
    if method.ahead:
        # to the next look-ahead point: w⁺ + μ⁺ v⁺ − ŵ
        onward = _tree.add(step, _tree.scale(next_momentum, velocity))
        return _tree.choose((goes, onward), (stops | back, jax.tree.map(jnp.negative, lookahead)))
    if method.two_gradients:
        return _tree.choose((goes, velocity))
    assert state.pending is not None
    last = state.pending.s if state.velocity is None else state.velocity
    return _tree.choose((goes, velocity), (back, jax.tree.map(jnp.negative, last)))


def next_losses(losses: jax.Array, fates: Fates, restarts: Scalar, loss_next: Scalar) -> Scalar:
    """Returns the last losses, by which the momentum restarts; none where a step did not go on."""
    unknown = unknown_loss(losses.dtype)
    kept = jnp.where(restarts, unknown, losses)
    pushed = jnp.append(kept[1:], loss_next.astype(losses.dtype))
    pushed = jnp.where(jnp.isfinite(loss_next), pushed, kept)
    ended = (fates.stops | fates.back) != 0
    return jnp.where(fates.goes != 0, pushed, jnp.where(ended, unknown, losses))


def overshoots(losses: jax.Array, here: Scalar) -> Scalar:
    """Returns whether one of the last losses is known, and E(ŵ) above all, or not finite."""
    highest = jnp.max(losses)
    return (highest > unknown_loss(losses.dtype)) & ~(here <= highest)


def gradient_at(
    method: Method, loss: Any, grad_fn: Any, arrival: Tree, known: Scalar | None
) -> tuple[Scalar | None, Tree]:
    """Returns the loss at the new iterate where it is asked for, and the gradient there."""
    if method.restart_window is None or known is not None:
        return known, _closures.gradient(method.optimizer, loss, grad_fn, arrival)
    return _closures.value_and_gradient(method.optimizer, loss, grad_fn, arrival)
