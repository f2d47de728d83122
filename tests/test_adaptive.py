"""adaQN and aSNAQ against their NumPy listings, step by step in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import adaptive, network

import naqopt
from naqopt.optimizers import _cycle

FACTORIES = {"adaqn": naqopt.adaqn, "asnaq": naqopt.asnaq}
TAKE_STEP = {"adaqn": adaptive.adaqn_step, "asnaq": adaptive.asnaq_step}
STEPS = 300
# Steps at which a gradient is made non-finite, once everything else has happened: the caller's,
# or the one that aSNAQ takes itself.
FAULTS = {255: "inner", 270: "caller", 281: "inner"}
FAULTS |= dict.fromkeys(range(286, 297), "caller")  # one more than a point is given


def clip(gradient):
    """Half the clipping threshold of most steps, so that it bites."""
    return gradient * min(1.0, 0.5 / np.sqrt(gradient @ gradient))


@functools.cache
def compiled_step(name, clipped=False):
    """The jitted step of an eventful run; `fault` is 0 for none, 1 for caller and 2 for inner."""
    method, _, settings = network.EVENTFUL_RUNS[name]
    tx = FACTORIES[method](**settings)
    if clipped:
        tx = optax.chain(optax.clip_by_global_norm(0.5), tx)

    @jax.jit
    def step(params, state, batch, fault):
        def loss(p):
            return network.loss_of_dict(p, batch, jnp)

        def poisoned(p):
            return jax.tree.map(lambda g: jnp.where(fault == 2, jnp.nan, g), jax.grad(loss)(p))

        grads = jax.tree.map(lambda g: jnp.where(fault == 1, jnp.inf, g), jax.grad(loss)(params))
        updates, state = tx.update(
            grads, state, params, grad=grads, value_fn=loss, grad_fn=poisoned
        )
        return optax.apply_updates(params, updates), state

    return tx, step


def reference_closures(batch, fault):
    """Loss and gradient of a flat vector; the gradient's first call is the caller's."""
    calls = []

    def grad(w):
        calls.append(w)
        bad = {1: np.inf, 2: np.nan}.get(fault)
        if bad is not None and len(calls) == fault:
            return np.full_like(w, bad)
        return network.grad(w, batch)

    return (lambda w: network.loss(w, batch)), grad


def rows(history, order):
    return [network.flatten(jax.tree.map(lambda x: x[i], history)) for i in order]  # noqa: B023


def as_reference(method, params, state):
    """The reference's state with the numbers of the library's."""
    params, state = jax.device_get((params, state))
    pairs, fisher, info = state.memory.pairs, state.memory.fisher, state.info
    slots = len(pairs.products)
    order = [(int(pairs.next) - int(pairs.size) + i) % slots for i in range(int(pairs.size))]
    slots = jax.tree.leaves(fisher.gradients)[0].shape[0]
    gradients = [(int(fisher.next) - int(fisher.size) + i) % slots for i in range(int(fisher.size))]
    shared = {
        "k": int(state.count),
        "t": int(int(state.count) >= network.EVENTFUL_RUNS[method][2]["cycle_length"]),
        "w": network.flatten(naqopt.eval_params(state, params)),
        "w_sum": network.flatten(state.iterate_sum),
        "w_anchor": network.flatten(state.anchor),
        "accumulator": network.flatten(state.memory.accumulator),
        "s_list": rows(pairs.s, order),
        "y_list": rows(pairs.y, order),
        "fisher": rows(fisher.gradients, gradients),
        "stored": int(info.pairs_stored),
        "refused": int(info.pairs_refused),
        "restorations": int(info.restorations),
        "skipped": int(info.steps_skipped),
        "skipped_in_a_row": int(info.skipped_in_a_row),
        "left": int(info.bad_points_left),
        "refused_steps": int(info.steps_refused),
    }
    if network.EVENTFUL_RUNS[method][0] == "adaqn":
        return adaptive.AdaqnState(**shared)
    return adaptive.AsnaqState(
        **shared,
        v=network.flatten(state.velocity),
        v_sum=network.flatten(state.velocity_sum),
        v_anchor=network.flatten(state.velocity_anchor),
        momentum=float(state.momentum),
        step_scale=float(state.step_scale),
    )


def difference(actual, expected):
    """The largest deviation of any field, relative to 1 + its size; counts must agree."""
    worst = 0.0
    for field in dataclasses.fields(expected):
        if field.name == "t":  # only t = 0 or not decides anything
            continue
        a, b = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(b, int):
            assert a == b, field.name
        else:
            a, b = np.asarray(a), np.asarray(b)
            assert a.shape == b.shape, field.name
            if b.size:
                worst = max(worst, np.max(np.abs(a - b)) / (1 + np.max(np.abs(b))))
    return worst


def start(name):
    _, seed, settings = network.EVENTFUL_RUNS[name]
    params = jax.tree.map(jnp.asarray, network.init(seed))
    return params, network.batches(seed), settings


@pytest.mark.parametrize(
    ("name", "clipped"),
    [pytest.param(name, False, id=f"{name}-raw") for name in network.EVENTFUL_RUNS]
    + [
        pytest.param(
            name, True, id=f"{name}-clipped", marks=[] if name == "asnaq" else pytest.mark.slow
        )
        for name in network.EVENTFUL_RUNS
    ],
)
def test_trajectory_and_single_steps_equal_the_listing(name, clipped, x64):
    params, batches, settings = start(name)
    method = network.EVENTFUL_RUNS[name][0]
    tx, step = compiled_step(name, clipped)
    own_gradient = method == "asnaq" and not settings.get("single_gradient", False)
    state = tx.init(params)
    inner = (lambda s: s[1]) if clipped else (lambda s: s)
    transform = clip if clipped else None
    reference = after = as_reference(name, params, inner(state))
    largest = {"pairs": 0, "fisher": 0}
    for k in range(STEPS):
        kind = FAULTS.get(k)
        fault = 1 if kind == "caller" else 2 if kind == "inner" and own_gradient else 0
        batch = batches[k % len(batches)]
        before = after
        params, state = step(params, state, batch, fault)
        after = as_reference(name, params, inner(state))
        # One step from the same state: 1e-12.
        loss, grad = reference_closures(batch, fault)
        single = TAKE_STEP[method](before, loss, grad, transform=transform, **settings)
        assert difference(after, single) < 1e-12, k
        # The whole run so far: 1e-9 where it is known not to be chaotic.
        if not clipped:
            loss, grad = reference_closures(batch, fault)
            reference = TAKE_STEP[method](reference, loss, grad, transform=transform, **settings)
            assert difference(after, reference) < 1e-9, k
        largest["pairs"] = max(largest["pairs"], len(after.s_list))
        largest["fisher"] = max(largest["fisher"], len(after.fisher))
    # Everything that can happen did.
    assert after.stored > settings["memory_size"]
    assert after.restorations > 0
    assert after.skipped == 12
    assert after.left == 1
    assert after.refused_steps == (2 if own_gradient else 0)
    assert largest == {"pairs": settings["memory_size"], "fisher": settings["fisher_size"]}
    if not clipped:
        assert after.refused > 0
    assert int(inner(state).count) == STEPS - 12


@pytest.mark.parametrize("name", ["adaqn", "asnaq"])
def test_float32_follows_the_listing_at_first(name):
    params, batches, settings = start(name)
    method = network.EVENTFUL_RUNS[name][0]
    tx, step = compiled_step(name)
    state = tx.init(params)
    reference = as_reference(name, params, state)
    for k in range(60):
        batch = jax.tree.map(jnp.float32, batches[k % len(batches)])
        params, state = step(params, state, batch, 0)
        loss, grad = reference_closures(batches[k % len(batches)], 0)
        reference = TAKE_STEP[method](reference, loss, grad, **settings)
        assert difference(as_reference(name, params, state), reference) < 2e-5, k
    assert reference.stored > 3


def test_monitor_decides_in_adaqn(x64):
    """A monitor that prefers small weights restores where the batch's loss would not."""
    params, batches, settings = start("adaqn")
    tx = naqopt.adaqn(**settings)

    def monitor_flat(w):
        return float(w @ w)

    @jax.jit
    def step(params, state, batch):
        def loss(p):
            return network.loss_of_dict(p, batch, jnp)

        def monitor(p):
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(p))

        updates, state = tx.update(jax.grad(loss)(params), state, params, monitor_fn=monitor)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for k in range(40):
        before = as_reference("adaqn", params, state)
        params, state = step(params, state, batches[k % len(batches)])
        loss, grad = reference_closures(batches[k % len(batches)], 0)
        single = adaptive.adaqn_step(before, loss, grad, monitor=monitor_flat, **settings)
        assert difference(as_reference("adaqn", params, state), single) < 1e-12
    assert int(state.info.restorations) > 3


