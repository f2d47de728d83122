"""The quasi-Newton family against its NumPy listings, step by step in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import network, quasi_newton, quasi_newton_runs
from reference.quasi_newton_runs import PARAMETERS, RUNS
from states import difference, flat, pairs_and_matrix

import naqopt

# Late in the run something is made non-finite: the caller's gradient, the second one of the step,
# or all losses. The whole run is compared up to the first of them.
STEPS = 128
FAULTS = {102: "inner", 106: "caller", 110: "losses"}
FAULTS |= dict.fromkeys(range(114, 125), "caller")  # one more than a point is given
BOWL_SHAPES = {"a": (8, 4), "b": (), "c": (PARAMETERS - 33,)}


def bowl_tree(w):
    """The parameters of a bowl as leaves of ranks 2, 0 and 1, in the order of ravel_pytree."""
    return {"a": w[:32].reshape(8, 4), "b": w[32], "c": w[33:]}


def start(run):
    """The first parameters as a tree, and per step the data of the loss."""
    w, _ = quasi_newton_runs.problem(run)
    if run.batches == "full":
        bowl = {name: run.bowl[name] for name in ("steepness", "condition")}
        matrix = quasi_newton_runs.bowl_matrix(run.seed, **bowl)
        return bowl_tree(jnp.asarray(w)), lambda k: matrix
    batches = network.batches(run.seed)
    params = jax.tree.map(jnp.asarray, network.unflatten(w))
    return params, lambda k: batches[k % len(batches)]


def loss_of_tree(run, params, data):
    if run.batches == "full":
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(params)])
        return quasi_newton_runs.bowl_loss(flat, data, jnp)
    return network.loss_of_dict(params, data, jnp)


@functools.cache
def compiled_step(name):
    """The jitted step of a run; the faults are numbered 1 caller, 2 inner, 3 losses."""
    run = RUNS[name]
    settings = quasi_newton_runs.resolve(run.settings, naqopt.schedules)
    if run.method in ("naq", "moq", "mnaq"):
        settings = {"restart_window": None, **settings}
    tx = getattr(naqopt, run.method)(**settings)
    if run.clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(run.clip_norm), tx)

    @jax.jit
    def step(params, state, data, fault):
        def loss(p):
            return loss_of_tree(run, p, data)

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
        bad = {"caller": (1, np.inf), "inner": (2, np.nan)}.get(fault, (0, 0))
        return np.full_like(w, bad[1]) if len(calls) == bad[0] else grad(w)

    return (lambda w: np.nan) if fault == "losses" else loss, faulty_grad


def known(losses):
    """Those of the last losses that are known."""
    return [] if losses is None else [x for x in losses.tolist() if x > np.finfo(float).min]


def as_reference(run, params, state):
    """The reference's state with the numbers of the library's."""
    params, state = jax.device_get((params, state))
    info, pending, curvature = state.info, state.pending, state.curvature
    w = flat(naqopt.eval_params(state, params))
    s_list, y_list, matrix = pairs_and_matrix(curvature)
    waits = pending is not None and bool(pending.waits)
    extrapolates = pending is not None and pending.previous is not None
    extrapolates = extrapolates and bool(pending.has_previous)
    return quasi_newton.QuasiNewtonState(
        k=int(state.count),
        w=w,
        v=np.zeros_like(w) if state.velocity is None else flat(state.velocity),
        params=flat(params),
        s_list=s_list,
        y_list=y_list,
        H=matrix,
        waiting=(flat(pending.s), flat(pending.extrapolated)) if waits else None,
        g_prev=flat(pending.previous) if extrapolates else None,
        updates_prev=flat(pending.previous_updates) if extrapolates else None,
        losses=known(state.losses),
        lipschitz=float(state.step_length) if run.method == "mnaq" else 1.0,
        alpha=float(info.step_size),
        stored=int(info.pairs_stored),
        refused=int(info.pairs_refused),
        skipped=int(info.steps_skipped),
        skipped_in_a_row=int(info.skipped_in_a_row),
        left=int(info.bad_points_left),
        refused_steps=int(info.steps_refused),
        searches_failed=int(info.searches_failed),
        momentum_restarts=int(info.momentum_restarts),
        by_pair=int(curvature.size) < 0,
    )


def compare(run, actual, expected):
    """The largest deviations of points and of curvature; mNAQ's Lip to 1e-3."""
    left_out = {
        "lipschitz": True,
        "g_prev": "moq" not in run.method,
        "updates_prev": "moq" not in run.method,
        "v": "bfgs" in run.method,
        # Another γ than the first pair's is given to dense BFGS alone.
        "by_pair": run.settings.get("initial_scale", "first_pair") == "first_pair",
        "alpha": expected.alpha == 0,  # after a refused step the last one stays in `info`
    }
    if run.method == "mnaq":
        assert actual.lipschitz == pytest.approx(expected.lipschitz, rel=1e-3)
    return difference(actual, expected, [name for name, left in left_out.items() if left])


# The rest of the runs differ from one of these in an argument that acts alone.
QUICK = ("bfgs", "naq", "moq", "mnaq", "obfgs", "onaq", "omoq")
QUICK = {f"{name}{form}" for name in QUICK for form in ("", "_dense")}
QUICK |= {"onaq_unnormalized", "moq_clipped", "omoq_clipped"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in RUNS]
)
def test_trajectory_and_single_steps_equal_the_listing(name, x64):
    run = RUNS[name]
    tx, step = compiled_step(name)
    params, data = start(run)
    _, at_step = quasi_newton_runs.problem(run)
    settings = quasi_newton_runs.resolve(run.settings, quasi_newton)
    clip = quasi_newton_runs.clip(run.clip_norm)
    inner = (lambda s: s) if clip is None else (lambda s: s[1])
    state = tx.init(params)
    reference = after = as_reference(run, params, inner(state))
    backtracked = 0
    for k in range(STEPS):
        fault = FAULTS.get(k)
        number = ["caller", "inner", "losses"].index(fault) + 1 if fault else 0
        before = after
        params, state = step(params, state, data(k), number)
        after = as_reference(run, params, inner(state))
        backtracked += int(inner(state).info.search_trials) > 1
        # One step from the same state: 1e-12, and 1e-9 for a matrix of badly rounded pairs.
        closures = with_fault(*at_step(k), fault)
        arguments = {"method": run.method, "clip": clip, **settings}
        single = quasi_newton.step(before, *closures, **arguments)
        points, curvature = compare(run, after, single)
        assert points < 1e-12, k
        assert curvature < 1e-9, k
        # The whole run until something is broken on purpose: 1e-9.
        if k < min(FAULTS):
            reference = quasi_newton.step(reference, *closures, **arguments)
            points, curvature = compare(run, after, reference)
            assert points < 1e-9, k
            assert curvature < 1e-6, k
    # Everything that can happen did.
    two_gradients = run.method in ("naq", "mnaq", "obfgs", "onaq")
    searches = run.method in ("bfgs", "naq", "moq")
    assert after.skipped == 12
    assert after.left == (run.method != "obfgs")
    # Where E(ŵ) is judged a fault may meet with a restart; near the minimum a search without pairs
    # finds nothing lower.
    if not after.momentum_restarts:
        assert after.refused_steps >= two_gradients + searches
        assert after.searches_failed >= searches
    assert after.stored > 8
    if searches:
        assert backtracked > 3
