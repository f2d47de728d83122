"""The step sizes of the quasi-Newton references, and the steps refused for want of one."""

import functools
from itertools import pairwise

import numpy as np
import pytest
from reference.quasi_newton import METHODS, init, step
from reference.searches import armijo, explicit_step, two_way
from reference.walks import (
    ONLINE,
    SEARCHING,
    START,
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
NOT_FINITE = [np.nan, np.inf, -np.inf]


def searched(search, curve, slope=-1.0, **options):
    """What a search along the first axis from 0 returns, and the step sizes that it tried."""
    sizes = []

    def loss(w):
        sizes.append(w[0])
        return curve(w[0])

    alpha, passed = search(loss, np.zeros(2), np.array([1.0, 0.0]), slope, **options)
    assert sizes[0] == 0.0
    return alpha, passed, sizes[1:]


def parabola(best):
    """Slope −1 at 0, minimum at `best`: ½ of the promised decrease up to there, η up to twice."""
    return lambda alpha: -alpha + alpha**2 / (2.0 * best)


def in_turn(values):
    """A loss that takes these values one after the other, wherever it is asked for."""
    return functools.partial(lambda rest, w: next(rest), iter(values))


# The searches by themselves.


@pytest.mark.parametrize(
    ("best", "trials"), [(1.0, 0), (0.6, 0), (0.4, 1), (0.2, 2), (0.7e-4, 13), (0.5e-4, None)]
)
def test_armijo_halves_up_to_fourteen_trials(best, trials):
    alpha, passed, sizes = searched(armijo, parabola(best))
    assert passed == (trials is not None)
    np.testing.assert_array_equal(sizes, 0.5 ** np.arange(14 if trials is None else trials + 1))
    assert alpha == (0.0 if trials is None else 0.5**trials)
    alpha, passed, sizes = searched(armijo, parabola(0.4 * best), first=0.5)
    assert passed == (trials is not None and trials < 13)
    np.testing.assert_array_equal(sizes, 0.5 * 0.5 ** np.arange(len(sizes)))


def test_armijo_asks_for_the_decrease_that_the_slope_promises():
    loss = in_turn([5.0, 5.0 - 0.999 * 2e-3, 0.0, 5.0, 5.0 - 1.001 * 2e-3])
    assert armijo(loss, START, START, -2.0) == (0.5, True)
    assert armijo(loss, START, START, -2.0) == (1.0, True)


@pytest.mark.parametrize(
    ("best", "sizes", "alpha"),
    [
        (1e3, [4.0**k for k in range(6)], 256.0),
        (1e12, [4.0**k for k in range(14)], 4.0**13),
        (5.0, [1, 4, 16], 4.0),
        (1.01, [1, 4], 1.0),
        (0.99, [1], 1.0),
        (0.49, [1, 1 / 16], 1 / 16),
        (0.01, [1, 1 / 16, 1 / 256], 1 / 256),
        (1.2 * 16.0**-13, [16.0**-k for k in range(14)], 16.0**-13),
        (0.4 * 16.0**-13, [16.0**-k for k in range(14)], 0.0),
    ],
)
def test_without_a_pair_the_search_goes_both_ways(best, sizes, alpha):
    found, passed, tried = searched(two_way, parabola(best))
    assert (found, passed) == (alpha, alpha > 0.0)
    np.testing.assert_array_equal(tried, sizes)


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_trials_that_are_not_finite_fail(bad):
    assert searched(two_way, lambda a: -a if a < 100.0 else bad) == (
        64.0,
        True,
        [1, 4, 16, 64, 256],
    )
    assert searched(two_way, lambda a: -a if a < 0.9 else bad)[:2] == (1 / 16, True)
    assert searched(armijo, lambda a: -a if a < 0.9 else bad)[:2] == (0.5, True)
    for search in (armijo, two_way):
        alpha, passed, sizes = searched(search, lambda a: bad if a else 0.0)
        assert (alpha, passed, len(sizes)) == (0.0, False, 14)


@pytest.mark.parametrize(
    ("curve", "slope", "sizes", "alpha"),
    [
        (lambda a: -min(a, 16.0), -0.1, [1, 4, 16, 64], 16.0),
        (lambda a: -a if a < 5.0 else -3.9, -0.1, [1, 4, 16], 4.0),
        (lambda a: -min(a, 4.0), 0.0, [1, 4, 16], 4.0),
        (lambda a: 0.0, 0.0, [1], 1.0),
    ],
)
def test_the_search_lengthens_only_while_the_loss_falls(curve, slope, sizes, alpha):
    """The decrease of every trial, or its want where the slope is 0, would be ample."""
    assert searched(two_way, curve, slope) == (alpha, True, sizes)


@pytest.mark.parametrize(("search", "factor"), [(armijo, 0.5), (two_way, 1 / 16)])
def test_where_no_trial_passes_the_lowest_counts_if_it_is_below_the_start(search, factor):
    sizes = list(factor ** np.arange(14))

    def curve(start, lows):
        return lambda a: lows.get(a, np.nan if a == sizes[2] else 1.0) if a else start

    lows = {sizes[5]: -1e-7, sizes[9]: -2e-7, sizes[11]: -2e-7, sizes[12]: -1e-7}
    slope = -10.0 / sizes[13]
    assert searched(search, curve(0.0, lows), slope)[:2] == (sizes[9], False)
    assert searched(search, curve(-1.99e-7, lows), slope)[:2] == (sizes[9], False)
    assert searched(search, curve(-2e-7, lows), slope)[:2] == (0.0, False)  # no lower than E(ŵ)
    for start, alpha in ((np.nan, sizes[9]), (np.inf, sizes[9]), (-np.inf, 0.0)):
        assert searched(search, curve(start, lows), slope)[:2] == (alpha, False)


@pytest.mark.parametrize("bad", [*NOT_FINITE, 1e9])
def test_the_explicit_step_of_mnaq(bad):
    d = np.array([3.0, 4.0])
    alpha = explicit_step(in_turn([bad, 1.0]), d, d, -2.0, 7.0)
    assert alpha == pytest.approx(1e-4 * 2.0 / (7.0 * 25.0), rel=1e-14)
    alpha = explicit_step(in_turn([bad, 1.0]), d, 1e3 * d, -2.0, 7.0)
    assert alpha == pytest.approx(1e-7 * 2.0 / (7.0 * 25e6), rel=1e-14)
    assert explicit_step(lambda w: np.nan, d, 0 * d, 0.0, 7.0) == 0.0
    new = step(init(START), lambda w: np.nan, quadratic_grad, **settings_of("mnaq"))
    g = np.linalg.norm(quadratic_grad(START))
    assert new.alpha == pytest.approx(1e-4 * g, rel=1e-12)  # ĝᵀd = −‖ĝ‖, Lip = ‖d‖ = 1
    assert (new.searches_failed, new.refused_steps) == (0, 0)


# What a step makes of them.


@pytest.mark.parametrize("steps", [0, 4], ids=["no_pair", "pairs"])
@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("bad", [*NOT_FINITE, 1e9])
@pytest.mark.parametrize("method", SEARCHING)
def test_a_search_without_a_lower_trial_refuses_the_step(method, bad, memory_size, steps):
    settings = settings_of(method, memory_size)
    state = walk(settings, steps)[-1]
    r = quadratic_grad(state.params)
    trials = []

    def loss(w):
        trials.append(w)
        return quadratic(w) if len(trials) == 1 else bad

    new = step(state, loss, quadratic_grad, **settings)
    assert len(trials) == 15
    mu = settings.get("momentum", 0.0)
    np.testing.assert_allclose(trials[0], state.w + mu * state.v, rtol=1e-14)
    shrinking = [np.linalg.norm(trial - trials[0]) for trial in trials[1:]]
    factor = 0.5 if steps else 1 / 16  # the shortest ones lose their digits to the point's
    np.testing.assert_allclose(shrinking[1:6], np.multiply(shrinking[:5], factor), rtol=1e-5)
    pair = {"stored": state.stored + (METHODS[method].waits and steps > 0)}
    pair["lipschitz"] = new.lipschitz
    assert_states_equal(new, refused_state(state, r, searches_failed=1, **pair))
    after = step(new, quadratic, quadratic_grad, **settings)  # as from a start at w
    fresh = step(init(state.w), quadratic, quadratic_grad, **settings)
    np.testing.assert_array_equal(after.w, fresh.w)


@pytest.mark.parametrize("method", SEARCHING)
def test_the_lowest_trial_is_taken_where_none_passes(method):
    settings = settings_of(method)
    state = walk(settings, 4)[-1]
    whole = step(state, in_turn([0.0, -1e9]), quadratic_grad, **settings)
    mu = settings.get("momentum", 0.0)
    d = whole.v - mu * state.v
    low = -1e-9 * np.linalg.norm(d)
    losses = [0.0, *[np.nan] * 6, low, 1.0, 2.0 * low, *[np.inf, 1.0, 1.0, 1.0, 1.0]]
    new = step(state, in_turn(losses), quadratic_grad, **settings)
    assert new.alpha == 0.5**8
    assert (new.searches_failed, new.refused_steps) == (1, 0)
    np.testing.assert_allclose(new.v, mu * state.v + 0.5**8 * d, rtol=1e-12)
    np.testing.assert_allclose(new.w, state.w + new.v, rtol=1e-14)
    assert new.s_list
    losses = [0.0, *[1.0] * 13, -1.0]  # the fourteenth passes
    new = step(state, in_turn(losses), quadratic_grad, **settings)
    assert (new.alpha, new.searches_failed) == (0.5**13, 0)
    losses = [0.0, -np.inf, np.nan, -1.0]  # a trial that is not finite just fails
    new = step(state, in_turn(losses), quadratic_grad, **settings, learning_rate=0.5)
    assert (new.alpha, new.searches_failed) == (0.125, 0)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ONLINE])
