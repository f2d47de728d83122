"""Multi-batch oMoQ: every pair is of one part, whatever happens on the way."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import types
from reference import multi_batch, quasi_newton
from reference.walks import START, quadratic, quadratic_grad
from states import pairs_and_matrix

import naqopt
from naqopt.state import find_states

# Parts with quadratic losses of their own, ½ (w − c)ᵀA(w − c): there ∇E(ŵ; Ω) is what is
# extrapolated, and y − λs = A s tells of which part a pair is.
PARTS, DIMENSION, DAMPING = 40, 6, 0.5
DRAW = np.random.default_rng(7)
HESSIANS = np.stack(
    [factor @ factor.T / 6 + np.eye(DIMENSION) for factor in DRAW.normal(size=(PARTS, 6, 6))]
)
CENTRES = DRAW.normal(size=(PARTS, DIMENSION))
MEMORY = 30  # all pairs of a run


def transformation(**arguments):
    return naqopt.multi_batch_omoq(
        **{
            "learning_rate": naqopt.schedules.inverse_sqrt(0.3),
            "momentum": 0.6,
            "memory_size": MEMORY,
            "damping": DAMPING,
            **arguments,
        }
    )


def gradient(params, part):
    vector = jnp.concatenate([params["a"], params["b"]])
    grad = jnp.asarray(HESSIANS)[part] @ (vector - jnp.asarray(CENTRES)[part])
    return {"a": grad[:2], "b": grad[2:]}


@functools.partial(jax.jit, static_argnames="tx")
def step(tx, params, state, parts, spoilt=-1, factor=1.0):
    """One step; the gradient of one part may be spoilt, and 3 is that of the whole batch."""
    grads = [gradient(params, part) for part in parts]
    grads = [
        jax.tree.map(lambda g: jnp.where(spoilt == i, jnp.nan, g), grad)  # noqa: B023
        for i, grad in enumerate(grads)
    ]
    whole = jax.tree.map(lambda *g: factor * sum(g) / 3, *grads)
    whole = jax.tree.map(lambda g: jnp.where(spoilt == 3, jnp.inf, g), whole)
    updates, state = tx.update(whole, state, params, part_grads=tuple(grads))
    return optax.apply_updates(params, updates), state


def start():
    return {"a": jnp.asarray([1.0, -1.0]), "b": jnp.asarray([0.5, 2.0, -1.5, 0.3])}


def parts_at(k):
    """Newest, middle and oldest."""
    return jnp.asarray([k + 2, k + 1, k])


def run(tx, spoilt, steps=20, forgets=()):
    params = start()
    state = tx.init(params)
    for k in range(steps):
        if k in forgets:
            state = naqopt.forget_loss(state)
        params, state = step(tx, params, state, parts_at(k), spoilt.get(k, -1))
    return params, state


def parts_of_pairs(state):
    """Of which part each pair in memory is, the oldest first; fails where one is of several."""
    (found,) = find_states(state)
    s_list, y_list, _ = pairs_and_matrix(found.state.curvature)
    parts = []
    for s, y in zip(s_list, y_list, strict=True):
        errors = np.linalg.norm(y - DAMPING * s - HESSIANS @ s, axis=1) / np.linalg.norm(s)
        assert np.sort(errors)[0] < 1e-9 < 1e-3 < np.sort(errors)[1]
        parts.append(int(np.argmin(errors)))
    return parts


# The pair of step k is of the part that was the middle one, number k + 1, and is stored at step
# k + 1. A skipped step j takes with it those of the steps j − 1, j and j + 1.
MISHAPS = {
    "none": ({}, ()),
    "newest": ({7: 0}, ()),
    "middle": ({7: 1}, ()),
    "oldest": ({7: 2}, ()),
    "whole": ({7: 3}, ()),
    "first step": ({0: 1}, ()),
    "second step": ({1: 0}, ()),
    "two in a row": ({7: 0, 8: 2}, ()),
    "every other one": ({7: 0, 9: 1, 11: 2}, ()),
    "two apart": ({7: 1, 10: 1}, ()),
    "last step": ({19: 0}, ()),
    "changed loss": ({}, (7,)),
    "changed loss behind a skipped step": ({6: 0}, (7,)),
    "changed loss before a skipped step": ({7: 0}, (7,)),
}

LOST = {"none": 0, "newest": 3, "two in a row": 4, "changed loss": 1, "last step": 1}


def expected_parts(spoilt, forgets, steps):
    """The parts whose three gradients the optimizer has been given."""
    taken = [k not in spoilt for k in range(steps)]
    begins, begun = [], False  # steps behind which there is nothing, so that v = 0
    for k in range(steps):
        begins.append(not begun or k in forgets)
        begun = (begun and k not in forgets) or taken[k]
    known = []
    for k in range(steps - 1):
        chained = k > 0 and taken[k - 1] and k not in forgets
        if taken[k] and taken[k + 1] and k + 1 not in forgets and (begins[k] or chained):
            known.append(k + 1)
    return known


@pytest.mark.parametrize("wrap", [lambda tx: tx, naqopt.flatten], ids=["", "flatten"])
@pytest.mark.parametrize("mishap", MISHAPS)
def test_every_pair_is_of_one_part(mishap, wrap, x64):
    spoilt, forgets = MISHAPS[mishap]
    tx = wrap(transformation())
    _, state = run(tx, spoilt, forgets=forgets)
    expected = expected_parts(spoilt, forgets, 20)
    assert parts_of_pairs(state) == expected
    info = naqopt.diagnostics(state)
    assert info["pairs_stored"] == len(expected)
    assert info["pairs_refused"] == 0  # where parts are convex no curvature is negative
    assert info["steps_skipped"] == len(spoilt)
    if mishap in LOST:
        assert len(expected) == 19 - LOST[mishap]


def test_pairs_of_different_batches_are_refused_where_those_of_one_part_are_not(x64):
    """What the overlap is for."""
    apart = transformation(damping=0.0)
    params = start()
    state = apart.init(params)
    for k in range(0, 36, 3):  # batches that do not overlap
        params, state = step(apart, params, state, parts_at(k))
    _, overlapping = run(apart, {}, steps=12)
    assert naqopt.diagnostics(overlapping)["pairs_refused"] == 0
    assert naqopt.diagnostics(state)["pairs_refused"] > 0


def test_a_refused_step_gives_no_pair_and_the_next_does(x64):
    rate = naqopt.schedules.inverse_sqrt(0.3)
    tx = transformation(learning_rate=lambda k: jnp.where(k == 7, jnp.nan, rate(k)))
    params, state = run(tx, {}, steps=8)
    assert naqopt.diagnostics(state)["steps_refused"] == 1
    for k in range(8, 20):
        params, state = step(tx, params, state, parts_at(k))
    assert parts_of_pairs(state) == list(range(9, 20))  # those before were forgotten


def test_the_direction_is_that_of_the_updates_and_the_pair_that_of_the_parts(x64):
    tx = transformation(normalize=False, learning_rate=0.01)
    shifts = []
    for factor in (1.0, 0.1):
        params = start()
        state = tx.init(params)
        for k in range(3):
            params, state = step(tx, params, state, parts_at(k), factor=factor)
        assert parts_of_pairs(state) == [1, 2]
        shifts.append(jax.tree.map(jnp.subtract, params, start()))
    assert optax.tree.norm(shifts[1]) < 0.2 * optax.tree.norm(shifts[0])


@pytest.mark.parametrize("memory_size", [3, None])
def test_of_equal_parts_it_is_omoq(memory_size, x64):
    arguments = {"memory_size": memory_size, "momentum": naqopt.schedules.nesterov_momentum()}
    tx, plain = transformation(**arguments), naqopt.omoq(0.05, damping=DAMPING, **arguments)
    tx = transformation(learning_rate=0.05, **arguments)
    params = other = start()
    state, other_state = tx.init(params), plain.init(other)
    plain_update = jax.jit(plain.update)
    for _ in range(20):
        params, state = step(tx, params, state, jnp.zeros(3, int))
        updates, other_state = plain_update(gradient(other, 0), other_state, other)
        other = optax.apply_updates(other, updates)
        chex.assert_trees_all_close(params, other, rtol=1e-9, atol=1e-9)
    assert naqopt.diagnostics(state)["pairs_stored"] == 19


def test_a_state_that_has_forgotten_its_loss_can_be_donated(x64):
    tx = transformation()
    _, state = run(tx, {}, steps=3)
    forgotten = naqopt.forget_loss(state)
    assert types(forgotten) == types(state)
    jax.jit(lambda x: jax.tree.map(jnp.copy, x), donate_argnums=0)(forgotten)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(forgotten))


# The listing is tested before the optimizer is tested against it.


def test_the_listing_is_that_of_omoq_where_parts_are_equal():
    settings = {"memory_size": 3, "momentum": 0.5, "learning_rate": 0.1}
    one = other = quasi_newton.init(START)
    for _ in range(6):
        one = multi_batch.step(one, [quadratic_grad] * 3, **settings)
        other = quasi_newton.step(other, quadratic, quadratic_grad, method="omoq", **settings)
        np.testing.assert_allclose(one.w, other.w, rtol=0, atol=1e-12)
    assert one.stored == other.stored == 5


def test_the_listing_by_hand():
    """Three steps of linear gradients with a constant of their part's."""
    settings = {"memory_size": 3, "momentum": 0.5, "learning_rate": 0.1, "damping": 2.0}

    def of(part):
        return lambda w: quadratic_grad(w) + part

    def at(state, k):
        return multi_batch.step(state, [of(k + 2), of(k + 1), of(k)], **settings)

    first = at(quasi_newton.init(START), 0)
    np.testing.assert_array_equal(first.waiting[1], of(1)(START))
    np.testing.assert_array_equal(first.g_prev, of(2)(START))
    second = at(first, 1)
    s = first.w - START
    np.testing.assert_allclose(second.s_list, [s], rtol=1e-12)
    np.testing.assert_allclose(second.y_list, [quadratic_grad(s) + 2.0 * s], rtol=1e-12)
    omega = 1.5 * of(2)(first.w) - 0.5 * of(2)(START)
    np.testing.assert_allclose(second.waiting[1], omega, rtol=1e-14)
    bad = multi_batch.step(second, [of(4), lambda w: w * np.nan, of(2)], **settings)
    assert (bad.skipped, bad.waiting, bad.g_prev) == (1, None, None)
    np.testing.assert_array_equal(bad.updates_prev, second.updates_prev)
    assert at(bad, 3).waiting is None
    assert at(at(bad, 3), 4).waiting is not None


