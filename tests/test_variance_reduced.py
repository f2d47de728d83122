"""SVRG, SVRG+II and SVR-NAQ: the control variate, the snapshot and the full gradient."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import (
    EPOCH,
    ROWS,
    STEPS,
    after,
    batch,
    each,
    init_params,
    plain_run,
    regression_loss,
    run,
    stacked_batches,
    step,
    take_due_snapshot,
    transformation,
    update,
    value_and_gradient,
)

import naqopt

SVR_ROWS = [row for row in ROWS if row.full_gradients(STEPS)]
EACH_SVR_ROW = each(SVR_ROWS)
EACH_WITH_PAIRS = each([row for row in SVR_ROWS if row.name != "svrg"])
full_gradient = jax.jit(jax.grad(regression_loss))


def omega(state, params):
    """The full gradient where a snapshot wants it."""
    return full_gradient(naqopt.eval_params(state, params), stacked_batches())


def snapshot(state, params):
    return naqopt.snapshot(state, params, omega(state, params))


def trained(row, steps):
    """Params and state after so many steps, with the snapshots of the table."""
    tx, params = transformation(row), init_params()
    state = tx.init(params)
    for k in range(steps):
        params, state = step(tx, params, state, batch(k))
    return tx, params, state


# The control variate.


def test_the_control_variate_is_unbiased(x64):
    """Its mean over all batches is the full gradient, wherever the snapshot was."""
    tx = naqopt.svrg(learning_rate=1.0)
    batches = jax.tree.map(lambda x: x.astype(np.float64), stacked_batches())
    params = init_params(1, jnp.float64)
    state = tx.init(init_params(2, jnp.float64))
    at_snapshot = jax.grad(regression_loss)(init_params(2, jnp.float64), batches)
    state = naqopt.snapshot(state, init_params(2, jnp.float64), at_snapshot)

    def control_variate(one_batch):
        grads = jax.grad(regression_loss)(params, one_batch)
        loss = functools.partial(regression_loss, batch=one_batch)
        updates, _ = tx.update(grads, state, params, value_fn=loss)
        return jax.tree.map(jnp.negative, updates)

    controls = jax.lax.map(control_variate, batches)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), controls)
    expected = jax.grad(regression_loss)(params, batches)
    chex.assert_trees_all_close(mean, expected, rtol=1e-12, atol=1e-14)
    # Each of them is not: the batches differ.
    spread = jax.tree.map(lambda x: float(jnp.max(jnp.std(x, axis=0))), controls)
    assert min(jax.tree.leaves(spread)) > 1e-3


def test_at_the_snapshot_every_batch_gives_the_full_gradient():
    tx, params = naqopt.svrg(learning_rate=1.0), init_params()
    state = snapshot(tx.init(params), params)
    for k in range(4):
        value, grads = value_and_gradient(params, batch(k))
        updates, _ = update(tx, grads, state, params, batch(k), value, grads)
        expected = jax.tree.map(jnp.negative, omega(state, params))
        chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-6)


@EACH_SVR_ROW
def test_the_first_epoch_is_svrg(row):
    rate = row.arguments.get("warmup_learning_rate", row.arguments["learning_rate"])
    svrg = run(naqopt.svrg(rate), init_params(), stacked_batches())[2]
    first = after(plain_run(row)[2], EPOCH)
    chex.assert_trees_all_close(first, after(svrg, EPOCH), rtol=1e-5, atol=1e-6)
    if row.name != "svrg":
        later = jax.tree.map(np.subtract, after(plain_run(row)[2], STEPS), after(svrg, STEPS))
        assert max(float(np.max(np.abs(x))) for x in jax.tree.leaves(later)) > 1e-2


def test_a_constant_rate_ends_at_the_minimum_where_plain_steps_do_not():
    """Of a convex loss: the gradients' noise vanishes with the distance from the snapshot."""
    generator = np.random.default_rng(0)
    inputs, noise = generator.normal(size=(16, 4, 3)), generator.normal(size=(16, 4))
    targets = inputs @ np.array([1.0, -2.0, 0.5]) + noise
    data = jnp.asarray(inputs, jnp.float32), jnp.asarray(targets, jnp.float32)

    def loss(p, one_batch):
        return jnp.mean((one_batch[0] @ p - one_batch[1]) ** 2)

    def distance(tx, snapshots):
        @jax.jit
        def epoch(params, state):
            if snapshots:
                state = naqopt.snapshot(state, params, jax.grad(loss)(params, data))

            def body(carry, one_batch):
                params, state = carry
                value_fn = functools.partial(loss, one_batch=one_batch)
                grads = jax.grad(value_fn)(params)
                updates, state = tx.update(grads, state, params, value_fn=value_fn)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(body, (params, state), data)[0]

        params = jnp.zeros(3)
        state = tx.init(params)
        for _ in range(40):
            params, state = epoch(params, state)
        best = np.linalg.lstsq(inputs.reshape(-1, 3), targets.reshape(-1), rcond=None)[0]
        return np.linalg.norm(np.asarray(params) - best)

    assert distance(naqopt.svrg(0.05), snapshots=True) < 1e-5
    assert distance(naqopt.svrg(0.05), snapshots=False) > 1e-2


