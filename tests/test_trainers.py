"""The optimizers in the training loops of other libraries.

Those of NNX and of Linen alone are in test_common_wrappers, Optimistix in test_recipes.
"""

import functools
import re
from pathlib import Path

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils, linen, nnx, traverse_util
from flax.training import train_state
from optimizer_table import (
    ROWS,
    STEPS,
    assert_finite,
    batch,
    each,
    part_gradients,
    stacked_batches,
    take_due_snapshot,
    transformation,
)

import naqopt

# One of every kind: a trainer knows no more of a method than the arguments it asks for.
KINDS = ("bfgs", "asnaq", "onaq", "omoq", "multi_batch_omoq", "svr_naq", "sr1n")
EACH_KIND = each([row for row in ROWS if row.name in KINDS], ("onaq",))
EVERYTHING = stacked_batches()


def as_one(batch):
    """A batch as it is, the stacked batches of all steps as one."""
    return (jnp.reshape(x, (-1, x.shape[-1])) for x in batch)


def squared_error(model, batch):
    inputs, targets = as_one(batch)
    return jnp.mean(jnp.square(model(inputs) - targets))


# Equinox


@EACH_KIND
def test_equinox(row):
    """Its own loop: the model goes through `filter_jit` whole, with what is no array."""
    model = eqx.nn.MLP(4, 8, width_size=8, depth=1, activation=jnp.tanh, key=jax.random.key(0))
    tx = transformation(row)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    def loss(model, batch):
        return squared_error(jax.vmap(model), batch)

    @eqx.filter_jit
    def step(model, state, batch):
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def loss_of_params(p, batch):
            return loss(eqx.combine(p, static), batch)

        state = take_due_snapshot(state, params, loss_of_params)
        value, grads = eqx.filter_value_and_grad(loss)(model, batch)
        parts = part_gradients(state, params, batch, loss_of_params)
        updates, state = tx.update(
            grads,
            state,
            params,
            value=value,
            grad=grads,
            value_fn=lambda p: loss_of_params(p, batch),
            **parts,
        )
        return eqx.apply_updates(model, updates), state

    first = loss(model, EVERYTHING)
    for k in range(STEPS):
        model, state = step(model, state, batch(k))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    iterate = eqx.combine(naqopt.eval_params(state, params), static)
    assert loss(iterate, EVERYTHING) < 0.5 * first


def test_what_no_gradient_moves_is_refused_in_an_equinox_model():
    class Model(eqx.Module):
        weight: jax.Array
        index: jax.Array

    model = Model(jnp.ones(2), jnp.arange(2))
    with pytest.raises(TypeError, match=r"index.*int32.*keep it out of the params"):
        naqopt.onaq().init(eqx.filter(model, eqx.is_array))
    state = naqopt.onaq().init(eqx.filter(model, eqx.is_inexact_array))
    assert state.velocity.index is None


# Haiku


@pytest.mark.slow
@EACH_KIND
def test_haiku_with_state_and_dropout(row):
    """The model's state moves by the caller's evaluation alone, and the key is the step's own."""

    @hk.transform_with_state
    def model(inputs, is_training):
        hidden = hk.Linear(8)(inputs)
        hidden = hk.BatchNorm(True, True, 0.9)(hidden, is_training)
        hidden = jnp.tanh(hidden)
        if is_training:
            hidden = hk.dropout(hk.next_rng_key(), 0.05, hidden)
        return hk.Linear(8)(hidden)

    key = jax.random.PRNGKey(0)
    params, model_state = model.init(key, batch(0)[0], True)
    tx = transformation(row)
    state = tx.init(params)

    @jax.jit
    def step(params, model_state, state, batch, key):
        def loss(p, batch):
            inputs, targets = as_one(batch)
            outputs, new = model.apply(p, model_state, key, inputs, True)
            return jnp.mean(jnp.square(outputs - targets)), new

        def loss_alone(p, batch):
            return loss(p, batch)[0]

        state = take_due_snapshot(state, params, loss_alone)
        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        parts = part_gradients(state, params, batch, loss_alone)
        updates, state = tx.update(
            grads,
            state,
            params,
            value=value,
            grad=grads,
            value_fn=lambda p: loss_alone(p, batch),
            **parts,
        )
        return optax.apply_updates(params, updates), new, state

    def evaluate(params, model_state):
        return squared_error(
            lambda x: model.apply(params, model_state, None, x, False)[0], EVERYTHING
        )

    _, once = model.apply(params, model_state, key, batch(0)[0], True)
    first = evaluate(params, once)
    params, model_state, state = step(params, model_state, state, batch(0), key)
    chex.assert_trees_all_close(model_state, once, rtol=1e-5)
    for k in range(1, 2 * STEPS):
        key, now = jax.random.split(key)
        params, model_state, state = step(params, model_state, state, batch(k), now)
    assert evaluate(naqopt.eval_params(state, params), model_state) < 0.6 * first


