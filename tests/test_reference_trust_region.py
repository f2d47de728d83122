"""The trust-region references are tested before anything is tested against them."""

from itertools import pairwise

import numpy as np
import pytest
from reference.trust_region import (
    RadiusRule,
    model,
    next_radius,
    reduction_ratio,
    solve_cg,
    solve_exact,
)
from reference.vectors import quiet

E1 = np.array([1.0, 0.0])


def subproblem(kind, seed):
    """A matrix, a gradient and a radius."""
    generator = np.random.default_rng(seed)
    U = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    eigenvalues = np.sort(generator.normal(size=6)) + 0.2 * (seed % 3)
    a, radius = generator.normal(size=6), 10.0 ** generator.uniform(-2, 1)
    if kind == "definite":
        eigenvalues = np.abs(eigenvalues) + 0.1
    if kind == "low_rank":  # some of B = I + a part of rank 2, as with two pairs
        eigenvalues = np.where(np.arange(6) < 2, eigenvalues, 1.0)
    if "hard" in kind:
        eigenvalues[: 1 + seed % 2] = -1.5 - seed % 3
        a[: 1 + seed % 2] = 1e-10 if kind == "nearly_hard" else 0.0
        radius = 20.0
    if kind == "semidefinite":
        eigenvalues = np.abs(eigenvalues) + 0.1
        eigenvalues[:2] = a[:2] = 0.0
        radius = 100.0
    return U @ np.diag(eigenvalues) @ U.T, U @ a, radius, eigenvalues


KINDS = ("indefinite", "definite", "low_rank", "hard", "nearly_hard", "semidefinite")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_exact_solution(kind, seed):
    B, g, radius, eigenvalues = subproblem(kind, seed)
    s = solve_exact(B, g, radius)
    length = np.linalg.norm(s)
    inside = length < (1.0 - 1e-9) * radius
    sigma = 0.0 if inside else -(s @ (g + B @ s)) / (s @ s)
    assert length <= (1.0 + 1e-12) * radius
    np.testing.assert_allclose(g + B @ s, -sigma * s, rtol=0, atol=1e-9)
    assert sigma >= -1e-9
    assert sigma + np.min(eigenvalues) >= -1e-9
    points = np.random.default_rng(seed).normal(size=(200, 6))
    points *= (radius / np.linalg.norm(points, axis=1))[:, None]
    points[::2] *= np.linspace(0.01, 1.0, 100)[:, None]
    assert model(B, g, s) <= min(model(B, g, p) for p in points) + 1e-12
    if kind == "semidefinite":
        np.testing.assert_allclose(s, -np.linalg.pinv(B, rcond=1e-10) @ g, rtol=0, atol=1e-9)
    if kind in ("hard", "nearly_hard"):
        assert not inside
        assert sigma == pytest.approx(-np.min(eigenvalues), abs=1e-9)


def test_exact_solution_of_small_cases_by_hand():
    np.testing.assert_allclose(solve_exact(np.eye(2), 2.0 * E1, 0.5), -0.5 * E1, rtol=1e-14)
    np.testing.assert_allclose(solve_exact(np.eye(2), 0.25 * E1, 0.5), -0.25 * E1, rtol=1e-14)
    s = solve_exact(np.diag([1.0, -1.0]), E1, 2.0)  # −½e₁ and the rest along e₂
    np.testing.assert_allclose(np.abs(s), [0.5, np.sqrt(3.75)], rtol=1e-14)
    assert s[0] < 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_conjugate_gradients(kind, seed):
    B, g, radius, _ = subproblem(kind, seed)
    s = solve_cg(B, g, radius, 12)
    length = np.linalg.norm(s)
    assert length <= (1.0 + 1e-12) * radius
    curvature = g @ B @ g
    size = radius / np.linalg.norm(g)  # to the Cauchy point
    size = min(size, (g @ g) / curvature) if curvature > 0.0 else size
    cauchy = -size * g
    assert model(B, g, s) <= model(B, g, cauchy) + 1e-12 * abs(model(B, g, cauchy))
    assert model(B, g, s) >= model(B, g, solve_exact(B, g, radius)) - 1e-9
    if kind in ("definite", "semidefinite"):
        exact = solve_exact(B, g, 1e3)
        np.testing.assert_allclose(solve_cg(B, g, 1e3, 12), exact, rtol=0, atol=1e-9)
        one_product = solve_cg(B, g, 1e3, 1)
        np.testing.assert_allclose(one_product, -(g @ g) / curvature * g, rtol=1e-12)
        values = [model(B, g, solve_cg(B, g, 1e3, count)) for count in range(6)]
        assert values[0] == 0.0
        assert all(new < old for old, new in pairwise(values[:4]))


