"""Step lengths: the papers' search and Optax's, what they cost, and what happens when they fail."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import naqopt

ZOOM = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")
ZOOM_KEEPING = optax.scale_by_zoom_linesearch(max_linesearch_steps=20)
STORING = optax.scale_by_backtracking_linesearch(20, store_grad=True)
# Starts from its last step length.
KEEPING = optax.scale_by_backtracking_linesearch(
    6, decrease_factor=0.5, increase_factor=1.0, store_grad=True
)
SEARCHES = {"armijo": naqopt.armijo(), "storing": STORING, "zoom": ZOOM}

HESSIAN = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], np.float32)
START = np.array([1.0, -2.0, 0.5], np.float32)


def quadratic(w):
    return 0.5 * w @ HESSIAN @ w


def make_step(tx, loss=quadratic):
    """A compiled step; `spoil` is added to every loss that the optimizer evaluates itself."""

    @jax.jit
    def step(params, state, spoil):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=lambda p: loss(p) + spoil
        )
        return optax.apply_updates(params, updates), state

    return lambda params, state, spoil=0.0: step(params, state, jnp.asarray(spoil, value_dtype()))


def value_dtype():
    return jnp.result_type(float)


# How many trials, and where they start.


@jax.jit
def searched(length, unscaled):
    """Armijo's search on w²/2 from 1 along −length."""
    tx, params = naqopt.armijo(), jnp.ones(())
    return tx.update(
        -length,
        tx.init(params),
        params,
        value=0.5,
        grad=params,
        value_fn=lambda w: 0.5 * w**2,
        unscaled=unscaled,
    )


@pytest.mark.parametrize(
    ("length", "trials"),
    [(1.0, 1), (1.997, 1), (1.999, 2), (4.0, 3), (1000.0, 10), (16_000.0, 14)],
)
def test_armijo_halves_until_the_loss_has_fallen_enough(length, trials, x64):
    """(1 − αr)² ≤ 1 − 2e-3 αr holds up to αr = 1.998."""
    updates, state = searched(length, False)
    alpha = 0.5 ** (trials - 1)
    assert state.info.num_linesearch_steps == trials
    assert state.info.decrease_error == 0
    np.testing.assert_allclose(state.learning_rate, alpha, rtol=1e-12)
    np.testing.assert_allclose(updates, -alpha * length, rtol=1e-12)
    np.testing.assert_allclose(state.value, 0.5 * (1 - alpha * length) ** 2, rtol=1e-9)


@pytest.mark.parametrize(("product", "alpha"), [(1.999, 2.0**-13), (2.001, 0.0)])
def test_where_none_of_14_trials_suffices_the_lowest_is_taken_if_lower(product, alpha, x64):
    """(1 − 1.999)² lies below 1, but not enough; (1 − 2.001)² above."""
    updates, state = searched(product * 2.0**13, False)
    assert state.info.num_linesearch_steps == 14
    assert state.info.decrease_error == np.inf
    assert state.learning_rate == alpha
    np.testing.assert_allclose(updates, -alpha * product * 2.0**13, rtol=1e-12)


@pytest.mark.parametrize(
    ("length", "alpha", "trials"),
    [
        (1.0, 1, 2),  # (1 − r)² ≤ 1 − r holds up to r = 1
        (0.25, 4, 3),
        (0.26, 1, 2),
        (1e-3, 256, 6),
        (1e-9, 4.0**13, 14),
        (1.5, 1, 1),  # lowers enough, but is no reason to lengthen
        (3.0, 1 / 16, 2),
        (1e3, 16.0**-3, 4),
        (1e15, 16.0**-13, 14),
    ],
)
def test_while_nothing_is_known_armijo_lengthens_and_shortens(length, alpha, trials, x64):
    updates, state = searched(length, True)
    assert state.learning_rate == alpha
    assert state.info.num_linesearch_steps == trials
    np.testing.assert_allclose(updates, -alpha * length, rtol=1e-12)


@pytest.mark.parametrize("factory", [naqopt.bfgs, naqopt.naq, naqopt.moq, naqopt.lsr1])
def test_optimizers_say_when_nothing_is_known(factory, x64):
    """Before the first pair, and not after it."""
    search = {"linesearch": naqopt.armijo()}
    tx = factory(**search)

    def loss(w):
        return jnp.sum(jnp.sqrt(1 + (w / 100) ** 2))  # nearly linear over many steps of length 1

    step = make_step(tx, loss)
    params = jnp.full(2, 1e4)
    params, state = step(params, tx.init(params))
    assert state.info.step_size >= 4
    for _ in range(6):
        params, state = step(params, state)
        assert state.info.step_size <= 1


