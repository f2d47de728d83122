"""The pairs and matrices of the symmetric-rank-one references, against updates one by one."""

from dataclasses import replace

import numpy as np
import pytest
from reference.symmetric_rank_one import init
from reference.symmetric_rank_one_memory import (
    cleared,
    compact,
    hessian,
    inverse_hessian,
    with_pair,
)


def symmetric_rank_one_updates(B, pairs):
    for s, y in pairs:
        r = y - B @ s
        B = B + np.outer(r, r) / (r @ s)
    return B


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("gamma", [1.0, 0.2, 30.0])
def test_compact_form_is_the_updates_one_after_the_other(count, gamma):
    S, Y = np.random.default_rng(count).normal(size=(2, count, 7))
    B = compact(list(S), list(Y), gamma, 7)
    expected = symmetric_rank_one_updates(gamma * np.eye(7), list(zip(S, Y, strict=True)))
    np.testing.assert_allclose(B, expected, rtol=0, atol=1e-10 * np.max(np.abs(expected)))
    if count:
        np.testing.assert_allclose(B @ S[-1], Y[-1], rtol=0, atol=1e-10 * np.max(np.abs(B)))
    # Self-duality: H with H0 = I/γ is the inverse of that B.
    H = compact(list(Y), list(S), 1.0 / gamma, 7)
    np.testing.assert_allclose(H @ B, np.eye(7), rtol=0, atol=1e-9)
    inverse = np.linalg.inv(expected)
    np.testing.assert_allclose(H, inverse, rtol=0, atol=1e-9 * np.max(np.abs(inverse)))


EMPTY = init(np.zeros(2), "sr1n")
E1, E2 = np.eye(2)