def test_conjugate_gradients_at_negative_curvature_take_the_better_end():
    far = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        B, g = np.diag([3.0, 1.0, -generator.uniform(0, 3)]), generator.normal(size=3)
        if g @ B @ g <= 0.0:
            np.testing.assert_allclose(solve_cg(B, g, 1.0, 6), -g / np.linalg.norm(g), rtol=1e-12)
            continue
        z = -(g @ g) / (g @ B @ g) * g
        r = g + B @ z
        d = -r + (r @ r) / (g @ g) * -g
        radius = 1.2 * np.linalg.norm(z)
        if d @ B @ d > 0.0:
            continue
        roots = np.roots([d @ d, 2 * z @ d, z @ z - radius**2])
        ends = sorted((z + root * d for root in roots), key=lambda s: model(B, g, s))
        s = solve_cg(B, g, radius, 6)
        np.testing.assert_allclose(s, ends[0], rtol=0, atol=1e-9)
        far += (s - z) @ d < 0.0
    assert far > 0


def test_radius_and_ratio():
    for ratio, length, radius in [
        (0.76, 0.81, 2.0), (0.76, 0.8, 1.0), (0.75, 1.0, 1.0), (0.1, 1.0, 1.0), (0.09, 0.1, 0.5)
    ]:  # fmt: skip
        assert next_radius(1.0, ratio, length) == radius
    assert next_radius(1e10, 1.0, 1e10) == 1e10
    assert next_radius(1e-10, -5.0, 1e-10) == 1e-10
    assert next_radius(1.0, np.nan, 1.0) == 0.5
    rule = RadiusRule(shrink_below=0.3, grow_above=0.5, boundary=0.2, shrink=0.25, grow=3.0)
    for ratio, length, radius in [
        (0.51, 0.21, 3.0), (0.51, 0.2, 1.0), (0.5, 1.0, 1.0), (0.3, 1.0, 1.0), (0.29, 0.1, 0.25)
    ]:  # fmt: skip
        assert next_radius(1.0, ratio, length, rule) == radius
    assert reduction_ratio(3.0, 2.0, 4.0) == pytest.approx(0.25, rel=1e-14)
    assert reduction_ratio(2.0, 3.0, 4.0) == pytest.approx(-0.25, rel=1e-14)
    with quiet:
        for bad in [(1, 0, 0), (1, 2, -1), (np.inf, 0, 1), (0, np.nan, 1), (1, 0, np.inf)]:
            assert reduction_ratio(*map(np.float64, bad)) == 0.0
        assert reduction_ratio(0.0, -1e300, np.float64(1e-300)) == 0.0


def test_the_ratio_forgives_a_rounding_of_the_loss():
    """Beneath rounding a good step may look like an increase; a real one is none the better."""
    ulp = np.finfo(np.float64).eps
    for value in (1e6, -1e6):  # whose spacing is half of the slack
        trial = value + 0.5 * ulp * abs(value)
        assert reduction_ratio(value, trial, 1e-12) == pytest.approx(0.5, rel=0.1)
        assert reduction_ratio(value, value, 1e-12) == pytest.approx(1.0, rel=1e-2)
        assert reduction_ratio(value, value + 2.0 * ulp * abs(value), 1e-12) < -0.8
        assert reduction_ratio(value, value + 1.0, 1.0) == pytest.approx(-1.0, rel=1e-8)
    for predicted in (0.0, -1e-12, -1.0):  # without the slack
        assert reduction_ratio(1e6, 0.0, predicted) == 0.0
    assert reduction_ratio(0.0, -0.25, 1.0) == 0.25
