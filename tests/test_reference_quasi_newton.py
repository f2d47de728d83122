"""The quasi-Newton references are tested before anything is tested against them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from reference import quasi_newton
from reference.quasi_newton import METHODS, init, nesterov_momentum, step
from reference.quasi_newton_runs import RUNS, problem, resolve, trajectory
from reference.two_loop import dense_bfgs, two_loop
from reference.vectors import norm, normalized, quiet
from reference.walks import (
    HESSIAN,
    ONLINE,
    START,
    WITH_MOMENTUM,
    assert_states_equal,
    quadratic,
    quadratic_grad,
    refused_state,
    rosen,
    rosen_grad,
    settings_of,
    walk,
)

MEMORIES = [pytest.param(3, id="limited"), pytest.param(None, id="dense")]


def exact_search(loss, w_hat, d, slope):
    """The minimiser along d on the quadratic."""
    return -(d @ quadratic_grad(w_hat)) / (d @ HESSIAN @ d), True


def newest_gamma(state):
    return (state.s_list[-1] @ state.y_list[-1]) / (state.y_list[-1] @ state.y_list[-1])


def test_schedules():
    momentum = nesterov_momentum()
    first = [momentum(k) for k in range(6)]
    np.testing.assert_allclose(first, [0, 0.2817, 0.4340, 0.5311, 0.5988, 0.6489], atol=5e-5)
    assert momentum(55) < 0.95
    assert momentum(56) == 0.95
    assert nesterov_momentum(0.5)(3) == 0.5
    theta = 1.0
    for _ in range(5):
        new = quasi_newton.next_theta(theta)
        assert new**2 == pytest.approx((1.0 - new) * theta**2 + 1e-5 * new, rel=1e-14)
        theta = new
    assert [quasi_newton.inverse_sqrt(2.0)(k) for k in (0, 3)] == [2.0, 1.0]
    assert [quasi_newton.harmonic(3.0, 10)(k) for k in (0, 9)] == [30 / 11, 1.5]


def test_norms_do_not_overflow():
    v = np.array([3.0, -4.0, 0.0])
    for factor in (1.0, 1e200, 1e-200):
        assert norm(factor * v) == pytest.approx(5.0 * factor, rel=1e-14)
        np.testing.assert_allclose(normalized(factor * v), v / 5.0, rtol=1e-14)
    for zero in (0.0 * v, -0.0 * v):
        assert norm(zero) == 0.0
        np.testing.assert_array_equal(normalized(zero), 0.0)
    np.testing.assert_allclose(norm(normalized(np.full(3, 1.7e308))), 1.0, rtol=1e-14)


@pytest.mark.parametrize("name", RUNS)
def test_a_step_leaves_its_state_alone(name):
    run = RUNS[name]
    _, at_step = problem(run)
    settings = resolve(run.settings, quasi_newton)
    for k, state in enumerate(trajectory(run, 12)):
        before = copy.deepcopy(state)
        step(state, *at_step(k), method=run.method, **settings)
        assert_states_equal(state, before)


# H and its pairs.


@pytest.mark.parametrize("method", [m for m in METHODS if m != "mnaq"])
def test_dense_and_limited_agree_until_the_second_pair(method):
    """With one pair the rules give the same γ; a second one moves only that of the limited form.

    mNAQ differs from the first pair on, where its dense γ leaves ξ out of the numerator.
    """
    limited = walk(settings_of(method, 10), 4)
    dense = walk(settings_of(method, None), 4)
    same = [np.allclose(a.w, b.w, rtol=1e-12) for a, b in zip(limited, dense, strict=True)]
    assert same == [True, True, True, False, False]
    one = 2 if METHODS[method].waits else 1
    assert limited[one].stored == dense[one].stored == 1
    product = two_loop(limited[one].s_list, limited[one].y_list, START, newest_gamma(limited[one]))
    np.testing.assert_allclose(dense[one].H @ START, product, rtol=1e-10)


@pytest.mark.parametrize("memory_size", [10, None])
def test_bfgs_with_exact_steps_ends_a_quadratic_in_n_steps(memory_size):
    states = walk(settings_of("bfgs", memory_size, search=exact_search), 4)
    losses = [quadratic(state.w) for state in states]
    assert losses[3] > 1e-6
    assert losses[4] < 1e-24
    last = step(states[-1], quadratic, quadratic_grad, **settings_of("bfgs", memory_size))
    if memory_size is None:
        np.testing.assert_allclose(last.H, np.linalg.inv(HESSIAN), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("ratio", "accepted"), [(2e-8, True), (0.5e-8, False), (-1.0, False), (0.0, False)]
)
@pytest.mark.parametrize("memory_size", MEMORIES)
@quiet
def test_pair_test(memory_size, ratio, accepted):
    """A cosine: units of the parameters and of the loss make no difference."""
    s, y = np.array([1.0, 0.0]), np.array([ratio, 1.0])

    def after(s, y, min_curvature=1e-8):
        return quasi_newton.with_pair(init(s), s, y, y, memory_size, min_curvature, False)

    for longer, steeper in ((1, 1), (1e3, 1), (1, 1e10), (1e-9, 1e12), (1e9, 1e-12), (1, 1e200)):
        state = after(longer * s, steeper * y)
        assert (state.stored, state.refused) == (accepted, 1 - accepted)
        assert (state.H is not None or bool(state.s_list)) == accepted
    assert after(s, y, 1e-3).refused == 1
    for bad in (np.nan, np.inf, -np.inf):
        assert after(s, y + np.array([0.0, bad])).refused == 1
        assert after(s + np.array([0.0, bad]), y).refused == 1
    for large in (1e155, 1e200):
        assert after(np.full(2, large), np.full(2, large)).refused == 1  # an infinite sᵀy
    assert after(1e-160 * s, s, 0.0).stored == 1
    assert after(1e-160 * s, 1e-160 * s, 0.0).refused == 1


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_stays_exactly_the_same_forgets_the_pairs(method, memory_size):
    state = walk(settings_of(method, memory_size), 4)[-1]
    s, across = np.eye(4)[:2]
    for step_, y, forgotten in ((s, 0 * s, True), (0 * s, 0 * s, False), (s, 1e-9 * across, False)):
        new = quasi_newton.with_pair(state, step_, y, y, memory_size, 1e-8, False)
        expected = replace(state, refused=state.refused + 1)
        if forgotten:
            expected = replace(expected, s_list=[], y_list=[], H=None)
        assert_states_equal(new, expected)


def test_first_gamma_of_dense_mnaq():
    s, y = np.array([1.0, 0.0]), np.array([2.0, 1.0])
    for eps, numerator in ((np.array([0.5, 1.0]), 0.5), (np.array([-0.5, 1.0]), 2.0)):
        for first_scale_by_eps, expected in ((True, numerator), (False, 2.0)):
            state = quasi_newton.with_pair(init(s), s, eps, y, None, 1e-8, first_scale_by_eps)
            np.testing.assert_allclose(
                state.H, dense_bfgs([s], [y], expected / 5.0), rtol=1e-14, atol=1e-15
            )
            assert state.lipschitz == pytest.approx(100.0 * np.sqrt(5.0))


@pytest.mark.parametrize("g_norm", [0.05, 0.5])
def test_convergence_term(g_norm):
    s, g_hat = np.array([2.0, 0.0]), np.array([0.0, g_norm])
    omega = 2.0 if g_norm == 0.5 else 100.0
    assert quasi_newton.xi(s, np.array([1.0, 0.0]), g_hat) == pytest.approx(omega * g_norm)
    assert quasi_newton.xi(s, np.array([-1.0, 0.0]), g_hat) == pytest.approx(omega * g_norm + 0.5)
    assert quasi_newton.xi(0 * s, np.zeros(2), g_hat) == pytest.approx(omega * g_norm)


# Relations between the methods.


@pytest.mark.parametrize("momentum", [0.6, nesterov_momentum()], ids=["constant", "schedule"])
@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize(("one", "two"), [("naq", "moq"), ("onaq", "omoq")])
def test_moq_is_naq_on_a_quadratic(one, two, memory_size, momentum):
    """There the extrapolated gradient is exact, v being the last displacement."""
    settings = {"memory_size": memory_size, "momentum": momentum}
    if one == "naq":
        settings["convergence_term"] = True
    else:
        settings["learning_rate"] = 0.1
    ones = walk({"method": one, **settings}, 15)
    twos = walk({"method": two, **settings}, 15)
    for a, b in zip(ones, twos, strict=True):
        np.testing.assert_allclose(b.w, a.w, rtol=0, atol=1e-10)
        np.testing.assert_allclose(b.v, a.v, rtol=0, atol=1e-10)
    assert np.linalg.norm(ones[-1].w - START) > 0.1
    rosenbrock = walk({"method": two, **settings}, 15, w=START[:2], loss=rosen, grad=rosen_grad)
    other = walk({"method": one, **settings}, 15, w=START[:2], loss=rosen, grad=rosen_grad)
    assert np.linalg.norm(rosenbrock[-1].w - other[-1].w) > 1e-4


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize(
    ("one", "two"), [("bfgs", "naq"), ("bfgs", "moq"), ("obfgs", "onaq"), ("obfgs", "omoq")]
)
def test_without_momentum_the_methods_are_one(one, two, memory_size):
    """On one batch; the pair of MoQ and BFGS is formed later, but before it is used."""
    more = {"momentum": 0.0}
    ones = walk(settings_of(one, memory_size, **more), 12)
    twos = walk(settings_of(two, memory_size, **more), 12)
    for a, b in zip(ones, twos, strict=True):
        np.testing.assert_allclose(b.w, a.w, rtol=0, atol=1e-10)


def test_mnaq_with_unit_steps_is_naq():
    """Where every first trial passes, mNAQ is NAQ with ξ."""
    mnaq = walk(settings_of("mnaq"), 6)
    naq = walk(settings_of("naq", convergence_term=True), 6)
    assert {state.alpha for state in mnaq[2:]} == {1.0}
    for a, b in zip(mnaq, naq, strict=True):
        np.testing.assert_array_equal(b.w, a.w)


# Single steps.


@pytest.mark.parametrize("method", METHODS)
def test_first_steps_by_hand(method):
    g = quadratic_grad(START)
    state = step(init(START), quadratic, quadratic_grad, **settings_of(method))
    size = 0.1 if method in ONLINE else 1.0
    velocity = -size * g / np.linalg.norm(g)
    np.testing.assert_allclose(state.v, velocity, rtol=1e-14)
    np.testing.assert_allclose(state.w, START + velocity, rtol=1e-14)
    assert state.alpha == size
    ahead = 0.5 if METHODS[method].looks_ahead else 0.0
    np.testing.assert_allclose(state.params, state.w + ahead * velocity, rtol=1e-14)
    if METHODS[method].waits:
        assert state.stored == 0
        np.testing.assert_allclose(state.waiting[0], velocity, rtol=1e-12)
        np.testing.assert_array_equal(state.waiting[1], g)
        state = step(state, quadratic, quadratic_grad, **settings_of(method))
    assert state.stored == 1
    s, y = state.s_list[0], state.y_list[0]
    np.testing.assert_allclose(s, velocity, rtol=1e-12)
    more = {**dict.fromkeys(METHODS, 0.0), **dict.fromkeys(ONLINE, 1.0)}[method]
    if method == "mnaq":
        more = 2.0 * np.linalg.norm(g)
    np.testing.assert_allclose(y, HESSIAN @ s + more * s, rtol=1e-12)


@pytest.mark.parametrize("method", ["moq", "omoq"])
def test_the_extrapolation(method):
    """Each kind of gradient by itself: the direction's is (1 + μ)updates − μ updates₋₁."""
    settings = settings_of(method)
    state = step(init(START), quadratic, quadratic_grad, **settings, clip=lambda g: 0.5 * g)
    r_prev, r = quadratic_grad(START), quadratic_grad(state.w)
    np.testing.assert_array_equal(state.g_prev, r_prev)
    np.testing.assert_array_equal(state.updates_prev, 0.5 * r_prev)
    np.testing.assert_array_equal(state.waiting[1], r_prev)  # at first, the previous is the present
    np.testing.assert_allclose(normalized(state.v), -normalized(r_prev), rtol=1e-14)
    mask = np.array([0.25, 0.25, 0.0, 1.0])
    new = step(state, quadratic, quadratic_grad, **settings, clip=lambda g: mask * g)
    np.testing.assert_allclose(new.waiting[1], 1.5 * r - 0.5 * r_prev, rtol=1e-14)
    np.testing.assert_array_equal(new.updates_prev, mask * r)
    direction_gradient = 1.5 * mask * r - 0.25 * r_prev
    product = two_loop(new.s_list, new.y_list, direction_gradient, newest_gamma(new))
    if method == "omoq":
        product = product / np.linalg.norm(product)
    np.testing.assert_allclose(new.v, 0.5 * state.v - new.alpha * product, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_schedules_see_steps_from_zero_and_skips_do_not_count(method):
    rates, momenta = [], []

    def learning_rate(count):
        rates.append(count)
        return 0.1

    def momentum(count):
        momenta.append(count)
        return 0.5

    settings = settings_of(method, learning_rate=learning_rate, momentum=momentum)
    if method not in WITH_MOMENTUM:
        del settings["momentum"]
    state = init(START)
    for call in range(4):
        gradient = (lambda w: w * np.inf) if call == 1 else quadratic_grad
        state = step(state, quadratic, gradient, **settings)
    assert rates == [0, 1, 2]
    assert (state.k, state.skipped) == (3, 1)
    if METHODS[method].looks_ahead:
        assert momenta == [0, 1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_skipped_step_moves_only_its_counters(method, bad, memory_size):
    settings = settings_of(method, memory_size)
    state = walk(settings, 5)[-1]
    expected = replace(state, skipped=1, skipped_in_a_row=1)
    skipped = step(state, quadratic, lambda w: bad * (1.0 + w), **settings)
    assert_states_equal(skipped, expected)
    skipped = step(state, quadratic, quadratic_grad, **settings, clip=lambda g: bad * (1.0 + g))
    assert_states_equal(skipped, expected)
    one_bad = np.array([0.0, 0.0, bad, 0.0])
    skipped = step(state, quadratic, lambda w: quadratic_grad(w) + one_bad, **settings)
    assert skipped.skipped == 1
    again = step(skipped, quadratic, quadratic_grad, **settings)  # a pair waited on
    assert again.stored == state.stored + 1


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_whose_squared_norm_overflows_is_finite(method):
    steep = 1e200 * quadratic_grad(START)
    new = step(init(START), quadratic, lambda w: steep, **settings_of(method))
    assert (new.k, new.skipped, new.refused_steps) == (1, 0, 0)
    np.testing.assert_allclose(normalized(new.v), -normalized(quadratic_grad(START)), rtol=1e-10)
    if method in ONLINE:
        assert np.linalg.norm(new.v) == pytest.approx(0.1, rel=1e-14)


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", [m for m, rules in METHODS.items() if not rules.waits])
def test_a_step_with_a_bad_inner_gradient_is_refused(method, memory_size):
    settings = settings_of(method, memory_size)
    state = walk(settings, 5)[-1]
    calls = []

    def gradient(w):
        calls.append(w)
        return quadratic_grad(w) if len(calls) == 1 else w * np.nan

    new = step(state, quadratic, gradient, **settings)
    assert len(calls) == 2
    assert_states_equal(new, refused_state(state, quadratic_grad(state.params)))
    assert np.any(state.v)
    assert new.lipschitz == state.lipschitz != 1.0
    after = step(new, quadratic, quadratic_grad, **settings)  # as from a start at w
    fresh = replace(init(state.w), lipschitz=state.lipschitz)
    fresh = step(fresh, quadratic, quadratic_grad, **settings)
    np.testing.assert_array_equal(after.w, fresh.w)


@pytest.mark.parametrize("method", METHODS)
def test_a_direction_that_is_not_finite_falls_back_to_the_gradient(method):
    settings = settings_of(method)
    huge = replace(
        walk(settings, 2)[-1],
        s_list=[np.full(4, 1e200)],
        y_list=[np.full(4, 1e-200)],
        waiting=None,
        v=np.zeros(4),
    )
    new = step(huge, quadratic, quadratic_grad, **settings)
    g = quadratic_grad(huge.params)
    if METHODS[method].extrapolates:
        g = g + 0.5 * (g - huge.g_prev)
    np.testing.assert_allclose(new.v, -new.alpha * g / np.linalg.norm(g), rtol=1e-11)
    assert new.refused_steps == 0
    assert new.alpha > 0.0
    refused = step(huge, quadratic, quadratic_grad, **{**settings, "learning_rate": np.nan})
    assert refused.refused_steps == 1
    np.testing.assert_array_equal(refused.w, huge.w)


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", METHODS)
def test_zero_gradient(method, memory_size):
    """The direction is 0 and the momentum goes on; the pair has no curvature but λ."""
    settings = settings_of(method, memory_size)
    state = init(START)
    for _ in range(2):
        state = step(state, lambda w: 1.0, np.zeros_like, **settings)
    np.testing.assert_array_equal(state.w, START)
    assert state.refused_steps == state.stored == 0
    moving = replace(init(START), v=np.ones(4))
    new = step(moving, lambda w: 1.0, np.zeros_like, **settings)
    np.testing.assert_array_equal(new.v, settings.get("momentum", 0.0) * np.ones(4))


@pytest.mark.parametrize("method", METHODS)
def test_clipping_bends_the_direction_and_not_the_pairs(method):
    settings = settings_of(method)
    mask = np.array([1.0, 0.0, 0.0, 0.0])
    new = step(init(START), quadratic, quadratic_grad, **settings, clip=lambda g: mask * g)
    np.testing.assert_array_equal(new.w[1:], START[1:])
    assert new.w[0] < START[0]
    np.testing.assert_array_equal(new.g_prev, quadratic_grad(START))
    np.testing.assert_array_equal(new.updates_prev, mask * quadratic_grad(START))
    if METHODS[method].waits:
        np.testing.assert_array_equal(new.waiting[1], quadratic_grad(START))