@pytest.mark.parametrize("memory", ["limited", "dense", "inverse"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_two_tests_of_a_pair(memory, scale, factor):
    """Just inside and just outside the bounds, against B = I or H = I."""
    state = replace(EMPTY, B=np.eye(2)) if memory == "dense" else EMPTY
    size, inverse = None if memory == "dense" else 3, memory == "inverse"

    def stored(s, y):
        fixed = 1.0 if inverse else None  # or else H0 is that of the first pair itself
        new = with_pair(state, scale * s, scale * y, size, inverse, fixed)
        assert new.stored + new.refused == 1
        return new.stored

    y = E1 / 2 + (0.5 + 0.6e-8 * factor) * E2 if memory == "inverse" else E1 + 1.5e-8 * factor * E1
    assert stored(E1, y if memory == "inverse" else y + E2) == (factor == 1.0)
    assert stored(E1, E1 + 1.5e-6 * factor * (E1 + E2) / np.sqrt(2)) == (factor == 1.0)
    bad = [
        (E1, E1),
        (0 * E1, E2),
        (np.nan + E1, E2),
        (E1, E2 + np.inf),
        (np.array([1.0, -np.inf]), E1),
    ]
    bad += [(1e-170 * E1, E2), (1e-200 * E1, 1e150 * E1)] if scale == 1.0 else []
    assert not any(stored(s, y) for s, y in bad)
    assert stored(E1, -E1)  # negative curvature is welcome


def test_the_matrix_before_the_pair_is_the_one_it_is_tested_against():
    s, y = np.array([1.0, 1.0]) / np.sqrt(2), np.array([3.0, 1.0])
    for size, inverse in ((3, False), (None, False), (3, True)):
        state = with_pair(EMPTY, s, y, size, inverse)
        again = with_pair(state, 2.0 * s, 2.0 * y, size, inverse)
        matrix = inverse_hessian(state) if inverse else hessian(state)
        left, right = (y, s) if inverse else (s, y)
        np.testing.assert_allclose(matrix @ left, right, rtol=1e-12)
        # The same pair again: refused, or else it is singular and drives the first one out.
        assert again.refused == 1 or len(again.s_list) == 1


def test_gamma():
    state = with_pair(EMPTY, E1, 3.0 * E1 + E2, 3)
    assert state.gamma == pytest.approx(1.5)  # ½sᵀy/sᵀs
    state = with_pair(state, 3.0 * E2, -3.0 * E2 + E1, 3)
    assert (len(state.s_list), state.gamma) == (2, pytest.approx(1.5))  # sᵀy < 0
    np.testing.assert_allclose(state.s_list[1], E2)
    np.testing.assert_allclose(state.y_list[1], E1 / 3.0 - E2)
    state = with_pair(state, E1, 1e-4 * E1 + 0.001 * E2, 2)  # the oldest goes
    assert (len(state.s_list), state.gamma) == (2, pytest.approx(5e-5))
    np.testing.assert_allclose(state.s_list[0], E2)
    for other in (-E1 + E2, -E2 + E1 / 7.0):  # no pair of the two has sᵀy > 0: the last γ
        state = with_pair(state, E1 if other[0] < 0 else E2, other, 2)
        assert state.gamma == pytest.approx(5e-5)
    assert cleared(state).gamma == state.gamma
    for unit in (1e-9, 1e9):  # within no bounds
        assert with_pair(EMPTY, E1, unit * (E1 + E2), 3).gamma == pytest.approx(0.5 * unit)
        assert with_pair(EMPTY, unit * E1, E1 + E2, 3).gamma == pytest.approx(0.5 / unit)
    for excess, refused in ((1e-7, 1), (1e-2, 0)):  # negligible is what is near γs
        assert with_pair(replace(EMPTY, gamma=3.0), E1, (3.0 + excess) * E1, 3).refused == refused
        assert with_pair(replace(EMPTY, gamma=3.0), E1, (1.0 + excess) * E1, 3).refused == 0


def test_gamma_is_that_of_the_largest_curvature_in_memory():
    one = with_pair(EMPTY, E1, 3.0 * E1 + E2, 2)
    for along, gamma in ((1.0, 1.5), (8.0, 4.0), (-9.0, 1.5)):
        two = with_pair(one, 5.0 * E2, 5.0 * (along * E2 + E1), 2)
        assert (len(two.s_list), two.gamma) == (2, pytest.approx(gamma))
        three = with_pair(two, E1, 2.0 * E1 - E2, 2)  # the first one goes
        assert (len(three.s_list), three.gamma) == (2, pytest.approx(max(along, 2.0) / 2.0))


def test_gamma_of_the_inverse():
    """Of the mean; and the first pair is tested with its own, ‖y‖/‖s‖ of a negative one."""
    for unit in (1e-9, 1.0, 1e9):
        for y, gamma in (
            (3.0 * E1 + 4.0 * E2, 1.5),
            (E1, 0.5),
            (4.0 * E2 - 3.0 * E1, 5.0),
            (E2, 1.0),
        ):
            new = with_pair(EMPTY, 5.0 * E1, unit * 5.0 * y, 3, inverse=True)
            assert (new.stored, new.gamma) == (1, pytest.approx(unit * gamma))
            np.testing.assert_allclose(inverse_hessian(new) @ y, E1 / unit, atol=1e-9 / unit)
            for along, then in ((8.0, 4.0 if y[0] <= 0.0 else gamma / 2.0 + 2.0), (-8.0, gamma)):
                two = with_pair(new, E1 + E2, unit * along * (E1 + E2), 3, inverse=True)
                assert (len(two.s_list), two.gamma) == (2, pytest.approx(unit * then))
    bad = with_pair(replace(EMPTY, gamma=3.0), E1, E1 + np.inf, 3, inverse=True)
    assert (bad.refused, bad.gamma) == (1, 3.0)
    fixed = with_pair(EMPTY, E1, 3.0 * E1 + E2, 3, inverse=True, initial_scale=1.0)
    assert (fixed.stored, fixed.gamma) == (1, 1.0)


def test_gamma_of_the_dense_matrix():
    for along, last, gamma in ((3.0, 7.0, 1.5), (-3.0, 1.0, 1.0), (-3.0, 7.0, 7.0)):
        y = along * E1 + E2
        dense = with_pair(replace(EMPTY, gamma=last), 5.0 * E1, 5.0 * y, None)
        expected = symmetric_rank_one_updates(gamma * np.eye(2), [(E1, y)])
        np.testing.assert_allclose(dense.B, expected, rtol=1e-14)
        later = with_pair(dense, E2, 7.0 * E2, None)
        expected = symmetric_rank_one_updates(expected, [(E2, 7.0 * E2)])
        np.testing.assert_allclose(later.B, expected, rtol=1e-12)
        assert dense.gamma == later.gamma == gamma
    new = with_pair(EMPTY, E1, 1e-9 * E1 + E2, None)  # sᵀr = ½sᵀy is too small for an update of γI
    np.testing.assert_allclose(new.B, 0.5e-9 * np.eye(2), rtol=1e-14)
    assert (new.stored, new.refused) == (1, 0)
    new = with_pair(EMPTY, E1, E1, None)  # y = s, which I explains
    assert (new.B, new.gamma, new.stored, new.refused) == (None, 1.0, 0, 1)


@pytest.mark.parametrize("memory_size", [3, None])
def test_a_fixed_gamma(memory_size):
    state = replace(EMPTY, gamma=0.3)
    np.testing.assert_array_equal(hessian(state), 0.3 * np.eye(2))
    pairs = [(E1, 3.0 * E1 + E2), (E2, -E2 + E1)]
    for count, (s, y) in enumerate(pairs, 1):
        state = with_pair(state, s, y, memory_size, initial_scale=0.3)
        assert state.gamma == 0.3
        expected = symmetric_rank_one_updates(0.3 * np.eye(2), pairs[:count])
        np.testing.assert_allclose(hessian(state), expected, rtol=1e-12)
    explained = with_pair(replace(EMPTY, gamma=0.3), E1, 0.3 * E1, memory_size, initial_scale=0.3)
    assert (explained.stored, explained.refused) == (0, 1)


def test_the_oldest_pairs_go_while_the_small_matrix_is_singular():
    # Before, γ = 3; the new pair makes it 2, and of the three older ones the second has y = 2s.
    e1, e2, e3, e4 = np.eye(4)
    old = replace(
        init(np.zeros(4), "lsr1"), gamma=3.0, s_list=[e1, e2, e3], y_list=[-e1, 2.0 * e2, -2.0 * e3]
    )
    y = e1 + 4.0 * e4
    new = with_pair(old, e4, y, 5)
    assert (new.gamma, new.stored) == (2.0, 1)
    np.testing.assert_array_equal(new.s_list, [e3, e4])
    np.testing.assert_array_equal(new.y_list, [-2.0 * e3, y])
    assert len(with_pair(replace(old, y_list=[-e1, e1, -e3]), e4, y, 5).s_list) == 4
    for excess, kept in ((1e-14, 1), (1e-10, 2)):  # measured by yᵀy, here 4, below 4e4
        old = replace(EMPTY, s_list=[E1], y_list=[(1.0 + excess) * E1])
        assert len(with_pair(old, E2, -2.0 * E2, 3, True, 1.0).s_list) == kept
    assert len(with_pair(old, E2, -200.0 * E2, 3, True, 1.0).s_list) == 1
