"""Runs that used to run away, to stand still or to fail without a word."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from deterministic_runs import steps_to, trajectory
from optimizer_table import init_params, regression_loss, stacked_batches

import naqopt
from benchmarks.functions.clusters import CLUSTER
from benchmarks.functions.least_squares import LEAST_SQUARES
from benchmarks.functions.problems import PROBLEMS

ZOOM = optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")
SEARCHING = {
    "bfgs": naqopt.bfgs(),
    "bfgs_zoom": naqopt.bfgs(linesearch=ZOOM),
    "naq": naqopt.naq(),
    "naq_term": naqopt.naq(convergence_term=True),
    "moq": naqopt.moq(),
    "mnaq": naqopt.mnaq(),
}
each_searching = pytest.mark.parametrize("name", SEARCHING)
MOMENTUM = {name: tx for name, tx in SEARCHING.items() if "bfgs" not in name}


# Searches that fail


@each_searching
def test_a_gradient_of_the_wrong_sign_moves_nothing_up(name):
    tx = SEARCHING[name]

    def loss(x):
        return jnp.sum((x - 1) ** 2)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        wrong = -grad
        updates, state = tx.update(
            wrong,
            state,
            params,
            value=value,
            grad=wrong,
            value_fn=loss,
            grad_fn=lambda p: -jax.grad(loss)(p),
        )
        return optax.apply_updates(params, updates), state

    params = start = jnp.array([3.0, -2.0])
    state = tx.init(params)
    for _ in range(20):
        params, state = step(params, state)
        assert loss(naqopt.eval_params(state, params)) <= loss(start)
    np.testing.assert_array_equal(params, start)
    assert naqopt.diagnostics(state)["steps_refused"] == 20


@each_searching
def test_a_straight_through_estimator_does_not_run_away(name):
    """The loss is a staircase and its gradient that of the slope beneath it."""

    def loss(x):
        rounded = x + jax.lax.stop_gradient(jnp.round(x) - x)
        return jnp.sum((rounded - 2.2) ** 2)

    start = jnp.array([5.0, -4.0])
    _, losses, _, _ = trajectory(SEARCHING[name], loss, start, 200)
    assert losses[-1] <= loss(start)
    assert np.max(losses) <= loss(start)


@pytest.mark.parametrize("name", ["bfgs", "bfgs_zoom", "naq", "moq"])
def test_one_stiff_pair_does_not_bring_a_run_to_a_stand(name):
    """Its γ of 1e-13 makes steps that vanish in the rounding of float32."""

    def loss(x):
        return 1e12 * x[0] ** 4 + (x[1] - 1) ** 2 + (x[2] - 1) ** 2

    _, losses, _, _ = trajectory(SEARCHING[name], loss, jnp.array([1.0, 0.0, 0.0]), 400)
    assert losses[-1] < 0.01


@pytest.mark.slow  # the explicit step is tested by itself
def test_one_bad_batch_does_not_bring_mnaq_to_a_stand():
    """Its explicit step without a pair vanished in float32's rounding, and was all there was."""
    tx = naqopt.mnaq(momentum=0.5, memory_size=8)
    data = tuple(np.concatenate(x[:8]) for x in stacked_batches())

    def loss(p):
        return regression_loss(p, data)

    @jax.jit
    def train(bad):
        def body(carry, k):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)

            def grad_fn(p):
                return jax.tree.map(lambda g: jnp.where(k == bad, jnp.nan, g), jax.grad(loss)(p))

            closures = {"value": value, "value_fn": loss, "grad_fn": grad_fn}
            updates, state = tx.update(grads, state, params, grad=grads, **closures)
            return (optax.apply_updates(params, updates), state), loss(params)

        params = init_params()
        carry, losses = jax.lax.scan(body, (params, tx.init(params)), jnp.arange(300))
        return losses[-1], naqopt.diagnostics(carry[1])["steps_refused"]

    undisturbed, _ = train(-1)
    for bad in (7, 14):
        reached, refused = train(bad)
        assert refused >= 1
        assert reached < 1.1 * undisturbed


