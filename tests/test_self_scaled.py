"""Broyden's class against its listing, and what the two calls promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from deterministic_runs import trajectory
from reference import broyden as listings
from reference import quasi_newton

import naqopt
from naqopt.curvature import broyden, dense

each_update = pytest.mark.parametrize("rule", broyden.UPDATES)
SIZE = 6


@functools.partial(jax.jit, static_argnames="rule")
def updated(H, s, y, expected, rule, size=3):
    held = dense.Dense(H, jnp.asarray(size, jnp.int32))
    after, stored = dense.update(held, s, y, True, rule=rule, expected=expected)
    return after.matrix, stored


def random_pairs(count):
    """Matrices of conditions up to 1e6, and pairs of both signs of curvature."""
    for seed in range(count):
        generator = np.random.default_rng(seed)
        A = generator.normal(size=(SIZE, SIZE))
        H = A @ A.T + 10.0 ** generator.uniform(-4, 1) * np.eye(SIZE)
        g = generator.normal(size=SIZE)
        s = -(10.0 ** generator.uniform(-1, 1)) * H @ g
        M = generator.normal(size=(SIZE, SIZE))
        y = 10.0 ** generator.uniform(-2, 2) * (M @ M.T @ s)
        if seed % 4 == 0:
            y = generator.normal(size=SIZE) * np.linalg.norm(s)
        yield H, s, y, g


@each_update
def test_an_update_is_that_of_the_listing(rule, x64):
    refused = 0
    for H, s, y, g in random_pairs(200):
        expected, stored = listings.update(H, s, y, g, rule=rule)
        model = s @ np.linalg.solve(H, s)  # sᵀBs
        actual, kept = updated(H, s, y, model, rule)
        assert bool(kept) == stored
        refused += not stored
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * scale)
        np.testing.assert_allclose(actual, actual.T, rtol=0, atol=1e-14 * scale)
        if stored:
            assert np.linalg.eigvalsh(expected)[0] > 0
            np.testing.assert_allclose(actual @ y, s, rtol=0, atol=1e-9 * scale * np.max(np.abs(y)))
    assert 5 < refused < 100


@pytest.mark.parametrize("rule", broyden.SELF_SCALED)
@pytest.mark.parametrize(
    "model", [np.nan, -1.0, np.inf, 1e300], ids=["nan", "negative", "infinite", "huge"]
)
def test_a_model_that_cannot_be_refuses_the_pair(rule, model, x64):
    H, s, y, _ = next(pair for pair in random_pairs(9) if pair[1] @ pair[2] > 0)
    actual, stored = updated(H, s, 1e-20 * y if model == 1e300 else y, model, rule)
    if stored:
        assert np.all(np.isfinite(actual))
    else:
        np.testing.assert_array_equal(actual, H)
    assert not stored or model == 1e300


ZOOM = optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")
RUNS = {
    "bfgs": lambda rule: naqopt.bfgs(memory_size=None, linesearch=ZOOM, update=rule),
    "bfgs_armijo": lambda rule: naqopt.bfgs(memory_size=None, update=rule),
    "naq": lambda rule: naqopt.naq(memory_size=None, momentum=0.5, update=rule),
    "moq": lambda rule: naqopt.moq(memory_size=None, momentum=0.5, update=rule),
    "mnaq": lambda rule: naqopt.mnaq(memory_size=None, momentum=0.5, update=rule),
}


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "rule", ["ssbroyden", *(pytest.param(r, marks=pytest.mark.slow) for r in ("ssbfgs", "dfp"))]
)
def test_every_step_of_a_run_is_that_of_the_listing(name, rule, x64):
    """The pairs are made of what the run itself has seen; each update from the run's own matrix."""
    tx = RUNS[name](rule)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(rosenbrock)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=rosenbrock)
        return optax.apply_updates(params, updates), state

    params = jnp.array([-1.2, 1.0, -0.5, 1.3, 0.2, 0.8])
    state, first, stored = tx.init(params), rosenbrock(params), 0
    # mNAQ's explicit steps are so short that s, read off the params here, has lost digits.
    tolerance = 1e-6 if name == "mnaq" else 1e-9
    for _ in range(100):
        before, at = state, np.asarray(params)
        params, state = step(params, state)
        if before.pending is not None:  # the pair of the step before
            s, g = np.asarray(before.pending.s), np.asarray(before.pending.extrapolated)
            end, alpha = at, float(before.info.step_size)
        else:
            g, end = np.asarray(jax.grad(rosenbrock)(at)), naqopt.eval_params(state, params)
            s, alpha = np.asarray(end) - at, float(state.info.step_size)
        y = np.asarray(jax.grad(rosenbrock)(end)) - g
        if name == "mnaq" and s @ s > 0:
            y += quasi_newton.xi(s, y, g) * s
        if int(before.curvature.size) == 0 or state.info.steps_refused != before.info.steps_refused:
            continue
        new = int(state.info.pairs_stored) - int(before.info.pairs_stored)
        H = np.asarray(before.curvature.matrix)
        expected, _ = listings.update(H, s, y, g, alpha, rule) if new else (H, False)
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(state.curvature.matrix, expected, rtol=0, atol=tolerance * scale)
        stored += new
    assert stored > 20
    assert rosenbrock(naqopt.eval_params(state, params)) < 0.01 * first


