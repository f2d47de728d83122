"""The inverse Hessian, limited or dense, after any pairs: what `naqopt.curvature` promises.

The ring and the two-loop recursion that it is made of are in `test_curvature`.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_table import enable_x64
from reference import two_loop as listings

from naqopt.curvature import lbfgs
from naqopt.curvature import pairs as ring
from naqopt.curvature.dense import dense_matrix, multiply

SIZE = 6


def close(actual, expected, tolerance):
    """Asserts that arrays agree to a tolerance relative to the largest number."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))


def tree(vector):
    """A vector of 6 numbers as a tree, in the order of its leaves."""
    return {"matrix": vector[:4].reshape(2, 2), "scalar": vector[4], "vector": vector[5:]}


def flat(t):
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(t)])


MEMORY, FEWER, PAIRS, MIN_CURVATURE = 8, 3, 8, 1e-3
DENSE = dense_matrix("bfgs", MIN_CURVATURE)
NEWEST = lbfgs.limited_memory(FEWER, MIN_CURVATURE)
MEAN = lbfgs.limited_memory(FEWER, MIN_CURVATURE, ring.mean_scale)
ROOMY = lbfgs.limited_memory(MEMORY, MIN_CURVATURE)
CURVATURES = (DENSE, NEWEST, MEAN, ROOMY)
FIRST_SCALE = 0.25


def matrix(product):
    """The matrix of a product with trees, column by column."""
    return jax.vmap(lambda column: flat(product(tree(column))), out_axes=1)(jnp.eye(SIZE))


@functools.cache
def fed():
    """Jitted: from stacked pairs and how many of them count, what the curvatures make of them."""

    @jax.jit
    def feed(S, Y, count):
        def body(states, pair):
            i, s, y = pair
            results = [
                c.update(state, tree(s), tree(y), i < count)
                for c, state in zip(CURVATURES, states, strict=True)
            ]
            return tuple(r[0] for r in results), jnp.stack([r[1] for r in results])

        params = tree(jnp.zeros(SIZE))
        states = tuple(c.init(params) for c in CURVATURES)
        states, stored = jax.lax.scan(body, states, (jnp.arange(PAIRS), S, Y))
        matrices = [
            matrix(lambda g, c=c, state=state: c.precondition(state, g, jnp.array(FIRST_SCALE)))
            for c, state in zip(CURVATURES, states, strict=True)
        ]
        return stored, jnp.stack(matrices), states

    return feed


@functools.cache
def two_loop_matrix():
    """Jitted: the matrix of the two-loop recursion from γ I."""
    return jax.jit(
        lambda pairs, gamma: matrix(lambda g: lbfgs.two_loop(pairs, g, gamma)),
    )


def random_pairs(seed, scale_s, scale_y, convexity):
    """Pairs of both signs of curvature, fewer negative ones the larger the convexity."""
    generator = np.random.default_rng(seed)
    S = 10.0**scale_s * generator.normal(size=(PAIRS, SIZE))
    Y = 10.0 ** (scale_y - scale_s) * (convexity * S)
    Y += 10.0**scale_y * generator.normal(size=(PAIRS, SIZE))
    return S, Y


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, PAIRS),
    scale_s=st.floats(-3, 2),
    scale_y=st.floats(-2, 3),
    convexity=st.floats(0, 2),
)
def test_the_matrix_after_any_pairs(seed, count, scale_s, scale_y, convexity):
    """Symmetric, positive definite, H y = s for the newest pair, and that of the listings."""
    with enable_x64():
        S, Y = random_pairs(seed, scale_s, scale_y, convexity)
        stored, matrices, states = fed()(S, Y, count)
        norms = np.linalg.norm(S, axis=1) * np.linalg.norm(Y, axis=1)
        curved = np.sum(S * Y, axis=1) > MIN_CURVATURE * norms
        curved &= np.arange(PAIRS) < count
        for column in np.asarray(stored).T:
            np.testing.assert_array_equal(column, curved)
        kept = [(s, y) for s, y, c in zip(S, Y, curved, strict=True) if c]
        assert int(states[0].size) == int(states[3].size) == len(kept)
        assert int(states[1].size) == min(len(kept), FEWER)
        if not kept:
            for H in np.asarray(matrices):
                np.testing.assert_allclose(H, FIRST_SCALE * np.eye(SIZE), rtol=1e-12)
            return

        # H0 = γ I: of the first pair (dense), of the newest or the mean of those in memory.
        scales = [s @ y / (y @ y) for s, y in kept]
        last = kept[-FEWER:]
        expected = [
            (kept, scales[0]),
            (last, scales[-1]),
            (last, np.mean(scales[-FEWER:])),
            (kept, scales[-1]),
        ]
        s, y = kept[-1]
        for H, (pairs, gamma) in zip(np.asarray(matrices), expected, strict=True):
            listed = listings.dense_bfgs(*zip(*pairs, strict=True), np.full(SIZE, gamma))
            norm = np.max(np.abs(listed))
            close(H, listed, 1e-7)
            np.testing.assert_allclose(H, H.T, atol=1e-8 * norm)
            assert np.linalg.eigvalsh((H + H.T) / 2)[0] > -1e-10 * norm
            g = np.random.default_rng(seed + 1).normal(size=SIZE)
            assert g @ H @ g > 0
            close(H @ y, s, 1e-8 * max(1, norm * np.max(np.abs(y)) / np.max(np.abs(s))))

        # With room for every pair, limited memory is the dense matrix, given its γ.
        roomy = two_loop_matrix()(states[3], jnp.asarray(scales[0]))
        close(roomy, np.asarray(matrices[0]), 1e-7)


