"""The variance-reduced references are tested before anything is tested against them."""

import copy
import functools
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from reference import network, quasi_newton
from reference.quasi_newton_runs import resolve
from reference.two_loop import dense_bfgs
from reference.variance_reduced import METHODS, init, step, take_snapshot
from reference.variance_reduced_runs import RUNS, STEPS, problem, takes_snapshot, trajectory

MEMORIES = [pytest.param(3, id="limited"), pytest.param(None, id="dense")]
RNG = np.random.default_rng(0)
# Twelve quadratics ½(w − c)ᵀA(w − c), whose mean is strongly convex with its minimum at MINIMUM.
HESSIANS = [np.diag(RNG.uniform(0.5, 4.0, 4)) for _ in range(12)]
CENTERS = [RNG.normal(size=4) for _ in range(12)]
MEAN_HESSIAN = np.mean(HESSIANS, axis=0)
MINIMUM = np.linalg.solve(
    MEAN_HESSIAN, np.mean([A @ c for A, c in zip(HESSIANS, CENTERS, strict=True)], axis=0)
)
START = np.array([1.0, -2.0, 0.5, 1.5])


def component(k):
    return lambda w: HESSIANS[k % 12] @ (w - CENTERS[k % 12])


def full_grad(w):
    return MEAN_HESSIAN @ (w - MINIMUM)


def walk(method, steps, *, every=12, first=0, memory_size=3, order=None, **settings):
    states = [init(START)]
    for k in range(steps):
        state = states[-1]
        if every and k >= first and (k - first) % every == 0:
            state = take_snapshot(state, full_grad(state.w), method=method, memory_size=memory_size)
        batch = component(k if order is None else order[k])
        states.append(step(state, batch, method=method, **settings))
    return states


def assert_states_equal(actual, expected):
    for field in fields(expected):
        left, right = getattr(actual, field.name), getattr(expected, field.name)
        assert (left is None) == (right is None), field.name
        if left is not None:
            np.testing.assert_array_equal(left, right, err_msg=field.name)


states_of = functools.cache(lambda name: trajectory(RUNS[name]))


# Whole runs.


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_well_conditioned_and_eventful(name):
    run, states, disturbance = RUNS[name], states_of(name), 1e-14
    for state, other in zip(states, trajectory(run, disturbance), strict=True):
        np.testing.assert_allclose(other.w, state.w, rtol=0, atol=1e4 * disturbance)
        assert (other.stored, other.refused) == (state.stored, state.refused)
    last = states[-1]
    assert (last.k, last.snapshots, last.plain_steps) == (STEPS, 8, 5)
    assert last.skipped == last.refused_steps == last.refused_snapshots == 0
    assert last.stored + last.refused == (0 if run.method == "svrg" else 7)
    assert last.refused == ("refused" in name)
    assert len(last.s_list) == (0 if run.method == "svrg" else run.memory_size or 0)
    batches = network.batches(run.seed)
    ends = [np.mean([network.loss(w, batch) for batch in batches]) for w in (states[0].w, last.w)]
    assert ends[1] < 0.5 * ends[0]
    if run.clip_norm is not None:
        norms = [np.linalg.norm(problem(run)[1](k)(state.params)) for k, state in enumerate(states)]
        assert 10 <= sum(norm > run.clip_norm for norm in norms) <= STEPS - 10


