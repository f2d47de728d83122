"""The symmetric-rank-one references are tested before anything is tested against them."""

from dataclasses import fields, replace

import numpy as np
import pytest
from reference import quasi_newton, symmetric_rank_one
from reference.quasi_newton import xi
from reference.symmetric_rank_one import METHODS, init, step
from reference.symmetric_rank_one_memory import compact, hessian, inverse_hessian, with_pair
from reference.trust_region import next_radius, solve_cg, solve_exact

# E(w) = ½wᵀAw with an indefinite A, plus ¼Σw⁴.
A = np.diag([4.0, 1.0, -0.5, 2.0]) + 0.3
START = np.array([1.0, -2.0, 0.5, 1.5])


def loss(w):
    return float(0.5 * w @ A @ w + 0.25 * np.sum(w**4))


def grad(w):
    return A @ w + w**3


def walk(method, steps, *, start=START, radius=None, memory_size=3, **settings):
    states = [init(start, method, radius)]
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


# The matrices.


def symmetric_rank_one_updates(B, pairs):
    for s, y in pairs:
        r = y - B @ s
        B = B + np.outer(r, r) / (r @ s)
    return B


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("gamma", [1.0, 0.2, 30.0])
def test_compact_form_is_the_updates_one_after_the_other(count, gamma):
    S, Y = np.random.default_rng(count).normal(size=(2, count, 7))
    B = compact(list(S), list(Y), gamma, 7)
    expected = symmetric_rank_one_updates(gamma * np.eye(7), list(zip(S, Y, strict=True)))
    np.testing.assert_allclose(B, expected, rtol=0, atol=1e-10 * np.max(np.abs(expected)))
    if count:
        np.testing.assert_allclose(B @ S[-1], Y[-1], rtol=0, atol=1e-10 * np.max(np.abs(B)))
    if gamma == 1.0:  # self-duality: H with H0 = I is the inverse of that B
        H = compact(list(Y), list(S), 1.0, 7)
        np.testing.assert_allclose(H @ B, np.eye(7), rtol=0, atol=1e-9)
        inverse = np.linalg.inv(expected)
        np.testing.assert_allclose(H, inverse, rtol=0, atol=1e-9 * np.max(np.abs(inverse)))


EMPTY = init(np.zeros(2), "sr1n")
E1, E2 = np.eye(2)


