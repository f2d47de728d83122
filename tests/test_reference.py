"""The references are tested before anything is tested against them."""

import copy
from dataclasses import fields, replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from reference import network
from reference.adaptive import adaqn_init, adaqn_step, asnaq_init, asnaq_step

STEPS = 300
INITS = {"adaqn": lambda w, _: adaqn_init(w), "asnaq": asnaq_init}
TAKE_STEP = {"adaqn": adaqn_step, "asnaq": asnaq_step}
ADAQN = network.EVENTFUL_RUNS["adaqn"][2]
ASNAQ = network.EVENTFUL_RUNS["asnaq"][2]
METHODS = {"adaqn": ADAQN, "asnaq": ASNAQ}
NORMAL_STEPS = 6  # one more cycle than the first, half done: no pair yet, sums not empty


def quadratic(w):
    return 0.5 * float(w @ w)


def identity(w):
    return w


def trajectory(name, steps=STEPS, disturbance=0.0):
    """The states of a run, the first one included, and the mean loss at a flat vector."""
    method, seed, settings = network.EVENTFUL_RUNS[name]
    batches = network.batches(seed)
    w = network.flatten(network.init(seed))
    w = w + disturbance * np.random.default_rng(9).normal(size=w.size)
    states = [INITS[method](w, settings.get("min_momentum"))]
    for k in range(steps):
        batch = batches[k % len(batches)]
        states.append(
            TAKE_STEP[method](
                states[-1],
                lambda w, batch=batch: network.loss(w, batch),
                lambda w, batch=batch: network.grad(w, batch),
                **settings,
            )
        )
    return states, lambda w: np.mean([network.loss(w, batch) for batch in batches])


def assert_states_equal(actual, expected):
    for field in fields(expected):
        np.testing.assert_array_equal(
            getattr(actual, field.name), getattr(expected, field.name), err_msg=field.name
        )


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_central_differences(seed):
    generator = np.random.default_rng(seed)
    batch = network.batches(seed)[0]
    w = network.flatten(network.init(seed)) + generator.normal(scale=0.3, size=84)
    step = 1e-5
    differences = [
        (network.loss(w + step * axis, batch) - network.loss(w - step * axis, batch)) / (2 * step)
        for axis in np.eye(w.size)
    ]
    np.testing.assert_allclose(network.grad(w, batch), differences, rtol=0, atol=1e-9)


