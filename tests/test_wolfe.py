"""`naqopt.wolfe`: Optax's zoom search with the first trial of quasi-Newton codes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

import naqopt
from naqopt.steps.wolfe import first_trial


@pytest.mark.parametrize(
    ("value", "previous", "slope", "alpha"),
    [
        (3.0, 4.0, -10.0, 0.202),
        (3.0, 4.0, -1.0, 1.0),  # 2.02, and not above 1
        (3.0, np.inf, -10.0, 1.0),  # the first step
        (4.0, 3.0, -10.0, 1.0),  # the loss has risen: another batch's
        (3.0, 3.0, -10.0, 1.0),
        (3.0, 4.0, 1.0, 1.0),  # uphill
        (3.0, 4.0, -np.inf, 1.0),
        (np.nan, 4.0, -1.0, 1.0),
    ],
)
def test_first_trial(value, previous, slope, alpha):
    found = first_trial(*map(jnp.float32, (value, previous, slope)))
    np.testing.assert_allclose(found, alpha, rtol=1e-6)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def train(tx, start, steps, loss=rosenbrock):
    """Yields the params and the state after each step."""
    params, state = jnp.asarray(start), tx.init(jnp.asarray(start))

    @jax.jit
    def step(params, state):
        value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        yield params, state


@pytest.mark.parametrize("call", ["bfgs", "ssbroyden", "chain"])
def test_it_begins_where_the_last_step_says(call, x64):
    start = np.array([-1.2, 1.0, -0.5])
    if call == "chain":
        tx = optax.chain(optax.sgd(1.0), naqopt.wolfe())
    elif call == "bfgs":
        tx = naqopt.bfgs(memory_size=None, linesearch=naqopt.wolfe(), store_grad=True)
    else:
        tx = naqopt.ssbroyden(linesearch=naqopt.wolfe())
    losses, before, found = [float(rosenbrock(start))], start, 0
    for params, state in train(tx, start, 25):
        losses.append(float(rosenbrock(params)))
        info = state[1] if call == "chain" else state
        if call == "chain":
            trials, alpha = info.info.num_linesearch_steps, info.learning_rate
        else:
            trials, alpha = info.info.search_trials, info.info.step_size
        if trials == 1 and len(losses) > 2:
            direction = (params - before) / alpha
            slope = float(jax.grad(rosenbrock)(jnp.asarray(before)) @ direction)
            expected = min(1.0, 2.02 * (losses[-2] - losses[-3]) / slope)
            np.testing.assert_allclose(alpha, expected, rtol=1e-9)
            found += 1
        before = params
    assert found > 5


def valleys(x):
    return jnp.sum(100 * (x[1::2] - x[::2] ** 2) ** 2 + (1 - x[::2]) ** 2)


def test_bfgs_from_the_identity_takes_about_as_many_evaluations_as_scipy(x64):
    start = np.array([-1.2, 1.0, -0.5, 2.0, 3.0, 1.0])
    tx = naqopt.bfgs(
        memory_size=None, linesearch=naqopt.wolfe(), store_grad=True, initial_scale=1.0
    )
    trials = 0
    for params, state in train(tx, start, 400, valleys):
        trials += int(state.info.search_trials)
        if jnp.linalg.norm(jax.grad(valleys)(params)) < 1e-6:
            break
    reference = optimize.minimize(
        lambda x: tuple(map(np.asarray, jax.value_and_grad(valleys)(jnp.asarray(x)))),
        start,
        jac=True,
        method="BFGS",
        options={"gtol": 1e-6, "norm": 2},
    )
    np.testing.assert_allclose(params, np.ones(6), atol=1e-5)
    assert trials < 1.5 * reference.nfev


def test_after_a_failure_it_begins_with_one():
    """No trial is lower: the step is refused, and what the last step did is forgotten."""
    tx = naqopt.bfgs(memory_size=None, linesearch=naqopt.wolfe(5))
    params = jnp.array([1.0, 2.0])
    state = tx.init(params)
    assert state.step_length.previous_loss == np.inf
    for sign, remembered in ((1.0, 5.0), (-1.0, np.inf)):
        grad = sign * 2 * params
        updates, state = tx.update(
            grad, state, params, value=jnp.sum(params**2), value_fn=lambda p: jnp.sum(p**2)
        )
        assert state.step_length.previous_loss == (remembered if sign > 0 else np.inf)
        params = optax.apply_updates(params, updates) if sign > 0 else params
        params = jnp.array([1.0, 2.0]) if sign > 0 else params
    assert int(state.info.searches_failed) == 1


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (2.5, TypeError)])
def test_its_length_is_checked(steps, error):
    with pytest.raises(error, match=r"naqopt\.wolfe: `max_linesearch_steps` must be"):
        naqopt.wolfe(steps)


DENSE = naqopt.bfgs(memory_size=None, linesearch=naqopt.wolfe())


def run_of(tx, loss, params, steps):
    """The params, and the diagnostics behind every step."""

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, updates), state), state.info

    carry = params, tx.init(params)
    (params, _), info = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))(carry)
    return params, info


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_without_a_pair_its_first_trial_comes_from_losses_alone(scale, x64):
    """Whatever the units of the loss, also where a unit step is far too long or too short."""

    def loss(p):
        return scale * (5e8 * p[0] ** 2 + 0.5 * p[1] ** 2 + 1)

    start = jnp.array([1e-9, 1e-3])
    params, info = run_of(DENSE, loss, start, 30)
    assert int(info.searches_failed[-1]) <= 3  # at the end of what the loss can tell
    assert loss(params) - scale < 1e-6 * (loss(start) - scale)


def true_loss(p):
    return 1 + jnp.sum(jnp.array([1.0, 10.0, 100.0]) * p**2)


def noisy_loss(p):
    """Its values are wrong by 1e-4 of themselves, and its gradient is not."""
    return true_loss(p) * (1 + 1e-4 * jax.lax.stop_gradient(jnp.sin(1e6 * jnp.sum(p))))


def test_where_losses_are_noise_slopes_decide():
    params, info = run_of(DENSE, noisy_loss, jnp.array([1.0, -1.0, 0.5]), 25)
    assert int(info.search_trials.sum()) < 30  # no search stumbles over the noise
    # The true loss is within 1e-8 of the minimum, a ten-thousandth of the noise.
    assert float(true_loss(params)) - 1 < 1e-8


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momentum_takes_steps_that_slopes_have_accepted(momentum):
    """That the loss has risen within its noise is no reason to forget the pairs."""
    tx = naqopt.naq(momentum=momentum, linesearch=naqopt.wolfe())
    _, info = run_of(tx, noisy_loss, jnp.array([1.0, -1.0, 0.5]), 40)
    assert int(info.steps_refused[-1]) == 0