@EACH_SVR_ROW
def test_steps_before_the_first_snapshot_are_plain_and_counted(row):
    rate = row.arguments.get("warmup_learning_rate", row.arguments["learning_rate"])
    tx, params = transformation(row), init_params()
    state = tx.init(params)
    nan = jax.tree.map(lambda x: x * np.nan, params)  # there is nothing to evaluate it at
    for k in range(3):
        grads = value_and_gradient(params, batch(k))[1]
        updates, state = tx.update(grads, state, params, grad_fn=lambda p: nan)
        expected = jax.tree.map(lambda g: -rate * g, grads)
        chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)
        params = optax.apply_updates(params, updates)
    assert naqopt.diagnostics(state)["steps_without_snapshot"] == 3
    params, state = step(tx, params, snapshot(state, params), batch(3))
    assert naqopt.diagnostics(state)["steps_without_snapshot"] == 3


# The snapshot.


@EACH_SVR_ROW
def test_a_snapshot_keeps_the_iterate_and_its_full_gradient_and_moves_nothing(row):
    _, params, state = trained(row, 2 * EPOCH + 2)
    new = snapshot(state, params)
    iterate = naqopt.eval_params(state, params)
    if row.lookahead:
        assert not np.allclose(iterate["weight"], params["weight"], atol=1e-3)
    chex.assert_trees_all_equal(new.snapshot_params, iterate)
    chex.assert_trees_all_equal(new.full_grad, omega(state, params))
    chex.assert_trees_all_equal(naqopt.eval_params(new, params), iterate)
    for field in ("count", "momentum", "velocity"):
        chex.assert_trees_all_equal(getattr(new, field), getattr(state, field))
    assert new.snapshots == state.snapshots + 1


@EACH_WITH_PAIRS
def test_two_snapshots_make_a_pair_that_satisfies_the_secant_equation(row):
    _, params, state = trained(row, EPOCH)
    assert state.info.pairs_stored == 0
    new = snapshot(state, params)
    assert new.info.pairs_stored == 1
    s = jax.tree.map(jnp.subtract, new.snapshot_params, state.snapshot_params)
    y = jax.tree.map(jnp.subtract, new.full_grad, state.full_grad)
    if row.arguments["memory_size"] is None:
        from naqopt.curvature.dense import multiply

        product = multiply(new.curvature, y)
    else:
        from naqopt.curvature.lbfgs import two_loop
        from naqopt.curvature.pairs import mean_scale

        product = two_loop(new.curvature, y, mean_scale(new.curvature))
    chex.assert_trees_all_close(product, s, rtol=1e-3, atol=1e-5)


