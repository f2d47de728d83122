"""Multi-batch oMoQ against its NumPy listing, step by step in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import multi_batch, network, quasi_newton, quasi_newton_runs
from states import difference, flat, pairs_and_matrix

import naqopt

SETTINGS = {"memory_size": 4, "momentum": 0.85, "learning_rate": ("inverse_sqrt", 0.5)}
# Seed of network and batches, what differs from the settings above, and the norm of clipping.
RUNS = {
    "limited": (3, {}, None),
    "dense": (4, {"memory_size": None}, None),
    "nesterov": (3, {"momentum": ("nesterov_momentum", 0.95)}, None),
    "no_momentum": (6, {"momentum": 0.0}, None),
    "clipped": (3, {}, 0.5),
    "clipped_dense": (6, {"memory_size": None}, 0.5),
    "unnormalized": (3, {"normalize": False, "learning_rate": 0.2, "momentum": 0.5}, None),
    "undamped": (3, {"damping": 0.0, "min_curvature": 1e-3}, None),
}
STEPS = 100
# Late in the run gradients are made infinite, of a part and of what came out of the clipping, some
# one after the other, and the rates of two steps. The whole run is compared up to the first.
PART_FAULTS = {70: 0, 75: 1, 80: 2, 81: 0, 86: 1}
UPDATE_FAULTS = (84, 90)
RATE_FAULTS = (78, 88, 91)  # by the count of steps taken


def parts_of(seed):
    """From a step to the three parts of its batch, newest first."""
    batches = network.batches(seed)
    return lambda k: tuple(batches[(k + 2 - i) % len(batches)] for i in range(3))


def settings_of(name, schedules):
    settings = quasi_newton_runs.resolve({**SETTINGS, **RUNS[name][1]}, schedules)
    rate = settings["learning_rate"]

    def faulty(count):
        number = rate(count) if callable(rate) else rate
        xp = jnp if isinstance(count, jax.Array) else np
        return xp.where(xp.isin(count, xp.asarray(RATE_FAULTS)), np.nan, number)

    return settings | {"learning_rate": faulty}


@functools.cache
def compiled_step(name):
    """Faults are numbered: 0, 1, 2 of a part, 3 of the updates, −1 none."""
    tx = naqopt.multi_batch_omoq(**settings_of(name, naqopt.schedules))
    clip_norm = RUNS[name][2]
    clipping = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)

    @jax.jit
    def step(params, state, parts, fault):
        found = [
            jax.tree.map(
                lambda x: jnp.where(fault == i, jnp.inf, x),  # noqa: B023
                jax.grad(network.loss_of_dict)(params, part, jnp),
            )
            for i, part in enumerate(parts)
        ]
        whole = jax.tree.map(lambda *g: sum(g) / 3, *found)
        clipped, _ = clipping.update(whole, optax.EmptyState())
        clipped = jax.tree.map(lambda x: jnp.where(fault == 3, jnp.nan, x), clipped)
        updates, state = tx.update(clipped, state, params, part_grads=tuple(found))
        return optax.apply_updates(params, updates), state

    return tx, step


def as_reference(params, state):
    """The reference's state with the numbers of the library's."""
    params, state = jax.device_get((params, state))
    info, pending, w = state.info, state.pending, flat(params)
    s_list, y_list, matrix = pairs_and_matrix(state.curvature)
    return quasi_newton.QuasiNewtonState(
        k=int(state.count),
        w=w,
        v=flat(state.velocity),
        params=w,
        s_list=s_list,
        y_list=y_list,
        H=matrix,
        waiting=(flat(pending.s), flat(pending.extrapolated)) if pending.waits else None,
        g_prev=flat(pending.previous) if pending.follows else None,
        updates_prev=flat(pending.previous_updates) if pending.has_previous else None,
        losses=[],
        lipschitz=1.0,
        alpha=float(info.step_size),
        stored=int(info.pairs_stored),
        refused=int(info.pairs_refused),
        skipped=int(info.steps_skipped),
        skipped_in_a_row=int(info.skipped_in_a_row),
        left=int(info.bad_points_left),
        refused_steps=int(info.steps_refused),
        searches_failed=0,
        momentum_restarts=0,
    )


def compare(actual, expected):
    """The largest deviations of points and of curvature."""
    left_out = ["lipschitz", "by_pair"]  # which are mNAQ's and BFGS's
    if expected.alpha == 0:  # after a refused step the last one stays in `info`
        left_out.append("alpha")
    return difference(actual, expected, left_out)


@pytest.mark.parametrize("name", RUNS)
def test_trajectory_and_single_steps_equal_the_listing(name, x64):
    seed, _, clip_norm = RUNS[name]
    tx, step = compiled_step(name)
    parts = parts_of(seed)
    clip = quasi_newton_runs.clip(clip_norm)
    settings = settings_of(name, quasi_newton)
    params = jax.tree.map(jnp.asarray, network.init(seed))
    state = tx.init(params)
    reference = after = as_reference(params, state)
    dropped = 0
    for k in range(STEPS):
        fault = 3 if k in UPDATE_FAULTS else PART_FAULTS.get(k, -1)
        before = after
        params, state = step(params, state, parts(k), fault)
        after = as_reference(params, state)

        def gradient(w, i, k=k, fault=fault):
            return np.full_like(w, np.inf) if i == fault else network.grad(w, parts(k)[i])

        grads = [functools.partial(gradient, i=i) for i in range(3)]
        now = (lambda g: g * np.nan) if fault == 3 else clip
        single = multi_batch.step(before, grads, clip=now, **settings)
        points, curvature = compare(after, single)
        assert points < 1e-12, k
        assert curvature < 1e-9, k
        if k < min(PART_FAULTS):
            reference = multi_batch.step(reference, grads, clip=now, **settings)
            points, curvature = compare(after, reference)
            assert points < 1e-9, k
            assert curvature < 1e-6, k
        dropped += before.waiting is not None and after.skipped > before.skipped
    # Everything that can happen did.
    assert after.skipped == len(PART_FAULTS) + len(UPDATE_FAULTS)
    assert after.refused_steps == len(RATE_FAULTS)
    assert after.stored + after.refused < after.k - after.refused_steps - dropped
    assert after.stored > 8
    assert dropped >= 4
    loss = [
        np.mean([network.loss(w, part) for part in network.batches(seed)])
        for w in (flat(network.init(seed)), after.w)
    ]
    assert loss[1] < 0.6 * loss[0]
