"""When the quasi-Newton references start their momentum anew, and the steps that rise too high."""

from dataclasses import replace

import numpy as np
import pytest
from reference.quasi_newton import step
from reference.walks import (
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
RESTARTING = ["naq", "moq", "mnaq"]


def on_the_way(method, memory_size=3, window=3, steps=6):
    settings = settings_of(method, memory_size, restart_window=window)
    return walk(settings, steps), settings


def raised(point, value):
    """The quadratic, but this value at a point."""
    return lambda w: value if np.array_equal(w, point) else quadratic(w)


@pytest.mark.parametrize("method", RESTARTING)
def test_the_known_losses_are_those_of_the_last_iterates(method):
    states, settings = on_the_way(method)
    assert states[-1].momentum_restarts == states[-1].refused_steps == 0
    for k, state in enumerate(states):
        assert state.losses == [quadratic(other.w) for other in states[1 : k + 1][-3:]]
    plain = walk({**settings, "restart_window": None}, 6)[-1]
    assert_states_equal(plain, replace(states[-1], losses=[]))
    refused = step(
        states[-1],
        quadratic,
        quadratic_grad,
        **{**settings, "learning_rate": np.nan},
    )
    assert (refused.refused_steps, refused.losses) == (1, [])


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", RESTARTING)
@pytest.mark.parametrize("value", [*NOT_FINITE, "above", "equal", "unknown"])
def test_restart(method, memory_size, value):
    states, settings = on_the_way(method, memory_size)
    state = states[-1]
    w_hat = state.w + 0.5 * state.v
    assert np.any(w_hat != state.w)
    highest = max(state.losses)
    if value == "unknown":
        state, value, restarts = replace(state, losses=[]), np.nan, 0
    else:
        restarts = value != "equal"
        value = {"equal": highest, "above": highest * (1.0 + 1e-12)}.get(value, value)
    loss = raised(w_hat, value)
    new = step(state, loss, quadratic_grad, **settings)
    assert new.momentum_restarts == restarts
    if not restarts:
        assert new.k == state.k + 1
        assert (new.losses == [] and new.refused_steps == 1) or new.losses[-1] == quadratic(new.w)
        return
    if method != "moq":
        expected = replace(
            state,
            k=state.k + 1,
            v=np.zeros(4),
            params=state.w,
            alpha=0.0,
            losses=[],
            momentum_restarts=1,
        )
        assert_states_equal(new, expected)
        after = step(new, loss, quadratic_grad, **settings)
        assert after.losses == [quadratic(after.w)]
        assert after.momentum_restarts == 1
        return
    still = replace(state, v=np.zeros(4), losses=[])
    expected = step(still, loss, quadratic_grad, **{**settings, "momentum": 0.0})
    assert_states_equal(new, replace(expected, momentum_restarts=1))
    assert new.stored == state.stored + 1
    np.testing.assert_array_equal(new.waiting[1], quadratic_grad(state.w))
    assert new.losses == [quadratic(new.w)]
    refused = step(state, lambda w: np.nan, quadratic_grad, **settings)
    assert (refused.momentum_restarts, refused.refused_steps, refused.losses) == (1, 1, [])


@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", ["naq", "moq"])
@pytest.mark.parametrize("window", [1, 3])
def test_with_a_window_no_loss_exceeds_the_last_ones(method, memory_size, window):
    """Momentum carries the plain methods uphill on Rosenbrock's function, by far."""
    settings = settings_of(method, memory_size, momentum=0.95)
    start = np.array([-1.2, 1.0])

    def losses(**more):
        states = walk({**settings, **more}, 80, start, rosen, rosen_grad)
        return states, [rosen(state.w) for state in states]

    states, guarded = losses(restart_window=window)
    assert states[-1].momentum_restarts >= 2
    for k, value in enumerate(guarded[1:], 1):
        assert value <= max(guarded[max(k - window, 0) : k])
    assert min(guarded) == pytest.approx(0.0, abs=1e-3)
    _, free = losses()
    assert any(value > 1.2 * max(free[max(k - window, 0) : k]) for k, value in enumerate(free) if k)


@pytest.mark.parametrize("known", [[], [1.0, 2.0]], ids=["none", "some"])
@pytest.mark.parametrize("memory_size", MEMORIES)
@pytest.mark.parametrize("method", RESTARTING)
def test_a_step_above_the_known_losses_is_refused(method, memory_size, known):
    """As far as its pair is its own: MoQ's next step compares."""
    states, settings = on_the_way(method, memory_size)
    state = states[-1]
    w_hat = state.w + 0.5 * state.v
    start = quadratic(w_hat)
    state = replace(state, losses=[start * factor for factor in known])
    highest = max([start, *state.losses])
    if method != "mnaq":
        settings["search"] = lambda *_: (1.0, True)
    for value, rises in (
        (highest, False),
        (highest * (1.0 + 1e-12), True),
        (np.nan, True),
        (np.inf, True),
    ):

        def loss(w, value=value):
            return start if np.array_equal(w, w_hat) else value

        free = step(state, loss, quadratic_grad, **{**settings, "restart_window": None})
        assert free.refused_steps == 0
        new = step(state, loss, quadratic_grad, **settings)
        if rises and method != "moq":
            assert_states_equal(new, refused_state(state, quadratic_grad(state.params)))
        else:
            finite = [value] if np.isfinite(value) else []
            assert_states_equal(new, replace(free, losses=[*state.losses, *finite][-3:]))
