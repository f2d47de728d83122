"""L-SR1, SR1-N and MoSR1: trust regions, rejected steps, saddle points."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import naqopt
from naqopt.curvature import indefinite
from naqopt.steps.trust_region import MAX_RADIUS, MIN_RADIUS

METHODS = {
    "lsr1": naqopt.lsr1(),
    "sr1n": naqopt.sr1n(),
    "sr1n-exact": naqopt.sr1n(solver="exact"),
    "sr1n-dense": naqopt.sr1n(memory_size=None),
    "sr1n-dense-exact": naqopt.sr1n(memory_size=None, solver="exact"),
    "mosr1": naqopt.mosr1(),
    "mosr1-dense": naqopt.mosr1(memory_size=None),
}
BETWEEN = ("sr1n-exact", "sr1n-dense", "mosr1-dense")  # the others have their parts
EACH_METHOD = pytest.mark.parametrize(
    "tx",
    [
        pytest.param(tx, id=name, marks=pytest.mark.slow if name in BETWEEN else [])
        for name, tx in METHODS.items()
    ],
)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def saddle(x):
    """x² − y² with a quartic wall: a saddle at 0, minima of −1 at y = ±√2."""
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4


@functools.partial(jax.jit, static_argnames=("tx", "loss"))
def step(tx, loss, params, state):
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
    return optax.apply_updates(params, updates), state


def run(tx, loss, start, steps, state=None):
    """The states and the iterates after each step."""
    params = jnp.asarray(start)
    state = tx.init(params) if state is None else state
    path = [(params, state)]
    for _ in range(steps):
        path.append(step(tx, loss, *path[-1]))
    return [(naqopt.eval_params(state, params), state) for params, state in path]


@EACH_METHOD
def test_rosenbrock_is_minimised(tx, x64):
    iterate, state = run(tx, rosenbrock, [-1.2, 1.0, -0.5, 0.8], 300)[-1]
    assert rosenbrock(iterate) < 1e-10
    assert state.info.steps_refused <= 2  # where steps vanish in the rounding of the minimum


@EACH_METHOD
def test_a_rejected_step_loses_nothing(tx, x64):
    """Neither the iterate nor, in a deterministic run of L-SR1, what has been reached."""
    path = run(tx, rosenbrock, [-1.2, 1.0, -0.5, 0.8], 80)
    rejections = 0
    for (before, old), (after, new) in itertools.pairwise(path):
        if new.info.steps_rejected > old.info.steps_rejected:
            rejections += 1
            np.testing.assert_allclose(after, before, rtol=1e-13)
            # Halved where the loss falls by less than a tenth of what was predicted.
            assert float(new.radius) == pytest.approx(float(old.radius) / 2) or old.radius == 0
            assert new.since_rejection == 0
        elif tx is METHODS["lsr1"]:
            assert rosenbrock(after) <= rosenbrock(before)
    assert rejections > 2


def test_without_a_radius_it_begins_with_the_norm_of_the_first_gradient():
    tx = naqopt.lsr1(initial_radius=None)
    for start in ([3.0, 4.0], [3e-8, 4e-8]):
        _, (_, state) = run(tx, lambda x: jnp.sum(x**2) / 2, start, 1)
        # B = I is the Hessian, and one step is enough: to the boundary, where the radius doubles.
        assert float(state.radius) == pytest.approx(2 * np.linalg.norm(start))
    (_, state), (_, later) = run(tx, lambda x: 0 * jnp.sum(x), [1.0, 1.0], 1)
    assert state.radius == later.radius == 0  # there has been no gradient yet


def test_the_first_step_of_mosr1_extrapolates_from_nothing():
    """ĝ is the first gradient itself: with B = I it leads to the minimum of ½‖x‖²."""
    tx = naqopt.mosr1(momentum=0.5, initial_radius=10.0, initial_scale=1.0)
    _, (end, _) = run(tx, lambda x: jnp.sum(x**2) / 2, [3.0, 4.0], 1)
    np.testing.assert_allclose(end, [0, 0], atol=1e-5)


def test_the_prediction_is_that_of_the_gradient_and_not_of_the_clipped_one():
    """The loss falls by 0.1, a twelfth of what its slope of 5 predicts, half of what 1 does."""

    def loss(x):
        return 5 * x[0] + 18.4 * x[0] ** 2

    params = jnp.zeros(1)
    tx = naqopt.lsr1(initial_radius=0.25)

    @jax.jit
    def clipped_step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        return tx.update(grad / 5, state, params, value=value, grad=grad, value_fn=loss)

    updates, state = clipped_step(params, tx.init(params))
    np.testing.assert_allclose(updates, [-0.25], rtol=1e-6)
    assert naqopt.diagnostics(state)["radius"] == 0.125


@pytest.mark.parametrize("factory", [naqopt.lsr1, naqopt.sr1n, naqopt.mosr1])
def test_the_first_radius_can_be_given(factory):
    """The first step, to the boundary of a loss without curvature, has its length."""
    tx = factory(initial_radius=0.25)
    (start, state), (end, later) = run(tx, lambda x: 3 * x[0] + 4 * x[1], [1.0, 1.0], 1)
    assert naqopt.diagnostics(state)["radius"] == 0.25
    np.testing.assert_allclose(end - start, [-0.15, -0.2], rtol=1e-5)
    assert naqopt.diagnostics(later)["radius"] == 0.5


@EACH_METHOD
def test_the_radius_ends_at_its_bounds_and_comes_back(tx, x64):
    """At 1e-10 it stays, at a minimum to rounding; a new loss makes it grow again."""
    start = [-1.2, 1.0, -0.5, 0.8]
    iterate, state = run(tx, rosenbrock, start, 400)[-1]
    assert MIN_RADIUS <= float(naqopt.diagnostics(state)["radius"]) < 1
    state = state._replace(radius=jnp.asarray(MIN_RADIUS))
    params = iterate if state.momentum is None else iterate + state.lookahead()

    def far(x):
        return jnp.sum((x - 30.0) ** 2)

    iterate, state = run(tx, far, params, 120, state)[-1]
    assert far(iterate) < 1e-2 * far(jnp.asarray(start))
    assert float(state.radius) > 0.01


@pytest.mark.default_compiler
def test_the_radius_does_not_overflow():
    """Of a loss without a minimum, which falls as the model predicts for ever."""
    tx = naqopt.lsr1()
    path = run(tx, lambda x: -1e3 * jnp.sum(x), [0.0, 0.0], 60)
    assert float(path[-1][1].radius) == pytest.approx(MAX_RADIUS)
    assert float(naqopt.diagnostics(path[-1][1])["radius"]) == pytest.approx(MAX_RADIUS)
    assert np.all(np.isfinite(path[-1][0]))


@pytest.mark.parametrize("make", [naqopt.sr1n, naqopt.mosr1])
@pytest.mark.parametrize("memory_size", [None, 10])
def test_the_square_of_a_gradient_may_overflow(make, memory_size):
    def steep(x):
        return 1e20 * jnp.sum(jnp.array([1.0, 3.0, 0.5]) * (x - jnp.array([1.0, -2.0, 3.0])) ** 2)

    tx = make(memory_size=memory_size)
    params, state = run(tx, steep, [0.0, 0.0, 0.0], 20)[-1]
    assert naqopt.diagnostics(state)["steps_refused"] <= 1
    assert steep(naqopt.eval_params(state, params)) < 1e-2 * steep(jnp.zeros(3))


@pytest.mark.parametrize("momentum", [0.9, naqopt.schedules.nesterov_momentum()])
def test_a_rejected_step_begins_the_momentum_again(momentum):
    """Else MoSR1, in which it leaves no pair, would take it again until the radius is nothing."""

    def bowl(x):
        return 0.5 * (x[0] ** 2 + 20 * x[1] ** 2)

    params, state = run(naqopt.mosr1(momentum=momentum), bowl, [5.0, 3.0], 80)[-1]
    assert naqopt.diagnostics(state)["steps_rejected"] <= 3
    assert state.radius >= 0.25
    assert bowl(params) < 1e-8


def test_a_collapsed_radius_stays_above_zero():
    """A loss that always rises: every step is rejected."""
    params = jnp.array([1.0, 2.0])
    tx = naqopt.sr1n()
    state = tx.init(params)

    @jax.jit
    def one(params, state):
        grads = jnp.ones(2)
        updates, state = tx.update(
            grads,
            state,
            params,
            value=jnp.zeros(()),
            value_fn=lambda p: jnp.ones(()),
            grad_fn=lambda p: grads,
        )
        return optax.apply_updates(params, updates), state

    start = params
    for _ in range(60):
        params, state = one(params, state)
    np.testing.assert_array_equal(params, start)
    # In float32 shorter steps than 1e-7 vanish; then all begins anew, the radius too.
    assert 1e-8 < float(state.radius) <= 1
    assert state.info.steps_rejected + state.info.steps_refused == 60
    assert state.info.steps_refused >= 2


@functools.partial(jax.jit, static_argnames="tx")
def faulty_step(tx, params, state, faults):
    """A step on which the value, the loss at the trial point or the gradient there is NaN."""
    of_value, of_trial, of_gradient = jnp.where(faults, jnp.nan, 0.0)
    value, grad = jax.value_and_grad(rosenbrock)(params)
    updates, state = tx.update(
        grad,
        state,
        params,
        value=value + of_value,
        value_fn=lambda p: rosenbrock(p) + of_trial,
        grad_fn=lambda p: jax.grad(rosenbrock)(p) + of_gradient,
    )
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("where", ["value", "trial", "gradient"])
@pytest.mark.parametrize("tx", [METHODS["lsr1"], METHODS["sr1n"]], ids=["lsr1", "sr1n"])
def test_what_is_not_finite_at_the_trial_rejects_the_step_and_keeps_the_pairs(tx, where, x64):
    iterate, state = run(tx, rosenbrock, [-1.2, 1.0, 0.3, -0.4], 12)[-1]
    params = iterate if state.momentum is None else iterate + state.lookahead()
    params, new = faulty_step(tx, params, state, where == np.array(["value", "trial", "gradient"]))
    moved = naqopt.eval_params(new, params)
    np.testing.assert_allclose(moved, iterate, rtol=1e-13)
    assert new.info.steps_rejected == state.info.steps_rejected + 1
    assert float(new.radius) == pytest.approx(float(state.radius) / 2)
    assert new.curvature.size == state.curvature.size
    assert new.info.pairs_stored == state.info.pairs_stored
    assert new.info.steps_refused == 0


@pytest.mark.parametrize("name", ["lsr1", "sr1n", "mosr1"])
def test_a_step_that_is_not_finite_is_refused_and_forgets_the_pairs(name):
    """A model that is not finite, of a damaged file say, costs one step."""
    tx = METHODS[name]
    params = jnp.array([-1.2, 1.0])
    state = tx.init(params)
    for _ in range(10):
        params, state = step(tx, rosenbrock, params, state)
    assert state.curvature.size > 0
    middle = jnp.full_like(state.curvature.middle, jnp.nan)
    # What waits is gone, so that no pair of this step's makes the model anew.
    state = naqopt.forget_loss(state._replace(curvature=state.curvature._replace(middle=middle)))
    before = naqopt.diagnostics(state)["steps_refused"]
    for _ in range(2):
        params, state = step(tx, rosenbrock, params, state)
        assert naqopt.diagnostics(state)["steps_refused"] == before + 1
        assert jnp.all(jnp.isfinite(params))
    for _ in range(100):
        params, state = step(tx, rosenbrock, params, state)
    assert rosenbrock(naqopt.eval_params(state, params)) < 0.1


@EACH_METHOD
def test_saddle_points_are_left(tx, x64):
    """From 1e-6 beside it; exactly at it the gradient is zero, and nothing moves."""
    path = run(tx, saddle, [1.0, 1e-6], 100)
    assert saddle(path[-1][0]) == pytest.approx(-1.0, abs=1e-6)
    still = run(tx, saddle, [0.0, 0.0], 10)[-1]
    np.testing.assert_array_equal(still[0], [0.0, 0.0])
    assert still[1].info.steps_rejected == 0


def test_negative_curvature_is_learnt(x64):
    """Beside the saddle the model of L-SR1 becomes indefinite, as the Hessian diag(2, −2) is."""
    functions, lowest = indefinite.limited(5), []

    @jax.jit
    def lowest_eigenvalue(curvature):
        eigen = functions.eigen(curvature)
        return jnp.min(jnp.where(eigen.present, eigen.eigenvalues, eigen.rest))

    for _, state in run(METHODS["lsr1"], saddle, [1.0, 1e-3], 12)[1:]:
        lowest.append(float(lowest_eigenvalue(state.curvature)))
    assert min(lowest) == pytest.approx(-2.0, abs=0.1)


def test_stored_gradients_save_the_evaluation(x64):
    tx = naqopt.lsr1(store_grad=True)
    start = [-1.2, 1.0, -0.5, 0.8]
    plain = run(METHODS["lsr1"], rosenbrock, start, 25)
    value_and_grad = optax.value_and_grad_from_state(rosenbrock)

    @jax.jit
    def step_from_state(params, state):
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=rosenbrock)
        return optax.apply_updates(params, updates), state, value, rosenbrock(params)

    params = jnp.array(start)
    state = tx.init(params)
    for k in range(25):
        params, state, value, expected = step_from_state(params, state)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(params, plain[k + 1][0], rtol=1e-6, atol=1e-9)
    assert state.info.steps_rejected > 0


def test_along_a_line_an_uphill_direction_is_replaced_by_the_gradient(x64):
    tx = naqopt.lsr1(linesearch=naqopt.armijo())
    path = run(tx, saddle, [0.5, 1e-3], 60)
    losses = [float(saddle(x)) for x, _ in path]
    assert all(b <= a for a, b in itertools.pairwise(losses))
    assert losses[-1] == pytest.approx(-1.0, abs=1e-9)


@pytest.mark.parametrize(("scale", "along"), [(None, 1 / 20), (1.0, 1), (4.0, 1 / 4)])
def test_along_a_line_the_first_matrix_is_of_the_scale_or_of_the_gradient(scale, along):
    """−g/γ, on a loss that ends its search at once; γ is ‖g‖ = 20 where none is given."""
    tx = naqopt.lsr1(linesearch=naqopt.armijo(), initial_scale=scale)
    start, slope = jnp.array([3.0, 4.0]), jnp.array([12.0, 16.0])

    def loss(x):
        far = jnp.linalg.norm(x - start) > 1.5 * 20 * along
        return slope @ (x - start) + jnp.where(far, jnp.inf, 0)

    _, (end, _) = run(tx, loss, start, 1)
    np.testing.assert_allclose(end - start, -along * slope, rtol=1e-6)


def test_the_defaults():
    assert naqopt.lsr1().init(jnp.zeros(2)).curvature.ss.shape == (5, 5)
    for factory in (naqopt.sr1n, naqopt.mosr1):
        state = factory().init(jnp.zeros(2))
        assert state.curvature.ss.shape == (10, 10)
        assert state.radius == 1
    _, state = run(naqopt.sr1n(), lambda x: jnp.sum(x**2), [3.0, 4.0], 1)[-1]
    assert float(state.momentum) == pytest.approx(
        float(naqopt.schedules.nesterov_momentum()(state.since_rejection))
    )