def test_jax_sees_the_same_network():
    params, batch = network.init(0), network.batches(0)[0]
    assert {leaf.ndim for leaf in params.values()} == {0, 1, 2}
    w = network.flatten(params)
    flat, _ = ravel_pytree(jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(flat, w, rtol=1e-6)
    for name, leaf in network.unflatten(w).items():
        np.testing.assert_array_equal(leaf, params[name])
        assert leaf.dtype == np.float64
    gradient = jax.grad(network.loss_of_dict)(jax.tree.map(jnp.asarray, params), batch, jnp)
    np.testing.assert_allclose(ravel_pytree(gradient)[0], network.grad(w, batch), atol=1e-6)


@pytest.mark.parametrize("name", network.EVENTFUL_RUNS)
def test_eventful_runs_learn_and_everything_happens(name):
    states, mean_loss = trajectory(name)
    settings = network.EVENTFUL_RUNS[name][2]
    first, last = states[0], states[-1]
    assert mean_loss(last.w) < 0.6 * mean_loss(first.w)
    assert last.stored >= 2
    assert last.refused >= 2
    assert last.restorations >= 2
    assert last.skipped == 0
    assert last.refused_steps == 0
    assert last.k == STEPS
    steps = list(pairwise(states))
    cycles = STEPS // settings["cycle_length"]
    assert last.stored + last.refused + last.restorations == cycles - 1
    pair_overflows = [
        old
        for old, new in steps
        if len(old.s_list) == settings["memory_size"] and new.stored > old.stored
    ]
    assert len(pair_overflows) >= 2
    fisher_overflows = [
        old for old, new in steps if len(old.fisher) == settings["fisher_size"] and new.fisher
    ]
    assert len(fisher_overflows) >= 2
    for state in states:
        assert len(state.s_list) == len(state.y_list) <= settings["memory_size"]
        assert len(state.fisher) <= settings["fisher_size"]
    for old, new in steps:
        if new.restorations > old.restorations:
            np.testing.assert_array_equal(new.w, old.w_anchor)
            np.testing.assert_array_equal(new.w_anchor, old.w_anchor)
            assert not new.s_list
            assert not new.fisher
        if new.stored > old.stored:
            assert new.t == old.t + 1
            assert new.s_list[-1] @ new.y_list[-1] > 0.0
            np.testing.assert_allclose(
                new.w_anchor, old.w_anchor + new.s_list[-1], rtol=0, atol=1e-14
            )
    if "momentum_factor" in settings:
        momenta = [state.momentum for state in states]
        assert min(momenta) == settings["min_momentum"]
        assert max(momenta) == settings["max_momentum"]
        scales = {state.step_scale for state in states}
        assert (min(scales) < 1.0) == ("backoff" in settings)
        assert max(scales) == 1.0


@pytest.mark.parametrize("name", network.EVENTFUL_RUNS)
def test_eventful_runs_are_well_conditioned(name):
    disturbance = 1e-12
    states, _ = trajectory(name)
    others, _ = trajectory(name, disturbance=disturbance)
    for state, other in zip(states, others, strict=True):
        np.testing.assert_allclose(other.w, state.w, rtol=0, atol=100 * disturbance)
        assert other.stored == state.stored
        assert other.restorations == state.restorations


@pytest.mark.parametrize("name", network.EVENTFUL_RUNS)
def test_a_step_leaves_its_state_alone(name):
    method, seed, settings = network.EVENTFUL_RUNS[name]
    states, _ = trajectory(name, 40)
    batch = network.batches(seed)[0]
    for state in states:
        before = copy.deepcopy(state)
        new = TAKE_STEP[method](
            state,
            lambda w: network.loss(w, batch),
            lambda w: network.grad(w, batch),
            **settings,
        )
        assert new is not state
        assert new.fisher is not state.fisher
        assert_states_equal(state, before)


def test_first_steps_by_hand():
    g = np.array([3.0, -4.0, 0.0])
    state = adaqn_step(adaqn_init(g), quadratic, identity, **{**ADAQN, "eps": 1e-4})
    np.testing.assert_allclose(state.w, g - 0.2 * g / np.sqrt(g**2 + 1e-4), rtol=1e-15)
    np.testing.assert_array_equal(state.accumulator, g**2)
    state = asnaq_step(asnaq_init(g, 0.1), quadratic, identity, **ASNAQ)
    np.testing.assert_allclose(state.w, g - 0.1 * g / 5.0, rtol=1e-15)
    np.testing.assert_allclose(state.v, -0.1 * g / 5.0, rtol=1e-15)
    np.testing.assert_allclose(state.params, state.w + 0.1 * state.v, rtol=1e-15)
    np.testing.assert_allclose(state.accumulator, state.w**2, rtol=1e-15)
    second = asnaq_step(state, quadratic, identity, **ASNAQ)
    preconditioned = state.params / np.sqrt(state.accumulator + ASNAQ["eps"])
    velocity = 0.1 * state.v - 0.1 * preconditioned / np.linalg.norm(preconditioned)
    np.testing.assert_allclose(second.v, velocity, rtol=1e-14)
    np.testing.assert_allclose(second.w_sum, state.w + second.w, rtol=1e-14)


def test_single_gradient_stores_the_lookahead_gradient():
    settings = {**ASNAQ, "single_gradient": True}
    calls = []

    def counted(w):
        calls.append(w)
        return w

    state = asnaq_init(np.array([3.0, -4.0]), 0.1)
    for _ in range(3):
        lookahead = state.params
        state = asnaq_step(state, quadratic, counted, **settings)
        np.testing.assert_array_equal(state.fisher[-1], lookahead)
    assert len(calls) == 3


@pytest.mark.parametrize("method", METHODS)
def test_schedule_sees_steps_from_zero_and_skips_do_not_count(method):
    seen = []

    def schedule(count):
        seen.append(count)
        return 0.1

    settings = {**METHODS[method], "learning_rate": schedule}
    state = INITS[method](np.ones(3), 0.1)
    bad = {1}
    for call in range(4):
        gradient = (lambda w: w * np.inf) if call in bad else identity
        state = TAKE_STEP[method](state, quadratic, gradient, **settings)
    assert seen == [0, 1, 1, 2]
    assert state.k == 3
    assert state.skipped == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_skipped_step_moves_only_its_counters(method, bad):
    state = INITS[method](np.ones(3), 0.1)
    for _ in range(NORMAL_STEPS):
        state = TAKE_STEP[method](state, quadratic, identity, **METHODS[method])
    expected = replace(state, skipped=1, skipped_in_a_row=1)
    skipped = TAKE_STEP[method](state, quadratic, lambda w: w * bad, **METHODS[method])
    assert_states_equal(skipped, expected)
    skipped = TAKE_STEP[method](
        state, quadratic, identity, **METHODS[method], transform=lambda g: g * bad
    )
    assert_states_equal(skipped, expected)
    one_bad = TAKE_STEP[method](
        state, quadratic, lambda w: w + np.array([0.0, bad, 0.0]), **METHODS[method]
    )
    assert_states_equal(one_bad, expected)


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_whose_square_overflows_is_skipped(method, decay):
    """G would hold it for ever, and no later step would be longer than rounding."""
    settings = {**METHODS[method], "accumulator_decay": decay}
    state = INITS[method](np.array([1.0, 2.0, 3.0]), 0.1)
    new = TAKE_STEP[method](state, quadratic, lambda w: np.array([1e200, 1.0, -1e200]), **settings)
    # The first gradient of adaQN is the caller's, that of aSNAQ's G its own.
    assert (new.skipped, new.refused_steps) == ((1, 0) if method == "adaqn" else (0, 1))
    np.testing.assert_array_equal(new.accumulator, state.accumulator)
    np.testing.assert_array_equal(new.w, state.w)
    large = TAKE_STEP[method](state, quadratic, lambda w: np.full(3, 1e150), **settings)
    assert (large.skipped, large.refused_steps, large.k) == (0, 0, 1)


def test_asnaq_refuses_a_step_with_a_bad_inner_gradient():
    state = asnaq_init(np.ones(3), 0.1)
    for _ in range(NORMAL_STEPS):
        state = asnaq_step(state, quadratic, identity, **ASNAQ)
    state = replace(state, s_list=[np.ones(3)], y_list=[np.ones(3)])
    lookahead = state.params

    def gradient(w):
        return w if np.array_equal(w, lookahead) else w * np.nan

    refused = asnaq_step(state, quadratic, gradient, **ASNAQ)
    assert_states_equal(
        refused,
        replace(
            state,
            k=state.k + 1,
            v=np.zeros(3),
            w_sum=state.w_sum + state.w,
            s_list=[],
            y_list=[],
            refused_steps=1,
        ),
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_direction_that_is_not_finite(method):
    state = INITS[method](np.ones(3), 0.1)
    for _ in range(NORMAL_STEPS):
        state = TAKE_STEP[method](state, quadratic, identity, **METHODS[method])
    huge = replace(state, s_list=[np.full(3, 1e200)], y_list=[np.full(3, 1e-200)])
    new = TAKE_STEP[method](huge, quadratic, identity, **METHODS[method])
    if method == "adaqn":
        np.testing.assert_array_equal(new.w, state.w)
        assert new.refused_steps == 1
        assert not new.s_list
        np.testing.assert_array_equal(new.fisher[-1], state.w)
        assert new.k == state.k + 1
    else:
        step = -0.1 * state.params / np.linalg.norm(state.params)
        np.testing.assert_allclose(new.v, state.momentum * state.v + step, rtol=1e-14)
        assert new.refused_steps == 0
        assert new.s_list


def test_zero_gradient():
    state = asnaq_init(np.ones(3), 0.1)
    state = asnaq_step(state, quadratic, identity, **ASNAQ)
    new = asnaq_step(state, lambda w: 1.0, np.zeros_like, **ASNAQ)
    np.testing.assert_array_equal(new.v, state.momentum * state.v)
    still = adaqn_step(adaqn_init(np.ones(3)), lambda w: 1.0, np.zeros_like, **ADAQN)
    np.testing.assert_array_equal(still.w, np.ones(3))


@pytest.mark.parametrize("method", METHODS)
def test_transform_bends_the_direction_and_nothing_else(method):
    state = INITS[method](np.array([1.0, 2.0, 3.0]), 0.1)
    mask = np.array([1.0, 0.0, 0.0])
    new = TAKE_STEP[method](
        state, quadratic, identity, **METHODS[method], transform=lambda g: mask * g
    )
    np.testing.assert_array_equal(new.w[1:], state.w[1:])
    assert new.w[0] < state.w[0]
    assert np.all(new.fisher[-1] > 0.0)
    assert np.all(new.accumulator > 0.0)


@pytest.mark.parametrize(
    ("new", "old", "restored"),
    [
        (1.0, 1.0, False),
        (1.04, 1.0, False),
        (1.06, 1.0, True),
        (-1.0, -1.0, False),
        (-0.96, -1.0, False),
        (-0.94, -1.0, True),
        (np.nan, 1.0, True),
        (np.inf, np.inf, True),
        (1.0, np.nan, False),
        (np.nan, np.nan, True),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_the_check_of_a_later_cycle(method, new, old, restored):
    settings = {**METHODS[method], "cycle_length": 1, "max_increase": 1.05}
    state = INITS[method](np.ones(3), 0.1)
    state = TAKE_STEP[method](state, quadratic, identity, **settings)
    assert state.t == 1
    losses = iter([new, old])
    after = TAKE_STEP[method](state, lambda w: next(losses), identity, **settings)
    assert after.restorations == restored
    assert after.stored + after.refused == 1 - restored
    if restored:
        np.testing.assert_array_equal(after.w, state.w_anchor)


def test_adaqn_judges_by_the_monitor_and_keeps_its_anchor_without_a_pair():
    settings = {**ADAQN, "cycle_length": 1}
    state = adaqn_step(adaqn_init(np.ones(3)), quadratic, identity, **settings)
    losses = iter([2.0, 1.0])
    restored = adaqn_step(state, quadratic, identity, **settings, monitor=lambda w: next(losses))
    assert restored.restorations == 1
    pairless = adaqn_step(state, quadratic, identity, **{**settings, "min_curvature": 1e6})
    assert pairless.refused == 1
    np.testing.assert_array_equal(pairless.w_anchor, state.w_anchor)
    assert pairless.t == 1
    asnaq_settings = {**ASNAQ, "cycle_length": 1}
    state = asnaq_step(asnaq_init(np.ones(3), 0.1), quadratic, identity, **asnaq_settings)
    pairless = asnaq_step(state, quadratic, identity, **{**asnaq_settings, "min_curvature": 1e6})
    assert pairless.refused == 1
    np.testing.assert_array_equal(pairless.w_anchor, pairless.w)
    assert pairless.t == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_two_small_numbers_are_two_settings(method):
    """Of gradients w the pair has y = wwᵀs at w, thus sᵀy/yᵀy = 1/‖w‖²."""
    w = 100.0 * np.eye(3)[0]
    settings = {name: value for name, value in METHODS[method].items() if name != "min_curvature"}
    settings |= {"cycle_length": 1, "fisher_size": 1, "max_increase": 1.05}

    def after_two_steps(**more):
        state = INITS[method](w, 0.1)
        for _ in range(2):
            state = TAKE_STEP[method](state, quadratic, identity, **{**settings, **more})
        return state

    assert after_two_steps().stored == 1  # 1/‖w‖² is a little above 1e-4, the default
    assert after_two_steps(min_curvature=1.2e-4).refused == 1
    assert after_two_steps(eps=1e4).stored == 1
    assert np.any(after_two_steps(eps=1e8).w != after_two_steps().w) == (method == "adaqn")