@pytest.mark.parametrize("memory", ["limited", "dense", "inverse"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_two_tests_of_a_pair(memory, scale, factor):
    """Just inside and just outside the bounds, against B = I or H = I."""
    state = replace(EMPTY, B=np.eye(2)) if memory == "dense" else EMPTY
    size = None if memory == "dense" else 3

    def stored(s, y):
        new = with_pair(state, scale * s, scale * y, size, memory == "inverse")
        assert new.stored + new.refused == 1
        return new.stored

    y = E1 / 2 + (0.5 + 0.6e-8 * factor) * E2 if memory == "inverse" else E1 + 1.5e-8 * factor * E1
    assert stored(E1, y if memory == "inverse" else y + E2) == (factor == 1.0)
    assert stored(E1, E1 + 1.5e-6 * factor * (E1 + E2) / np.sqrt(2)) == (factor == 1.0)
    bad = [(E1, E1), (0 * E1, E2), (np.nan + E1, E2), (E1, E2 + np.inf), (E1, 1e200 * E1)]
    bad += [(1e-170 * E1, E2), (1e-10 * E1, 1e150 * E1)] if scale == 1.0 else []
    assert not any(stored(s, y) for s, y in bad)
    assert stored(E1, -E1)  # negative curvature is welcome


def test_the_matrix_before_the_pair_is_the_one_it_is_tested_against():
    s, y = np.array([1.0, 1.0]) / np.sqrt(2), np.array([3.0, 1.0])
    for size, inverse in ((3, False), (None, False), (3, True)):
        state = with_pair(EMPTY, s, y, size, inverse)
        again = with_pair(state, 2.0 * s, 2.0 * y, size, inverse)
        matrix = inverse_hessian(state) if inverse else hessian(state)
        left, right = (y, s) if inverse else (s, y)
        np.testing.assert_allclose(matrix @ left, right, rtol=1e-12)
        # The same pair again: refused, or else it is singular and drives the first one out.
        assert again.refused == 1 or len(again.s_list) == 1


def test_gamma():
    state = with_pair(EMPTY, E1, 2.0 * E1 + E2, 3)
    assert state.gamma == pytest.approx(2.5)
    state = with_pair(state, 3.0 * E2, -3.0 * E2 + E1, 3)
    assert (len(state.s_list), state.gamma) == (2, pytest.approx(2.5))  # sᵀy < 0
    np.testing.assert_allclose(state.s_list[1], E2)
    np.testing.assert_allclose(state.y_list[1], E1 / 3.0 - E2)
    state = with_pair(state, E1, 1e-4 * E1 + 0.001 * E2, 2)  # yᵀy/sᵀy = 0.0101, the oldest goes
    assert (len(state.s_list), state.gamma) == (2, pytest.approx(0.0101))
    np.testing.assert_allclose(state.s_list[0], E2)
    for other in (-E1 + E2, -E2 + E1 / 7.0):  # no pair of the two has sᵀy > 0: the last γ
        state = with_pair(state, E1 if other[0] < 0 else E2, other, 2)
        assert state.gamma == pytest.approx(0.0101)
    assert with_pair(EMPTY, E1, 1e-8 * E1 + E2, 3).gamma == 1e3
    assert with_pair(EMPTY, E1, 1e-5 * (E1 + E2), 3).gamma == 1e-3
    dense = with_pair(EMPTY, E1, 2.0 * E1 + E2, None)
    expected = symmetric_rank_one_updates(2.5 * np.eye(2), [(E1, 2.0 * E1 + E2)])
    np.testing.assert_allclose(dense.B, expected, rtol=1e-14)
    dense = with_pair(EMPTY, E1, -2.0 * E1 + E2, None)
    expected = symmetric_rank_one_updates(np.eye(2), [(E1, -2.0 * E1 + E2)])
    np.testing.assert_allclose(dense.B, expected, rtol=1e-14)
    new = with_pair(EMPTY, E1, 2.0 * E1, None)  # y = γs, which γI explains
    np.testing.assert_array_equal(new.B, 2.0 * np.eye(2))
    assert (new.gamma, new.stored, new.refused) == (2.0, 1, 0)
    new = with_pair(EMPTY, E1, E1, None)  # y = s, which I explains
    assert (new.B, new.gamma, new.stored, new.refused) == (None, 1.0, 0, 1)
    assert with_pair(EMPTY, E1, 2.0 * E1 + E2, 3, inverse=True).gamma == 1.0
    for excess, refused in ((1e-7, 1), (1e-2, 0)):  # negligible is what is near γs
        assert with_pair(replace(EMPTY, gamma=3.0), E1, (3.0 + excess) * E1, 3).refused == refused
        assert with_pair(replace(EMPTY, gamma=3.0), E1, (1.0 + excess) * E1, 3).refused == 0


def test_the_oldest_pairs_go_while_the_small_matrix_is_singular():
    new = with_pair(EMPTY, E1, 2.0 * E1, 3)  # γ becomes 2, and M⁻¹ = 0
    assert (new.s_list, new.y_list, new.gamma, new.stored) == ([], [], 2.0, 1)
    np.testing.assert_array_equal(hessian(new), 2.0 * np.eye(2))
    # Before, γ = 3; the new pair makes it 2, and of the three older ones the second has y = 2s.
    e1, e2, e3, e4 = np.eye(4)
    old = replace(
        init(np.zeros(4), "lsr1"), gamma=3.0, s_list=[e1, e2, e3], y_list=[-e1, 2.0 * e2, -2.0 * e3]
    )
    new = with_pair(old, e4, e1 + e4, 5)
    assert (new.gamma, new.stored) == (2.0, 1)
    np.testing.assert_array_equal(new.s_list, [e3, e4])
    np.testing.assert_array_equal(new.y_list, [-2.0 * e3, e1 + e4])
    assert len(with_pair(replace(old, y_list=[-e1, e1, -e3]), e4, e1 + e4, 5).s_list) == 4
    for excess, kept in ((1e-14, 1), (1e-10, 2)):  # measured by yᵀy, here 4, below 4e4
        old = replace(EMPTY, s_list=[E1], y_list=[(1.0 + excess) * E1])
        assert len(with_pair(old, E2, -2.0 * E2, 3, inverse=True).s_list) == kept
    assert len(with_pair(old, E2, -200.0 * E2, 3, inverse=True).s_list) == 1


# Single steps.


def away(method, **settings):
    """A state on the way: with momentum three steps after a rejected one, else of indefinite B."""
    states = walk(method, 30, start=0.3 * START, radius=0.2, **settings)[5:]
    if method in ("sr1n", "mosr1"):
        return next(state for state in states if state.since_rejection >= 3)
    matrix = inverse_hessian if method == "lsr1_search" else hessian
    return next(state for state in states if np.linalg.eigvalsh(matrix(state))[0] < 0.0)


@pytest.mark.parametrize("size", [0.05, 1.0])
@pytest.mark.parametrize("factor", [None, 0.1])
def test_first_step_of_the_trust_region(size, factor):
    """Its B is I and its Δ is ‖r‖, so that s = −g; the long one is rejected."""
    w = size * START
    r = grad(w)
    s = -r if factor is None else -factor * r
    new = walk("lsr1", 1, start=w, clip=None if factor is None else lambda g: factor * g)[1]
    ratio = (loss(w) - loss(w + s)) / -(r @ s + 0.5 * s @ s)
    assert (ratio > 1e-6) == (factor is not None)
    np.testing.assert_allclose(new.w, w + s if ratio > 1e-6 else w, rtol=1e-14)
    np.testing.assert_array_equal(new.params, new.w)
    norm = np.linalg.norm(s)
    np.testing.assert_allclose(new.s_list, [s / norm], rtol=1e-13)
    np.testing.assert_allclose(new.y_list, [(grad(w + s) - r) / norm], rtol=1e-10)
    assert new.radius == pytest.approx(next_radius(np.linalg.norm(r), ratio, norm), rel=1e-14)
    assert (new.k, new.stored, new.rejected_steps, new.alpha) == (1, 1, ratio < 0, ratio > 0)


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
        ratio = (loss(w) - shift - loss(w + s)) / -(r @ s + 0.5 * s @ B @ s)
        ratio = ratio if accepted else 0.0
        assert new.radius == next_radius(state.radius, ratio, np.linalg.norm(s))
        if np.isfinite(shift):
            y = grad(w + s) - r
            np.testing.assert_allclose(new.y_list[-1], y / np.linalg.norm(s), rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.5, None])
@pytest.mark.parametrize("memory_size", [3, None])
@pytest.mark.parametrize("solver", ["cg", "exact"])
@pytest.mark.parametrize("method", ["sr1n", "mosr1"])
def test_step_with_momentum(method, solver, memory_size, momentum):
    settings = {"momentum": momentum, "memory_size": memory_size, "solver": solver}
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
        g_hat = 0.7 * r + mu * (r - state.g_prev)
        r_hat = (1.0 + mu) * r - mu * state.g_prev
        s, r_before = state.waiting
        y = r - r_before + xi(s, r - r_before, r_before) * s
        ready = with_pair(state, s, y, memory_size)
        assert ready.stored == state.stored + 1
    B = hessian(ready)
    s = solve_exact(B, g_hat, state.radius)
    if solver == "cg":  # 2m + 2 products, or 2d: both are eight here
        s = solve_cg(B, g_hat, state.radius, 8)
    eps = grad(w_hat + s) - r_hat
    if method == "sr1n":
        ready = with_pair(state, s, eps + xi(s, eps, r) * s, memory_size)
    tenth = 0.1 * (-0.5 * (g_hat + r_hat) @ s - 0.5 * s @ B @ s)
    between = loss(w_hat) - loss(w_hat + s) - tenth  # the two predictions differ in Δ
    for shift in (0.0, -1.0, 1.0, between):
        values = iter([loss(w_hat) - shift, loss(w_hat + s)])
        settings["clip"] = clipped
        new = one(state, lambda x, v=values: next(v), method=method, **settings)
        predicted = -(r_hat @ s + 0.5 * s @ B @ s)
        ratio = (loss(w_hat) - shift - loss(w_hat + s)) / predicted
        accepted = ratio > 1e-6
        assert accepted == (shift < 0.0) or shift not in (-1.0, 1.0)
        assert accepted or shift != between
        count = state.since_rejection + 1 if accepted else 0
        w_next, v_next = (w_hat + s, mu * v + s) if accepted else (state.w, v)
        ahead = 0.5 if momentum else quasi_newton.nesterov_momentum(0.95)(count)
        ahead = ahead if method == "sr1n" else 0.0
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
            if accepted:
                np.testing.assert_allclose(new.waiting, [s, r_hat], rtol=1e-12)


def test_step_of_the_line_search():
    state = away("lsr1_search")
    w, r = state.w, grad(state.w)
    s, r_before = state.waiting
    ready = with_pair(state, s, r - r_before, 3, inverse=True)
    H = inverse_hessian(ready)
    for gain in (1.0, -1.0):  # −1 reaches the other side of an indefinite H
        g = gain * r
        d = -H @ g if g @ H @ g > 0.0 else -g
        assert np.any(d != -g) or gain * (r @ H @ r) < 0.0
        for trial in (0, 3, 13, 14):
            calls = []

            def values(x, calls=calls, trial=trial):
                calls.append(x)
                return 0.0 if len(calls) == 1 else -1e9 if len(calls) == trial + 2 else 1e9

            state = replace(state, lambda_prev=0.25)
            new = one(state, values, method="lsr1_search", clip=lambda g, gain=gain: gain * g)
            size = 0.5 * 0.5 ** min(trial, 13)
            assert (new.alpha, len(calls)) == (size, min(trial + 2, 15))
            assert new.lambda_prev == (size if trial < 14 else 1.0)
            assert new.searches_failed == (trial == 14)
            np.testing.assert_allclose(new.w, w + size * d, rtol=1e-12)
            np.testing.assert_allclose(new.waiting[0], size * d, rtol=1e-8)
            np.testing.assert_array_equal(new.waiting[1], r)
    assert one(replace(state, lambda_prev=0.75), method="lsr1_search").alpha in 0.5 ** np.arange(9)
    d = -H @ r if r @ H @ r > 0.0 else -r
    for share, passes in ((1.01, True), (0.99, False)):  # of η times the slope with r, not with r/2
        value = share * 1e-3 * 0.5 * 0.5 * (r @ d)
        values = iter([0.0, value] + [1e9] * 13)
        state = replace(state, lambda_prev=0.25)
        new = one(state, lambda x, v=values: next(v), method="lsr1_search", clip=lambda g: 0.5 * g)
        assert (new.alpha == 0.5) == passes
    flat = one(state, lambda x: 1.0, method="lsr1_search")  # no decrease is not enough
    assert (flat.searches_failed, flat.alpha) == (1, 0.5**14)


# Relations.


def test_sr1n_without_momentum_and_xi_is_lsr1(monkeypatch):
    settings = {"start": 0.3 * START, "radius": 0.7}
    lsr1 = walk("lsr1", 25, **settings)
    nesterov = {"momentum": 0.0, "solver": "exact"}
    other = walk("sr1n", 25, **settings, **nesterov)
    assert np.any(other[5].w != lsr1[5].w)
    monkeypatch.setattr(symmetric_rank_one, "xi", lambda *_: 0.0)
    for a, b in zip(lsr1, walk("sr1n", 25, **settings, **nesterov), strict=True):
        assert_states_equal(b, a, without=("v", "since_rejection"))
    assert lsr1[-1].rejected_steps > 0


@pytest.mark.parametrize(
    ("method", "memory_size"),
    [(m, size) for m in METHODS for size in (3, 8, None) if size or m in ("sr1n", "mosr1")],
)
def test_the_methods_reach_a_minimum(method, memory_size):
    last = walk(method, 300, memory_size=memory_size)[-1]
    assert np.linalg.norm(grad(last.w)) < 1e-5
    assert np.linalg.eigvalsh(A + np.diag(3.0 * last.w**2))[0] > 0.0
