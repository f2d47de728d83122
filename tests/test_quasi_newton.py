"""What the mathematics of the quasi-Newton family promises, whatever the numbers.

The curvature alone is in `test_inverse_hessian`, line searches are in `test_line_search`, and the
comparison with the listings, step by step, in `test_quasi_newton_listings`.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import quasi_newton
from reference import two_loop as listings

import naqopt
from naqopt.curvature import pairs as ring
from naqopt.curvature.dense import multiply
from naqopt.optimizers._differences import convergent_difference
from naqopt.steps.line_search import Line, explicit

SIZE = 6


def hessian_and_minimum():
    generator = np.random.default_rng(0)
    root = generator.normal(size=(SIZE, SIZE))
    return root @ root.T + 0.5 * np.eye(SIZE), generator.normal(size=SIZE)


HESSIAN, MINIMUM = hessian_and_minimum()
START = np.linspace(-1.0, 1.0, SIZE)


def quadratic(w):
    return 0.5 * (w - MINIMUM) @ HESSIAN @ (w - MINIMUM)


def wavy(w):
    """Neither convex nor quadratic, bounded below."""
    return jnp.sum(jnp.square(w) + 2 * jnp.sin(3 * w)) + jnp.prod(w) ** 2


@functools.partial(jax.jit, static_argnames=("tx", "steps"))
def run(tx, steps):
    """The iterates on the quadratic and the states, from the start on, in one compiled scan."""

    def body(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(quadratic)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=quadratic)
        params = optax.apply_updates(params, updates)
        return (params, state), (naqopt.eval_params(state, params), state)

    params = jnp.asarray(START)
    _, path = jax.lax.scan(body, (params, tx.init(params)), length=steps)
    return path


# Whole optimizers on a loss that is neither convex nor quadratic. A transformation in front halves
# the updates, so that what is made of them differs from what is made of raw gradients.

MOMENTA = np.array([0.0, 0.5, 0.25, 0.75, 0.125, 0.6])
STEPS, RATE = 12, 0.3


def momenta(count):
    return jnp.asarray(MOMENTA)[jnp.minimum(count, 5)]


SETTINGS = {
    "bfgs": {"convergence_term": True},
    "naq": {"momentum": momenta, "convergence_term": True, "restart_window": None},
    "moq": {"momentum": momenta, "convergence_term": True, "restart_window": None},
    "mnaq": {"momentum": momenta, "restart_window": None},
    "obfgs": {"learning_rate": RATE, "damping": 3.0},
    "onaq": {"learning_rate": RATE, "momentum": momenta, "damping": 3.0},
    "omoq": {"learning_rate": RATE, "momentum": momenta, "damping": 3.0},
}
ONE_GRADIENT = ("bfgs", "moq", "omoq")
EACH_METHOD = pytest.mark.parametrize("name", SETTINGS)
CASES = [*((name, 3) for name in SETTINGS), ("bfgs", None), ("mnaq", None), ("omoq", None)]
EACH_CASE = pytest.mark.parametrize(
    ("name", "memory_size"), [pytest.param(*case, id="{}-{}".format(*case)) for case in CASES]
)


@functools.cache
def wavy_step(name, memory_size):
    """The optimizer and its compiled step, with a second gradient of NaN if asked for."""
    tx = getattr(naqopt, name)(memory_size=memory_size, **SETTINGS[name])

    @jax.jit
    def step(params, state, bad):
        value, grad = jax.value_and_grad(wavy)(params)

        def grad_fn(w):
            return jnp.where(bad, jnp.nan, jax.grad(wavy)(w))

        updates, state = tx.update(
            0.5 * grad, state, params, value=value, grad=grad, value_fn=wavy, grad_fn=grad_fn
        )
        return optax.apply_updates(params, updates), state

    return tx, lambda params, state, bad=False: step(params, state, jnp.asarray(bad))


@functools.cache
def wavy_path(name, memory_size):
    """Params and states from the start on."""
    tx, step = wavy_step(name, memory_size)
    params = jnp.asarray(START)
    path = [(params, tx.init(params))]
    for _ in range(STEPS):
        path.append(step(*path[-1]))
    return path


def gradients_of(name, mu, params):
    """The halved and the raw gradients of the directions: at the params, or extrapolated."""
    raw = np.asarray(jax.vmap(jax.grad(wavy))(params))
    if name not in ("moq", "omoq"):
        return 0.5 * raw, raw
    extrapolated = raw + mu[:, None] * (raw - np.concatenate([raw[:1], raw[:-1]]))
    return 0.5 * extrapolated, extrapolated


@EACH_CASE
def test_every_step_is_the_one_documented(name, memory_size, x64):
    """Velocity, look-ahead point, descent, length of the step, and the pair."""
    path = wavy_path(name, memory_size)
    w = np.stack([naqopt.eval_params(state, params) for params, state in path])
    params = np.stack([params for params, _ in path])
    info = {
        key: np.array([naqopt.diagnostics(state)[key] for _, state in path])
        for key in naqopt.diagnostics(path[0][1])
    }
    has_momentum, online = "bfgs" not in name, name.startswith("o")
    mu = MOMENTA[np.minimum(np.arange(STEPS + 1), 5)] * has_momentum
    v = np.concatenate([np.zeros((1, SIZE)), np.diff(w, axis=0)])  # v_{k+1} = w_{k+1} − w_k

    # μ_k is that of step k, which starts from ŵ = w + μ_k v_k.
    np.testing.assert_allclose(info["momentum"], mu)
    ahead = w + mu[:, None] * v
    if has_momentum:
        np.testing.assert_allclose([state.velocity for _, state in path], v, atol=1e-12)
    np.testing.assert_allclose(params, w if name in ONE_GRADIENT else ahead, atol=1e-12)

    # v_{k+1} − μ_k v_k = α d descends, and has the length that is said.
    halved, raw = gradients_of(name, mu, params)
    steps = (v[1:] - mu[:-1, None] * v[:-1])[:STEPS]
    assert np.all(np.sum(steps * halved[:-1], axis=1) < 0)
    lengths = np.linalg.norm(steps, axis=1)
    norms = np.ones(STEPS) if online else info["direction_norm"][1:]
    np.testing.assert_allclose(lengths, info["step_size"][1:] * norms, rtol=1e-6)
    if online:
        np.testing.assert_allclose(info["step_size"][1:], RATE)

    # Each step forms a pair; with one gradient a step the last one still waits.
    formed = STEPS - int(name in ONE_GRADIENT)
    assert info["pairs_stored"][-1] + info["pairs_refused"][-1] == formed
    assert info["pairs_stored"][-1] > 3
    assert info["steps_refused"][-1] == info["steps_skipped"][-1] == 0

    # The newest pair, of raw gradients: s = w⁺ − ŵ, y = ∇E(w⁺) − ĝ and the term of the method.
    last = np.flatnonzero(np.diff(info["pairs_stored"]))[-1] - int(name in ONE_GRADIENT)
    s = w[last + 1] - ahead[last]
    y = np.asarray(jax.grad(wavy)(jnp.asarray(w[last + 1]))) - raw[last]
    squared = raw[last] @ raw[last]
    omega = 2 if squared > 1e-2 else 100
    y += (3.0 if online else omega * np.sqrt(squared) + max(-(y @ s) / (s @ s), 0)) * s
    curvature = path[-1][1].curvature
    if memory_size is None:
        np.testing.assert_allclose(multiply(curvature, y), s, rtol=1e-6, atol=1e-9)
    else:
        newest = int(ring.newest_first(curvature)[0])
        np.testing.assert_allclose(curvature.s[newest], s, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(curvature.y[newest], y, rtol=1e-6, atol=1e-9)

    # The last direction is H times the gradient, by the pairs that were there.
    known = path[STEPS if name in ONE_GRADIENT else STEPS - 1][1].curvature
    if memory_size is None:
        product = multiply(known, halved[STEPS - 1])
    else:
        slots = [int(i) for i in ring.newest_first(known)[: int(known.size)]][::-1]
        S, Y = ([np.asarray(rows[i]) for i in slots] for rows in (known.s, known.y))
        scales = [s @ y / (y @ y) for s, y in zip(S, Y, strict=True)]
        gamma = np.mean(scales) if online else scales[-1]
        product = listings.two_loop(S, Y, halved[STEPS - 1], gamma)
    np.testing.assert_allclose(np.linalg.norm(product), info["direction_norm"][-1], rtol=1e-6)


@EACH_CASE
def test_the_first_direction(name, memory_size, x64):
    """H0 = I/‖g‖, and I for the online ones, which normalise it afterwards."""
    tx, step = wavy_step(name, memory_size)
    for start in (START, np.asarray(wavy_path("bfgs", 3)[-1][0]) + 0.02):
        params = jnp.asarray(start)
        g = 0.5 * jax.grad(wavy)(params)
        after, state = step(params, tx.init(params))
        norm = np.linalg.norm(g)
        assert (norm > 1) == (start is START)
        expected = norm if name.startswith("o") else 1
        np.testing.assert_allclose(state.info.direction_norm, expected, rtol=1e-12)
        moved = naqopt.eval_params(state, after) - params
        np.testing.assert_allclose(moved, -state.info.step_size / norm * g, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "memory_size"), [case for case in CASES if case[0] not in ONE_GRADIENT]
)
def test_a_refused_step_leads_back_and_starts_anew(name, memory_size, x64):
    """After it all is as in a run that starts there, with the count gone on."""
    tx, step = wavy_step(name, memory_size)
    params, before = wavy_path(name, memory_size)[6]
    w = naqopt.eval_params(before, params)
    params, state = step(params, before, True)
    np.testing.assert_allclose(naqopt.eval_params(state, params), w, rtol=1e-12)
    np.testing.assert_allclose(params, w, rtol=1e-12)
    assert state.info.steps_refused == 1
    assert state.info.pairs_stored == before.info.pairs_stored
    assert int(state.count) == 7
    pairs = [int(x.info.pairs_in_memory) for x in (before, state)]
    assert pairs[0] > pairs[1] == 0
    if name == "mnaq":  # whose Lip is kept when pairs are forgotten
        assert state.step_length == before.step_length != 1
    fresh = tx.init(w)._replace(count=state.count, step_length=state.step_length)
    np.testing.assert_allclose(step(params, state)[0], step(w, fresh)[0], rtol=1e-10)


@pytest.mark.parametrize("start", [START, np.full(SIZE, 0.3)], ids=["convex", "not convex"])
def test_the_first_scale_of_dense_mnaq(start, x64):
    """γ = sᵀε/yᵀy, without the term that is in y, unless that is negative."""
    tx, step = wavy_step("mnaq", None)
    w = jnp.asarray(start)
    params, state = step(w, tx.init(w))
    g, s = np.asarray(jax.grad(wavy)(w)), np.asarray(naqopt.eval_params(state, params) - w)
    epsilon = np.asarray(jax.grad(wavy)(w + s)) - g
    y = np.asarray(convergent_difference(jnp.asarray(epsilon), jnp.asarray(s), jnp.asarray(g)))
    assert (s @ epsilon > 0) == (start is START)
    gamma = (s @ epsilon if start is START else s @ y) / (y @ y)
    expected = listings.dense_bfgs([s], [y], np.full(SIZE, gamma))
    np.testing.assert_allclose(state.curvature.matrix, expected, rtol=1e-6, atol=1e-9)


def test_directions_are_not_normalised_unless_asked_for(x64):
    w, states = run(naqopt.onaq(0.1, momentum=0.0, normalize=False, memory_size=2), steps=8)
    lengths = np.linalg.norm(np.diff(w, axis=0), axis=1)
    norms = states.info.direction_norm[1:]
    np.testing.assert_allclose(lengths, 0.1 * norms, rtol=1e-9)
    assert np.ptp(norms) > 0.1


@pytest.mark.parametrize(
    ("g", "epsilon", "xi"),
    [
        (1.0, 2.0, 2.0),
        (0.09, 2.0, 9.0),  # ‖g‖² < 1e-2
        (0.11, 2.0, 0.22),
        (1.0, -3.0, 2.0 + 1.5),  # −εs/ss = 3/2
        (0.0, -3.0, 1.5),
    ],
)
def test_the_term_that_makes_curvature_positive(g, epsilon, xi, x64):
    y = convergent_difference(jnp.array(epsilon), jnp.array(2.0), jnp.array(g))
    np.testing.assert_allclose(y, epsilon + xi * 2.0, rtol=1e-12)
    assert convergent_difference(jnp.array(epsilon), jnp.array(0.0), jnp.array(g)) == epsilon


# On a quadratic.


class SearchInfo(NamedTuple):
    """What the optimizers read of a search's info."""

    num_linesearch_steps: jax.Array
    decrease_error: jax.Array


