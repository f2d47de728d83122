"""The symmetric-rank-one references are tested before anything is tested against them."""

from dataclasses import fields, replace

import numpy as np
import pytest
from reference import quasi_newton
from reference.quasi_newton import xi
from reference.symmetric_rank_one import METHODS, init, step
from reference.symmetric_rank_one_memory import hessian, inverse_hessian, with_pair
from reference.trust_region import (
    RadiusRule,
    next_radius,
    reduction_ratio,
    solve_cg,
    solve_exact,
)

# E(w) = ½wᵀAw with an indefinite A, plus ¼Σw⁴.
A = np.diag([4.0, 1.0, -0.5, 2.0]) + 0.3
START = np.array([1.0, -2.0, 0.5, 1.5])


def loss(w):
    return float(0.5 * w @ A @ w + 0.25 * np.sum(w**4))


def grad(w):
    return A @ w + w**3


def walk(method, steps, *, start=START, radius=1.0, memory_size=3, **settings):
    states = [init(start, method, radius, settings.get("initial_scale"))]
    for _ in range(steps):
        options = {"method": method, "memory_size": memory_size, **settings}
        states.append(step(states[-1], loss, grad, **options))
    return states


def one(state, loss=loss, grad=grad, *, method, memory_size=3, **settings):
    return step(state, loss, grad, method=method, memory_size=memory_size, **settings)


def assert_states_equal(actual, expected, without=()):
    for field in fields(expected):
        left, right = getattr(actual, field.name), getattr(expected, field.name)
        if field.name in without:
            continue
        assert (left is None) == (right is None), field.name
        if left is not None:
            np.testing.assert_array_equal(left, right, err_msg=field.name)


# Single steps.


def away(method, **settings):
    """A state on the way: with momentum some steps after a rejected one, else of indefinite B."""
    states = walk(method, 30, start=0.3 * START, radius=0.2, **settings)[5:]
    if method in ("sr1n", "mosr1"):
        return next(s for s in states if s.since_rejection >= 2 and np.linalg.norm(s.v) > 0.01)
    return next(state for state in states if np.linalg.eigvalsh(hessian(state))[0] < 0.0)


@pytest.mark.parametrize("size", [0.05, 1.0])
@pytest.mark.parametrize("factor", [None, 0.1])
@pytest.mark.parametrize("share", [None, 0.1])
def test_first_step_of_the_trust_region(size, factor, share):
    """Its B is γI with γ = ‖g‖/Δ and its Δ, where none is given, ‖r‖; the long one is rejected."""
    w = size * START
    r = grad(w)
    g = r if factor is None else factor * r
    radius = np.linalg.norm(r) if share is None else share * np.linalg.norm(r)
    gamma = np.linalg.norm(g) / radius
    s = -g / gamma
    clip = None if factor is None else lambda g: factor * g
    new = walk("lsr1", 1, start=w, radius=None if share is None else radius, clip=clip)[1]
    ratio = (loss(w) - loss(w + s)) / -(r @ s + 0.5 * gamma * s @ s)
    assert (ratio > 1e-6) == (share is not None)
    np.testing.assert_allclose(new.w, w + s if ratio > 1e-6 else w, rtol=1e-14)
    np.testing.assert_array_equal(new.params, new.w)
    norm = np.linalg.norm(s)
    np.testing.assert_allclose(new.s_list, [s / norm], rtol=1e-13)
    np.testing.assert_allclose(new.y_list, [(grad(w + s) - r) / norm], rtol=1e-10)
    assert new.radius == pytest.approx(next_radius(radius, ratio, norm), rel=1e-14)
    assert (new.k, new.stored, new.rejected_steps, new.alpha) == (1, 1, ratio < 0, ratio > 0)


