"""The runs of the symmetric-rank-one references, and what faults do to their states."""

import copy
import functools
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from reference import quasi_newton, symmetric_rank_one
from reference.quasi_newton import xi
from reference.symmetric_rank_one import METHODS, init, step
from reference.symmetric_rank_one_memory import hessian, inverse_hessian
from reference.symmetric_rank_one_runs import RUNS, STEPS, clip, problem, resolve, trajectory
from reference.trust_region import RadiusRule, next_radius, reduction_ratio

pytestmark = pytest.mark.slow  # they change only with the listings

states_of = functools.cache(lambda name: trajectory(RUNS[name]))
TRUST = [name for name, run in RUNS.items() if run.method != "lsr1_search"]
MOMENTUM = [name for name in TRUST if RUNS[name].method != "lsr1"]


def counts(state):
    return state.stored, state.refused, state.rejected_steps, state.searches_failed


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_well_conditioned_and_eventful(name):
    run, states, disturbance = RUNS[name], states_of(name), 1e-14
    others = trajectory(run, disturbance)
    for state, other in zip(states, others, strict=True):
        np.testing.assert_allclose(other.w, state.w, rtol=0, atol=1e5 * disturbance)
        assert counts(other) == counts(state)
    last = states[-1]
    assert last.k == STEPS
    assert last.skipped == last.refused_steps == last.searches_failed == 0
    assert last.refused == ("refused" in name)
    search = run.method == "lsr1_search"
    matrix = inverse_hessian if search else hessian
    assert sum(np.linalg.eigvalsh(matrix(state))[0] < 0.0 for state in states) >= 2
    rejected = last.rejected_steps
    if search:
        assert rejected == 0
        assert sum(state.alpha < 1.0 for state in states[1:]) >= 10
    else:
        assert states[30].rejected_steps >= 1
        assert any(new.radius > old.radius > 0.0 for old, new in pairwise(states))
        assert rejected <= 25
    # A step whose pair waits for its gradient is the last one, or is followed by that pair.
    waits = run.method in ("lsr1_search", "mosr1")
    without = rejected * (run.method == "mosr1") + (waits and last.waiting is not None)
    assert last.stored + last.refused == STEPS - without
    assert len(last.s_list) == len(last.y_list) == (run.settings["memory_size"] or 0)
    at_step = problem(run)[1]
    losses = [at_step(k)[0] for k in range(12)]
    first, final = (np.mean([loss(w) for loss in losses]) for w in (states[0].w, last.w))
    assert final < (0.9 if run.batches == "mini" else 0.3) * first
    if run.clip_norm is not None:
        norms = [np.linalg.norm(at_step(k)[1](state.params)) for k, state in enumerate(states)]
        assert 5 <= sum(norm > run.clip_norm for norm in norms) <= STEPS - 5


def test_the_runs_reach_every_form():
    forms = {(r.method, r.settings["memory_size"] is None, r.batches) for r in RUNS.values()}
    nesterov = {(m, d, b) for m in METHODS[2:] for d in (False, True) for b in ("full", "mini")}
    assert forms == nesterov | {(method, False, "full") for method in METHODS[:2]}
    assert {run.method for name, run in RUNS.items() if "refused" in name} == set(METHODS)
    assert {run.method for run in RUNS.values() if run.clip_norm} == set(METHODS)
    trust = {RUNS[name].method for name in TRUST}
    fixed = [run for run in RUNS.values() if "initial_scale" in run.settings]
    assert {run.method for run in fixed} == set(METHODS)
    assert any(run.settings["memory_size"] is None for run in fixed)
    free = [run for run in RUNS.values() if run.settings.get("initial_radius", 1.0) is None]
    assert {run.method for run in free} == trust
    terms = {run.method for run in RUNS.values() if run.settings.get("convergence_term")}
    assert terms == {"sr1n", "mosr1"}
    assert any(run.radius_rule != RadiusRule() for run in RUNS.values())


def count_momentum(run):
    """The schedule of a run as a function of the count since the last rejection."""
    momentum = resolve(run.settings, quasi_newton).get("momentum", 0.0)
    return momentum if callable(momentum) else lambda count: momentum if count else 0.0


