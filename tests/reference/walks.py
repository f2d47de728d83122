"""Short walks of the quasi-Newton references on two small functions, which their tests share."""

from dataclasses import fields, replace

import numpy as np

from .quasi_newton import METHODS, init, step

ONLINE = [method for method, rules in METHODS.items() if rules.online]
SEARCHING = ["bfgs", "naq", "moq"]
WITH_MOMENTUM = [method for method in METHODS if method not in ("bfgs", "obfgs")]
HESSIAN = np.diag([1.0, 2.0, 5.0, 9.0])
START = np.array([1.0, -2.0, 0.5, 1.5])


def quadratic(w):
    return 0.5 * float(w @ HESSIAN @ w)


def quadratic_grad(w):
    return HESSIAN @ w


def rosen(w):
    return float(100.0 * (w[1] - w[0] ** 2) ** 2 + (1.0 - w[0]) ** 2)


def rosen_grad(w):
    inner = 200.0 * (w[1] - w[0] ** 2)
    return np.array([-2.0 * w[0] * inner - 2.0 * (1.0 - w[0]), inner])


def settings_of(method, memory_size=3, **more):
    """Settings of a step with a momentum of a half and, online, a learning rate of a tenth."""
    settings = {"method": method, "memory_size": memory_size}
    if method in WITH_MOMENTUM:
        settings["momentum"] = 0.5
    if METHODS[method].online:
        settings["learning_rate"] = 0.1
    return {**settings, **more}


def walk(settings, steps, w=START, loss=quadratic, grad=quadratic_grad):
    """The states of a walk, the first one included."""
    states = [init(w)]
    for _ in range(steps):
        states.append(step(states[-1], loss, grad, **settings))
    return states


def assert_states_equal(actual, expected):
    for field in fields(expected):
        left, right = getattr(actual, field.name), getattr(expected, field.name)
        assert (left is None) == (right is None), field.name
        if field.name == "waiting" and left is not None:
            left, right = np.stack(left), np.stack(right)
        if left is not None:
            np.testing.assert_array_equal(left, right, err_msg=field.name)


def refused_state(state, r, **changes):
    """What a refused step whose gradient is r makes of a state, up to other changes."""
    return replace(
        state,
        k=state.k + 1,
        v=np.zeros_like(state.v),
        params=state.w,
        s_list=[],
        y_list=[],
        H=None,
        waiting=None,
        g_prev=r,
        updates_prev=r,
        losses=[],
        alpha=0.0,
        refused_steps=state.refused_steps + 1,
        by_pair=True,
        **changes,
    )