@pytest.mark.parametrize("name", RUNS)
def test_each_step_is_that_of_the_dense_matrix_of_all_snapshots(name):
    """H is rebuilt from I or γI, oldest pair first, out of nothing but the iterates of the run."""
    run, states = RUNS[name], states_of(name)
    _, at_step, full = problem(run)
    settings = resolve(run.settings, quasi_newton)
    mu = quasi_newton.nesterov_momentum(0.95) if "nesterov" in name else lambda k: 0.8
    v = np.zeros(states[0].w.size)
    anchors, pairs, H = [], [], np.eye(v.size)
    for k, (old, new) in enumerate(pairwise(states)):
        if takes_snapshot(k):
            anchors.append(old.w)
            s, y = anchors[-1] - anchors[-2:][0], full(anchors[-1]) - full(anchors[-2:][0])
            curved = s @ y > 1e-8 * np.linalg.norm(s) * np.linalg.norm(y)
            pairs += [(s, y)] if curved and run.method != "svrg" else []
            kept = pairs if run.memory_size is None else pairs[-run.memory_size :]
            ratios = [s @ y / (y @ y) for s, y in kept]
            if kept:
                gamma = ratios[0] if run.memory_size is None else np.mean(ratios)
                H = dense_bfgs(*zip(*kept, strict=True), gamma)
        assert new.stored == len(pairs)
        G = at_step(k)(old.w + mu(k) * v)
        if run.clip_norm is not None:
            G = G * min(1.0, run.clip_norm / np.linalg.norm(G))
        if anchors:
            G = G - at_step(k)(anchors[-1]) + full(anchors[-1])
        accelerated = run.method == "svr_naq" and len(anchors) > 1
        rate = settings["learning_rate"]
        if run.method == "svr_naq" and not accelerated:
            rate = settings.get("warmup_learning_rate", 0.025)
        rate = quasi_newton.value_at(rate, k)
        change = -rate * H @ G
        if accelerated:
            change = v = mu(k) * v + change / np.linalg.norm(H @ G)
        np.testing.assert_allclose(new.w, old.w + change, rtol=0, atol=1e-10)
        np.testing.assert_allclose(new.v, v, rtol=0, atol=1e-10)
        np.testing.assert_allclose(new.params, new.w + mu(k + 1) * v, rtol=0, atol=1e-10)
        assert new.alpha == rate
    if run.memory_size is None:
        np.testing.assert_allclose(new.H, H, rtol=0, atol=1e-9)
        np.testing.assert_allclose(new.H @ y, s, rtol=0, atol=1e-10)  # the secant equation
        assert np.linalg.eigvalsh(new.H)[0] > 0.0


# What variance reduction is for.


@pytest.mark.parametrize("name", ["svrg", "svrg2_dense"])
def test_the_mean_step_over_the_batches_is_that_of_the_full_gradient(name):
    run, state = RUNS[name], states_of(name)[61]
    _, at_step, full = problem(run)
    H = np.eye(state.w.size) if state.H is None else state.H
    steps = [step(state, at_step(k), method=run.method, learning_rate=1.0).w for k in range(12)]
    mean = np.mean(steps, axis=0)
    np.testing.assert_allclose(state.w - mean, H @ full(state.w), rtol=0, atol=1e-12)
    assert np.max(np.std(steps, axis=0)) > 1e-3
    state = take_snapshot(state, full(state.w), method="svrg")  # no variance there
    steps = [step(state, at_step(k), method="svrg").w for k in range(12)]
    assert np.max(np.std(steps, axis=0)) < 1e-14


def test_svrg_converges_where_plain_steps_stall():
    order = np.random.default_rng(1).integers(12, size=1200)
    svrg = walk("svrg", 1200, every=24, order=order, learning_rate=0.05)
    plain = walk("svrg", 1200, every=0, order=order, learning_rate=0.05)
    errors = [np.linalg.norm(state.w - MINIMUM) for state in svrg[::24]]
    assert errors[-1] < 1e-10
    for early, late in zip(errors[:10], errors[5:15], strict=True):
        assert late < 0.2 * early
    assert min(np.linalg.norm(state.w - MINIMUM) for state in plain) > 1e-3


# Relations between the methods.


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", ["svrg2", "svr_naq"])
def test_until_the_second_snapshot_the_methods_are_svrg(method, memory_size):
    svrg = walk("svrg", 18, first=5)
    other = walk(method, 18, first=5, memory_size=memory_size)
    for a, b in zip(svrg[:18], other[:18], strict=True):
        assert_states_equal(b, a)
    assert np.any(svrg[18].w != other[18].w)