class SearchState(NamedTuple):
    """What they read of its state."""

    learning_rate: jax.Array
    value: jax.Array
    grad: None
    info: SearchInfo


def exact_on_quadratics():
    """The exact line search on a quadratic, a transformation as Optax's searches are."""

    def init(params):
        number = jnp.ones((), jax.tree.leaves(params)[0].dtype)
        info = SearchInfo(jnp.zeros((), jnp.int32), number * jnp.inf)
        return SearchState(number, number * jnp.inf, None, info)

    def update(updates, state, params, *, value, grad, value_fn):
        slope = optax.tree.vdot(updates, grad)
        end = optax.tree.add(params, updates)
        value, slope_at_end = jax.jvp(value_fn, (end,), (updates,))
        curvature = slope_at_end - slope
        alpha = jnp.where(curvature > 0, -slope / jnp.where(curvature > 0, curvature, 1), 0)
        info = SearchInfo(jnp.ones((), jnp.int32), jnp.zeros_like(alpha))
        state = state._replace(learning_rate=alpha, value=value, info=info)
        return optax.tree.scale(alpha, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


EXACT = exact_on_quadratics()


@pytest.mark.parametrize(
    ("name", "memory_size"),
    [("bfgs", None), ("bfgs", 1), ("bfgs", SIZE), ("naq", None), ("moq", 1)],
)
def test_exact_line_searches_end_in_as_many_steps_as_dimensions(name, memory_size, x64):
    """With momentum 0 all are BFGS, which makes conjugate directions, whatever its memory."""
    arguments = {} if name == "bfgs" else {"momentum": 0.0, "convergence_term": False}
    tx = getattr(naqopt, name)(memory_size=memory_size, linesearch=EXACT, **arguments)
    w, states = run(tx, steps=SIZE + 1)
    distance = np.linalg.norm(np.concatenate([[START], w]) - MINIMUM, axis=1)
    assert distance[SIZE] < 1e-9 * distance[0]
    assert np.all(distance[:SIZE] > 1e-5 * distance[0])
    if memory_size is None:
        # After n steps H is the inverse Hessian (Nocedal and Wright, Theorem 6.4). BFGS has the
        # last pair a step later, for which the last step is there.
        known = jax.tree.map(lambda x: x[SIZE - (name == "naq")], states.curvature)
        H = jax.vmap(lambda e: multiply(known, e))(np.eye(SIZE))
        np.testing.assert_allclose(H @ HESSIAN, np.eye(SIZE), atol=1e-6)


GROWING = naqopt.schedules.nesterov_momentum()
PAPERS = {"convergence_term": True, "restart_window": None}
FIXED = {"learning_rate": 0.5, "linesearch": None, "convergence_term": False}
TWINS = {
    "line search": ("naq", "moq", {"momentum": GROWING, "memory_size": 3, **PAPERS}),
    "learning rate, dense": ("naq", "moq", {"momentum": 0.7, "memory_size": None, **FIXED}),
    "online": ("onaq", "omoq", {"momentum": GROWING, "memory_size": 3}),
}


@pytest.mark.parametrize("twins", TWINS)
def test_extrapolated_gradients_are_exact_on_a_quadratic(twins, x64):
    """There the momentum methods, at half the gradients, take the Nesterov methods' steps."""
    nesterov, momentum, arguments = TWINS[twins]
    w, again = (
        run(getattr(naqopt, name)(**arguments), steps=20)[0] for name in (nesterov, momentum)
    )
    np.testing.assert_allclose(again, w, rtol=0, atol=1e-9)
    assert np.max(np.abs(w[-1] - START)) > 0.1


# mNAQ's explicit step length.


def test_mnaq_without_momentum_is_bfgs_while_its_trials_succeed(x64):
    w, states = run(naqopt.mnaq(momentum=0.0, memory_size=3), steps=15)
    assert np.all(states.info.step_size == 1)
    tx = naqopt.bfgs(1.0, linesearch=None, convergence_term=True, memory_size=3)
    np.testing.assert_allclose(run(tx, steps=15)[0], w, rtol=1e-9)


def test_mnaqs_explicit_steps_by_hand(x64):
    """E = 50 w² from w = 0.1, where the trial of the first step fails."""
    tx = naqopt.mnaq(momentum=0.5, memory_size=None)

    @jax.jit
    def step(params, state):
        value, grad = 50 * params**2, 100 * params
        updates, state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=lambda p: 50 * p**2
        )
        return optax.apply_updates(params, updates), state

    params = jnp.array(0.1)
    params, state = step(params, tx.init(params))
    # g = 10, d = −1, α = δ g/(1·1) = 1e-3: w = 0.099, v = −1e-3, the look-ahead point 0.0985.
    np.testing.assert_allclose(state.info.step_size, 1e-3, rtol=1e-12)
    np.testing.assert_allclose(naqopt.eval_params(state, params), 0.099, rtol=1e-12)
    np.testing.assert_allclose(params, 0.0985, rtol=1e-12)
    # ε = 100 s, ξ = 2·10, y = 120 s; in one dimension H = s/y whatever γ.
    np.testing.assert_allclose(state.curvature.matrix, [1 / 120], rtol=1e-12)
    np.testing.assert_allclose(state.step_length, 100 * 120, rtol=1e-12)
    # g = 9.85, d = −9.85/120 ≈ −0.082, where E has fallen: α = 1.
    params, state = step(params, state)
    np.testing.assert_allclose(state.info.step_size, 1, rtol=1e-12)
    np.testing.assert_allclose(naqopt.eval_params(state, params), 0.0985 - 9.85 / 120, rtol=1e-10)


