"""`optax.contrib`'s wrappers around every kind of method: the table of the guide, cell by cell.

On a quadratic with Hessian A each stored pair has y = A s (and what its method adds to it), the
iterate moves by the velocity, and a restoration leads to the anchor: what of it a wrapper breaks is
measured.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import naqopt

HESSIAN = jnp.diag(jnp.array([1.0, 2.0, 5.0, 10.0]))
MINIMUM = jnp.array([1.0, -2.0, 3.0, 0.5])
STEPS = 40


def loss(params):
    return 0.5 * (params - MINIMUM) @ HESSIAN @ (params - MINIMUM)


METHODS = {
    "obfgs": naqopt.obfgs(damping=0.0),
    "lsr1": naqopt.lsr1(),
    "svrg2": naqopt.svrg2(),
    "omoq": naqopt.omoq(damping=0.0),
    "multi_batch_omoq": naqopt.multi_batch_omoq(damping=0.0),
    "bfgs": naqopt.bfgs(),
    "onaq": naqopt.onaq(damping=0.0),
    "naq": naqopt.naq(),
    "svr_naq": naqopt.svr_naq(),
    "asnaq": naqopt.asnaq(0.1, cycle_length=2),
    "adaqn": naqopt.adaqn(0.1, cycle_length=2),
}
# Halves every update from the second step on, as no loss is ever thought an improvement.
HALVES = contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=1.0, min_scale=0.5)
ASCENDS = optax.chain(contrib.normalize(), optax.sgd(1e-3))
WRAPPERS = {
    "none": lambda tx: tx,
    "reduce_on_plateau": lambda tx: optax.chain(tx, HALVES),
    "schedule_free": lambda tx: contrib.schedule_free(tx, 1.0),
    "mechanize": lambda tx: contrib.mechanize(tx, s_init=1e-2),
    "sam": lambda tx: contrib.sam(tx, ASCENDS, opaque_mode=True),
}


def closures(wrapper, value, grads, judged_by=loss):
    """What `update` is given; sam takes one function and nothing else."""
    if wrapper == "sam":
        return {"grad_fn": lambda p, _: jax.grad(loss)(p)}
    part_grads = (grads, grads, grads)
    return {"value": value, "grad": grads, "value_fn": judged_by, "part_grads": part_grads}


@functools.partial(jax.jit, static_argnames=("tx", "wrapper", "judged_by"))
def step(tx, params, state, wrapper, judged_by=loss):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params, **closures(wrapper, value, grads, judged_by))
    return optax.apply_updates(params, updates), state


def own(state):
    """The state of the library in a wrapped one."""

    def found(node):
        return hasattr(node, "info")

    (node,) = [x for x in jax.tree.leaves(state, is_leaf=found) if found(x)]
    return node


def iterate(state, params):
    """What `eval_params` would say if it did not look at the wrapper."""
    return naqopt.eval_params(own(state), params)


@functools.cache
def trained(method, wrapper):
    """Params and state before every step, and after the last."""
    tx = WRAPPERS[wrapper](METHODS[method])
    params = jnp.zeros(4)
    path = [(params, tx.init(params))]
    for k in range(STEPS):
        params, state = path[-1]
        if k % 5 == 0 and method.startswith("svr"):
            full_grad = jax.grad(loss)(iterate(state, params))
            state = naqopt.snapshot(state, params, full_grad)
        path.append(step(tx, params, state, wrapper))
    return path


def pairs_off_by(method, wrapper):
    """‖Y − S A‖/‖S A‖ of the pairs in memory."""
    _, state = trained(method, wrapper)[-1]
    ring = own(state).curvature
    size = int(ring.size)
    assert size > 0
    expected = ring.s[:size] @ HESSIAN
    return float(jnp.linalg.norm(ring.y[:size] - expected) / jnp.linalg.norm(expected))


def iterate_off_by(method, wrapper):
    """Σ‖Δw − v‖/Σ‖v‖ over ten steps, before a run has converged."""
    path = trained(method, wrapper)[6:17]
    iterates = np.stack([iterate(state, params) for params, state in path])
    velocities = np.stack([own(state).velocity for _, state in path[1:]])
    missed = np.diff(iterates, axis=0) - velocities
    norms = [np.sum(np.linalg.norm(rows, axis=1)) for rows in (missed, velocities)]
    return float(norms[0] / norms[1])


def restoration_off_by(method, wrapper):
    """How much of the way back to the anchor a restoration leaves, or goes too far."""
    tx = WRAPPERS[wrapper](METHODS[method])
    params, state = step(tx, *trained(method, wrapper)[-1], wrapper)
    before = own(state)
    # With the loss upside down the cycle that ends here is worse than its anchor.
    back, state = step(tx, params, state, wrapper, judged_by=lambda p: jnp.exp(-loss(p)))
    assert own(state).info.restorations == before.info.restorations + 1
    left = jnp.linalg.norm(back - before.anchor) / jnp.linalg.norm(params - before.anchor)
    return float(left)


OFF_BY = {"pairs": pairs_off_by, "iterate": iterate_off_by, "restorations": restoration_off_by}


def table():
    """From method and wrapper to the cell of the guide's table."""
    guide = Path(__file__).parent.parent / "docs" / "guides" / "wrappers.md"
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in guide.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    header = next(row for row in rows if "`schedule_free`" in row)
    names = [re.findall(r"`(\w+)`", cell) for cell in header]
    return {
        (re.findall(r"`(\w+)`", row[0])[0], wrapper[0]): cell
        for row in rows
        if len(row) == len(header) and row[0].startswith("`")
        for wrapper, cell in zip(names, row, strict=True)
        if wrapper and wrapper[0] in WRAPPERS
    }