@pytest.mark.parametrize("method", ["lsr1", "sr1n", "mosr1"])
def test_the_first_radius_and_the_first_gamma(method):
    r = grad(START)
    norm = np.linalg.norm(r)
    for options, step_of_r in (
        ({}, 1.0 / norm),
        ({"radius": 0.3}, 0.3 / norm),
        ({"radius": 50.0}, 50.0 / norm),
        ({"radius": 50.0, "memory_size": None}, 50.0 / norm),
        ({"radius": None}, 1.0),
        ({"initial_scale": 20.0}, 1.0 / 20.0),
        ({"initial_scale": 20.0, "memory_size": None}, 1.0 / 20.0),
        ({"initial_scale": 20.0, "radius": 0.01}, 0.01 / norm),
        ({"initial_scale": 20.0, "radius": None}, 1.0 / 20.0),
        ({"initial_scale": 0.01, "radius": None, "clip": lambda g: 0.1 * g}, 1.0),
    ):
        if method == "lsr1" and "memory_size" in options:
            continue
        new = walk(method, 1, radius_rule=RadiusRule(accept=-np.inf), **{"radius": 1.0, **options})
        np.testing.assert_allclose(START - new[1].w, step_of_r * r, rtol=1e-12)
    state = init(START, method, None)
    for _ in range(2):
        state = one(state, grad=np.zeros_like, method=method)
    assert (state.radius, state.k) == (0.0, 2)
    new = one(state, method=method, radius_rule=RadiusRule(shrink=1.0, grow=1.0))
    assert new.radius == pytest.approx(norm, rel=1e-14)


@pytest.mark.parametrize("memory_size", [3, None])
@pytest.mark.parametrize("method", ["lsr1", "sr1n", "mosr1"])
def test_the_gamma_of_a_step_without_a_pair_stays(method, memory_size):
    """Where no pair has positive curvature: on E = −½‖w‖², and where no loss is finite."""
    options = {"method": method, "memory_size": memory_size, "clip": lambda g: 0.5 * g}
    state = init(START, method, 0.25)
    gamma = 0.5 * np.linalg.norm(START) / 0.25
    new = one(state, lambda w: -0.5 * w @ w, np.negative, **options)
    np.testing.assert_allclose(new.w - START, 0.25 * START / np.linalg.norm(START), rtol=1e-12)
    if method == "mosr1":  # whose pair waits
        new = one(new, lambda w: -0.5 * w @ w, np.negative, **options)
    assert (new.stored, new.refused) == (1, 0)
    assert new.gamma == pytest.approx(gamma, rel=1e-14)
    for factor, radius in ((1.0, 0.125), (2.0, 0.0625)):  # γ is set anew each time
        if method == "mosr1":  # which enlarges γ in place of a smaller radius
            factor, radius = 16.0 ** (factor - 1.0), 0.25
        state = one(state, lambda w: np.nan, np.negative, **options)
        assert (state.stored, state.radius) == (0, radius)
        assert state.gamma == pytest.approx(gamma * factor, rel=1e-14)


@pytest.mark.parametrize("method", ["lsr1", "sr1n", "mosr1"])
def test_a_step_of_the_trust_region_that_vanishes_is_refused(method):
    for w, v, refused in (
        (1e40 * START, 0.0 * START, True),
        (np.array([0.0, 1e40, 1e40, 1e40]), 0.0 * START, False),
        (0.0 * START, 1e40 * START, method != "lsr1"),  # at ŵ it vanishes
    ):
        state = replace(init(w, method), v=v, params=w + 0.5 * v if method == "sr1n" else w)
        state = replace(state, since_rejection=1)  # after a rejection μ is 0
        falling = iter(range(0, -1000, -10))
        options = {"method": method, "momentum": 0.5}
        new = one(state, lambda x, v=falling: float(next(v)), lambda x: START, **options)
        assert (new.refused_steps, new.rejected_steps) == (refused, 0)
        if refused:
            assert (new.stored, new.refused, new.radius, new.alpha) == (0, 0, 1.0, 0.0)
            assert new.waiting is None
            np.testing.assert_array_equal([new.w, new.params, new.v], [w, w, 0.0 * w])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["sr1n", "mosr1"])
def test_a_zero_gradient_where_the_loss_is_not_finite_rejects_the_step(method, bad):
    state = replace(away(method, momentum=lambda count: 0.1 * count + 0.2), waiting=None)
    state = replace(state, updates_prev=np.zeros(4))
    mu = 0.1 * state.since_rejection + 0.2
    w_hat = state.w + mu * state.v
    options = {"method": method, "momentum": lambda count: 0.1 * count + 0.2}
    for value, accepted in ((1.0, True), (bad, False)):

        def at_w_hat(w, value=value):
            return value if np.allclose(w, w_hat, rtol=1e-14) else -bad

        new = one(state, at_w_hat, np.zeros_like, **options)
        counts = (new.rejected_steps - state.rejected_steps, new.since_rejection, new.alpha)
        assert counts == ((0, state.since_rejection + 1, 1.0) if accepted else (1, 0, 0.0))
        assert (new.k, new.radius, new.waiting) == (state.k + 1, state.radius, None)
        np.testing.assert_allclose(new.w, w_hat if accepted else state.w, rtol=1e-14)
        np.testing.assert_allclose(new.v, mu * state.v if accepted else state.v, rtol=1e-14)
        if method == "sr1n" and not accepted:
            np.testing.assert_array_equal(new.params, state.w)  # μ begins again, with 0