@EACH_WITH_PAIRS
def test_a_second_snapshot_at_the_same_place_stores_no_pair(row):
    _, params, state = trained(row, EPOCH)
    new = snapshot(snapshot(state, params), params)
    assert (new.info.pairs_stored, new.info.pairs_refused) == (1, 1)


@EACH_SVR_ROW
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_full_gradient_that_is_not_finite_is_refused_and_counted(row, bad):
    _, params, state = trained(row, EPOCH + 2)
    full_grad = {**omega(state, params), "gain": jnp.asarray(bad, jnp.float32)}
    new = naqopt.snapshot(state, params, full_grad)
    info = state.info._replace(snapshots_refused=state.info.snapshots_refused + 1)
    chex.assert_trees_all_equal(new, state._replace(info=info))


def test_params_that_are_no_numbers_are_refused():
    tx, params = naqopt.svrg(), init_params()
    state = snapshot(tx.init(params), params)
    broken = {**params, "gain": jnp.asarray(np.nan, jnp.float32)}
    new = naqopt.snapshot(state, broken, params)
    assert new.info.snapshots_refused == 1
    chex.assert_trees_all_equal(new.snapshot_params, params)


@EACH_SVR_ROW
def test_a_gradient_at_the_snapshot_that_is_not_finite_stops_at_the_iterate(row):
    tx, params, state = trained(row, 2 * EPOCH + 2)
    grads = value_and_gradient(params, batch(0))[1]
    nan = jax.tree.map(lambda x: x * np.nan, params)
    updates, new = tx.update(grads, state, params, grad_fn=lambda p: nan)
    stopped = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(stopped, naqopt.eval_params(state, params), atol=1e-6)
    chex.assert_trees_all_equal(naqopt.eval_params(new, stopped), stopped)
    assert new.info.steps_refused == state.info.steps_refused + 1
    assert new.count == state.count + 1
    # The snapshot stays, and with it its pairs and the run.
    chex.assert_trees_all_equal(new.curvature, state.curvature)
    chex.assert_trees_all_equal(new.snapshot_params, state.snapshot_params)
    moved, _ = step(tx, stopped, new, batch(1))
    assert not np.allclose(moved["weight"], stopped["weight"], atol=1e-4)


@pytest.mark.slow  # the listing has the rule
def test_a_bad_batch_does_not_leave_the_next_pair_alone():
    """The pairs went with the step, and the next one, of hardly any curvature, led to 1e5.

    The loss is concave far from its minimum, so that the pairs that followed were refused.
    """
    tx = naqopt.svrg2(lambda k: 0.1 * 24 / (24 + k), memory_size=2)

    @jax.jit
    def train():
        def body(carry, k):
            params, state = carry
            inputs, targets = jax.tree.map(lambda x: jnp.asarray(x)[k % STEPS], stacked_batches())
            gradient = jax.grad(lambda p: regression_loss(p, (inputs, targets)))
            state = take_due_snapshot(state, params)

            def grad_fn(p):
                return jax.tree.map(lambda g: jnp.where(k == EPOCH, jnp.nan, g), gradient(p))

            updates, state = tx.update(gradient(params), state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
            return (params, state), regression_loss(params, stacked_batches())

        params = init_params()
        return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(3 * STEPS))

    (_, state), losses = train()
    assert state.info.steps_refused == 1
    assert np.all(np.diff(losses[::EPOCH]) < 0)
    assert losses[-1] < 0.1


@EACH_SVR_ROW
def test_a_bad_batch_moves_the_counters_of_skips_only(row):
    """It makes both gradients NaN; that of the caller decides, and the pairs stay."""
    tx, params, state = trained(row, 2 * EPOCH + 2)
    nan = jax.tree.map(lambda x: x * np.nan, params)
    updates, new = tx.update(nan, state, params, grad_fn=lambda p: nan)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    skipped = state.info.steps_skipped + 1
    info = state.info._replace(steps_skipped=skipped, skipped_in_a_row=jnp.int32(1))
    chex.assert_trees_all_equal(new, state._replace(info=info))


