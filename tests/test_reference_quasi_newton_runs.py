"""The runs of the quasi-Newton references: what happens in them, and the H that they build."""

import functools
from itertools import pairwise

import numpy as np
import pytest
from reference import quasi_newton
from reference.quasi_newton import METHODS
from reference.quasi_newton_runs import (
    RUNS,
    STEPS,
    bowl_grad,
    bowl_loss,
    bowl_matrix,
    problem,
    resolve,
    trajectory,
)
from reference.two_loop import dense_bfgs, two_loop

pytestmark = pytest.mark.slow  # they change only with the listings


def test_gradient_of_the_bowl_is_that_of_central_differences():
    matrix = bowl_matrix(0, 3.0, 10.0)
    w = np.random.default_rng(0).normal(size=40)
    differences = [
        (bowl_loss(w + 1e-5 * axis, matrix) - bowl_loss(w - 1e-5 * axis, matrix)) / 2e-5
        for axis in np.eye(w.size)
    ]
    np.testing.assert_allclose(bowl_grad(w, matrix), differences, rtol=0, atol=1e-9)
    assert bowl_loss(w, matrix) == pytest.approx(
        np.mean(np.sqrt(1.0 + (matrix @ w) ** 2) - 1.0), rel=1e-12
    )
    values = np.linalg.svd(matrix / np.sqrt(60), compute_uv=False)
    assert values[0] == pytest.approx(3.0)
    assert values[0] / values[-1] == pytest.approx(10.0)


@functools.cache
def states_of(name):
    return trajectory(RUNS[name])


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_well_conditioned(name):
    disturbance = 1e-14
    states = states_of(name)
    others = trajectory(RUNS[name], disturbance=disturbance)
    for state, other in zip(states, others, strict=True):
        np.testing.assert_allclose(other.w, state.w, rtol=0, atol=1000 * disturbance)
        assert other.stored == state.stored
        assert other.searches_failed == state.searches_failed
        assert other.momentum_restarts == state.momentum_restarts
        assert other.refused_steps == state.refused_steps


def rates_of(run):
    """The learning rates of a run, the sizes of steps neither shortened nor lengthened."""
    learning_rate = resolve(run.settings, quasi_newton).get("learning_rate", 1.0)
    return [quasi_newton.value_at(learning_rate, k) for k in range(STEPS)]


@pytest.mark.parametrize("name", RUNS)
def test_what_happens_in_the_runs(name):
    run, rules = RUNS[name], METHODS[RUNS[name].method]
    states = states_of(name)
    first, last = states[0], states[-1]
    _, at_step = problem(run)
    epoch = [at_step(k)[0] for k in range(12)]
    assert np.mean([loss(last.w) for loss in epoch]) < 0.6 * np.mean(
        [loss(first.w) for loss in epoch]
    )
    assert (last.k, last.skipped) == (STEPS, 0)
    assert (last.momentum_restarts > 0) == ("restart" in name)
    assert (last.searches_failed > last.refused_steps) == ("lowest" in name)
    assert (last.refused_steps > 0) == ("refused" in name) or "lowest" in name
    without = last.refused_steps + last.momentum_restarts * rules.looks_ahead
    assert last.stored + last.refused == STEPS - without - (last.waiting is not None)
    size = run.settings["memory_size"]
    assert last.stored > 2 * (size or 1)
    if last.refused_steps == 0:
        assert (last.H is not None) == (size is None)
        assert len(last.s_list) == len(last.y_list) == (size or 0)
    rates = rates_of(run)
    if run.batches == "mini":
        assert [state.alpha for state in states[1:]] == rates
        assert last.refused >= 2 or run.method != "omoq"
    else:
        sizes = zip(states[1:], rates, strict=True)
        shortened = sum(0.0 < state.alpha < rate for state, rate in sizes)
        assert shortened >= (1 if name in ("mnaq_dense", "bfgs_dense") else 2)
    if run.clip_norm is not None:
        norms = [np.linalg.norm(at_step(k)[1](state.params)) for k, state in enumerate(states)]
        assert sum(norm > run.clip_norm for norm in norms) >= 10
        assert sum(norm < run.clip_norm for norm in norms) >= 10


@pytest.mark.parametrize("method", ["bfgs", "naq", "moq"])
def test_the_runs_reach_both_ways_of_the_search(method):
    """The first steps of some are longer and of some shorter than the learning rate."""
    ratios = {
        states_of(name)[1].alpha / rates_of(run)[0]
        for name, run in RUNS.items()
        if run.method == method
    }
    assert min(ratios) < 1.0 < max(ratios)