@pytest.mark.parametrize("call", [naqopt.ssbfgs, naqopt.ssbroyden])
def test_the_calls_end_at_the_rounding_of_the_gradient(call, x64):
    start = np.array([-1.2, 1.0, -0.5, 1.3, 0.2, 0.8])
    found = trajectory(call(), rosenbrock, start, 100)
    assert np.linalg.norm(jax.grad(rosenbrock)(found[0][-1])) < 1e-7
    # Where losses differ by less than 10⁻⁶ of them, slopes decide.
    assert np.all(np.diff(found[1]) <= 1e-6 * np.asarray(found[1][:-1]))


def test_the_two_calls_are_bfgs_by_another_update():
    for call, rule in ((naqopt.ssbfgs, "ssbfgs"), (naqopt.ssbroyden, "ssbroyden")):
        options = {"linesearch": naqopt.wolfe(), "store_grad": True, "update": rule}
        spelled = naqopt.bfgs(memory_size=None, **options)
        start = jnp.array([-1.2, 1.0])
        for a, b in zip(
            trajectory(call(), rosenbrock, start, 10)[:2],
            trajectory(spelled, rosenbrock, start, 10)[:2],
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("call", [naqopt.bfgs, naqopt.naq, naqopt.moq, naqopt.mnaq])
def test_mistakes(call):
    with pytest.raises(ValueError, match="`update` must be one of bfgs, dfp, ssbfgs, ssbroyden"):
        call(memory_size=None, update="sr1")
    with pytest.raises(ValueError, match="needs the dense matrix, which is `memory_size=None`"):
        call(update="ssbroyden")


@pytest.mark.parametrize("call", [naqopt.ssbroyden, naqopt.ssbfgs])
def test_messages_name_the_call(call):
    name = rf"naqopt\.{call.__name__}: "
    with pytest.raises(ValueError, match=name + "`value_fn` is missing"):
        call().update(jnp.ones(2), call().init(jnp.ones(2)), jnp.ones(2))
    with pytest.raises(TypeError, match=name + "`linesearch` must be one of Optax's"):
        call(linesearch=0.1)
    with pytest.raises(ValueError, match=name + "`initial_scale` must be"):
        call(initial_scale=-1.0)
    with pytest.raises(TypeError, match=name + "`store_grad` must be"):
        call(store_grad="yes")


@pytest.mark.parametrize("make", [naqopt.ssbroyden, naqopt.ssbfgs])
def test_rounding_leaves_the_matrix_positive_definite(make, x64):
    """A network's loss, on which H comes to have eigenvalues from 1e-3 to 1e11."""
    inputs = jnp.linspace(-1, 1, 60)

    def loss(params):
        slopes, shifts, weights = params.reshape(3, -1)
        found = jnp.tanh(jnp.outer(inputs, slopes) + shifts) @ weights
        return jnp.mean((found - jnp.sin(4 * inputs)) ** 2)

    tx = make()
    params = jnp.asarray(np.random.default_rng(0).normal(size=30))

    def step(carry, _):
        params, state = carry
        value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=1_000)[0])
    params, state = run((params, tx.init(params)))
    assert int(state.info.searches_failed) == 0
    matrix = np.asarray(state.curvature.matrix)
    np.testing.assert_array_equal(matrix, matrix.T)
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues[-1] > 1e8  # or the test would test nothing
    assert eigenvalues[0] > 0
