"""The small models' losses against SciPy's distributions, and their study."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from sklearn import datasets

from benchmarks.small_models import models
from benchmarks.small_models.models import MODELS
from benchmarks.studies import small_models

pytestmark = [
    pytest.mark.slow,  # tinygp, diffrax and PennyLane are installed for `make test-full`
    pytest.mark.filterwarnings("ignore:jax.core.is_concrete:DeprecationWarning"),  # PennyLane's
]


def test_the_gaussian_process_is_a_normal_distribution(x64):
    params = np.random.default_rng(0).normal(size=12) * 0.5
    x, y = datasets.load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    scaled = x / np.exp(params[2:])
    squares = ((scaled[:, None] - scaled[None]) ** 2).sum(-1)
    noise = np.exp(2 * params[1]) + 1e-6
    covariance = np.exp(2 * params[0]) * np.exp(-squares / 2) + noise * np.eye(len(y))
    expected = -stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)
    loss = MODELS["gaussian-process"].loss()
    np.testing.assert_allclose(loss(jnp.asarray(params)), expected, rtol=1e-9)


def test_the_epidemic_is_counted_by_a_negative_binomial(x64):
    params = np.array([-0.1, 0.05, 0.3, -0.4])
    infection, recovery, first, dispersion = np.exp(params) * [2, 0.5, 1, 0.1]

    def change(t, y):
        new = infection * y[0] * y[1] / 763
        return [-new, new - recovery * y[1]]

    days = np.arange(14)
    found = integrate.solve_ivp(
        change, (0, 13), [763 - first, first], t_eval=days, rtol=1e-10, atol=1e-10
    )
    size, mean = 1 / dispersion, found.y[1]
    expected = -stats.nbinom(size, size / (size + mean)).logpmf(models.IN_BED).sum()
    loss = jax.jit(MODELS["epidemic"].loss())
    np.testing.assert_allclose(loss(jnp.asarray(params)), expected, rtol=1e-6)


def test_the_circuit_has_an_energy_of_the_chain(x64):
    import pennylane as qml

    loss = jax.jit(MODELS["circuit"].loss())
    assert loss(jnp.zeros(24)) == pytest.approx(-5)  # all spins up: five pairs, no field
    matrix = qml.matrix(models.ising(), wire_order=range(6))
    lowest = np.linalg.eigvalsh(matrix)[0]
    assert loss(MODELS["circuit"].start(0)) > lowest


def test_a_run_that_ends_elsewhere_has_not_arrived():
    curve = {"loss": [3.0, 2.0, 1.0 + 5e-7, 1.0]}
    assert small_models._arrival(curve, 1.0) == 2
    assert small_models._arrival(curve, 0.9) is None


def test_the_study_writes_a_table_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(small_models, "MODELS", {"circuit": MODELS["circuit"]})
    monkeypatch.setattr(small_models, "BUDGET", 30)
    monkeypatch.setattr(small_models, "QUICK_METHODS", ("scipy-bfgs",))
    picture = small_models.run(tmp_path, quick=True)
    assert picture.stat().st_size > 10_000
    text = (tmp_path / "results.md").read_text()
    assert "| SciPy BFGS |  1 of 1 |" in text