@pytest.mark.parametrize("search", [KEEPING, ZOOM_KEEPING], ids=["backtracking", "zoom"])
def test_searches_that_start_from_their_last_step(search):
    """The step length found is kept, and nothing else of the search's state."""
    tx = naqopt.bfgs(64.0, linesearch=search, memory_size=2)
    step = make_step(tx)
    params, state = jnp.asarray(START), tx.init(jnp.asarray(START))
    assert state.step_length == 1
    params, state = step(params, state)
    first = state.info
    assert first.searches_failed == 0
    assert first.search_trials > 1
    assert 0 < state.step_length < 1
    np.testing.assert_allclose(64 * state.step_length, first.step_size, rtol=1e-6)
    before = float(state.step_length)
    params, state = step(params, state)
    if search is KEEPING:  # never longer than the last
        assert state.step_length == before * 0.5 ** (int(state.info.search_trials) - 1)
    assert len(jax.tree.leaves(state.step_length)) == 1


# A domain beyond which there is no loss.


def barrier(w):
    return jnp.sum(10 * w - jnp.log(w))


@pytest.mark.parametrize(
    ("name", "search"),
    [
        ("bfgs", "armijo"),
        ("bfgs", "storing"),
        ("bfgs", "zoom"),
        ("naq", "armijo"),
        ("naq", "zoom"),
        ("moq", "armijo"),
    ],
)
def test_trials_outside_the_domain_fail(name, search):
    """From 0.5 the first trial is at −0.5, where the loss is NaN, the second at 0 or nearby."""
    arguments = {} if name == "bfgs" else {"momentum": 0.3}
    tx = getattr(naqopt, name)(linesearch=SEARCHES[search], memory_size=2, **arguments)
    step = make_step(tx, barrier)
    params = jnp.array([0.5])
    state = tx.init(params)
    for k in range(40):
        params, state = step(params, state)
        assert np.all(np.isfinite(params))
        if k == 0:
            assert naqopt.eval_params(state, params) > 0
            assert state.info.search_trials >= 2
            assert state.info.searches_failed == 0
            if search == "armijo":
                assert state.info.step_size == 1 / 16
    np.testing.assert_allclose(naqopt.eval_params(state, params), 0.1, rtol=1e-3)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def minus_infinity_at_full_length(w):
    return jnp.where(w[0] < -0.75, -jnp.inf, jnp.sum(w**2) / 2)


def test_a_trial_of_minus_infinity_fails():
    """Taken for a decrease, it would end the run."""
    for tx in (naqopt.bfgs(2.0, memory_size=1), naqopt.naq(2.0, momentum=0.5, memory_size=1)):
        params = jnp.ones(1)
        params, state = make_step(tx, minus_infinity_at_full_length)(params, tx.init(params))
        assert state.info.search_trials == 2
        np.testing.assert_allclose(naqopt.eval_params(state, params), 1 - 2 / 16, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "search"),
    [
        ("bfgs", "armijo"),
        ("bfgs", "zoom keeping"),
        ("naq", "keeping"),
        ("naq", "zoom"),
        ("moq", "armijo"),
        ("moq", "keeping"),
    ],
)
def test_where_every_trial_fails_the_iterate_stays_and_all_starts_anew(name, search):
    """The search is counted, the step refused, and the next search starts from 1 again."""
    linesearch = {**SEARCHES, "keeping": KEEPING, "zoom keeping": ZOOM_KEEPING}[search]
    arguments = {} if name == "bfgs" else {"momentum": 0.5}
    tx = getattr(naqopt, name)(3.0, linesearch=linesearch, memory_size=2, **arguments)
    step = make_step(tx)
    params = jnp.asarray(START)
    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    w = naqopt.eval_params(state, params)
    stored = int(state.info.pairs_stored)
    assert stored >= 2
    assert state.info.searches_failed == state.info.steps_refused == 0
    good = params, state

    for spoil in (np.nan, np.inf, -np.inf):
        params, state = step(*good, spoil)
        np.testing.assert_allclose(params, w, rtol=1e-6)
        np.testing.assert_allclose(naqopt.eval_params(state, params), w, rtol=1e-6)
        assert state.info.searches_failed == state.info.steps_refused == 1
        assert state.info.step_size == 0
        assert state.step_length == 1
        assert int(state.count) == 5
        assert state.curvature.size == 0
        assert state.pending is None or not state.pending.waits
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))

        # The next step is that of a run that starts there.
        after, _ = step(params, state)
        fresh = tx.init(params)
        expected, _ = step(params, fresh)
        np.testing.assert_allclose(after, expected, rtol=1e-5)
        for _ in range(30):
            params, state = step(params, state)
        assert quadratic(naqopt.eval_params(state, params)) < 1e-6
        assert state.info.steps_refused == 1


# What a step costs.

COUNTS = collections.Counter()


