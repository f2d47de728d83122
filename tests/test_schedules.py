"""The papers' step sizes and momenta, which count from 1 where Optax counts from 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_table import enable_x64

from naqopt import schedules
from naqopt.steps.schedules import evaluate

EACH_PRECISION = pytest.mark.parametrize("x64", [False, True])


def values(schedule, count):
    """The first values, by one compiled call, which has to give floats of the default width."""
    result = jax.jit(jax.vmap(schedule))(jnp.arange(count, dtype=jnp.int32))
    assert result.dtype == jnp.result_type(float)
    np.testing.assert_allclose(result[3], schedule(3), rtol=1e-6)
    return np.asarray(result)


@EACH_PRECISION
def test_inverse_sqrt(x64):
    with enable_x64(x64):
        k = np.arange(1, 11)
        rtol = 1e-12 if x64 else 1e-6
        np.testing.assert_allclose(
            values(schedules.inverse_sqrt(0.3), 10), 0.3 / np.sqrt(k), rtol=rtol
        )


@EACH_PRECISION
def test_harmonic(x64):
    with enable_x64(x64):
        k = np.arange(1, 11)
        rtol = 1e-12 if x64 else 1e-6
        np.testing.assert_allclose(
            values(schedules.harmonic(0.5, 10), 10), 0.5 * 10 / (10 + k), rtol=rtol
        )


@pytest.mark.parametrize(
    "schedule",
    [schedules.inverse_sqrt(0.3), schedules.harmonic(0.5, 10), schedules.nesterov_momentum()],
    ids=["inverse_sqrt", "harmonic", "nesterov_momentum"],
)
def test_a_count_at_its_most_does_not_overflow(schedule):
    last, before = schedule(jnp.int32(2**31 - 1)), schedule(jnp.int32(2**31 - 2))
    assert 0 <= last <= before
    np.testing.assert_allclose(last, before, rtol=1e-6)


def momenta_by_recursion(count):
    """θ⁺² = (1 − θ⁺) θ² + γ θ⁺ and μ = θ (1 − θ)/(θ² + θ⁺), without a cap."""
    thetas = [1.0]
    for _ in range(count):
        theta = thetas[-1]
        roots = np.roots([1.0, theta**2 - 1e-5, -(theta**2)])
        thetas.append(float(roots[roots > 0][0]))
    thetas = np.array(thetas)
    return thetas[:-1] * (1 - thetas[:-1]) / (thetas[:-1] ** 2 + thetas[1:])


@EACH_PRECISION
def test_nesterov_momentum(x64):
    with enable_x64(x64):
        momenta = values(schedules.nesterov_momentum(), 100)
        np.testing.assert_allclose(
            momenta[:6], [0, 0.2817, 0.4340, 0.5311, 0.5988, 0.6489], atol=5e-5
        )
        expected = np.minimum(momenta_by_recursion(100), 0.95)
        np.testing.assert_allclose(momenta, expected, rtol=1e-9 if x64 else 1e-6)
        assert np.argmax(momenta >= np.float32(0.95)) == 56
        assert np.all(np.diff(momenta) >= 0)


@pytest.mark.parametrize("cap", [0.0, 0.2, 0.9, 0.99])
def test_momentum_never_exceeds_its_cap(cap):
    momenta = values(schedules.nesterov_momentum(cap), 4000)
    assert np.max(momenta) == momenta[-1] == np.float32(cap)


def test_momentum_without_an_effective_cap_ends_at_its_ceiling(x64):
    schedule = schedules.nesterov_momentum(0.999)
    np.testing.assert_allclose(values(schedule, 20_000)[-1], 0.9937, atol=5e-4)
    assert schedule(10**9) == schedule(20_000)
    np.testing.assert_allclose(
        values(schedule, 300), momenta_by_recursion(300), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("schedule", "arguments", "name"),
    [
        ("inverse_sqrt", (-1.0,), "initial"),
        ("inverse_sqrt", (np.inf,), "initial"),
        ("harmonic", (-0.1, 10), "initial"),
        ("harmonic", (1.0, 0.0), "tau"),
        ("harmonic", (1.0, -1.0), "tau"),
        ("nesterov_momentum", (1.0,), "cap"),
        ("nesterov_momentum", (-0.1,), "cap"),
        ("nesterov_momentum", (np.nan,), "cap"),
    ],
)
def test_numbers_out_of_range(schedule, arguments, name):
    message = rf"naqopt\.schedules\.{schedule}: `{name}` must be a finite number in"
    with pytest.raises(ValueError, match=message):
        getattr(schedules, schedule)(*arguments)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "nesterov_momentum"])
def test_words_for_numbers(schedule):
    with pytest.raises(TypeError, match=rf"schedules\.{schedule}: .* must be a number, got '1'"):
        getattr(schedules, schedule)("1")


def test_a_schedule_gives_one_number():
    count = jnp.zeros((), jnp.int32)
    assert evaluate("momentum", 0.5, count, jnp.float32) == 0.5
    assert evaluate("momentum", lambda k: k + 0.25, count + 1, jnp.float32) == 1.25
    with pytest.raises(ValueError, match=r"`momentum` must give one number, got shape \(2,\)"):
        evaluate("momentum", lambda k: jnp.zeros(2), count, jnp.float32)