def test_the_numerator_of_the_first_scale_is_the_first_pairs_alone(x64):
    S, Y = random_pairs(0, 0.0, 0.0, 2.0)
    state, update = DENSE.init(tree(jnp.zeros(SIZE))), jax.jit(DENSE.update)
    for s, y in zip(S[:2], Y[:2], strict=True):
        state, stored = update(state, tree(s), tree(y), jnp.asarray(True), jnp.asarray(0.3))
        assert stored
    gamma = np.full(SIZE, 0.3 / (Y[0] @ Y[0]))
    expected = listings.dense_bfgs(list(S[:2]), list(Y[:2]), gamma)
    np.testing.assert_allclose(matrix(lambda g: multiply(state, g)), expected, rtol=1e-9)


@pytest.mark.parametrize("curvature", [DENSE, NEWEST], ids=["dense", "limited"])
def test_what_a_curvature_refuses_and_forgets_leaves_no_trace(curvature, x64):
    S, Y = random_pairs(1, 0.0, 0.0, 2.0)
    update = jax.jit(curvature.update)
    accept = jnp.asarray(True)
    state, _ = update(curvature.init(tree(jnp.zeros(SIZE))), tree(S[0]), tree(Y[0]), accept)
    unit = S[1] / np.linalg.norm(S[1])
    across = Y[1] - (unit @ Y[1]) * unit
    along = MIN_CURVATURE * np.linalg.norm(across) * unit
    for s, y in [
        (S[1], -S[1]),
        (S[1], across + 0.9 * along),
        (S[1], np.full(SIZE, np.nan)),
        (np.full(SIZE, np.inf), Y[1]),
        (np.zeros(SIZE), Y[1]),
    ]:
        after, stored = update(state, tree(s), tree(y), accept)
        assert not stored
        chex.assert_trees_all_close(after, state, rtol=1e-14)
    for scale in (1e-20, 1.0, 1e20):  # the cosine has no unit
        assert update(state, tree(S[1]), tree(scale * (across + 1.1 * along)), accept)[1]
        assert not update(state, tree(S[1]), tree(scale * (across + 0.9 * along)), accept)[1]
    # A step that leaves the gradient as it was is too short to learn from, or the loss is linear.
    unchanged, stored = update(state, tree(S[1]), tree(0 * S[1]), accept)
    assert not stored
    assert unchanged.size == 0

    cleared = curvature.clear(state, accept)
    g = tree(Y[2])
    chex.assert_trees_all_close(
        curvature.precondition(cleared, g, jnp.array(0.5)), jax.tree.map(lambda x: 0.5 * x, g)
    )
    chex.assert_trees_all_equal(curvature.clear(state, ~accept), state)
    # What comes after a clear is as if nothing had been before.
    again, _ = update(cleared, tree(S[3]), tree(Y[3]), accept)
    fresh, _ = update(curvature.init(g), tree(S[3]), tree(Y[3]), accept)
    chex.assert_trees_all_close(
        curvature.precondition(again, g, jnp.array(0.5)),
        curvature.precondition(fresh, g, jnp.array(0.5)),
        rtol=1e-13,
    )


@pytest.mark.parametrize("curvature", [DENSE, NEWEST], ids=["dense", "limited"])
def test_a_pair_whose_inverse_curvature_squared_overflows(curvature):
    """ρ² does in float32 where s is 1e-20: the matrix stays finite and learns on."""
    params = tree(jnp.ones(SIZE, jnp.float32))
    one, short = params, jax.tree.map(lambda x: 1e-20 * x, params)
    state, update = curvature.init(params), jax.jit(curvature.update)
    for s in (one, short, one):
        state, _ = update(state, s, one, jnp.asarray(True))
        product = curvature.precondition(state, one, jnp.ones(()))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((state, product)))
    chex.assert_trees_all_close(product, one, rtol=1e-5)
