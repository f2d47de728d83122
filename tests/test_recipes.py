"""Recipes of the README for people who want `minimize(f, x0)` and not a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest

import naqopt


def rosenbrock(x, _=None):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


MAKES = {
    "ssbroyden": naqopt.ssbroyden,
    "bfgs": naqopt.bfgs,
    "moq": lambda: naqopt.moq(memory_size=None, linesearch=naqopt.wolfe()),
}


@pytest.mark.parametrize("name", MAKES)
def test_optimistix_runs_it_to_a_tolerance(name, x64):
    solver = optimistix.OptaxMinimiser(MAKES[name](), rtol=1e-8, atol=1e-8)
    found = optimistix.minimise(rosenbrock, solver, jnp.zeros(4), max_steps=1_000)
    assert found.result == optimistix.RESULTS.successful
    np.testing.assert_allclose(found.value, np.ones(4), atol=1e-4)
    assert 10 < found.stats["num_steps"] < 300


def test_optimistix_says_why_it_stopped(x64):
    solver = optimistix.OptaxMinimiser(naqopt.ssbroyden(), rtol=1e-8, atol=1e-8)
    found = optimistix.minimise(rosenbrock, solver, jnp.zeros(4), max_steps=5, throw=False)
    assert found.result == optimistix.RESULTS.nonlinear_max_steps_reached


def test_a_step_taken_back_looks_like_the_end(x64):
    """So the README keeps methods that reject steps, or lead back, to loops of one's own."""
    solver = optimistix.OptaxMinimiser(naqopt.lsr1(), rtol=1e-8, atol=1e-8)
    found = optimistix.minimise(rosenbrock, solver, jnp.zeros(4), max_steps=1_000)
    assert found.result == optimistix.RESULTS.successful
    assert found.stats["num_steps"] < 5
    assert rosenbrock(found.value) > 1


def test_the_best_of_a_run_is_kept(x64):
    """By steps of a fixed length, which overshoot, the last point is not the best."""
    tx, start, steps = naqopt.bfgs(1.5, linesearch=None), jnp.asarray([-1.2, 1.0]), 11

    def step(carry, _):
        params, state = carry
        grad = jax.grad(rosenbrock)(params)
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), rosenbrock(params)

    _, losses = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    lowest = min(float(rosenbrock(start)), float(losses.min()))
    assert losses[-1] > lowest
    solver = optimistix.BestSoFarMinimiser(optimistix.OptaxMinimiser(tx, rtol=0, atol=0))
    found = optimistix.minimise(rosenbrock, solver, start, max_steps=steps + 1, throw=False)
    np.testing.assert_allclose(rosenbrock(found.value), lowest, rtol=1e-9)


def test_many_starts_at_once(x64):
    """One call under vmap; each start ends where it would have ended by itself."""

    def double_well(x, _=None):
        return jnp.sum((x**2 - 1) ** 2 + 0.3 * x)

    solver = optimistix.OptaxMinimiser(naqopt.ssbroyden(), rtol=1e-8, atol=1e-8)

    def minimum(start):
        return optimistix.minimise(double_well, solver, start, max_steps=200).value

    starts = jax.random.uniform(jax.random.key(0), (16, 2), minval=-2.0, maxval=2.0)
    ends = jax.jit(jax.vmap(minimum))(starts)
    losses = jax.vmap(double_well)(ends)
    best = ends[jnp.argmin(losses)]
    np.testing.assert_allclose(best, best[0] * np.ones(2), atol=1e-5)
    assert best[0] < -1
    for start, end in zip(starts[:3], ends, strict=False):
        np.testing.assert_allclose(minimum(start), end, atol=1e-5)


def test_a_loop_that_ends_at_a_tolerance(x64):
    tx = naqopt.ssbroyden()
    value_and_grad = optax.value_and_grad_from_state(rosenbrock)

    def goes_on(carry):
        _, state, norm = carry
        return (norm > 1e-8) & (state.count < 500) & (state.info.steps_refused == 0)

    def step(carry):
        params, state, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=rosenbrock)
        return optax.apply_updates(params, updates), state, optax.tree.norm(grad)

    start = jnp.zeros(4)
    carry = start, tx.init(start), jnp.asarray(jnp.inf)
    params, state, norm = jax.jit(lambda c: jax.lax.while_loop(goes_on, step, c))(carry)
    assert norm <= 1e-8
    assert state.count < 150
    np.testing.assert_allclose(params, np.ones(4), atol=1e-6)


def test_a_new_start_for_a_changed_loss(x64):
    """`tx.init` at the iterate forgets all: velocity and pairs of the old loss lead astray."""
    tx = naqopt.naq(restart_window=None)

    @jax.jit
    def run(params, state, weights, target):
        def loss(p):
            return jnp.sum(weights * (p - target) ** 2)

        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            return (optax.apply_updates(params, updates), state), None

        params, state = jax.lax.scan(step, (params, state), length=5)[0]
        return params, state, loss(naqopt.eval_params(state, params))

    weights = jnp.array([1.0, 10.0, 100.0])
    params, old, _ = run(jnp.zeros(3), tx.init(jnp.zeros(3)), weights, jnp.ones(3))
    iterate = naqopt.eval_params(old, params)
    assert not np.array_equal(iterate, params)  # the params look ahead with the old velocity
    new = tx.init(iterate)
    np.testing.assert_array_equal(naqopt.eval_params(new, iterate), iterate)
    other = weights[::-1], jnp.array([-3.0, 2.0, 5.0])
    _, _, afresh = run(iterate, new, *other)
    _, _, went_on = run(params, old, *other)
    assert afresh < went_on
    assert (
        naqopt.diagnostics(new)["pairs_in_memory"] == 0 < naqopt.diagnostics(old)["pairs_in_memory"]
    )