@jax.custom_jvp
def counted(value):
    jax.debug.callback(lambda: COUNTS.update(["losses"]))
    return value


@counted.defjvp
def _count_gradients(primals, tangents):
    jax.debug.callback(lambda: COUNTS.update(["gradients"]))
    return primals[0], tangents[0]


def crooked(w):
    return jnp.sum(jnp.square(w) + jnp.sin(3 * w)) + jnp.prod(w) ** 2


def counting_run(tx, steps, *, reuse=False):
    """Trains so many steps; returns params, trials of the searches and what was evaluated."""
    COUNTS.clear()

    def loss(w):
        return counted(crooked(w))

    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def run(params, state):
        def body(carry, _):
            params, state = carry
            if reuse:
                value, grad = value_and_grad(params, state=state)
            else:
                value, grad = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state.info.search_trials)

        return jax.lax.scan(body, (params, state), length=steps)[1]

    params = jnp.asarray(START)
    path, trials = jax.block_until_ready(run(params, tx.init(params)))
    jax.effects_barrier()
    return np.asarray(path), int(np.sum(trials)), dict(COUNTS)


STEPS = 6


@pytest.mark.parametrize(
    ("search", "with_gradient"), [("armijo", False), ("storing", True), ("zoom", True)]
)
def test_naq_takes_its_second_gradient_from_searches_that_have_it(search, with_gradient):
    tx = naqopt.naq(6.0, momentum=0.5, memory_size=2, linesearch=SEARCHES[search])
    _, trials, counts = counting_run(tx, STEPS)
    assert trials > STEPS
    if with_gradient:
        # The caller's, and one (linearised) evaluation a trial.
        assert counts == {"gradients": STEPS + trials}
    else:
        assert counts == {"gradients": 2 * STEPS, "losses": trials}


@pytest.mark.parametrize(("name", "losses"), [("bfgs", 0), ("moq", 1)], ids=["bfgs", "moq"])
def test_one_gradient_a_step(name, losses):
    """And, in moq, a loss at the look-ahead point."""
    arguments = {} if name == "bfgs" else {"momentum": 0.5}
    _, trials, counts = counting_run(getattr(naqopt, name)(memory_size=2, **arguments), STEPS)
    assert counts == {"gradients": STEPS, "losses": trials + losses * STEPS}


def test_mnaq_takes_two_gradients_and_one_loss():
    _, trials, counts = counting_run(naqopt.mnaq(memory_size=2), STEPS)
    assert trials == STEPS
    assert counts == {"gradients": 2 * STEPS, "losses": STEPS}


@pytest.mark.parametrize("search", ["armijo", "zoom"])
def test_what_store_grad_keeps_replaces_the_callers_gradient(search):
    plain, storing = (
        naqopt.bfgs(2.0, linesearch=SEARCHES[search], memory_size=2, store_grad=store_grad)
        for store_grad in (False, True)
    )
    path, trials, counts = counting_run(plain, STEPS)
    again, same_trials, fewer = counting_run(storing, STEPS, reuse=True)
    np.testing.assert_allclose(again, path, rtol=1e-5)
    assert trials == same_trials
    if search == "zoom":
        # All gradients are the search's, except the one before the first step.
        assert counts == {"gradients": STEPS + trials}
        assert fewer == {"gradients": 1 + trials}
    else:
        # The gradient at the new params is taken at once, and not by the caller later.
        assert counts == {"gradients": STEPS, "losses": trials}
        assert fewer == {"gradients": STEPS + 1, "losses": trials}


@pytest.mark.parametrize("fault", ["caller", "search"])
def test_what_store_grad_keeps_holds_at_the_params(fault):
    """Before the first step, after a step, after a skipped one and after a refused one."""
    tx = naqopt.bfgs(memory_size=2, store_grad=True)
    params = jnp.asarray(START)
    state = tx.init(params)
    assert state.stored.value == np.inf

    @jax.jit
    def step(params, state, spoilt_grad, spoilt_loss):
        value, grad = jax.value_and_grad(quadratic)(params)
        grad = grad * spoilt_grad
        updates, state = tx.update(
            grad,
            state,
            params,
            value=value,
            grad=grad,
            value_fn=lambda w: quadratic(w) * spoilt_loss,
        )
        return optax.apply_updates(params, updates), state

    for spoilt in (False, True, False):
        factor = np.nan if spoilt else 1.0
        factors = (factor, 1.0) if fault == "caller" else (1.0, factor)
        params, state = step(params, state, *factors)
        np.testing.assert_allclose(state.stored.value, quadratic(params), rtol=1e-6)
        np.testing.assert_allclose(state.stored.grad, HESSIAN @ params, rtol=1e-5, atol=1e-6)
    assert state.info.steps_skipped == int(fault == "caller")
    assert state.info.steps_refused == int(fault == "search")
    # The pair of the first step was formed either way, after the skipped step if there was one.
    assert state.info.pairs_stored == 1