@pytest.mark.parametrize("method", ["lsr1", "sr1n", "mosr1"])
def test_every_method_follows_its_radius_rule(method):
    rule = RadiusRule(accept=-np.inf, shrink_below=np.inf, grow_above=np.inf, shrink=0.3)
    for new in walk(method, 3, radius_rule=rule)[1:]:
        assert new.radius == pytest.approx(0.3**new.k, rel=1e-14)
        assert (new.rejected_steps, new.alpha) == (0, 1.0)
    rule = RadiusRule(accept=np.inf, shrink_below=-np.inf, grow_above=-np.inf, grow=3.0)
    new = walk(method, 1, radius_rule=rule)[1]
    radius = 1.0 if method == "mosr1" else 3.0  # without a pair MoSR1 blames γ
    assert (new.radius, new.rejected_steps, new.alpha) == (radius, 1, 0.0)
    state = replace(init(START, method), s_list=[np.eye(4)[0]], y_list=[2.0 * np.eye(4)[0]])
    new = one(state, method=method, radius_rule=rule)
    assert (new.radius, new.rejected_steps, new.alpha) == (3.0, 1, 0.0)


@pytest.mark.parametrize("memory_size", [3, None])
@pytest.mark.parametrize("method", ["lsr1", "sr1n", "mosr1"])
@pytest.mark.parametrize("initial_scale", [None, 0.3])
def test_a_refused_step_forgets_the_pairs_and_in_mosr1_gamma(method, memory_size, initial_scale):
    options = {"method": method, "memory_size": memory_size, "initial_scale": initial_scale}
    state = replace(init(START, method, 1.0, initial_scale), gamma=7.0)
    if memory_size is None:
        state = replace(state, B=np.full((4, 4), np.inf))
    else:
        state = replace(state, s_list=[np.eye(4)[0]], y_list=[1e200 * np.eye(4)[1]])
    new = one(state, **options)
    assert (new.refused_steps, new.k) == (1, 1)
    assert (new.s_list, new.y_list, new.B) == ([], [], None)
    assert new.gamma == (0.0 if method == "mosr1" and initial_scale is None else 7.0)


@pytest.mark.parametrize("method", ["lsr1", "sr1n", "mosr1"])
def test_a_gradient_whose_square_overflows_is_finite(method):
    for solver in ("exact", "cg"):
        state = init(START, method)
        new = one(state, grad=lambda w: 1e200 * START, method=method, solver=solver)
        assert (new.k, new.skipped, new.refused_steps) == (1, 0, 0)
        s = -START / np.linalg.norm(START)
        rule = RadiusRule(accept=-np.inf)
        new = one(state, grad=lambda w: 1e200 * START, method=method, radius_rule=rule)
        np.testing.assert_allclose(new.w, START + s, rtol=1e-12)


def test_step_of_the_trust_region():
    state = away("lsr1", clip=lambda g: 0.5 * g)
    w, r, B = state.w, grad(state.w), hessian(state)
    assert np.linalg.eigvalsh(B)[0] < 0.0
    s = solve_exact(B, 0.5 * r, state.radius)
    # In between, ared is a tenth of the mean of the reductions predicted with r and with g.
    tenth = 0.1 * (-0.75 * r @ s - 0.5 * s @ B @ s)
    between = loss(w) - loss(w + s) - tenth
    for shift, accepted in ((-1.0, True), (between, True), (1.0, False), (-np.inf, False)):
        values = iter([loss(w) - shift, loss(w + s)])
        new = one(state, lambda x, v=values: next(v), method="lsr1", clip=lambda g: 0.5 * g)
        np.testing.assert_array_equal(new.w, w + s if accepted else w)
        stored = state.stored + np.isfinite(shift)
        counts = (new.k, new.stored, new.rejected_steps - state.rejected_steps)
        assert counts == (state.k + 1, stored, not accepted)
        ratio = reduction_ratio(loss(w) - shift, loss(w + s), -(r @ s + 0.5 * s @ B @ s))
        ratio = ratio if accepted else 0.0
        assert new.radius == next_radius(state.radius, ratio, np.linalg.norm(s))
        if np.isfinite(shift):
            y = grad(w + s) - r
            np.testing.assert_allclose(new.y_list[-1], y / np.linalg.norm(s), rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.5, None])