@each_searching
def test_bfloat16_params_do_not_rise(name):
    def loss(x):
        return jnp.sum((x.astype(jnp.float32) - jnp.arange(4.0)) ** 4)

    start = jnp.full(4, 5.0, jnp.bfloat16)
    _, losses, _, _ = trajectory(SEARCHING[name], loss, start, 200)
    assert losses[-1] <= 0.01 * loss(start)
    assert np.all(np.isfinite(losses))


def test_the_lowest_trial_is_taken_where_none_suffices():
    """A kink beneath the slope's promise: every trial lies above the line, some below the start."""

    def loss(x):
        return jnp.where(x > 0.9, x, 0.9999)

    tx = naqopt.bfgs()
    params, grad = jnp.array(1.0), jnp.array(1.0)
    updates, state = tx.update(
        grad, tx.init(params), params, value=loss(params), grad=grad, value_fn=loss
    )
    assert loss(params + updates) < loss(params)
    assert naqopt.diagnostics(state)["steps_refused"] == 0


# Momentum


@pytest.mark.parametrize("name", MOMENTUM)
def test_a_cluster_of_atoms_does_not_evaporate(x64, name):
    for start in CLUSTER.starts(4):
        _, losses, _, _ = trajectory(MOMENTUM[name], CLUSTER.function, start, 400)
        assert losses[-1] <= CLUSTER.function(start)
        assert losses[-1] < -44.2


@pytest.mark.parametrize("name", MOMENTUM)
def test_a_minimum_that_jumps_is_followed(x64, name):
    tx = MOMENTUM[name]
    minima = np.random.default_rng(0).uniform(-10, 10, (8, 6))
    scales = np.geomspace(1, 100, 6)

    @functools.partial(jax.jit, static_argnums=0)
    def fifty(tx, params, state, minimum):
        def loss(x):
            return jnp.sum(scales * (x - minimum) ** 2)

        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            return (optax.apply_updates(params, updates), state), None

        first = loss(naqopt.eval_params(state, params))
        (params, state), _ = jax.lax.scan(step, (params, state), length=50)
        return params, state, first, loss(naqopt.eval_params(state, params))

    params = jnp.zeros(6)
    state = tx.init(params)
    for minimum in minima:
        params, state, first, last = fifty(tx, params, state, minimum)
        assert last <= first


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTUM)
def test_no_run_ends_above_its_start(x64, name):
    for problem in (*PROBLEMS, *LEAST_SQUARES):
        for start in problem.starts(5):
            _, losses, _, _ = trajectory(MOMENTUM[name], problem.function, start, 300)
            first = problem.function(start)
            assert losses[-1] <= first + 1e-12 * abs(first), problem.name


# Trust regions


RANK_ONE = {"lsr1": naqopt.lsr1(memory_size=10), "sr1n": naqopt.sr1n()}  # m as that of BFGS
each_rank_one = pytest.mark.parametrize("name", RANK_ONE)


QUICK_LEAST_SQUARES = ("powell-badly-scaled", "osborne-1")


@pytest.mark.parametrize("scale", [1e4, 1e8])
@pytest.mark.parametrize("make", [lambda: naqopt.bfgs(memory_size=None), naqopt.ssbroyden])
def test_a_first_matrix_with_which_a_search_fails_is_let_go(x64, make, scale):
    """H0 = I is right for losses of the order of 1: kept, every second step would be refused."""

    def steep(x):
        return scale * (jnp.sum((x[1:] - x[:-1] ** 2) ** 2) + 0.1 * jnp.sum((x - 1) ** 2))

    start = -0.5 * np.ones(6)
    points = trajectory(make(), steep, start, 60)[0]
    assert steep(points[-1]) < 1e-9 * steep(start)


@each_rank_one
@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(
            problem,
            id=problem.name,
            marks=[] if problem.name in QUICK_LEAST_SQUARES else pytest.mark.slow,
        )
        for problem in LEAST_SQUARES
    ],
)
def test_hard_least_squares(x64, name, problem):
    """To 1e-6 of the minimum, or of where BFGS ends."""
    start = np.array(problem.start)
    losses = trajectory(RANK_ONE[name], problem.function, start, 3000)[1]
    bfgs = trajectory(SEARCHING["bfgs"], problem.function, start, 3000)[1]
    enough = max(problem.minimum, float(bfgs[-1]))
    assert losses[-1] <= enough + 1e-6 * max(1, enough)