# The batches.


@pytest.mark.parametrize("count", [12, 14])
def test_every_part_is_in_three_batches_that_follow_each_other(count):
    draw = np.random.default_rng(0)
    orders = [draw.permutation(count) for _ in range(3)]
    before = [None, *orders[:2]]
    epochs = [
        naqopt.sliding_batches(order, 2, last) for order, last in zip(orders, before, strict=True)
    ]
    assert all(epoch.shape == (count // 2, 3, 2) for epoch in epochs)
    batches = np.concatenate(epochs)
    newest, middle, oldest = (batches[:, i] for i in range(3))
    np.testing.assert_array_equal(oldest[1:], middle[:-1])
    np.testing.assert_array_equal(middle[1:], newest[:-1])
    parts = [order[: count // 2 * 2].reshape(-1, 2) for order in orders]
    np.testing.assert_array_equal(newest, np.concatenate(parts))
    np.testing.assert_array_equal(middle[0], parts[0][-1])
    np.testing.assert_array_equal(oldest[0], parts[0][-2])


def test_batches_slide_under_jit():
    slide = jax.jit(naqopt.sliding_batches, static_argnums=1)
    order, before = jnp.arange(9), jnp.arange(9)[::-1]
    np.testing.assert_array_equal(slide(order, 3, before), naqopt.sliding_batches(order, 3, before))