@pytest.mark.parametrize("size", [1e40, 1.0])
def test_a_step_that_vanishes_is_refused(method, size):
    w = size * START
    falling = iter(range(0, -1000, -10))
    new = step(init(w), lambda w: float(next(falling)), lambda w: START, **settings_of(method))
    assert new.refused_steps == (size > 1.0)
    assert new.searches_failed == 0
    assert np.all(new.w == w) == (size > 1.0)
    if size > 1.0:
        assert_states_equal(new, refused_state(init(w), START))
    still = step(init(w), lambda w: 1.0, np.zeros_like, **settings_of(method))  # αd = 0
    assert still.refused_steps == 0


@pytest.mark.parametrize("method", ONLINE)
def test_an_online_step_may_vanish(method):
    new = step(init(1e40 * START), quadratic, quadratic_grad, **settings_of(method))
    np.testing.assert_array_equal(new.w, 1e40 * START)
    assert new.refused_steps == 0


@pytest.mark.parametrize("method", SEARCHING)
def test_the_slope_of_the_search_is_that_of_the_raw_gradient(method):
    norm = np.linalg.norm(quadratic_grad(START))
    for first, expected in (
        ([-1.001e-3 * norm], 1.0),
        ([-0.999e-3 * norm, -1.0], 1 / 16),
        ([-1.001 * norm / 2.0, -1.999 * norm], 1.0),
        ([-1.001 * norm / 2.0, -2.001 * norm, 0.0], 4.0),
        ([-0.999 * norm / 2.0], 1.0),
    ):
        new = step(
            init(START),
            in_turn([0.0, *first]),
            quadratic_grad,
            **settings_of(method),
            clip=lambda g: 10.0 * g,
        )
        assert new.alpha == expected