def test_schedule_is_handed_the_steps_taken_before(x64):
    params, batches, settings = start("asnaq")
    settings = {**settings, "learning_rate": lambda count: 0.1 / (1.0 + count)}
    tx = naqopt.asnaq(**settings)
    loss, grad = reference_closures(batches[0], 0)

    @jax.jit
    def step(params, state):
        value_fn = lambda p: network.loss_of_dict(p, batches[0], jnp)  # noqa: E731
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    reference = as_reference("asnaq", params, state)
    for k in range(3):
        params, state = step(params, state)
        reference = adaptive.asnaq_step(reference, loss, grad, **settings)
        assert difference(as_reference("asnaq", params, state), reference) < 1e-12
        np.testing.assert_allclose(state.info.step_size, 0.1 / (1 + k), rtol=1e-15)


@pytest.mark.parametrize(
    ("new", "old", "worse"),
    [
        (1.0, 1.0, False),
        (1.009, 1.0, False),
        (1.011, 1.0, True),
        (-1.0, -1.0, False),  # γ E_o = -1.01 would call this worse
        (-0.991, -1.0, False),
        (-0.989, -1.0, True),
        (0.0, 0.0, False),
        (1e-30, 0.0, True),
        (np.nan, 1.0, True),
        (np.inf, 1.0, True),
        (-np.inf, 1.0, True),
        (1.0, np.nan, False),
        (1.0, np.inf, False),
        (1.0, -np.inf, False),
        (np.nan, np.nan, True),
        (np.inf, np.inf, True),
    ],
)
def test_which_loss_is_worse(new, old, worse):
    def loss(point):
        return point["loss"]

    points = {"loss": jnp.float32(new)}, {"loss": jnp.float32(old)}
    assert bool(_cycle._worse(loss, *points, 1.01)) is worse
    assert adaptive.is_worse(new, old, 1.01) is worse