def test_a_skipped_step_keeps_the_momentum_of_its_look_ahead_point():
    schedule = naqopt.schedules.nesterov_momentum()
    tx, params = naqopt.svr_naq(0.2, momentum=schedule, memory_size=2), init_params()
    state = tx.init(params)
    for k in range(2 * EPOCH + 2):
        params, state = step(tx, params, state, batch(k))
    nan = jax.tree.map(lambda x: x * np.nan, params)
    _, new = tx.update(nan, state, params, grad_fn=lambda p: nan)
    assert new.momentum == state.momentum == schedule(2 * EPOCH + 2) != schedule(2 * EPOCH + 3)


@EACH_SVR_ROW
def test_under_jit_and_donated(row):
    """Nothing that a snapshot gives shares memory with what it was given."""
    tx, params, state = trained(row, 2 * EPOCH + 2)
    full_grad = omega(state, params)
    eager = naqopt.snapshot(state, params, full_grad)
    for new in (eager, jax.jit(naqopt.snapshot)(state, params, full_grad)):
        chex.assert_trees_all_close(new, eager, rtol=1e-4, atol=1e-6)
        given = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, full_grad))}
        assert not given & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(new)}
    expected, _ = step(tx, params, eager, batch(1))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def donating(params, state, grads):
        loss = functools.partial(regression_loss, batch=batch(1))
        updates, state = tx.update(grads, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    grads = value_and_gradient(params, batch(1))[1]
    donated, _ = donating(params, eager, grads)
    chex.assert_trees_all_close(donated, expected, rtol=1e-4, atol=1e-5)
    assert all(x.is_deleted() for x in jax.tree.leaves(eager))
    assert not any(x.is_deleted() for x in jax.tree.leaves(full_grad))


# Where the state is found.

LABELS = {"bias": "other", "gain": "ours", "weight": "ours"}
WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e6), tx, optax.identity()),
    "nested": lambda tx: optax.apply_if_finite(optax.chain(optax.chain(tx)), 3),
    "multi_steps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "partition_with_adam": lambda tx: optax.partition({"ours": tx, "other": optax.adam(1)}, LABELS),
    "partition_of_two": lambda tx: optax.partition({"ours": tx, "other": naqopt.svrg()}, LABELS),
    "partition_with_asnaq": lambda tx: optax.partition(
        {"ours": tx, "other": naqopt.asnaq(memory_size=2, fisher_size=2)}, LABELS
    ),
    "masked": lambda tx: optax.masked(tx, {name: LABELS[name] == "ours" for name in LABELS}),
}


@pytest.mark.filterwarnings("ignore:.*optax.MultiSteps stands around:UserWarning")
@EACH_SVR_ROW
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_state_is_found_in_wrappers(row, wrapper):
    tx, params = WRAPPERS[wrapper](transformation(row)), init_params()
    state = tx.init(params)
    full_grad = omega(state, params)
    new = naqopt.snapshot(state, params, full_grad)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    found = optax.tree.get_all_with_path(new, "snapshot_params")
    assert len(found) == (2 if wrapper == "partition_of_two" else 1)
    part = {"gain", "weight"} if "partition" in wrapper or wrapper == "masked" else set(params)
    kept = [tree for _, tree in found if not isinstance(tree["gain"], optax.MaskedNode)]
    assert {n for n, x in kept[0].items() if not isinstance(x, optax.MaskedNode)} == part
    for name in part:
        np.testing.assert_array_equal(kept[0][name], params[name])


def test_inject_hyperparams_keeps_the_snapshot():
    factory = optax.inject_hyperparams(naqopt.svr_naq, static_args=("memory_size", "history_dtype"))
    tx, params = factory(memory_size=2), init_params()
    state = naqopt.snapshot(tx.init(params), params, params)
    assert int(optax.tree.get(state, "snapshots")) == 1