@pytest.mark.parametrize(("search", "factor"), [(armijo, 0.5), (two_way, 1 / 16)])
@pytest.mark.parametrize("method", SEARCHING)
def test_uphill_no_increase_passes(method, search, factor):
    """With the slope itself the first trial would pass, within η of it above the start."""
    settings = settings_of(method, search=search, clip=lambda g: -g)
    rise = 1e-4 * np.linalg.norm(quadratic_grad(START))
    for first, alpha in ((rise, factor), (0.0, 1.0)):
        new = step(init(START), in_turn([0.0, first, -1.0]), quadratic_grad, **settings)
        assert (new.alpha, new.searches_failed) == (alpha, 0)


def test_the_learning_rate_scales_the_direction_before_the_search():
    points = []

    def loss(w):
        points.append(w)
        return quadratic(w)

    new = step(init(START), loss, quadratic_grad, **settings_of("naq", learning_rate=0.25))
    np.testing.assert_allclose([np.linalg.norm(p - points[0]) for p in points[1:4]], [0.25, 1, 4])
    assert new.alpha == 1.0  # a quarter times four
    np.testing.assert_allclose(new.w, points[2], rtol=1e-14)


@pytest.mark.parametrize("memory_size", MEMORIES)
def test_the_search_finds_the_scale_of_a_far_start(memory_size):
    """E = x + 1/x, with a slope of 1 wherever its minimum at 1 is far."""

    def loss(w):
        return float(w[0] + 1.0 / w[0]) if w[0] > 0.0 else np.inf

    states = walk(
        settings_of("bfgs", memory_size), 60, np.array([1e5]), loss, lambda w: 1.0 - 1.0 / w**2
    )
    losses = [loss(state.w) for state in states]
    assert all(new <= old for old, new in pairwise(losses))
    assert abs(states[59].w[0] - 1.0) < 1e-5
    assert losses[1] < 0.5 * losses[0]


def steps_to_the_minimum(memory_size, loss_unit, unit):
    """The BFGS steps on Rosenbrock's function, its loss and parameters in these units."""
    settings = settings_of("bfgs", memory_size)
    state = init(unit * np.array([-1.2, 1.0]))
    while rosen(state.w / unit) > 1e-8:
        state = step(
            state,
            lambda w: loss_unit * rosen(w / unit),
            lambda w: loss_unit / unit * rosen_grad(w / unit),
            **settings,
        )
        assert state.k < 200
    return state.k


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize(
    ("loss_unit", "unit"), [(1e10, 1.0), (1e-10, 1.0), (1.0, 1e6), (1.0, 1e-6), (1e-10, 1e6)]
)
def test_units_of_loss_and_parameters_do_not_count(memory_size, loss_unit, unit):
    steps = steps_to_the_minimum(memory_size, 1.0, 1.0)
    assert abs(steps_to_the_minimum(memory_size, loss_unit, unit) - steps) <= 20