@pytest.mark.parametrize(
    ("d", "loss_at_trial", "alpha"),
    [
        (-2.0, 0.99, 1.0),  # 1 + 1e-3 · 3 · (−2) = 0.994
        (-2.0, 0.995, 1e-4 * 6 / (5 * 4)),
        (-2.0, np.nan, 1e-4 * 6 / (5 * 4)),
        (-2.0, -np.inf, 1e-4 * 6 / (5 * 4)),
        (-1001.0, 1.0, 1e-7 * 3003 / (5 * 1001**2)),
        (-1000.0, 1.0, 1e-4 * 3000 / (5 * 1000**2)),
        (0.0, 2.0, 0.0),
    ],
)
def test_the_explicit_step_length(d, loss_at_trial, alpha, x64):
    line = Line(
        loss=lambda p: jnp.asarray(loss_at_trial),
        point=jnp.asarray(1.0),
        direction=jnp.asarray(d),
        loss_at_point=lambda: jnp.asarray(1.0),
        gradient=jnp.asarray(3.0),
        unscaled=jnp.asarray(False),
    )
    lipschitz = jnp.asarray(5.0)
    step_length = explicit()
    choice, kept = step_length.choose(lipschitz, line)
    np.testing.assert_allclose(choice.alpha, alpha, rtol=1e-12)
    assert kept == 5
    assert not choice.failed
    s, y = jnp.asarray([3.0, 0.0]), jnp.asarray([0.0, 6.0])
    assert step_length.learn(lipschitz, s, y, jnp.asarray(True)) == 200
    assert step_length.learn(lipschitz, 0 * s, y, jnp.asarray(False)) == 5
    # A stored pair so short that ‖s‖² is 0 tells nothing.
    assert step_length.learn(lipschitz, 1e-170 * s, y, jnp.asarray(True)) == 5