def test_vmapped_states_take_vmapped_snapshots():
    tx = naqopt.svr_naq(memory_size=2)
    params = jax.tree.map(lambda x: jnp.stack([x, x + 1]), init_params())
    state = jax.vmap(tx.init)(params)
    new = jax.vmap(naqopt.snapshot)(state, params, params)
    np.testing.assert_array_equal(new.snapshots, [1, 1])
    chex.assert_trees_all_equal(new.full_grad, params)


# What users get wrong.


def test_states_that_take_no_snapshot():
    params = init_params()
    for tx in (optax.adam(0.1), naqopt.onaq(), optax.chain(naqopt.asnaq(), optax.identity())):
        with pytest.raises(ValueError, match=r"holds no state of naqopt\.svrg.*tx\.init"):
            naqopt.snapshot(tx.init(params), params, params)


def test_swapped_arguments():
    params = init_params()
    with pytest.raises(ValueError, match=r"swapped; call snapshot\(state, params, full_grad\)"):
        naqopt.snapshot(params, naqopt.svrg().init(params), params)


@pytest.mark.parametrize("factory", [naqopt.svrg, naqopt.svr_naq])
@pytest.mark.parametrize("name", ["params", "full_grad"])
def test_trees_of_another_structure_or_shape(factory, name):
    params = init_params()
    state = factory().init(params)
    arguments = {"params": params, "full_grad": params}
    for bad, message in [
        ({"weight": params["weight"]}, f"`{name}` has another structure"),
        ({**params, "bias": jnp.zeros(3)}, rf"`{name}\['bias'\]` has shape \(3,\)"),
        (jax.tree.map(lambda x: jnp.stack([x, x]), params), f"`{name}.*` has shape"),
    ]:
        with pytest.raises(ValueError, match=rf"naqopt\.snapshot: {message}"):
            naqopt.snapshot(state, **{**arguments, name: bad})


def test_full_gradients_of_another_dtype(x64):
    params = init_params()
    state = naqopt.svrg().init(params)
    there = "have float32 there.*in float32, as"
    for dtype, what in ((jnp.float64, there), (jnp.bfloat16, there), (jnp.int32, "is of real")):
        bad = {**params, "gain": params["gain"].astype(dtype)}
        name = jnp.dtype(dtype).name
        message = rf"`full_grad\['gain'\]` has dtype {name}, .* {what}"
        with pytest.raises(TypeError, match=message):
            naqopt.snapshot(state, params, bad)


@pytest.mark.default_compiler
def test_a_full_gradient_of_narrow_params_may_be_wide():
    params = init_params(dtypes=jnp.bfloat16)
    state = naqopt.svrg().init(params)
    for dtype in (jnp.bfloat16, jnp.float32):
        full_grad = jax.tree.map(lambda x: x.astype(dtype) / 3, params)  # noqa: B023
        new = naqopt.snapshot(state, params, full_grad)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        chex.assert_trees_all_close(new.full_grad, full_grad, rtol=1e-2)
    with pytest.raises(TypeError, match="in bfloat16 or float32, as"):
        naqopt.snapshot(state, params, jax.tree.map(lambda x: x.astype(jnp.float16), params))


@pytest.mark.parametrize("value", [-0.1, np.nan])
def test_warmup_learning_rates_out_of_range(value):
    message = r"naqopt\.svr_naq: `warmup_learning_rate` must be a finite number in"
    with pytest.raises(ValueError, match=message):
        naqopt.svr_naq(warmup_learning_rate=value)


# The full gradient of a data loader.


def loader(sizes):
    """Batches of these sizes, in order, of all the examples of the table's problem."""
    inputs, targets = (x.reshape(-1, x.shape[-1]) for x in stacked_batches())
    ends = np.cumsum(sizes)
    assert ends[-1] == len(inputs)
    return list(zip(np.split(inputs, ends[:-1]), np.split(targets, ends[:-1]), strict=True))


