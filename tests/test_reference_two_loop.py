"""The two-loop recursion of the references against the dense matrix that it stands for."""

import numpy as np
import pytest
from reference.two_loop import dense_bfgs, two_loop


def curvature_pairs(seed, count=5, size=12):
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(size, size))
    hessian = root @ root.T / size + 0.1 * np.eye(size)
    s_list = list(generator.normal(size=(count, size)))
    return s_list, [hessian @ s for s in s_list], generator.normal(size=size)


def diagonals(size=12):
    return [1.0, 0.3, np.random.default_rng(5).uniform(0.1, 3.0, size)]


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("h0", diagonals(), ids=["one", "number", "diagonal"])
@pytest.mark.parametrize("seed", range(3))
def test_two_loop_is_the_dense_product(seed, h0, count):
    s_list, y_list, g = curvature_pairs(seed, count)
    dense = dense_bfgs(s_list, y_list, h0 * np.ones(g.size))
    np.testing.assert_allclose(two_loop(s_list, y_list, g, h0), dense @ g, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(dense, dense.T, rtol=0, atol=1e-10)
    assert np.min(np.linalg.eigvalsh(dense)) > 0.0
    if count:
        np.testing.assert_allclose(dense @ y_list[-1], s_list[-1], rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(dense_bfgs(s_list, y_list, h0), dense)


@pytest.mark.parametrize("h0", diagonals(), ids=["one", "number", "diagonal"])
def test_the_printed_minus_sign_is_wrong(h0):
    def printed(s_list, y_list, g, h0):
        eta, sigma = g, {}
        for i in reversed(range(len(s_list))):
            sigma[i] = (s_list[i] @ eta) / (y_list[i] @ s_list[i])
            eta = eta - sigma[i] * y_list[i]
        eta = h0 * eta
        for i in range(len(s_list)):
            beta = (y_list[i] @ eta) / (y_list[i] @ s_list[i])
            eta = eta - (sigma[i] - beta) * s_list[i]
        return eta

    s_list, y_list, g = curvature_pairs(0)
    right = dense_bfgs(s_list, y_list, h0) @ g
    wrong = printed(s_list, y_list, g, h0)
    assert np.linalg.norm(wrong - right) > 0.5 * np.linalg.norm(right)