@pytest.mark.parametrize("memory_size", [3, None])
@pytest.mark.parametrize("solver", ["cg", "exact"])
@pytest.mark.parametrize("term", [False, True])
@pytest.mark.parametrize("method", ["sr1n", "mosr1"])
def test_step_with_momentum(method, term, solver, memory_size, momentum):
    settings = {"momentum": momentum, "memory_size": memory_size, "solver": solver}
    settings["convergence_term"] = term
    state = away(method, **settings)
    mu = 0.5 if momentum else quasi_newton.nesterov_momentum(0.95)(state.since_rejection)
    assert state.since_rejection > 0
    w_hat, v = state.w + mu * state.v, state.v
    assert np.linalg.norm(mu * v) > 1e-3
    np.testing.assert_allclose(state.params, w_hat if method == "sr1n" else state.w, rtol=1e-15)

    def clipped(g):
        return 0.7 * g

    r = grad(state.params)
    g_hat, r_hat, ready = 0.7 * r, r, state
    if method == "mosr1":
        state = replace(state, updates_prev=0.9 * state.g_prev)
        g_hat = (1.0 + mu) * 0.7 * r - mu * 0.9 * state.g_prev
        r_hat = (1.0 + mu) * r - mu * state.g_prev
        s, r_before = state.waiting
        y = r - r_before + term * xi(s, r - r_before, r_before) * s
        ready = with_pair(state, s, y, memory_size)
        assert ready.stored == state.stored + 1
    B = hessian(ready)
    s = solve_exact(B, g_hat, state.radius)
    if solver == "cg":  # 2m + 2 products, or 2d: both are eight here
        s = solve_cg(B, g_hat, state.radius, 8)
    eps = grad(w_hat + s) - r_hat
    if method == "sr1n":
        ready = with_pair(state, s, eps + term * xi(s, eps, r) * s, memory_size)
    tenth = 0.1 * (-0.5 * (g_hat + r_hat) @ s - 0.5 * s @ B @ s)
    between = loss(w_hat) - loss(w_hat + s) - tenth  # the two predictions differ in Δ
    for shift in (0.0, -1.0, 1.0, between):
        values = iter([loss(w_hat) - shift, loss(w_hat + s)])
        settings["clip"] = clipped
        new = one(state, lambda x, v=values: next(v), method=method, **settings)
        predicted = -(r_hat @ s + 0.5 * s @ B @ s)
        ratio = reduction_ratio(loss(w_hat) - shift, loss(w_hat + s), predicted)
        accepted = ratio > 1e-6
        assert accepted == (shift < 0.0) or shift not in (-1.0, 1.0)
        assert accepted or shift != between
        count = state.since_rejection + 1 if accepted else 0
        w_next, v_next = (w_hat + s, mu * v + s) if accepted else (state.w, v)
        ahead = 0.5 if momentum else quasi_newton.nesterov_momentum(0.95)(count)
        ahead = ahead if count and method == "sr1n" else 0.0
        np.testing.assert_allclose(new.w, w_next, rtol=1e-13)
        np.testing.assert_allclose(new.v, v_next, rtol=1e-13)
        np.testing.assert_allclose(new.params, w_next + ahead * v_next, rtol=1e-13)
        np.testing.assert_allclose(hessian(new), hessian(ready), rtol=1e-12)
        assert new.radius == next_radius(state.radius, ratio, np.linalg.norm(s))
        assert (new.since_rejection, new.alpha) == (count, accepted)
        assert (new.stored, new.rejected_steps) == (
            ready.stored,
            state.rejected_steps + (1 - accepted),
        )
        if method == "mosr1":
            assert (new.waiting is not None) == accepted
            np.testing.assert_array_equal(new.g_prev, r)
            np.testing.assert_array_equal(new.updates_prev, 0.7 * r)
            if accepted:
                np.testing.assert_allclose(new.waiting, [s, r_hat], rtol=1e-12)


def search_direction(state):
    """−H r with the pair that waits, or −H0 r where that leads uphill, and whether it does."""
    (s, r_before), r = state.waiting, grad(state.w)
    ready = with_pair(state, s, r - r_before, 3, inverse=True)
    H = inverse_hessian(ready)
    return (-H @ r, False) if r @ H @ r > 0.0 else (-r / ready.gamma, True)