TABLE = table()
CELLS = [
    pytest.param(
        *key,
        id="-".join(key),
        marks=[] if key in (("obfgs", "schedule_free"), ("onaq", "sam")) else pytest.mark.slow,
    )
    for key in TABLE
]


def test_the_table_is_whole():
    assert set(TABLE) == {(x, y) for x in METHODS for y in WRAPPERS if y != "none"}


@pytest.mark.parametrize(("method", "wrapper"), CELLS)
def test_a_cell_of_the_guides_table(method, wrapper):
    cell = TABLE[method, wrapper]
    if cell == "`update` raises":
        with pytest.raises(ValueError, match=r"`(value_fn|part_grads)` is missing"):
            trained(method, wrapper)
        return
    params, state = trained(method, wrapper)[-1]
    if cell == "works":
        assert pairs_off_by(method, wrapper) < (0.05 if wrapper == "sam" else 1e-3)
        assert naqopt.eval_params(state, params) is params
        free = wrapper == "schedule_free"
        point = contrib.schedule_free_eval_params(state, params) if free else params
        assert loss(point) < 0.3 * loss(jnp.zeros(4))
        return
    what, percent = re.fullmatch(r"(\w+) off by (\d+) %", cell).groups()
    measured = OFF_BY[what](method, wrapper)
    for function in (
        lambda: naqopt.eval_params(state, params),
        lambda: naqopt.inverse_hessian(state),
    ):
        with pytest.raises(ValueError, match=rf"{wrapper} moves the params otherwise"):
            function()
    np.testing.assert_allclose(measured, int(percent) / 100, rtol=0.1, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_off_by_itself(method):
    """So that what the table says is the wrapper's doing."""
    for what, measure in OFF_BY.items():
        if any(cell.startswith(what) for (name, _), cell in TABLE.items() if name == method):
            assert measure(method, "none") < 1e-3


# sam


@pytest.mark.slow
@pytest.mark.parametrize("factory", [naqopt.moq, naqopt.bfgs])
def test_sam_takes_full_batch_methods_without_a_search(factory):
    tx = WRAPPERS["sam"](factory(0.05, linesearch=None))
    params = jnp.zeros(4)
    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(tx, params, state, "sam")
    assert loss(params) < 0.1 * loss(jnp.zeros(4))


@pytest.mark.parametrize("opaque", [False, True])
def test_sam_refuses_the_loss(opaque):
    tx = contrib.sam(naqopt.onaq(), ASCENDS, opaque_mode=opaque)
    params = jnp.zeros(4)
    with pytest.raises(TypeError, match="value_fn"):
        tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss)


def test_sam_that_is_not_opaque_makes_integers_of_flags():
    """It picks one of two states by multiplying them; opaque it does not."""
    tx = contrib.sam(naqopt.omoq(), ASCENDS)
    params = jnp.zeros(4)
    state = tx.init(params)
    _, after = jax.eval_shape(lambda g: tx.update(g, state, params), params)
    flags = [own(x).pending.waits.dtype for x in (state, after)]
    assert [flag.kind for flag in flags] == ["b", "i"]


# What eval_params looks at


def _fast(wrapped):
    """`optax.lookahead`, whose init takes the fast and the slow params."""
    pair = lambda params: optax.LookaheadParams(params, params)  # noqa: E731
    return optax.GradientTransformation(lambda params: wrapped.init(pair(params)), wrapped.update)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(tx, optax.scale_by_schedule(lambda k: 0.5)),
        lambda tx: optax.chain(optax.clip(1.0), optax.chain(tx, HALVES)),
        lambda tx: optax.chain(naqopt.flatten(tx), HALVES),
        lambda tx: optax.partition({"a": optax.chain(tx, HALVES)}, "a"),
        lambda tx: contrib.mechanize(optax.apply_if_finite(tx, 3)),
        lambda tx: _fast(optax.lookahead(tx, 5, 0.5)),
        lambda tx: optax.chain(contrib.schedule_free(tx, 1.0), HALVES),
    ],
)
def test_wrappers_are_found_wherever_they_are(wrap):
    params = {"w": jnp.zeros(2)}
    for tx in (naqopt.onaq(), naqopt.omoq()):
        state = wrap(tx).init(params)
        with pytest.raises(ValueError, match="moves the params otherwise"):
            naqopt.eval_params(state, params)
    state = wrap(naqopt.obfgs()).init(params)
    assert naqopt.eval_params(state, params) is params


def test_what_stands_in_front_is_no_matter():
    params = {"w": jnp.zeros(2)}
    for tx in (naqopt.onaq(), naqopt.omoq()):
        chained = optax.chain(HALVES, optax.scale_by_schedule(lambda k: 0.5), tx)
        iterate = naqopt.eval_params(chained.init(params), params)
        assert iterate["w"].shape == (2,)
