"""The rings of pairs and gradients, the two-loop recursion and the Fisher product."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_table import enable_x64
from reference.two_loop import dense_bfgs
from reference.two_loop import two_loop as listed_two_loop

from naqopt.curvature import fisher as fisher_ring
from naqopt.curvature import lbfgs
from naqopt.curvature import pairs as pair_ring

MEMORY = 4
PARAMS = {"scalar": np.zeros(()), "vector": np.zeros(3), "matrix": np.zeros((2, 4))}
SIZE = 12


def tree(vector, dtype=None):
    """A vector of 12 numbers as leaves of rank 2, 0 and 1, in the order of ravel_pytree."""
    vector = jnp.asarray(vector, dtype)
    return {"matrix": vector[:8].reshape(2, 4), "scalar": vector[8], "vector": vector[9:]}


def flat(t):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(t)])


def curved_pairs(seed, count):
    """Pairs of a random quadratic, so that every sᵀy is positive."""
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(SIZE, SIZE))
    hessian = root @ root.T / SIZE + np.eye(SIZE)
    steps = generator.normal(size=(count, SIZE))
    return list(steps), list(steps @ hessian)


@jax.jit
def push(pairs, s, y, accept=True):
    new = pair_ring.products(pairs, s, y)
    return pair_ring.store(pairs, s, y, new, jnp.asarray(accept) & pair_ring.is_usable(new))


def ring_of(S, Y, dtype=None, history_dtype=None):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    pairs = pair_ring.init(params, MEMORY, history_dtype)
    for s, y in zip(S, Y, strict=True):
        pairs = push(pairs, tree(s, dtype), tree(y, dtype))
    return pairs


@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
@pytest.mark.parametrize("count", range(2 * MEMORY + 2))
def test_both_forms_are_the_dense_product_at_every_offset(count, kind, x64):
    """0 to 9 pairs in 4 slots: empty, filling, full, wrapped at each offset."""
    S, Y = curved_pairs(count, count)
    g = np.random.default_rng(99).normal(size=SIZE)
    diagonal = np.random.default_rng(98).uniform(0.1, 2.0, SIZE)
    h0 = 0.7 if kind == "scalar" else diagonal
    pairs = ring_of(S, Y)
    kept_s, kept_y = S[-MEMORY:], Y[-MEMORY:]
    dense = dense_bfgs(kept_s, kept_y, np.broadcast_to(h0, SIZE)) @ g
    np.testing.assert_allclose(listed_two_loop(kept_s, kept_y, g, h0), dense, rtol=1e-10)
    h0 = jnp.asarray(h0) if kind == "scalar" else tree(h0)
    for form in (lbfgs.two_loop_by_pairs, lbfgs.two_loop):
        np.testing.assert_allclose(flat(form(pairs, tree(g), h0)), dense, rtol=1e-10, atol=1e-12)
    assert int(pairs.size) == min(count, MEMORY)


def test_both_forms_agree_in_float32():
    S, Y = curved_pairs(3, 6)
    pairs = ring_of(S, Y, np.float32)
    g = tree(np.random.default_rng(1).normal(size=SIZE), np.float32)
    dense = dense_bfgs(S[-MEMORY:], Y[-MEMORY:], np.ones(SIZE)) @ flat(g)
    for form in (lbfgs.two_loop_by_pairs, lbfgs.two_loop):
        result = form(pairs, g, jnp.float32(1))
        chex.assert_type(jax.tree.leaves(result), jnp.float32)
        assert np.max(np.abs(flat(result) - dense)) < 1e-5 * np.max(np.abs(dense))


def test_bfloat16_history_gives_the_product_of_the_rounded_pairs():
    S, Y = curved_pairs(4, 5)
    pairs = ring_of(S, Y, np.float32, jnp.bfloat16)
    chex.assert_type(jax.tree.leaves((pairs.s, pairs.y)), jnp.bfloat16)
    g = tree(np.random.default_rng(1).normal(size=SIZE), np.float32)
    rounded = [
        [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in vectors[-MEMORY:]]
        for vectors in (S, Y)
    ]
    dense = dense_bfgs(*rounded, np.ones(SIZE)) @ flat(g)
    result = flat(lbfgs.two_loop(pairs, g, jnp.float32(1)))
    assert np.max(np.abs(result - dense)) < 1e-4 * np.max(np.abs(dense))


@functools.cache
def matrix_of():
    """Jitted: the dense matrix that a ring stands for, column by column."""

    @jax.jit
    def dense(pairs, diagonal):
        return jax.vmap(
            lambda column: jnp.concatenate(
                [x.ravel() for x in jax.tree.leaves(lbfgs.two_loop(pairs, tree(column), diagonal))]
            )
        )(jnp.eye(SIZE))

    return dense


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), scale=st.floats(-3, 3))
def test_the_matrix_is_symmetric_positive_definite_and_keeps_the_secant_equation(
    seed, count, scale
):
    """Random pairs, of which those with sᵀy > 1e-2 ‖s‖ ‖y‖ are accepted."""
    with enable_x64():
        generator = np.random.default_rng(seed)
        pairs = ring_of([], [])
        last = None
        for _ in range(count):
            s = generator.normal(size=SIZE)
            y = 10**scale * (generator.normal(size=SIZE) + generator.uniform(0, 3) * s)
            accept = s @ y > 1e-2 * np.sqrt((s @ s) * (y @ y))
            pairs = push(pairs, tree(s), tree(y), accept)
            last = (s, y) if accept else last
        diagonal = generator.uniform(0.5, 2.0, SIZE) * 10**-scale
        H = np.asarray(matrix_of()(pairs, tree(diagonal)))
        norm = np.max(np.abs(H))
        np.testing.assert_allclose(H, H.T, atol=1e-9 * norm)
        assert np.linalg.eigvalsh((H + H.T) / 2)[0] > -1e-12 * norm
        g = generator.normal(size=SIZE)
        assert g @ H @ g > 0
        if last is not None:
            s, y = last
            np.testing.assert_allclose(H @ y, s, atol=1e-9 * norm * np.max(np.abs(y)))


def test_a_refused_pair_changes_no_bit():
    S, Y = curved_pairs(5, 6)
    pairs = ring_of(S, Y, np.float32)
    after = push(pairs, tree(S[0], np.float32), tree(Y[0], np.float32), False)
    chex.assert_trees_all_equal(after, pairs)


@pytest.mark.parametrize(
    ("s", "y", "usable"),
    [
        (1.0, 1.0, True),
        (1.0, -1.0, False),
        (1.0, 0.0, False),
        (0.0, 1.0, False),
        (1.0, np.nan, False),
        (np.inf, 1.0, False),
        (1e-20, 1e-20, False),  # sᵀy is not a normal float32 number
        (1e25, 1e-10, False),  # sᵀs overflows
        (1e-10, 1e25, False),  # yᵀy overflows
        (1e-15, 1e-15, True),
    ],
)
def test_which_pairs_are_usable(s, y, usable):
    pairs = ring_of([], [], np.float32)
    s, y = tree(np.full(SIZE, s), np.float32), tree(np.full(SIZE, y), np.float32)
    assert bool(pair_ring.is_usable(pair_ring.products(pairs, s, y))) is usable
    nothing = jax.tree.map(np.zeros_like, s)
    assert not bool(pair_ring.is_usable(pair_ring.products(pairs, nothing, nothing)))


def test_cleared_pairs_leave_no_trace():
    S, Y = curved_pairs(6, 7)
    pairs = pair_ring.clear(ring_of(S, Y, np.float32), jnp.asarray(True))
    g = tree(np.arange(12.0), np.float32)
    chex.assert_trees_all_equal(
        lbfgs.two_loop(pairs, g, jnp.float32(2)), jax.tree.map(lambda x: 2 * x, g)
    )
    # New pairs after that count alone, wherever in the ring they fall.
    S, Y = curved_pairs(7, 2)
    for s, y in zip(S, Y, strict=True):
        pairs = push(pairs, tree(s, np.float32), tree(y, np.float32))
    dense = dense_bfgs(S, Y, np.ones(SIZE)) @ flat(g)
    np.testing.assert_allclose(flat(lbfgs.two_loop(pairs, g, jnp.float32(1))), dense, rtol=1e-4)


@pytest.mark.parametrize("block_size", [None, 1, 2, 3, 5, 7, 50])
@pytest.mark.parametrize("count", [0, 1, 4, 7, 10])
def test_fisher_product_over_any_blocks(count, block_size, x64):
    """7 slots, so that blocks of 2, 3 and 5 overlap; 10 gradients wrap round."""
    gradients = np.random.default_rng(count).normal(size=(count, SIZE))
    s = np.random.default_rng(1).normal(size=SIZE)
    fisher = fisher_ring.init(PARAMS, 7)
    for g in gradients:
        fisher = fisher_ring.push(fisher, tree(g), 7, jnp.asarray(True))
    kept = gradients[-7:]
    expected = kept.T @ (kept @ s) / max(len(kept), 1)
    result = flat(fisher_ring.product(fisher, tree(s), block_size=block_size))
    np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-13)


def test_fisher_forgets_when_cleared_and_ignores_what_is_refused(x64):
    fisher = fisher_ring.init(PARAMS, 3)
    generator = np.random.default_rng(0)
    for _ in range(4):
        fisher = fisher_ring.push(fisher, tree(generator.normal(size=SIZE)), 3, jnp.asarray(True))
    refused = fisher_ring.push(fisher, tree(np.full(SIZE, np.nan)), 3, jnp.asarray(False))
    chex.assert_trees_all_equal(refused, fisher)
    fisher = fisher_ring.clear(fisher, jnp.asarray(True))
    g = generator.normal(size=SIZE)
    fisher = fisher_ring.push(fisher, tree(g), 3, jnp.asarray(True))
    s = generator.normal(size=SIZE)
    np.testing.assert_allclose(flat(fisher_ring.product(fisher, tree(s))), g * (g @ s), rtol=1e-12)


def test_a_narrow_ring_saturates(x64):
    fisher = fisher_ring.init(PARAMS, 2, np.dtype(np.float32))
    fisher = fisher_ring.push(fisher, tree(np.full(SIZE, -1e100)), 2, jnp.asarray(True))
    assert np.all(flat(fisher.gradients)[:8] == -np.finfo(np.float32).max)