def test_the_runs_reach_every_method_in_both_forms_and_both_omegas():
    forms = {(run.method, run.settings["memory_size"] is None) for run in RUNS.values()}
    assert forms == {(method, dense) for method in METHODS for dense in (False, True)}
    restarting = {
        (run.method, run.settings["memory_size"] is None)
        for run in RUNS.values()
        if "restart_window" in run.settings
    }
    assert restarting >= {(m, dense) for m in ("naq", "moq", "mnaq") for dense in (False, True)}
    for name in ("bfgs_term", "naq", "moq", "mnaq_dense"):
        _, at_step = problem(RUNS[name])
        norms = [
            np.linalg.norm(at_step(k)[1](state.params)) for k, state in enumerate(states_of(name))
        ]
        assert sum(norm > 0.1 for norm in norms) >= 3
        assert sum(norm < 0.1 for norm in norms) >= 3


UNDISTURBED = [
    name for name in RUNS if not any(word in name for word in ("restart", "refused", "lowest"))
]


def pairs_of(run, states):
    """The stored pairs of a run, all of them, from its iterates: (s, ε, y)."""
    _, at_step = problem(run)
    settings, rules = resolve(run.settings, quasi_newton), METHODS[run.method]
    momentum, pairs = settings.get("momentum", 0.0), []
    mus = [quasi_newton.value_at(momentum, k) for k in range(len(states))]
    raw = [at_step(k)[1](state.params) for k, state in enumerate(states)]
    for k, (old, new) in enumerate(pairwise(states)):
        s = new.w - (old.w + mus[k] * old.v)
        g_hat = raw[k]
        if rules.extrapolates:
            g_hat = g_hat + mus[k] * (raw[k] - raw[max(k - 1, 0)])
        eps = (raw[k + 1] if rules.waits else at_step(k)[1](new.w)) - g_hat
        if rules.online:
            y = eps + settings["damping"] * s
        elif settings.get("convergence_term", run.method == "mnaq"):
            omega = 2.0 if np.linalg.norm(g_hat) > 0.1 else 100.0
            norm = np.linalg.norm(g_hat)
            y = eps + (omega * norm + max(-(eps @ s) / np.linalg.norm(s) ** 2, 0.0)) * s
        else:
            y = eps
        if s @ y > 1e-8 * np.linalg.norm(s) * np.linalg.norm(y):
            pairs.append((s, eps, y))
    return pairs


@pytest.mark.parametrize("name", UNDISTURBED)
def test_the_product_is_that_of_the_stored_pairs(name):
    run, steps = RUNS[name], 20
    states = trajectory(run, steps)
    pairs = pairs_of(run, states)
    if METHODS[run.method].waits:  # the last pair still waits
        (s, _), (expected, _, _) = states[-1].waiting, pairs[-1]
        np.testing.assert_allclose(s, expected, rtol=0, atol=1e-15)
        pairs = pairs[: states[-1].stored]
    s_list, eps_list, y_list = zip(*pairs, strict=True)
    assert len(pairs) == states[-1].stored
    g = np.random.default_rng(0).normal(size=s_list[0].size)
    product = quasi_newton.inverse_hessian_product(states[-1], g, METHODS[run.method].online)
    ratios = [(s @ y) / (y @ y) for s, y in zip(s_list, y_list, strict=True)]
    size = run.settings["memory_size"]
    if size is None:
        gamma = run.settings.get("initial_scale", "first_pair")
        gamma = ratios[0] if gamma == "first_pair" else gamma
        if run.method == "mnaq":
            gamma = (s_list[0] @ eps_list[0]) / (y_list[0] @ y_list[0])
            assert 0.0 < gamma < ratios[0]
        expected = dense_bfgs(s_list, y_list, gamma) @ g
        np.testing.assert_allclose(states[-1].H @ y_list[-1], s_list[-1], rtol=0, atol=1e-10)
        np.testing.assert_allclose(states[-1].H, states[-1].H.T, rtol=0, atol=1e-10)
    else:
        gamma = np.mean(ratios[-size:]) if METHODS[run.method].online else ratios[-1]
        expected = dense_bfgs(s_list[-size:], y_list[-size:], gamma) @ g
    scale = np.linalg.norm(expected)
    np.testing.assert_allclose(product, expected, rtol=0, atol=1e-7 * scale)


@pytest.mark.parametrize("name", ["bfgs_first_pair", "naq_dense", "onaq_dense", "omoq_dense"])
def test_dense_is_limited_where_gamma_is_that_of_the_first_pair(name):
    run = RUNS[name]
    states = trajectory(run, 15)
    pairs = pairs_of(run, states)[: states[-1].stored]
    s, _, y = pairs[0]
    g = np.random.default_rng(0).normal(size=s.size)
    s_list, _, y_list = zip(*pairs, strict=True)
    np.testing.assert_allclose(
        states[-1].H @ g, two_loop(s_list, y_list, g, (s @ y) / (y @ y)), rtol=1e-6
    )