def sequential(B, state):
    for s, y in zip(state.s_list, state.y_list, strict=True):
        r = y - B @ s
        B = B + np.outer(r, r) / (r @ s)
    return B


@pytest.mark.parametrize("name", TRUST)
def test_each_step_follows_from_the_iterates(name):
    """Steps, velocities, radii and pairs are computed anew from w, v and the matrix of before."""
    run, states = RUNS[name], states_of(name)
    mu_of, at_step, count = count_momentum(run), problem(run)[1], 0
    exact = run.settings.get("solver", "exact") == "exact"
    for k, (old, new) in enumerate(pairwise(states)):
        loss, grad = at_step(k)
        mu = mu_of(count)
        w_hat = old.w + mu * old.v
        np.testing.assert_allclose(
            old.params, old.w if run.method == "mosr1" else w_hat, rtol=1e-12
        )
        ready = new if run.method == "mosr1" else old  # with the pairs of the step
        B = hessian(ready)
        if run.settings["memory_size"] is not None:
            expected = sequential(old.gamma * np.eye(old.w.size), old)
            np.testing.assert_allclose(hessian(old), expected, rtol=0, atol=1e-6)
        count = count + 1 if new.alpha else 0
        assert new.since_rejection == (0 if run.method == "lsr1" else count)
        s = new.w - w_hat
        if not new.alpha:
            np.testing.assert_array_equal(new.w, old.w)
            np.testing.assert_array_equal(new.v, old.v)
            assert k == 0 or new.radius == run.radius_rule.shrink * old.radius
            assert new.waiting is None
            continue
        if run.method != "lsr1":
            np.testing.assert_allclose(new.v, mu * old.v + s, rtol=0, atol=1e-12)
        r = grad(old.params)
        g = r if run.clip_norm is None else clip(run.clip_norm)(r)
        radius = old.radius or np.linalg.norm(r)
        if run.method == "mosr1":
            before = r if k == 0 else at_step(k - 1)[1](states[k - 1].params)
            clipped = before if run.clip_norm is None else clip(run.clip_norm)(before)
            g, r = (1.0 + mu) * g - mu * clipped, (1.0 + mu) * r - mu * before
        length = np.linalg.norm(s)
        assert length <= radius * (1.0 + 1e-10)
        if not (ready.s_list or ready.B is not None or "initial_scale" in run.settings):
            size = np.linalg.norm(g)
            B = size / radius * np.eye(s.size)
            np.testing.assert_allclose(s, -radius * g / size, rtol=0, atol=1e-12)
        if exact:
            sigma = max(-(s @ (g + B @ s)) / (s @ s), 0.0) if length > 0.999999 * radius else 0.0
            np.testing.assert_allclose(g + B @ s, -sigma * s, rtol=0, atol=1e-8)
            assert sigma + np.linalg.eigvalsh(B)[0] > -1e-8
        ratio = reduction_ratio(loss(w_hat), loss(w_hat + s), -(r @ s + 0.5 * s @ B @ s))
        assert ratio > run.radius_rule.accept
        following = next_radius(radius, ratio, length, run.radius_rule)
        assert new.radius == pytest.approx(following, rel=1e-12)
        if run.method == "mosr1" and k + 1 < STEPS:
            new, grad = states[k + 2], at_step(k + 1)[1]
        elif run.method == "mosr1":
            continue
        eps = grad(w_hat + s) - r
        y = eps + (xi(s, eps, r) if "term" in name else 0.0) * s
        if "refused" in name and k == 0:
            assert not new.s_list
        elif run.settings["memory_size"] is None:
            np.testing.assert_allclose(new.B @ s, y, rtol=0, atol=1e-9)
        else:
            np.testing.assert_allclose(new.s_list[-1], s / length, rtol=0, atol=1e-11)
            np.testing.assert_allclose(new.y_list[-1], y / length, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TRUST)
def test_gamma_follows_from_the_pairs(name):
    """With pairs ½ max sᵀy/sᵀs, of those of positive curvature; dense that of the first one."""
    run, states = RUNS[name], states_of(name)
    first = next(state for state in states if state.s_list or state.B is not None)
    for old, new in pairwise(states):
        curvatures = [s @ y for s, y in zip(new.s_list, new.y_list, strict=True)]
        if "initial_scale" in run.settings:
            assert new.gamma == run.settings["initial_scale"]
        elif new.B is not None:
            assert new.gamma == first.gamma
        elif curvatures:
            expected = 0.5 * max(curvatures) if max(curvatures) > 0.0 else old.gamma
            assert new.gamma == pytest.approx(expected, rel=1e-14)