@pytest.mark.parametrize("uphill", [False, True])
def test_step_of_the_line_search(uphill):
    states = walk("lsr1_search", 30, start=0.1 * START)[5:]
    state = next(state for state in states if search_direction(state)[1] == uphill)
    w, r = state.w, grad(state.w)
    along, _ = search_direction(state)
    for gain in (1.0, -1.0):  # of the wrong sign, as a clipped gradient can be
        for trial in (0, 3, 13):
            calls = []

            def values(x, calls=calls, trial=trial):
                calls.append(x)
                return 0.0 if len(calls) == 1 else -1e9 if len(calls) == trial + 2 else 1e9

            state = replace(state, lambda_prev=0.25)
            new = one(state, values, method="lsr1_search", clip=lambda g, gain=gain: gain * g)
            size = 0.5 * 0.5**trial
            assert (new.alpha, len(calls)) == (size, trial + 2)
            assert (new.lambda_prev, new.searches_failed) == (size, 0)
            np.testing.assert_allclose(new.w, w + size * gain * along, rtol=1e-12)
            np.testing.assert_allclose(new.waiting[0], size * gain * along, rtol=1e-8)
            np.testing.assert_array_equal(new.waiting[1], r)
    assert one(replace(state, lambda_prev=0.75), method="lsr1_search").alpha in 0.5 ** np.arange(9)
    for share, passes in ((1.01, True), (0.99, False)):  # of η times the slope with r, not with r/2
        value = share * 1e-3 * 0.5 * 0.5 * (r @ along)
        values = iter([0.0, value] + [1e9] * 13)
        state = replace(state, lambda_prev=0.25)
        new = one(state, lambda x, v=values: next(v), method="lsr1_search", clip=lambda g: 0.5 * g)
        assert (new.searches_failed == 0) == passes
        assert new.alpha == 0.5  # the lowest trial, where it does not pass
        assert new.lambda_prev == (0.5 if passes else 1.0)
    for flat in (lambda x: 1.0, lambda x: np.nan):  # no decrease is not enough
        failed = one(state, flat, method="lsr1_search")
        assert (failed.searches_failed, failed.refused_steps, failed.alpha) == (1, 1, 0.0)
        assert (failed.s_list, failed.waiting, failed.lambda_prev) == ([], None, 1.0)
        np.testing.assert_array_equal(failed.w, w)
    far = init(1e40 * START, "lsr1_search")
    falling = iter(range(0, -1000, -10))
    lost = one(far, lambda x: float(next(falling)), lambda x: START, method="lsr1_search")
    assert (lost.searches_failed, lost.refused_steps) == (0, 1)  # the step vanishes


def test_the_first_matrix_of_the_line_search():
    """Without a pair −H0 g has length 1, with one H0 is I/γ of the pairs; or what is given."""
    r = grad(START)
    for scale, d in ((None, -r / np.linalg.norm(r)), (1.0, -r), (5.0, -r / 5.0)):
        options = {"method": "lsr1_search", "initial_scale": scale}
        first = init(START, "lsr1_search", 1.0, scale)
        new = one(first, lambda x: -np.linalg.norm(x - START), **options)
        np.testing.assert_allclose(new.w - START, d, rtol=1e-12)
        then = one(new, **options)
        expected = 0.5 * d @ (grad(new.w) - r) / (d @ d) if scale is None else scale
        assert (then.stored, then.gamma) == (1, pytest.approx(expected, rel=1e-12))
    still = one(init(START, "lsr1_search"), method="lsr1_search", clip=np.zeros_like)
    np.testing.assert_array_equal(still.w, START)


# Relations.


def test_sr1n_without_momentum_and_xi_is_lsr1():
    settings = {"start": 0.3 * START, "radius": 0.7}
    lsr1 = walk("lsr1", 25, **settings)
    nesterov = {"momentum": 0.0, "solver": "exact"}
    for a, b in zip(lsr1, walk("sr1n", 25, **settings, **nesterov), strict=True):
        assert_states_equal(b, a, without=("v", "since_rejection"))
    assert lsr1[-1].rejected_steps > 0
    other = walk("sr1n", 25, **settings, **nesterov, convergence_term=True)
    assert np.any(other[5].w != lsr1[5].w)


@pytest.mark.parametrize(
    ("method", "memory_size"),
    [(m, size) for m in METHODS for size in (3, 8, None) if size or m in ("sr1n", "mosr1")],
)
def test_the_methods_reach_a_minimum(method, memory_size):
    last = walk(method, 300, memory_size=memory_size)[-1]
    assert np.linalg.norm(grad(last.w)) < 1e-5
    assert np.linalg.eigvalsh(A + np.diag(3.0 * last.w**2))[0] > 0.0
