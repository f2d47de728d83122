"""The core of the quasi-Newton family: one step, of which every method is a choice of parts.

A method is **curvature × where the gradient is taken × step length × momentum**:

====== ======== ========= ==================================== ============ =====================
method momentum gradients gradient ĝ of the direction          step length  y of the pair
====== ======== ========= ==================================== ============ =====================
BFGS   none     1         ∇E(w)                                line search  ∇E(w⁺) − ĝ
NAQ    μ        2         ∇E(w + μv)                           line search  ∇E(w⁺) − ĝ + ξs
MoQ    μ        1         (1+μ)∇E(w) − μ∇E(w_prev)             line search  ∇E(w⁺) − ĝ + ξs
mNAQ   μ        2         ∇E(w + μv)                           explicit     ∇E(w⁺) − ĝ + ξs
oBFGS  none     2         ∇E(w; X)                             schedule     ∇E(w⁺; X) − ĝ + λs
oNAQ   μ        2         ∇E(w + μv; X)                        schedule     ∇E(w⁺; X) − ĝ + λs
oMoQ   μ        1         (1+μ)∇E(w; X) − μ∇E(w_prev; X_prev)  schedule     ∇E(w⁺; X⁺) − ĝ + λs
====== ======== ========= ==================================== ============ =====================

With two gradients a step the pair is formed at once, on the step's own batch; with one it waits
for the gradient of the next step. Two gradients and a momentum: the params are the look-ahead
point ŵ = w + μv. The recipes stand in `full_batch` and `online`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from naqopt import _checks, _closures, _tree
from naqopt._tree import Mask, Scalar, Tree
from naqopt.curvature import Curvature
from naqopt.state import Info, gathered, init_info, record
from naqopt.steps import schedules
from naqopt.steps.direction import descent
from naqopt.steps.line_search import Choice, Line, StepLength
from naqopt.steps.schedules import Momentum


class Method(NamedTuple):
    """What a method is composed of.

    Attributes:
      optimizer: the call's name, for messages.
      curvature: what becomes of the pairs, and H.
      two_gradients: whether the second gradient of a pair is taken within the step.
      step_length: how α is found.
      learning_rate: what d is scaled by before; None for 1.
      momentum: μ, a number or a schedule of the number of steps taken before; None for none.
      difference: (ε, s, ĝ) to y, where ε = ∇E(w⁺) − ĝ.
      normalize: whether d is divided by its norm.
      scale_first: whether H0 is min(1, 1/‖ĝ‖) I, and not I, while no pair is stored.
      plain_first_scale: whether the first pair sets γ = sᵀε/yᵀy (mNAQ).
      store_grad: whether the value and gradient at the new params are kept in the state.
    """

    optimizer: str
    curvature: Curvature
    two_gradients: bool
    step_length: StepLength
    learning_rate: optax.ScalarOrSchedule | None
    momentum: Momentum | None
    difference: Callable[[Tree, Tree, Tree], Tree]
    normalize: bool
    scale_first: bool
    plain_first_scale: bool = False
    store_grad: bool = False

    @property
    def ahead(self) -> bool:
        """Whether the params are the look-ahead point."""
        return self.momentum is not None and self.two_gradients

    @property
    def behind(self) -> bool:
        """Whether the gradient at the look-ahead point is extrapolated from those behind it."""
        return self.momentum is not None and not self.two_gradients


class Pending(NamedTuple):
    """The pair that waits for the gradient of the next step.

    Attributes:
      waits: whether there is one.
      s: w⁺ − ŵ.
      extrapolated: ĝ, of raw gradients.
      previous: ∇E(w), the raw gradient of the last step; None without momentum, where it is ĝ.
    """

    waits: jax.Array
    s: Tree
    extrapolated: Tree
    previous: Tree | None


class Stored(NamedTuple):
    """Value and gradient at the params, named as `optax.value_and_grad_from_state` asks.

    Attributes:
      value: E at the params; infinite before the first step.
      grad: its gradient.
    """

    value: jax.Array
    grad: Tree


class QuasiNewtonState(NamedTuple):
    """State of the quasi-Newton family; what a method does not need is None.

    Attributes:
      count: k, the steps taken; skipped ones do not count.
      momentum: μ, with which the present look-ahead point was made; None without look-ahead.
      velocity: v.
      curvature: the pairs, or the dense matrix.
      pending: what a method with one gradient a step keeps for the next.
      step_length: the number that the step length keeps.
      stored: value and gradient at the params, with `store_grad`.
      info: scalars for `naqopt.diagnostics`.
    """

    count: jax.Array  # type: ignore[assignment]  # Optax's name for it
    momentum: jax.Array | None
    velocity: Tree | None
    curvature: Any
    pending: Pending | None
    step_length: jax.Array | None
    stored: Stored | None
    info: Info

    def lookahead(self) -> Tree:
        """Returns μ v, what the params are ahead of the iterate by."""
        assert self.momentum is not None
        return _tree.scale(self.momentum, self.velocity)


# What is added to ε = ∇E(w⁺) − ĝ: the functions of `Method.difference`.


def plain_difference(epsilon: Tree, s: Tree, g: Tree) -> Tree:
    """Returns y = ε."""
    del s, g
    return epsilon


def damped_difference(damping: Any) -> Callable[[Tree, Tree, Tree], Tree]:
    """Returns the function to y = ε + λ s."""

    def difference(epsilon: Tree, s: Tree, g: Tree) -> Tree:
        del g
        return jax.tree.map(lambda e, x: (e + damping * x).astype(e.dtype), epsilon, s)

    return difference


def convergent_difference(epsilon: Tree, s: Tree, g: Tree) -> Tree:
    """Returns y = ε + ξ s with ξ = ω‖ĝ‖ + max(−εᵀs/‖s‖², 0), ω = 2 if ‖ĝ‖² > 1e-2, else 100."""
    squared_g, squared_s = _tree.squared_norm(g), _tree.squared_norm(s)
    omega = jnp.where(squared_g > 1e-2, 2, 100)
    negative = -_tree.dot(epsilon, s) / jnp.where(squared_s > 0, squared_s, 1)
    xi = omega * jnp.sqrt(squared_g) + jnp.maximum(negative, 0)
    return jax.tree.map(lambda e, x: e + xi.astype(e.dtype) * x, epsilon, s)


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


def settle(
    update: Callable[..., tuple[Any, Scalar]],
    difference: Callable[[Tree, Tree, Tree], Tree],
    curvature: Any,
    pending: Pending,
    raw: Tree,
    taken: Scalar,
) -> tuple[Any, dict[str, Scalar]]:
    """Forms the pair that waited for this gradient: y = ∇E(w⁺) − ĝ and what is added to it."""

    def form() -> tuple[Any, Scalar]:
        epsilon = _tree.subtract(raw, pending.extrapolated)
        y = difference(epsilon, pending.s, pending.extrapolated)
        return update(curvature, pending.s, y, jnp.ones((), bool))

    # Not masked but conditional, as the direction reads what is stored here: XLA would fuse a
    # masked store into each of its readers, every time into a copy of the rings.
    formed = taken & pending.waits
    settled, stored = _tree.cond(formed, form, lambda: (curvature, jnp.zeros((), bool)))
    return settled, {"pairs_stored": stored, "pairs_refused": formed & ~stored}


def _direction(
    method: Method, curvature: Any, g: Tree, squared_g: Scalar, count: Scalar
) -> tuple[Tree, Scalar, Scalar, Scalar]:
    """Returns d = −H ĝ, normalised or not, times the rate; its length; ‖H ĝ‖ and the rate."""
    norm_g = jnp.sqrt(squared_g)
    first_scale = 1 / jnp.maximum(norm_g, 1) if method.scale_first else jnp.ones_like(norm_g)
    product = _tree.cast_as(g, method.curvature.precondition(curvature, g, first_scale))
    norm = jnp.sqrt(_tree.squared_norm(product)).astype(norm_g.dtype)
    rate = 1.0 if method.learning_rate is None else method.learning_rate
    rate = schedules.evaluate("learning_rate", rate, count, norm.dtype)
    direction, length = descent(product, norm, g, norm_g, rate, method.normalize)
    return direction, length, norm, rate


def _pair(
    method: Method, curvature: Any, number: Any, ends: tuple[Tree, Tree], s: Tree, accept: Scalar
) -> tuple[Any, Any, dict[str, Scalar]]:
    """Forms the pair of this very step, from the gradients at its ends ŵ and w⁺."""
    g, g_next = ends
    epsilon = _tree.subtract(g_next, g)
    y = method.difference(epsilon, s, g)
    numerator = None
    if method.plain_first_scale:
        plain = _tree.dot(s, epsilon)
        numerator = jnp.where(plain > 0, plain, _tree.dot(s, y))
    curvature, stored = method.curvature.update(curvature, s, y, accept, numerator)
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
            pending=None if method.two_gradients else init_pending(params, has_momentum),
            step_length=method.step_length.init(dtype),
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
        **extra_args: Any,
    ) -> tuple[optax.Updates, QuasiNewtonState]:
        del extra_args
        like = _tree.row_like(method.curvature.rows(state.curvature))
        if _tree.is_empty(like):
            _checks.same_structure(name, "updates", updates, like)
            return updates, state
        given = _closures.arguments(name, like, updates, params, grad)
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
    name, params, taken, squared_g = method.optimizer, given.params, given.taken, given.squared
    ahead, behind = method.ahead, method.behind
    point = _tree.widen(params)
    g, raw = _tree.cast_as(point, given.updates), _tree.cast_as(point, given.raw)
    dtype, count = state.info.step_size.dtype, optax.safe_increment(state.count)

    curvature = state.curvature
    events: dict[str, Scalar] = {}
    if state.pending is not None:
        update_pair, difference = method.curvature.update, method.difference
        curvature, events = settle(update_pair, difference, curvature, state.pending, raw, taken)

    # ŵ and ĝ: `g` makes the direction, `extrapolated` of raw gradients the pair.
    extrapolated = raw
    lookahead = state.lookahead() if ahead else None
    if behind:
        assert state.pending is not None
        mu = _momentum(method, state.count, dtype)
        # After the pair, which takes memory of its own meanwhile.
        mu, size = _tree.together(mu, curvature.size)
        curvature = curvature._replace(size=size)
        lookahead = _tree.scale(mu, state.velocity)
        point = _tree.add(point, lookahead)
        # At the first step nothing is behind, and the look-ahead of no velocity is w itself.
        weight = jnp.where(state.count > 0, mu, 0)
        change = _tree.scale(weight, _tree.subtract(raw, state.pending.previous))
        g, extrapolated = _tree.add(g, change), _tree.add(raw, change)
        squared_g = _tree.squared_norm(g)
    direction, length, norm, rate = _direction(method, curvature, g, squared_g, state.count)

    def loss_at(wide_point: Tree) -> jax.Array:
        return loss(_tree.cast_as(params, wide_point))

    def loss_at_point() -> jax.Array:
        return loss_at(point) if behind or value is None else _checks.scalar(name, value)

    line = Line(loss_at, point, direction, loss_at_point, extrapolated)
    choice, number = method.step_length.choose(state.step_length, line)
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

    if method.two_gradients:
        g_next = choice.gradient
        if g_next is None or grad_fn is not None:
            g_next = _closures.gradient(name, loss, grad_fn, arrival)
        refused = refused | ~_closures.is_finite(g_next)
        ends = extrapolated, _tree.cast_as(point, g_next)
        curvature, number, events = _pair(method, curvature, number, ends, s, taken & ~refused)

    # A refused step leads back to w and stops there, and the pairs go.
    refused = taken & refused
    curvature = method.curvature.clear(curvature, refused)
    goes, stops, skips = _tree.masks(taken & ~refused, refused, ~taken)
    next_momentum = _momentum(method, count, dtype)
    if ahead:
        # to the next look-ahead point: w⁺ + μ⁺ v⁺ − ŵ
        onward = _tree.add(step, _tree.scale(next_momentum, velocity))
        move = _tree.choose((goes, onward), (stops, jax.tree.map(jnp.negative, lookahead)))
    else:
        move = _tree.choose((goes, velocity))

    pending = state.pending
    if pending is not None:
        pending = Pending(
            waits=jnp.where(taken, ~refused, pending.waits),
            s=_tree.choose((goes, s), (skips, pending.s)),
            extrapolated=_tree.choose((goes, extrapolated), (skips, pending.extrapolated)),
            previous=_tree.choose((~skips, raw), (skips, pending.previous)) if behind else None,
        )
    stored = state.stored
    if stored is not None:
        there = _value_and_grad(choice, loss, grad_fn, arrival)
        here = Stored(loss_at_point(), raw)
        stored = update_stored(stored, (goes, stops, skips), here, there)
    info = record(
        state.info,
        taken,
        {**events, "steps_refused": refused, "searches_failed": choice.failed},
        search_trials=choice.trials,
        step_size=step_size,
        momentum=next_momentum,
        direction_norm=norm,
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
        stored=stored,
        info=info,
    )
    return _tree.cast_as(params, move), gathered(new_state, state)


def init_pending(params: Tree, has_momentum: bool) -> Pending:
    """Returns that no pair waits."""
    return Pending(
        waits=jnp.zeros((), bool),
        s=_tree.zeros(params),
        extrapolated=_tree.zeros(params),
        previous=_tree.zeros(params) if has_momentum else None,
    )


# What `store_grad` keeps.


def init_stored(params: Tree) -> Stored:
    """Returns what stands for nothing stored: an infinite value."""
    dtype = jnp.result_type(*jax.tree.leaves(params)) if jax.tree.leaves(params) else jnp.float32
    return Stored(jnp.full((), jnp.inf, dtype), jax.tree.map(jnp.zeros_like, params))


def _value_and_grad(choice: Choice, loss: Any, grad_fn: Any, arrival: Tree) -> Stored:
    """Value and gradient at the new params: the line search's where it has them."""
    if grad_fn is not None:
        return Stored(loss(arrival), grad_fn(arrival))
    if choice.gradient is None or choice.loss is None:
        return Stored(*jax.value_and_grad(loss)(arrival))
    return Stored(choice.loss, choice.gradient)


def update_stored(old: Stored, fates: tuple[Mask, ...], here: Stored, there: Stored) -> Stored:
    """Keeps what holds at the params after a step that goes, stops or is skipped."""
    goes, stops, skips = fates
    there, here = _tree.cast_as(old, there), _tree.cast_as(old, here)  # the dtypes of before
    return _tree.choose((goes, there), (stops, here), (skips, old))