# Faults, after some twelve steps of some runs.

FAULTY = (
    "lsr1_two",
    "search",
    "sr1n",
    "sr1n_dense",
    "sr1n_half",
    "mosr1",
    "mosr1_dense",
    "mosr1_half",
)


def assert_states_equal(actual, expected):
    for field in fields(expected):
        left, right = getattr(actual, field.name), getattr(expected, field.name)
        assert (left is None) == (right is None), field.name
        if left is not None:
            left, right = (np.array(side, dtype=float) for side in (left, right))
            np.testing.assert_array_equal(left, right, err_msg=field.name)


def at_fault(name):
    """A state, its loss and gradient, and a step from there with other options."""
    run = RUNS[name]
    plain = run.method.startswith("lsr1")
    state = next(s for s in states_of(name)[12:] if s.alpha and (plain or np.any(s.v)))
    loss, grad = problem(run)[1](state.k)
    settings = {"method": run.method, **resolve(run.settings, quasi_newton)}

    def take(state=state, loss=loss, grad=grad, **options):
        return step(state, loss, grad, **{**settings, **options})

    return state, loss, grad, take


def refused(state, **changes):
    empty = {"s_list": [], "y_list": [], "B": None, "waiting": None, "alpha": 0.0}
    still = {"v": np.zeros_like(state.v), "params": state.w, "since_rejection": 0}
    return replace(state, k=state.k + 1, refused_steps=1, **{**empty, **still, **changes})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FAULTY)
def test_skipped_steps(name, bad):
    state, _, grad, take = at_fault(name)
    before = copy.deepcopy(state)
    once = replace(state, skipped=1, skipped_in_a_row=1)
    for clipping in (None, np.ones_like):
        assert_states_equal(take(grad=lambda x: bad + grad(x), clip=clipping), once)
    assert_states_equal(take(clip=lambda g: bad + g), once)
    assert_states_equal(
        take(replace(state, skipped=4), clip=lambda g: bad + g), replace(once, skipped=5)
    )
    assert_states_equal(state, before)


@pytest.mark.parametrize("name", FAULTY)
def test_zero_gradients(name):
    state, _, _, take = at_fault(name)
    method = RUNS[name].method
    if method == "mosr1":  # ĝ = (1 + μ)updates − μ updates_prev
        new = take(clip=np.zeros_like)
        assert new.waiting is not None or new.rejected_steps > state.rejected_steps
        new = take(replace(state, updates_prev=np.zeros_like(state.w)), clip=np.zeros_like)
    else:
        new = take(clip=np.zeros_like)
    assert (new.k, new.radius) == (state.k + 1, state.radius)
    if method == "lsr1":
        assert_states_equal(new, replace(state, k=state.k + 1))
    elif method == "lsr1_search":
        np.testing.assert_array_equal(new.w, state.w)
        assert take(new).refused == 1  # s = 0
    else:
        mu_of = count_momentum(RUNS[name])
        v = mu_of(state.since_rejection) * state.v
        np.testing.assert_array_equal(new.v, v)
        np.testing.assert_allclose(new.w, state.w + v, rtol=1e-14)
        ahead = 0.0 if method == "mosr1" else mu_of(state.since_rejection + 1) * v
        np.testing.assert_allclose(new.params, new.w + ahead, rtol=1e-14)
        assert new.since_rejection == state.since_rejection + 1
        assert new.waiting is None
        assert new.stored == state.stored + (method == "mosr1")  # the pair that waited
        first = take(init(state.w, method), grad=np.zeros_like)
        assert_states_equal(
            replace(first, g_prev=None, updates_prev=None),
            replace(init(state.w, method), k=1, since_rejection=1, alpha=1.0),
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name in FAULTY if name != "search"])
def test_trials_that_are_not_finite_are_rejected(name, bad):
    state, loss, grad, take = at_fault(name)
    method, mu_of = RUNS[name].method, count_momentum(RUNS[name])
    start = state.w + mu_of(state.since_rejection) * state.v if method == "mosr1" else state.params

    def at_start(value, other):
        return lambda x: value(x) if np.array_equal(x, start) else other(x)

    trials = [take(loss=at_start(loss, lambda x: bad)), take(loss=at_start(lambda x: bad, loss))]
    if method != "mosr1":
        trials.append(take(grad=at_start(grad, lambda x: bad + x)))
    for new in trials:
        expected = replace(
            state,
            k=state.k + 1,
            radius=state.radius / 2.0,
            alpha=0.0,
            rejected_steps=state.rejected_steps + 1,
        )
        if method != "lsr1":
            expected = replace(expected, since_rejection=0)
        if method == "sr1n":
            expected = replace(expected, params=state.w + mu_of(0) * state.v)
        if method == "mosr1":  # the pair that waited has its gradient
            memory = take()
            kept = ("s_list", "y_list", "B", "gamma", "stored", "refused", "g_prev", "updates_prev")
            kept = {field: getattr(memory, field) for field in kept}
            expected = replace(expected, waiting=None, **kept)
        assert_states_equal(new, expected)


