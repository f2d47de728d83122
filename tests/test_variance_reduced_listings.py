"""The variance-reduced methods against their NumPy listings, step by step in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import network, quasi_newton_runs, variance_reduced, variance_reduced_runs
from reference.variance_reduced_runs import BATCHES, RUNS, takes_snapshot
from states import difference, flat, pairs_and_matrix

import naqopt

# After eight epochs something is made non-finite: the gradient at the snapshot, the caller's, or
# the full gradient. The whole run is compared up to the first of them.
STEPS = 128
FAULTS = {102: "inner", 106: "caller", 113: "full"}
FAULTS |= dict.fromkeys(range(114, 124), "caller")  # as many as a point is given


@functools.cache
def compiled(name):
    """The optimizer of a run and its jitted step; the faults are numbered 1 caller, 2 inner."""
    run = RUNS[name]
    settings = quasi_newton_runs.resolve(run.settings, naqopt.schedules)
    if run.method != "svrg":
        settings["memory_size"] = run.memory_size
    tx = getattr(naqopt, run.method)(**settings)
    if run.clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(run.clip_norm), tx)

    @jax.jit
    def step(params, state, batch, fault):
        def loss(p):
            return network.loss_of_dict(p, batch, jnp)

        def poisoned(p):
            return jax.tree.map(lambda g: jnp.where(fault == 2, jnp.nan, g), jax.grad(loss)(p))

        grads = jax.tree.map(lambda g: jnp.where(fault == 1, jnp.inf, g), jax.grad(loss)(params))
        updates, state = tx.update(grads, state, params, grad=grads, grad_fn=poisoned)
        return optax.apply_updates(params, updates), state

    return tx, step, jax.jit(naqopt.snapshot)


def with_fault(grad, fault):
    """The gradient with a fault in it; its first call in a step is the caller's."""
    calls = []

    def faulty(w):
        calls.append(w)
        call, bad = {"caller": (1, np.inf), "inner": (2, np.nan)}.get(fault, (0, 0))
        return np.full_like(w, bad) if len(calls) == call else grad(w)

    return faulty


def as_reference(params, state):
    """The reference's state with the numbers of the library's."""
    params, state = jax.device_get((params, state))
    info = state.info
    w = flat(naqopt.eval_params(state, params))
    nothing = ([], [], None)
    s_list, y_list, matrix = (
        nothing if state.curvature is None else pairs_and_matrix(state.curvature)
    )
    begun = int(state.snapshots) > 0
    return variance_reduced.VarianceReducedState(
        k=int(state.count),
        w=w,
        v=np.zeros_like(w) if state.velocity is None else flat(state.velocity),
        params=flat(params),
        s_list=s_list,
        y_list=y_list,
        H=matrix,
        snapshots=int(state.snapshots),
        w_snapshot=flat(state.snapshot_params) if begun else None,
        full_grad=flat(state.full_grad) if begun else None,
        alpha=float(info.step_size),
        stored=int(info.pairs_stored),
        refused=int(info.pairs_refused),
        skipped=int(info.steps_skipped),
        skipped_in_a_row=int(info.skipped_in_a_row),
        left=int(info.bad_points_left),
        refused_steps=int(info.steps_refused),
        refused_snapshots=int(info.snapshots_refused),
        plain_steps=int(info.steps_without_snapshot),
    )


def assert_close(actual, expected, points, curvature):
    # After a refused step the last step size stays in `info`.
    left_out = ("alpha",) if expected.alpha == 0 else ()
    found = difference(actual, expected, left_out)
    assert found[0] < points, expected.k
    assert found[1] < curvature, expected.k


# The other runs differ from one of these in an argument that acts alone.
QUICK = ("svrg", "svrg2", "svrg2_dense", "svr_naq", "svr_naq_nesterov", "svr_naq_refused")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in RUNS]
)
def test_trajectory_snapshots_and_single_steps_equal_the_listing(name, x64):
    """Eight epochs as a whole to 1e-9; from the same state each step and snapshot to 1e-12."""
    run = RUNS[name]
    tx, step, snapshot = compiled(name)
    batches = network.batches(run.seed, count=BATCHES)
    w, at_step, full_grad = variance_reduced_runs.problem(run)
    settings = quasi_newton_runs.resolve(run.settings, variance_reduced_runs.quasi_newton)
    settings |= {"method": run.method, "clip": quasi_newton_runs.clip(run.clip_norm)}
    take = functools.partial(
        variance_reduced.take_snapshot, method=run.method, memory_size=run.memory_size
    )
    inner = (lambda s: s[1]) if run.clip_norm is not None else lambda s: s
    params = jax.tree.map(jnp.asarray, network.unflatten(w))
    state = tx.init(params)
    reference = after = as_reference(params, inner(state))
    for k in range(STEPS):
        fault = FAULTS.get(k)
        if takes_snapshot(k):
            before = after
            omega = full_grad(before.w) * (np.nan if fault == "full" else 1.0)
            state = snapshot(state, params, jax.tree.map(jnp.asarray, network.unflatten(omega)))
            after = as_reference(params, inner(state))
            assert_close(after, take(before, omega), 1e-12, 1e-9)
            reference = take(reference, full_grad(reference.w))
        before = after
        number = ["caller", "inner"].index(fault) + 1 if fault in ("caller", "inner") else 0
        params, state = step(params, state, batches[k % BATCHES], number)
        after = as_reference(params, inner(state))
        grad = with_fault(at_step(k), fault)
        assert_close(after, variance_reduced.step(before, grad, **settings), 1e-12, 1e-9)
        if k < min(FAULTS):
            reference = variance_reduced.step(reference, at_step(k), **settings)
            assert_close(after, reference, 1e-9, 1e-6)
    # Everything that can happen did.
    assert after.refused_steps == after.refused_snapshots == after.left == 1
    assert after.skipped == 11
    assert after.plain_steps == 5
    assert after.snapshots == 10
    if run.method != "svrg":
        assert after.stored > 5
        assert after.stored + after.refused == 9
        assert (after.refused > 0) == ("refused" in name)