@pytest.mark.parametrize("memory_size", MEMORIES)
def test_svr_naq_without_momentum_takes_steps_of_length_alpha(memory_size):
    states = walk("svr_naq", 40, first=3, memory_size=memory_size, momentum=0.0)
    for k, (old, new) in list(enumerate(pairwise(states)))[15:]:
        assert new.alpha == pytest.approx(1.0 / np.sqrt(k + 1), rel=1e-15)
        assert np.linalg.norm(new.w - old.w) == pytest.approx(new.alpha, rel=1e-12)
        np.testing.assert_array_equal(new.params, new.w)
    short = [np.linalg.norm(new.w - old.w) / new.alpha for old, new in pairwise(states[:16])]
    assert np.ptp(short) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_schedules_are_asked_for_in_order(method):
    points, rates, momenta = [], [], []

    def grad(w):
        points.append(w)
        return full_grad(w)

    settings = {
        "method": method,
        "learning_rate": lambda count: rates.append(count) or 0.1,
        "momentum": lambda count: momenta.append(count) or 0.5,
    }
    state = init(START)
    for k in range(5):
        if k in (1, 3):
            state = take_snapshot(state, full_grad(state.w), method=method)
        state = step(state, lambda w: w * np.nan, **settings)  # skipped
        before, points = state, []
        state = step(state, grad, **settings)
        assert len(points) == (1 if k == 0 else 2)
        np.testing.assert_array_equal(points[0], before.params)
        if k > 0:
            np.testing.assert_array_equal(points[1], before.w_snapshot)
    assert rates == ([3, 4] if method == "svr_naq" else [0, 1, 2, 3, 4])
    assert momenta == ([3, 4, 4, 5] if method == "svr_naq" else [])
    assert (state.k, state.skipped, state.plain_steps) == (5, 5, 1)


# Snapshots and their pairs.


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_snapshot_is_taken_at_the_iterate_and_moves_nothing(method, memory_size):
    state = walk(method, 16, memory_size=memory_size)[-1]
    before, omega = copy.deepcopy(state), full_grad(state.w)
    new = take_snapshot(state, omega, method=method, memory_size=memory_size)
    assert new.snapshots == 3
    np.testing.assert_array_equal(new.w_snapshot, state.w)
    np.testing.assert_array_equal(new.full_grad, omega)
    assert new.stored == (0 if method == "svrg" else 2)
    for name in ("k", "w", "v", "params", "alpha", "plain_steps"):
        np.testing.assert_array_equal(getattr(new, name), getattr(state, name))
    for bad in (np.nan, np.inf, -np.inf):
        refused = take_snapshot(state, bad * omega, method=method, memory_size=memory_size)
        assert_states_equal(refused, replace(state, refused_snapshots=1))
    step(state, full_grad, method=method)
    assert_states_equal(state, before)


@pytest.mark.parametrize(
    ("ratio", "accepted"), [(2e-8, True), (0.5e-8, False), (-1.0, False), (0.0, False)]
)
@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("loss_scale", [1.0, 1e10, 1e-10])
def test_pair_test(memory_size, ratio, accepted, scale, loss_scale):
    """A cosine: units of the parameters and of the loss make no difference."""
    s, y = scale * np.array([1.0, 0.0]), loss_scale * np.array([ratio, 1.0])
    options = {"method": "svrg2", "memory_size": memory_size}
    state = take_snapshot(init(np.zeros(2)), np.zeros(2), **options)
    new = take_snapshot(replace(state, w=s), y, **options)
    assert (new.stored, new.refused) == (accepted, not accepted)
    assert (new.H is not None or bool(new.s_list)) == accepted
    assert new.snapshots == 2
    np.testing.assert_array_equal(new.full_grad, y)
    for k in range(2, 8):  # four pairs are kept by default
        new = take_snapshot(replace(new, w=k * START[:2]), k * START[:2], method="svrg2")
    assert len(new.s_list) == 4
    for w, omega in ((np.zeros(2), y), (np.full(2, 1e200), np.full(2, 1e200))):
        # The same point twice, and an infinite sᵀy.
        assert take_snapshot(replace(state, w=w), omega, **options).refused == 1


