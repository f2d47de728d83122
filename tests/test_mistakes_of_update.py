"""What a newcomer gets wrong in the call of `update`, and the message that names the remedy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_calls import (
    ADAPTIVE,
    EACH_THAT_NEEDS_THE_LOSS,
    EACH_WITH_LEARNING_RATE,
    EVERY,
    EVERY_AND_DENSE,
    PARAMS,
    SMALL,
    each,
    loss,
    small,
    update,
)

import naqopt


@EVERY
@pytest.mark.parametrize("leaf", [jnp.tanh, "tanh", object()], ids=["function", "word", "object"])
def test_leaves_that_are_no_arrays(factory, leaf):
    """An activation function in an Equinox module, say."""
    tx = small(factory)
    made = tx, naqopt.flatten(tx)
    for one in made:
        with pytest.raises(TypeError, match=r"`params\['f'\]` must be an array.*: keep it out of"):
            one.init({**PARAMS, "f": leaf})
        for name in ("updates", "grad"):
            given = {"updates": PARAMS, "grad": PARAMS, name: {**PARAMS, "b": leaf}}
            message = rf"`{name}(\['b'\])?` .*pass what jax.grad"
            with pytest.raises((TypeError, ValueError), match=message):
                one.update(
                    given["updates"], one.init(PARAMS), PARAMS, grad=given["grad"], value_fn=loss
                )


@EVERY
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_gradients_that_are_no_real_floating_numbers(factory, dtype):
    tx = small(factory)
    bad = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    for one in (tx, naqopt.flatten(tx)):
        state = one.init(PARAMS)
        for name in ("updates", "grad"):
            given = {"updates": PARAMS, "grad": PARAMS, name: bad}
            message = rf"naqopt\.\w+: `{name}\['b'\]` has dtype {dtype}, and a gradient is of real"
            with pytest.raises(TypeError, match=message):
                one.update(given["updates"], state, PARAMS, grad=given["grad"], value_fn=loss)


@EACH_THAT_NEEDS_THE_LOSS
def test_missing_value_fn(factory):
    with pytest.raises(ValueError, match=r"`value_fn` is missing.*Example: tx\.update\("):
        update(small(factory))


@pytest.mark.parametrize(
    ("factory", "arguments", "without_grad_fn", "with_grad_fn"),
    [
        (naqopt.bfgs, {"learning_rate": 0.1, "linesearch": None}, True, True),
        (naqopt.moq, {"learning_rate": 0.1, "linesearch": None}, True, True),
        (naqopt.omoq, {}, True, True),
        (naqopt.multi_batch_omoq, {}, True, True),
        (naqopt.naq, {"learning_rate": 0.1, "linesearch": None}, False, True),
        (naqopt.obfgs, {}, False, True),
        (naqopt.onaq, {}, False, True),
        (naqopt.svrg, {}, False, True),
        (naqopt.svr_naq, {}, False, True),
        (naqopt.bfgs, {}, False, False),
        (naqopt.naq, {}, False, False),
        (naqopt.moq, {}, False, False),
        (naqopt.mnaq, {}, False, False),
        # The value that it keeps is the loss's.
        (naqopt.bfgs, {"learning_rate": 0.1, "linesearch": None, "store_grad": True}, False, False),
    ],
)
def test_value_fn_is_asked_for_only_where_it_is_needed(
    factory, arguments, without_grad_fn, with_grad_fn
):
    tx = small(factory, **arguments)
    for suffices, closures in [(without_grad_fn, {}), (with_grad_fn, {"grad_fn": jax.grad(loss)})]:
        if suffices:
            update(tx, **closures)
        else:
            with pytest.raises(ValueError, match="`value_fn` is missing"):
                update(tx, **closures)


def test_params_that_are_no_arrays():
    """As of an Equinox model, which has its activation beside its weights."""
    tx, params = naqopt.onaq(), {"w": jnp.ones(2), "activation": jnp.tanh}
    with pytest.raises(TypeError, match=r"`params\['activation'\]` must be .*eqx\.filter\("):
        tx.init(params)
    tx.init(params | {"activation": None})  # as eqx.filter leaves it


def test_value_fn_that_asks_for_the_batch():
    def loss_fn(params, batch):
        return jnp.sum(params * batch)

    tx, params = naqopt.onaq(), jnp.ones(2)
    state = tx.init(params)
    for function in (loss_fn, jax.jit(loss_fn)):
        with pytest.raises(
            TypeError, match=r"params alone, but it asks for more: \(params, batch\)"
        ):
            tx.update(params, state, params, value_fn=function)
    bound = functools.partial(loss_fn, batch=jnp.ones(2))
    for function in (bound, lambda p, batch=1.0: loss_fn(p, batch), lambda *p: jnp.sum(p[0])):
        tx.update(params, state, params, value_fn=function)  # the remedies


@EACH_THAT_NEEDS_THE_LOSS
def test_value_instead_of_value_fn(factory):
    with pytest.raises(TypeError, match="`value_fn` must be a function of the params"):
        update(small(factory), value_fn=loss(PARAMS))


@EACH_THAT_NEEDS_THE_LOSS
@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (lambda p: p["b"] ** 2, r"an array of shape \(3,\)"),
        (lambda p: (loss(p), {"accuracy": 1.0}), "tuple"),
        (lambda p: None, "NoneType"),
    ],
    ids=["vector", "auxiliary", "nothing"],
)
def test_value_fn_without_a_scalar(factory, bad, found):
    with pytest.raises(ValueError, match=f"`value_fn` must return a scalar, got {found}"):
        update(small(factory), value_fn=bad)


def test_missing_part_grads():
    tx = small(naqopt.multi_batch_omoq)
    for made in (tx, naqopt.flatten(tx)):
        message = r"multi_batch_omoq: `part_grads` is missing: .*Example: part_grads = tuple"
        with pytest.raises(ValueError, match=message):
            made.update(PARAMS, made.init(PARAMS), PARAMS, grad=PARAMS)


@pytest.mark.parametrize(
    ("part_grads", "found"),
    [
        ((PARAMS, PARAMS), "got 2 of them"),
        ((PARAMS,) * 4, "got 4 of them"),
        (PARAMS, "got dict"),
        (jax.tree.map(lambda x: jnp.stack([x, x, x]), PARAMS), "got dict"),
    ],
    ids=["two", "four", "one gradient", "stacked"],
)
def test_part_grads_that_are_not_three(part_grads, found):
    tx = small(naqopt.multi_batch_omoq)
    message = rf"`part_grads` must be a tuple of three gradients, .*{found}.*Example: part_grads ="
    for made in (tx, naqopt.flatten(tx)):
        with pytest.raises(ValueError, match=message):
            update(made, part_grads=part_grads)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"w": PARAMS["w"]}, r"`part_grads\[1\]` has another structure .* pass what jax.grad"),
        ({**PARAMS, "b": jnp.zeros(4)}, r"`part_grads\[1\]\['b'\]` has shape \(4,\)"),
        (None, r"`part_grads\[1\]` has another structure"),
    ],
    ids=["structure", "shape", "None"],
)
def test_part_grads_of_another_structure(part, message):
    tx = small(naqopt.multi_batch_omoq)
    for made in (tx, naqopt.flatten(tx)):
        with pytest.raises(ValueError, match=message):
            update(made, part_grads=(PARAMS, part, PARAMS))


@pytest.mark.parametrize(
    ("order", "part_size", "message"),
    [
        (
            range(5),
            2,
            r"`order` must be a vector of at least three .*= 2 indices, got shape \(5,\)",
        ),
        (np.zeros((6, 2), int), 2, r"`order` must be a vector .* got shape \(6, 2\)"),
        (range(6), 0, "`part_size` must be at least 1, got 0"),
    ],
)
def test_orders_that_cannot_slide(order, part_size, message):
    with pytest.raises(ValueError, match=f"naqopt.sliding_batches: {message}"):
        naqopt.sliding_batches(np.asarray(order), part_size)
    with pytest.raises(TypeError, match=r"`part_size` must be an int, got 2\.5"):
        naqopt.sliding_batches(np.arange(9), 2.5)
    with pytest.raises(ValueError, match="`before` must be a vector"):
        naqopt.sliding_batches(np.arange(9), 3, np.arange(4))


def test_monitor_fn_without_a_scalar():
    with pytest.raises(ValueError, match="`monitor_fn` must return a scalar"):
        update(naqopt.adaqn(**SMALL), value_fn=loss, monitor_fn=lambda p: p["b"])


@EVERY
def test_missing_params(factory):
    tx = small(factory)
    with pytest.raises(ValueError, match="`params` is missing"):
        tx.update(PARAMS, tx.init(PARAMS), value_fn=loss)


@EVERY
@pytest.mark.parametrize(
    ("leaf", "remedy"),
    [(jnp.ones(3, jnp.complex64), "join them in the loss"), (jnp.arange(3), "keep it out")],
    ids=["complex", "integer"],
)
def test_params_that_cannot_be_trained(factory, leaf, remedy):
    with pytest.raises(TypeError, match=rf"`params\['b'\]` has dtype .*{remedy}"):
        small(factory).init({"w": jnp.ones(2), "b": leaf})


@EVERY_AND_DENSE
def test_structure_changed_after_init(factory, arguments):
    tx = small(factory, **arguments)
    state = tx.init({**PARAMS, "c": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"`params` has another structure.*tx\.init\(params\)"):
        update(tx, state=state, value_fn=loss)


@EVERY_AND_DENSE
def test_shapes_changed_after_init(factory, arguments):
    tx = small(factory, **arguments)
    state = tx.init({"w": jnp.ones((2, 3)), "b": jnp.zeros(4)})
    with pytest.raises(ValueError, match=r"`params\['b'\]` has shape \(3,\).*had \(4,\)"):
        update(tx, state=state, value_fn=loss)


@EVERY
def test_gradient_of_another_structure(factory):
    tx = small(factory)
    with pytest.raises(ValueError, match="`updates` has another structure"):
        tx.update({"w": PARAMS["w"]}, tx.init(PARAMS), PARAMS, value_fn=loss)
    with pytest.raises(ValueError, match="`grad` has another structure"):
        update(tx, value_fn=loss, grad={"w": PARAMS["w"]})


@each(["asnaq", "naq", "mnaq", "obfgs", "onaq", "svrg", "svrg2", "svr_naq", "lsr1", "sr1n"])
def test_grad_fn_of_another_structure(factory):
    with pytest.raises(ValueError, match=r"`grad_fn\(params\)` has another structure"):
        update(small(factory), value_fn=loss, grad_fn=lambda p: p["w"])


@EVERY
def test_swapped_arguments_and_foreign_states(factory):
    state = small(factory).init(PARAMS)
    with pytest.raises(ValueError, match=r"swapped; call eval_params\(state, params\)"):
        naqopt.eval_params(PARAMS, state)
    with pytest.raises(ValueError, match="no state of a naqopt optimizer"):
        naqopt.diagnostics(optax.adam(0.1).init(PARAMS))


@each(["asnaq", "naq", "mnaq", "onaq", "svr_naq", "sr1n"])
def test_eval_params_of_other_params(factory):
    state = small(factory).init(PARAMS)
    with pytest.raises(ValueError, match="not the params that this state was made for"):
        naqopt.eval_params(state, {"w": jnp.ones((2, 3))})
    for shape in ((2, 5), (1, 3)):
        with pytest.raises(ValueError, match="not the params that this state was made for"):
            naqopt.eval_params(state, {"w": jnp.ones(shape), "b": jnp.zeros(3)})


@EVERY_AND_DENSE
def test_init_of_nothing_and_update_of_something(factory, arguments):
    tx = small(factory, **arguments)
    with pytest.raises(ValueError, match="`updates` has another structure"):
        tx.update(PARAMS, tx.init({}), PARAMS, value_fn=loss)


@EACH_WITH_LEARNING_RATE
def test_learning_rates_that_are_no_single_number(factory):
    for rate in (np.array([0.1]), jnp.array([0.1, 0.2])):
        with pytest.raises(ValueError, match="`learning_rate` must be a single number"):
            factory(rate)
    with pytest.raises(ValueError, match=r"`learning_rate` must give one number, got shape \(1,\)"):
        update(small(factory, lambda count: jnp.array([0.1])), value_fn=loss)


@ADAPTIVE
def test_eps_that_vanishes_in_float32(factory):
    with pytest.raises(ValueError, match="`eps` must be a finite number in"):
        factory(eps=1e-50)


@each(["asnaq", "onaq"])
def test_eval_params_of_a_vmapped_state_asks_for_vmap(factory):
    tx = small(factory)
    params = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    state = jax.vmap(tx.init)(params)
    with pytest.raises(ValueError, match=r"jax\.vmap\(naqopt\.eval_params\)"):
        naqopt.eval_params(state, params)
    jax.vmap(naqopt.eval_params)(state, params)


@EVERY
def test_gradients_of_python_numbers(factory):
    tx = small(factory)
    params = {"w": 1.0}
    grads = {"w": 1.0}
    square = lambda p: p["w"] ** 2 / 2  # noqa: E731
    closures = {"value_fn": square, "part_grads": (grads, grads, grads)}
    updates, _ = tx.update(grads, tx.init(params), params, grad=grads, **closures)
    assert updates["w"] < 0