# Linen's TrainState


@functools.cache
def passing_train_state():
    """The subclass of the guide, as people copy it."""
    guide = Path(__file__).parent.parent / "docs" / "guides" / "flax-linen.md"
    blocks = re.findall(r"```\{testcode\}\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [x for x in blocks if x.startswith("class TrainState(train_state.TrainState)")]
    names = {"train_state": train_state, "optax": optax}
    exec(block, names)
    return names["TrainState"]


class Perceptron(linen.Module):
    """Layers with the names that decay masks look for."""

    @linen.compact
    def __call__(self, inputs, train=False):  # noqa: D102
        hidden = jnp.tanh(linen.LayerNorm()(linen.Dense(8)(inputs)))
        hidden = linen.Dropout(0.05, deterministic=not train)(hidden)
        return linen.Dense(8)(hidden)


def perceptron_params():
    return Perceptron().init(jax.random.key(0), batch(0)[0])["params"]


def perceptron_loss(params, batch, **kwargs):
    return squared_error(lambda x: Perceptron().apply({"params": params}, x, **kwargs), batch)


def plain_train_state(tx, kind=train_state.TrainState, **fields):
    params = perceptron_params()
    return kind.create(apply_fn=Perceptron().apply, params=params, tx=tx, **fields)


@EACH_KIND
def test_the_guides_train_state(row):
    train = plain_train_state(transformation(row), passing_train_state())

    @jax.jit
    def step(train, batch):
        loss = functools.partial(perceptron_loss, batch=batch)
        state = take_due_snapshot(train.opt_state, train.params, perceptron_loss)
        train = train.replace(opt_state=state)
        value, grads = jax.value_and_grad(loss)(train.params)
        extra_args = {"value": value, "grad": grads, "value_fn": loss}
        extra_args |= part_gradients(train.opt_state, train.params, batch, perceptron_loss)
        return train.apply_gradients(grads=grads, extra_args=extra_args)

    first = perceptron_loss(train.params, EVERYTHING)
    for k in range(STEPS):
        train = step(train, batch(k))
    assert train.step == STEPS
    iterate = naqopt.eval_params(train.opt_state, train.params)
    assert perceptron_loss(iterate, EVERYTHING) < 0.5 * first


OTHERS = {
    "lbfgs": optax.lbfgs(),
    "omoq": naqopt.omoq(0.2),
    "no_extra_args": optax.GradientTransformation(*optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_guides_train_state_takes_any_optimizer(name):
    train = plain_train_state(OTHERS[name], passing_train_state())

    @jax.jit
    def step(train):
        loss = functools.partial(perceptron_loss, batch=batch(0))
        value, grads = jax.value_and_grad(loss)(train.params)
        extra_args = {"value": value, "grad": grads, "value_fn": loss}
        return train.apply_gradients(grads=grads, extra_args=extra_args), value

    train, first = step(train)
    assert perceptron_loss(train.params, batch(0)) < first


def test_linens_own_train_state_passes_no_loss():
    """What needs none is trained; the rest says what is missing, and the loss finds no way in."""
    loss = functools.partial(perceptron_loss, batch=batch(0))
    grads = jax.grad(loss)(perceptron_params())
    train = plain_train_state(naqopt.omoq(0.2))
    assert loss(train.apply_gradients(grads=grads).params) < loss(train.params)
    train = plain_train_state(naqopt.onaq())
    with pytest.raises(ValueError, match="`value_fn` is missing"):
        train.apply_gradients(grads=grads)
    with pytest.raises(ValueError, match="`value_fn` is missing"):
        train.apply_gradients(grads=grads, value_fn=loss)


# The loop of Hugging Face's Flax examples


def linear_schedule(steps, warmup, rate):
    rises = optax.linear_schedule(0.0, rate, warmup)
    falls = optax.linear_schedule(rate, 0.0, steps - warmup)
    return optax.join_schedules([rises, falls], [warmup])


def decay_mask(params):
    flat = traverse_util.flatten_dict(params)
    decays = {path: path[-1] != "bias" and "LayerNorm" not in path[0] for path in flat}
    return traverse_util.unflatten_dict(decays)


def hugging_face_state(factory, steps, **arguments):
    class DropoutState(passing_train_state()):
        dropout_rng: jax.Array

        def replicate(self):
            devices = jax.local_devices()[:2]
            keys = jax.random.split(self.dropout_rng, len(devices))
            return jax_utils.replicate(self, devices).replace(dropout_rng=jnp.stack(list(keys)))

    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(1e-3, mask=decay_mask),
        factory(linear_schedule(steps, 4, 0.3), **arguments),
    )
    return plain_train_state(tx, DropoutState, dropout_rng=jax.random.PRNGKey(1))


def hugging_face_step(state, batch, parallel):
    dropout_rng, new_dropout_rng = jax.random.split(state.dropout_rng)
    mean = functools.partial(jax.lax.pmean, axis_name="batch") if parallel else lambda x: x

    def compute_loss(params):
        return perceptron_loss(params, batch, train=True, rngs={"dropout": dropout_rng})

    loss, grads = mean(jax.value_and_grad(compute_loss)(state.params))
    extra_args = {
        "value": loss,
        "grad": grads,
        "value_fn": lambda p: mean(compute_loss(p)),
        "grad_fn": lambda p: mean(jax.grad(compute_loss)(p)),
    }
    new_state = state.apply_gradients(
        grads=grads, extra_args=extra_args, dropout_rng=new_dropout_rng
    )
    return new_state, loss


HUGGING_FACE = [
    pytest.param(naqopt.omoq, {"momentum": 0.5}, id="omoq"),
    pytest.param(naqopt.onaq, {"momentum": 0.5}, id="onaq"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("factory", "arguments"), HUGGING_FACE)
def test_the_loop_of_hugging_faces_flax_examples(factory, arguments):
    """Under pmap, with all that their loops have; on two devices as on one but for the dropout."""
    state = hugging_face_state(factory, 2 * STEPS, **arguments).replicate()
    first = perceptron_loss(perceptron_params(), EVERYTHING)
    step = jax.pmap(
        functools.partial(hugging_face_step, parallel=True), "batch", donate_argnums=(0,)
    )
    for k in range(2 * STEPS):
        parts = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch(k))
        state, loss = jax.block_until_ready(step(state, parts))
    np.testing.assert_array_equal(loss[0], loss[1])
    assert_finite(state.opt_state)
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    state = jax_utils.unreplicate(state)
    iterate = naqopt.eval_params(state.opt_state, state.params)
    assert perceptron_loss(iterate, EVERYTHING) < 0.5 * first
    info = naqopt.diagnostics(state.opt_state)
    assert info["pairs_stored"] > 0
    assert info["steps_refused"] == info["steps_skipped"] == 0


@pytest.mark.slow
def test_the_same_loop_under_jit():
    state = hugging_face_state(naqopt.onaq, 2 * STEPS, momentum=0.5)
    step = jax.jit(functools.partial(hugging_face_step, parallel=False), donate_argnums=0)
    first = perceptron_loss(perceptron_params(), EVERYTHING)
    for k in range(2 * STEPS):
        state, _ = step(state, batch(k))
    iterate = naqopt.eval_params(state.opt_state, state.params)
    assert perceptron_loss(iterate, EVERYTHING) < 0.5 * first


# NNX


def test_nnx_says_what_is_missing():
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, naqopt.onaq(), wrt=nnx.Param)
    grads = nnx.grad(lambda model: squared_error(model, batch(0)))(model)
    with pytest.raises(ValueError, match="`value_fn` is missing"):
        optimizer.update(model, grads)