# Which closures are needed, and which one is asked.


@pytest.mark.parametrize("name", ["bfgs", "moq"])
def test_a_learning_rate_alone_needs_no_loss(name):
    tx = getattr(naqopt, name)(0.1, linesearch=None, memory_size=2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(HESSIAN @ params, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.asarray(START)
    state = tx.init(params)
    for _ in range(60):
        params, state = step(params, state)
    assert quadratic(params) < 0.01 * quadratic(START)
    np.testing.assert_allclose(state.info.step_size, 0.1, rtol=1e-6)
    assert state.info.search_trials == state.info.searches_failed == 0


def test_grad_fn_beats_the_searchs_gradient():
    tx = naqopt.naq(momentum=0.5, memory_size=1, linesearch=ZOOM, convergence_term=False)
    params = jnp.asarray(START)
    state = tx.init(params)
    value, grad = quadratic(params), HESSIAN @ params
    _, state = tx.update(
        grad,
        state,
        params,
        value=value,
        grad=grad,
        value_fn=quadratic,
        grad_fn=lambda w: grad + 7 * (w - START),
    )
    assert state.info.pairs_stored == 1
    np.testing.assert_allclose(state.curvature.y[0], 7 * state.curvature.s[0], rtol=1e-5)


def test_the_searchs_gradient_is_that_of_the_new_iterate():
    for search in (ZOOM, STORING):
        tx = naqopt.naq(4.0, momentum=0.5, memory_size=1, linesearch=search, convergence_term=False)
        params = jnp.asarray(START)
        params, state = make_step(tx)(params, tx.init(params))
        np.testing.assert_allclose(state.curvature.y[0], HESSIAN @ state.curvature.s[0], rtol=1e-4)


def test_the_callers_value_is_used_at_the_params():
    """A value that is too high lets any trial pass; moq's searches start elsewhere, without it."""
    params = jnp.ones(())
    for name, step_size in [("bfgs", 4), ("naq", 4), ("moq", 0.25)]:
        tx = getattr(naqopt, name)(4.0, memory_size=1)
        _, state = tx.update(
            params, tx.init(params), params, value=1e6, value_fn=lambda w: 0.5 * w**2
        )
        assert state.info.step_size == step_size
    _, state = naqopt.bfgs(4.0, memory_size=1).update(
        params, naqopt.bfgs(memory_size=1).init(params), params, value_fn=lambda w: 0.5 * w**2
    )
    assert state.info.step_size == 0.25


def test_the_slope_is_of_raw_gradients():
    """A trial at the minimum 0 has to have gained 1e-3 · raw, of the 0.5 that can be gained."""
    params = jnp.ones(())
    tx = naqopt.bfgs(memory_size=1)
    for raw, passes in [(1.0, True), (499.0, True), (501.0, False)]:
        _, state = tx.update(
            params, tx.init(params), params, grad=raw * params, value_fn=lambda w: 0.5 * w**2
        )
        assert (state.info.step_size == 1) == passes


# The dtype of the first leaf, in which Optax's searches compute.


@pytest.mark.parametrize("search", ["armijo", "zoom"])
def test_a_narrow_first_leaf_does_not_decide_the_precision_of_the_search(search):
    """Beside the constant of 100 a loss in bfloat16 would show no decrease."""
    target = np.linspace(-1, 1, 5).astype(np.float32)

    def loss(p):
        narrow = p["narrow"].astype(jnp.float32) - 0.5
        return 100 + jnp.sum((p["wide"] - target) ** 2 * jnp.arange(1, 6)) + jnp.sum(narrow**2)

    tx = naqopt.naq(momentum=0.5, memory_size=3, linesearch=SEARCHES[search])
    params = {"narrow": jnp.zeros(2, jnp.bfloat16), "wide": jnp.zeros(5, jnp.float32)}
    state = tx.init(params)
    step = make_step(tx, loss)
    for _ in range(15):
        params, state = step(params, state)
    assert loss(naqopt.eval_params(state, params)) < 100.02
    assert state.step_length.dtype == jnp.float32
    assert params["narrow"].dtype == jnp.bfloat16


def test_armijo_is_optaxs_search_with_the_papers_constants():
    """On its own, after sgd, too."""
    tx = optax.chain(optax.sgd(8.0), naqopt.armijo())
    params = jnp.ones(())
    updates, state = tx.update(
        params, tx.init(params), params, value=0.5, grad=params, value_fn=lambda w: 0.5 * w**2
    )
    assert updates == -1
    assert state[-1].info.num_linesearch_steps == 4
    assert math.isclose(state[-1].learning_rate, 1 / 8)
