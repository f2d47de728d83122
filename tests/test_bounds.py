"""Recipes for params between bounds: by a change of variables, by projection, and their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import naqopt

LOWER, UPPER, SIZE = -1.0, 1.0, 10


@functools.cache
def problem():
    """A convex quartic whose variables are coupled, and its minimum in the box by SciPy."""
    draw = np.random.default_rng(3)
    rotation, _ = np.linalg.qr(draw.normal(size=(SIZE, SIZE)))
    matrix = rotation @ np.diag(np.logspace(0, 2, SIZE)) @ rotation.T
    vector = matrix @ draw.normal(size=SIZE) * 2

    def loss(x):
        return 0.5 * x @ matrix @ x - vector @ x + 0.1 * jnp.sum(x**4)

    found = scipy.optimize.minimize(
        jax.jit(loss),
        np.zeros(SIZE),
        jac=jax.jit(jax.grad(loss)),
        bounds=[(LOWER, UPPER)] * SIZE,
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    assert 2 < np.sum(np.abs(found.x) > 1 - 1e-9) < SIZE - 2  # some bounds are active, not all
    return loss, found.x, found.fun


def project(x):
    return optax.projections.projection_box(x, LOWER, UPPER)


def run(tx, loss, grad, project=lambda x: x, steps=300):
    """Returns the iterate and the state."""

    def step(carry, _):
        params, state = carry
        g = grad(params)
        updates, state = tx.update(g, state, params, grad=g, value_fn=loss, grad_fn=grad)
        return (project(optax.apply_updates(params, updates)), state), None

    def scanned(params):
        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0]

    params, state = jax.jit(scanned)(jnp.zeros(SIZE))
    return naqopt.eval_params(state, params), state


MAPS = {
    "sigmoid": lambda z: LOWER + (UPPER - LOWER) * jax.nn.sigmoid(z),
    "sine": lambda z: (UPPER + LOWER) / 2 + (UPPER - LOWER) / 2 * jnp.sin(z),
}
# How near to the least loss, of which the start is 235 away, 300 steps come.
FREE = {
    "bfgs": (naqopt.bfgs, 1e-9),
    "ssbroyden": (naqopt.ssbroyden, 1e-9),
    "naq": (naqopt.naq, 1e-9),
    "moq": (naqopt.moq, 1e-9),
    "lsr1": (naqopt.lsr1, 1e-6),
    "sr1n": (naqopt.sr1n, 1e-6),
    "onaq": (naqopt.onaq, 0.1),
    "omoq": (naqopt.omoq, 0.1),
    "asnaq": (lambda: naqopt.asnaq(0.1), 0.1),
}


@pytest.mark.parametrize(
    ("name", "by"),
    [
        pytest.param(name, by, marks=[pytest.mark.slow] if (name, by) != ("naq", "sigmoid") else [])
        for name in FREE
        for by in MAPS
        if by == "sigmoid" or name in ("naq", "onaq")
    ],
)
def test_a_change_of_variables(name, by, x64):
    loss, _, least = problem()
    make, distance = FREE[name]

    def of_free(z):
        return loss(MAPS[by](z))

    z, _ = run(make(), of_free, jax.grad(of_free))
    assert loss(MAPS[by](z)) - least < distance


def test_where_a_change_of_variables_comes_to_rest_at_once(x64):
    """A bound is where the sine is stationary, and where the sigmoid has no slope left."""
    loss, _, least = problem()
    for by, z in (("sine", np.pi / 2), ("sigmoid", 40.0)):
        slope = jax.grad(lambda z, by=by: loss(MAPS[by](z)))(jnp.full(SIZE, z))
        assert np.max(np.abs(slope)) < 1e-10
        assert loss(MAPS[by](jnp.full(SIZE, z))) - least > 1


def free_gradient(x):
    """Zero where it pushes a coordinate out through its bound."""
    g = jax.grad(problem()[0])(x)
    held = ((x <= LOWER) & (g > 0)) | ((x >= UPPER) & (g < 0))
    return jnp.where(held, 0, g)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfgs", "ssbroyden", "ssbfgs", "moq"])
def test_a_projection_with_the_gradient_of_the_free_ones(name, x64):
    loss, best, least = problem()
    x, _ = run(getattr(naqopt, name)(), lambda x: loss(project(x)), free_gradient, project)
    np.testing.assert_allclose(x, best, atol=1e-6)
    assert abs(loss(x) - least) < 1e-9


@pytest.mark.slow
def test_a_projection_alone_ends_elsewhere_and_breaks_the_pairs(x64):
    loss, _, least = problem()
    x, state = run(naqopt.bfgs(), loss, jax.grad(loss), project)
    assert loss(x) - least > 10
    assert state.info.pairs_refused > 200
    # It is no minimum: along the projected gradient the loss still falls.
    further = project(x - 1e-3 * jax.grad(loss)(x))
    assert loss(further) < loss(x) - 1e-3


@pytest.mark.slow
def test_a_projected_look_ahead_point_leaves_the_iterate_beyond_the_bounds(x64):
    loss, _, least = problem()
    x, _ = run(naqopt.naq(), lambda x: loss(project(x)), free_gradient, project)
    assert np.max(np.abs(x)) > 1.5
    assert loss(project(x)) - least > 10