@pytest.mark.parametrize("name", [name for name in FAULTY if name != "search"])
def test_steps_that_are_not_finite_are_refused(name):
    state, _, grad, take = at_fault(name)
    method = RUNS[name].method
    huge = replace(state, waiting=None)
    if state.B is not None:
        huge = replace(huge, B=np.full_like(state.B, np.inf))
    else:
        e1, e2, *_ = np.eye(state.w.size)
        huge = replace(huge, s_list=[e1], y_list=[1e200 * e2])
    r = grad(state.params)
    previous = {"g_prev": r, "updates_prev": r, "gamma": 0.0} if method == "mosr1" else {}
    new = take(huge)
    assert_states_equal(new, refused(state, **previous))
    after = take(new)
    assert (after.k, after.refused_steps) == (state.k + 2, 1)
    if method == "mosr1":  # ĝ overflows though no gradient does
        r = 0.9 * np.finfo(np.float64).max * np.ones_like(state.w)
        overflowing = replace(state, g_prev=-r, updates_prev=-r, waiting=None)
        new = take(overflowing, grad=lambda x: r)
        assert_states_equal(new, refused(state, g_prev=r, updates_prev=r, gamma=0.0))


def test_line_searches_that_are_not_finite():
    state, loss, grad, take = at_fault("search")

    def at_start(value, other):
        return lambda x: value if np.array_equal(x, state.w) else other(x)

    paired = take()
    expected = refused(state, lambda_prev=1.0, searches_failed=1)
    pairs = {name: getattr(paired, name) for name in ("stored", "refused", "gamma")}
    expected = replace(expected, **pairs)
    assert_states_equal(take(loss=at_start(1.0, lambda x: np.nan)), expected)
    new = take(loss=at_start(np.nan, loss))  # no trial passes, and the lowest one is taken
    sizes = min(1.0, 2.0 * state.lambda_prev) * 0.5 ** np.arange(14)
    assert new.alpha in sizes
    assert (new.lambda_prev, new.searches_failed, new.refused_steps) == (1.0, 1, 0)
    d = (new.w - state.w) / new.alpha
    assert loss(new.w) == pytest.approx(min(loss(state.w + size * d) for size in sizes), rel=1e-12)
    assert_states_equal(take(loss=at_start(-np.inf, loss)), expected)
    e1, e2, *_ = np.eye(state.w.size)
    huge = replace(state, s_list=[1e200 * e1], y_list=[e2], waiting=None)
    new = take(huge)  # H g is not finite
    g = grad(state.w)
    np.testing.assert_allclose(new.w, state.w - new.alpha * g / np.linalg.norm(g), rtol=1e-12)
    assert new.refused_steps == 0


def test_the_solvers_are_called_as_said(monkeypatch):
    calls = []
    monkeypatch.setattr(
        symmetric_rank_one, "solve_cg", lambda B, g, radius, products: calls.append(products) or -g
    )
    for name in ("sr1n", "sr1n_dense", "mosr1"):
        at_fault(name)[3]()
        at_fault(name)[3](solver="exact")
        at_fault(name)[3](solver=None)
    at_fault("lsr1_two")[3]()
    assert calls == [8, 8, 168, 168, 8, 8]
