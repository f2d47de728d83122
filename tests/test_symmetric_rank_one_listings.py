"""The rank-one family against its NumPy listings, step by step in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import network, quasi_newton_runs, symmetric_rank_one, symmetric_rank_one_runs
from reference.symmetric_rank_one_runs import RUNS
from states import difference, flat

import naqopt
from naqopt.curvature.indefinite import DenseRankOne

# The whole run is compared for its first 30 steps, single steps from the same state for 40, as long
# as the listings' runs are chosen to be well conditioned, the last of them with faults: the
# caller's gradient, the one at the trial point, or all losses.
WHOLE, STEPS = 30, 54
FAULTS = {31: "inner", 34: "caller", 37: "losses"}
FAULTS |= dict.fromkeys(range(40, 51), "caller")  # one more than a point is given
PAPERS_SEARCH = optax.scale_by_backtracking_linesearch(
    13, slope_rtol=1e-3, decrease_factor=0.5, increase_factor=2.0
)


@functools.cache
def compiled(name):
    """The optimizer of a run and its jitted step; faults are 1 caller, 2 inner, 3 losses."""
    run = RUNS[name]
    settings = quasi_newton_runs.resolve(run.settings, naqopt.schedules)
    settings["radius_rule"] = naqopt.RadiusRule(*run.radius_rule)
    if run.method == "lsr1_search":
        del settings["radius_rule"]
    if run.method == "lsr1_search":
        settings["linesearch"] = PAPERS_SEARCH
    tx = getattr(naqopt, run.method.removesuffix("_search"))(**settings)
    if run.clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(run.clip_norm), tx)

    @jax.jit
    def step(params, state, data, fault):
        def loss(p):
            return run.loss_scale * network.loss_of_dict(p, data, jnp)

        def poisoned_loss(p):
            return jnp.where(fault == 3, jnp.nan, loss(p))

        def poisoned(p):
            return jax.tree.map(lambda g: jnp.where(fault == 2, jnp.nan, g), jax.grad(loss)(p))

        grads = jax.tree.map(lambda g: jnp.where(fault == 1, jnp.inf, g), jax.grad(loss)(params))
        updates, state = tx.update(
            grads, state, params, grad=grads, value_fn=poisoned_loss, grad_fn=poisoned
        )
        return optax.apply_updates(params, updates), state

    return tx, step


def with_fault(loss, grad, fault):
    """The closures with a fault in them; the gradient's first call is the caller's."""
    calls = []

    def faulty_grad(w):
        calls.append(w)
        call, bad = {"caller": (1, np.inf), "inner": (2, np.nan)}.get(fault, (0, 0))
        return np.full_like(w, bad) if len(calls) == call else grad(w)

    return (lambda w: np.nan) if fault == "losses" else loss, faulty_grad


def memory(curvature):
    """The stored s and y, oldest first, the dense matrix, and γ."""
    if isinstance(curvature, DenseRankOne):
        leaves = jax.tree.leaves(curvature.matrix)
        matrix = np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in leaves], axis=1)
        return [], [], matrix if int(curvature.size) else None, float(curvature.gamma)
    size, slots = int(curvature.size), len(curvature.ss)
    order = [(int(curvature.next) - size + i) % slots for i in range(size)]

    def rows(history):
        return [flat(jax.tree.map(lambda x: x[i], history)) for i in order]  # noqa: B023

    return rows(curvature.s), rows(curvature.y), None, float(curvature.gamma)


def as_reference(run, params, state):
    """The reference's state with the numbers of the library's."""
    params, state = jax.device_get((params, state))
    info, search = state.info, run.method == "lsr1_search"
    w = flat(naqopt.eval_params(state, params))
    s_list, y_list, matrix, gamma = memory(state.curvature)
    pending = state.pending
    waits = pending is not None and bool(pending.waits)
    has_previous = run.method == "mosr1" and bool(pending.has_previous)
    return symmetric_rank_one.SymmetricRankOneState(
        k=int(state.count),
        w=w,
        v=np.zeros_like(w) if state.velocity is None else flat(state.velocity),
        params=flat(params),
        s_list=s_list,
        y_list=y_list,
        B=matrix,
        gamma=gamma,
        radius=0.0 if search else float(state.radius),
        since_rejection=0 if search else int(state.since_rejection),
        waiting=(flat(pending.s), flat(pending.extrapolated)) if waits else None,
        g_prev=flat(pending.previous) if has_previous else None,
        updates_prev=flat(pending.previous_updates) if has_previous else None,
        lambda_prev=float(state.step_length) if search else 1.0,
        stored=int(info.pairs_stored),
        refused=int(info.pairs_refused),
        skipped=int(info.steps_skipped),
        skipped_in_a_row=int(info.skipped_in_a_row),
        left=int(info.bad_points_left),
        refused_steps=int(info.steps_refused),
        rejected_steps=int(info.steps_rejected),
        searches_failed=int(info.searches_failed),
        alpha=float(info.step_size),
    )


def compare(run, actual, expected):
    """The largest deviations of points and of curvature."""
    left_out = {
        "gamma": actual.B is not None or run.settings["memory_size"] is None,
        "since_rejection": run.method.startswith("lsr1"),
        "alpha": expected.alpha == 0,  # after a refused step the last one stays in `info`
    }
    return difference(actual, expected, [name for name, left in left_out.items() if left])


# The other runs differ from one of these in an argument that acts alone.
QUICK = ("lsr1_five", "search", "sr1n", "mosr1")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in RUNS]
)
def test_trajectory_and_single_steps_equal_the_listing(name, x64):
    run = RUNS[name]
    tx, step = compiled(name)
    batches = network.batches(run.seed)
    if run.batches == "full":
        batches = [tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))]
    w, at_step = symmetric_rank_one_runs.problem(run)
    settings = quasi_newton_runs.resolve(run.settings, symmetric_rank_one_runs.quasi_newton)
    settings["radius_rule"] = run.radius_rule
    settings |= {"method": run.method, "clip": quasi_newton_runs.clip(run.clip_norm)}
    inner = (lambda s: s) if run.clip_norm is None else (lambda s: s[1])
    params = jax.tree.map(jnp.asarray, network.unflatten(w))
    state = tx.init(params)
    reference = after = as_reference(run, params, inner(state))
    for k in range(STEPS):
        fault = FAULTS.get(k)
        number = ["caller", "inner", "losses"].index(fault) + 1 if fault else 0
        before = after
        params, state = step(params, state, batches[k % len(batches)], number)
        after = as_reference(run, params, inner(state))
        single = symmetric_rank_one.step(before, *with_fault(*at_step(k), fault), **settings)
        points, curvature = compare(run, after, single)
        assert points < 1e-9, k
        assert curvature < 1e-8, k
        if k < WHOLE:
            reference = symmetric_rank_one.step(reference, *at_step(k), **settings)
            points, curvature = compare(run, after, reference)
            assert points < 1e-8, k
            assert curvature < 1e-6, k
    # Everything that can happen did.
    assert after.skipped == 12
    assert after.left == (run.method != "lsr1")
    assert after.stored > 5
    if run.method == "lsr1_search":
        assert after.refused_steps == 1
    else:
        assert after.refused_steps == 0
        assert after.rejected_steps > 1
    if "refused" in name:
        assert after.refused > 0