@each_rank_one
def test_a_long_valley(x64, name):
    (problem,) = [problem for problem in PROBLEMS if problem.name == "rosenbrock-100"]
    start = np.array(problem.start)
    by_optax = steps_to(optax.lbfgs(), problem.function, start, 1e-8, 2000)
    assert steps_to(RANK_ONE[name], problem.function, start, 1e-8, 4 * by_optax) is not None


@each_rank_one
def test_a_loss_whose_decrease_is_beneath_its_rounding(name):
    weights = jnp.arange(1.0, 61)

    def loss(x):
        return jnp.sum(weights * (x - 1) ** 2) + 1e6

    path = trajectory(RANK_ONE[name], loss, jnp.zeros(60), 400)[0][200:]
    errors = np.asarray(jnp.sum(weights * (path - 1) ** 2, axis=1))
    assert np.median(errors) < 0.01
    assert np.max(errors) < 0.5  # 8 units of the last place of the loss


def test_the_radius_rule_decides(x64):
    def loss(x):
        return jnp.sum((x - 3) ** 2)

    def radius(**rule):
        tx = naqopt.lsr1(radius_rule=naqopt.RadiusRule(**rule))
        state = trajectory(tx, loss, np.zeros(3), 1)[-1]
        return float(naqopt.diagnostics(state)["radius"])

    assert radius() == 2
    assert radius(grow=3.0) == 3
    assert radius(grow_above=10.0) == 1
    assert radius(shrink_below=5.0, grow_above=5.0, shrink=0.25) == 0.25
    accepted = trajectory(
        naqopt.lsr1(radius_rule=naqopt.RadiusRule(accept=2.0, shrink_below=2.0, grow_above=2.0)),
        loss,
        np.zeros(3),
        1,
    )[0]
    assert np.all(accepted == 0)


def test_pairs_in_memory_are_counted(x64):
    def loss(x):
        return jnp.sum(jnp.arange(1, 9) * (x - 1) ** 2)

    for tx, most in [(naqopt.lsr1(), 5), (naqopt.sr1n(), 10), (naqopt.bfgs(), 10)]:
        states = [trajectory(tx, loss, np.zeros(8), steps)[-1] for steps in (1, 4)]
        counts = [int(naqopt.diagnostics(state)["pairs_in_memory"]) for state in states]
        assert counts[0] <= 1
        assert 2 <= counts[1] <= most


# Closures


def test_grad_fn_reaches_a_search_that_takes_gradients():
    """The loss is a callback, which JAX cannot differentiate."""

    def host_loss(x):
        return np.sum((np.asarray(x) - 1) ** 4, dtype=np.float32)

    def loss(x):
        return jax.pure_callback(host_loss, jax.ShapeDtypeStruct((), x.dtype), x)

    def grad_fn(x):
        return 4 * (x - 1) ** 3

    for factory in (naqopt.bfgs, naqopt.naq, naqopt.moq):
        tx = factory(linesearch=ZOOM)

        @jax.jit
        def step(params, state, tx=tx):
            grad = grad_fn(params)
            updates, state = tx.update(
                grad,
                state,
                params,
                value=loss(params),
                grad=grad,
                value_fn=loss,
                grad_fn=grad_fn,
            )
            return optax.apply_updates(params, updates), state

        params = jnp.array([3.0, -2.0])
        state = tx.init(params)
        for _ in range(60):
            params, state = step(params, state)
        assert host_loss(naqopt.eval_params(state, params)) < 1e-4


def test_clipped_updates_of_omoq_are_extrapolated_by_themselves():
    """Not by the unclipped difference, with which the loss rose from 2.1 to 3.4."""
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(30, 8))
    targets = matrix @ generator.normal(size=8)

    def loss(x):
        return jnp.mean((matrix @ x - targets) ** 2)

    tx = optax.chain(optax.clip_by_global_norm(0.1), naqopt.omoq())
    _, losses, _, _ = trajectory(tx, loss, jnp.zeros(8), 100)
    assert losses[-1] < 0.5 * loss(jnp.zeros(8))