@pytest.mark.parametrize(("unscaled", "alpha"), [(True, 1 / 16), (False, 2e-24)])
def test_an_explicit_step_that_vanishes_is_searched_for_without_a_pair(unscaled, alpha, x64):
    line = Line(
        loss=lambda p: (p - 0.9) ** 2,
        point=jnp.asarray(1.0),
        direction=jnp.asarray(-1.0),
        loss_at_point=lambda: jnp.asarray(0.01),
        gradient=jnp.asarray(0.2),
        unscaled=jnp.asarray(unscaled),
    )
    lipschitz = jnp.asarray(1e19)
    choice, kept = explicit().choose(lipschitz, line)
    np.testing.assert_allclose(choice.alpha, alpha, rtol=1e-9)
    assert (int(choice.trials), bool(choice.failed)) == (3 if unscaled else 1, False)
    assert kept == lipschitz
    # And in the listing.
    w, d = np.array([1.0]), np.array([-1.0])
    pairs = {"s_list": [] if unscaled else [d], "y_list": [] if unscaled else [d]}
    state = dataclasses.replace(quasi_newton.init(w), lipschitz=1e19, **pairs)
    loss = lambda p: float((p[0] - 0.9) ** 2)  # noqa: E731
    found = quasi_newton.step_size(state, loss, w, d, -0.2, "mnaq", None)
    np.testing.assert_allclose(found[0], alpha, rtol=1e-9)