@pytest.mark.parametrize("sizes", [[384], [128] * 3, [100, 100, 100, 84], [383, 1], [384, 0]])
def test_full_gradient_weighs_examples_alike(sizes):
    params = init_params()
    expected = full_gradient(params, stacked_batches())
    found = naqopt.full_gradient(regression_loss, params, loader(sizes))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    # Generators do as well.
    again = naqopt.full_gradient(regression_loss, params, (one for one in loader(sizes)))
    chex.assert_trees_all_equal(again, found)


def test_full_gradient_asks_for_no_mean_of_nothing():
    def loss(p, one_batch):
        return jnp.sum((p - one_batch) ** 2) * (1 / len(one_batch))  # which cannot be 0

    batches = [np.ones(2), np.ones(0), np.full(1, 4.0)]
    assert naqopt.full_gradient(loss, 0.0, batches) == pytest.approx(-4.0)


def test_full_gradient_compiles_once_for_every_shape():
    traces = []

    def loss(params, one_batch):
        traces.append(one_batch[0].shape)
        return regression_loss(params, one_batch)

    for _ in range(3):
        naqopt.full_gradient(loss, init_params(), loader([100, 100, 100, 84]))
    assert traces == [(100, 4), (84, 4)]


def test_full_gradient_accumulates_in_float32():
    params = init_params(dtypes=jnp.bfloat16)
    found = naqopt.full_gradient(regression_loss, params, loader([4] * 96))
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    expected = full_gradient(wide, stacked_batches())
    chex.assert_trees_all_close(found, expected, rtol=0.05, atol=0.01)
    naqopt.snapshot(naqopt.svrg().init(params), params, found)


def test_full_gradient_leaves_the_params_alone():
    params = init_params()
    naqopt.full_gradient(regression_loss, params, loader([384]))
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))


def test_mistakes_with_the_full_gradient():
    params, batches = init_params(), loader([192, 192])
    used_up = iter(batches)
    naqopt.full_gradient(regression_loss, params, used_up)
    with pytest.raises(ValueError, match=r"`batches` gave no example.*used up"):
        naqopt.full_gradient(regression_loss, params, used_up)
    with pytest.raises(ValueError, match="every leaf of a batch must have its examples along"):
        naqopt.full_gradient(regression_loss, params, [(batches[0][0], batches[0][1][:5])])
    with pytest.raises(ValueError, match="every leaf of a batch must have its examples along"):
        naqopt.full_gradient(lambda p, b: p["gain"] * b["scale"], params, [{"scale": 2.0}])
    with pytest.raises(ValueError, match=r"`loss_fn` must return a scalar, got .* \(192, 8\)"):
        naqopt.full_gradient(lambda p, b: b[0] @ p["weight"] + p["bias"] - b[1], params, batches)
    with pytest.raises(TypeError, match="`loss_fn` must be a function of params and batch"):
        naqopt.full_gradient(params, regression_loss, batches)
    with pytest.raises(ValueError, match=r"`loss_fn=lambda p, batch: jnp\.mean\(losses\(p, batch"):
        naqopt.full_gradient(lambda p, b: b[0] @ p["weight"], params, batches)


def test_a_loss_without_a_hash_is_told_to_be_wrapped():
    @dataclasses.dataclass
    class Model:
        scale: float

        def __call__(self, params, batch):
            return self.scale * jnp.mean((params - batch) ** 2)

    model, batches = Model(2.0), [jnp.array([1.0, 2.0])]
    with pytest.raises(TypeError, match=r"`loss_fn`, a Model, has no hash.*lambda p, batch: loss"):
        naqopt.full_gradient(model, jnp.array(0.0), batches)
    found = naqopt.full_gradient(lambda p, batch: model(p, batch), jnp.array(0.0), batches)
    assert found == -6.0


@EACH_SVR_ROW
def test_the_hook_of_the_common_tests_takes_snapshots(row):
    """Or the common tests would see plain gradient steps alone."""
    _, state, _ = plain_run(row)
    assert state.snapshots == row.full_gradients(STEPS) == 4
    assert state.info.steps_without_snapshot == 0
    untouched = {"a": jnp.zeros(())}
    assert take_due_snapshot(untouched, None) is untouched