# Faults.


@pytest.mark.parametrize("snapshots", [0, 1, 2])
@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_skipped_and_refused_steps(method, bad, memory_size, snapshots):
    state = walk(method, 12 * snapshots + 3, first=12, memory_size=memory_size)[-1]
    assert state.snapshots == snapshots
    expected = replace(state, skipped=1, skipped_in_a_row=1)
    for clip in (None, np.ones_like):
        skipped = step(state, lambda w: bad * (1.0 + w), method=method, clip=clip)
        assert_states_equal(skipped, expected)
    clipped = step(state, full_grad, method=method, clip=lambda g: bad * (1.0 + g))
    assert_states_equal(clipped, expected)

    rates = {"learning_rate": bad, "warmup_learning_rate": bad}
    refusals = [step(state, full_grad, method=method, **rates)]
    if snapshots:
        # The second gradient alone, and a sum that overflows though all its terms are finite.
        values = iter([START, bad * START, 0.8e308 * START, -0.8e308 * START])
        refusals += [step(state, lambda w: next(values), method=method) for _ in range(2)]
    expected = replace(
        state,
        k=state.k + 1,
        v=np.zeros(4),
        params=state.w,
        alpha=0.0,
        refused_steps=1,
        plain_steps=state.plain_steps + (snapshots == 0),
    )
    # Pairs are of full gradients: they go only where both gradients are finite and the step is not.
    assert_states_equal(refusals[0], replace(expected, s_list=[], y_list=[], H=None))
    for new in refusals[1:]:
        assert_states_equal(new, expected)
    after = step(refusals[0], full_grad, method=method)  # goes on from there
    assert (after.k, after.refused_steps) == (state.k + 2, 1)
    assert np.any(after.w != state.w)


@pytest.mark.parametrize("method", METHODS)
def test_single_steps_by_hand(method):
    state = walk(method, 15)[-1]
    settings = {"method": method, "learning_rate": 0.1, "momentum": 0.5}
    if method != "svrg":  # H G is not finite
        huge = replace(state, s_list=[np.full(4, 1e200)], y_list=[np.full(4, 1e-200)])
        new = step(huge, component(0), **settings)
        G = component(0)(state.params) - component(0)(state.w_snapshot) + state.full_grad
        expected = state.w + 0.5 * state.v - 0.1 * G / np.linalg.norm(G)
        np.testing.assert_allclose(new.w, expected, rtol=1e-12)
        assert (new.refused_steps, len(new.s_list)) == (0, 1)
    huge = 1e200 * START  # finite, though the square of its norm is not: as long a step is refused
    new = step(replace(state, s_list=[], y_list=[]), lambda w: huge, **settings)
    assert (new.k, new.skipped, new.refused_steps) == (state.k + 1, 0, 0)  # it cancels itself
    values = iter([np.zeros(4), huge])
    new = step(replace(state, s_list=[], y_list=[]), lambda w: next(values), **settings)
    normalised = method == "svr_naq"
    assert (new.k, new.skipped, new.refused_steps) == (state.k + 1, 0, 0 if normalised else 1)
    if method == "svr_naq":
        expected = state.w + 0.5 * state.v + 0.1 * START / np.linalg.norm(START)
        np.testing.assert_allclose(new.w, expected, rtol=1e-12)
    new = step(replace(state, full_grad=np.zeros(4)), np.zeros_like, method=method)  # G = 0
    np.testing.assert_array_equal(new.v, 0.9 * state.v)
    np.testing.assert_array_equal(new.w, state.w + new.v)
    assert np.any(new.v) == (method == "svr_naq")
    state = walk(method, 8)[-1]  # clipping bends the caller's gradient only; the default rates
    new = step(state, component(2), method=method, clip=lambda g: 0.1 * g)
    G = 0.1 * component(2)(state.w) - component(2)(state.w_snapshot) + state.full_grad
    np.testing.assert_allclose(new.w, state.w - 0.025 * G, rtol=1e-14)
