"""What a newcomer gets wrong, and the message that names the argument and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import naqopt

BOTH = pytest.mark.parametrize("factory", [naqopt.adaqn, naqopt.asnaq], ids=["adaqn", "asnaq"])
PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
SMALL = {"memory_size": 2, "fisher_size": 3, "cycle_length": 2}


def loss(p):
    return jnp.sum((p["w"] - 0.5) ** 2) + jnp.sum(p["b"] ** 2)


def update(tx, params=PARAMS, state=None, **extra_args):
    state = tx.init(params) if state is None else state
    return tx.update(jax.grad(loss)(PARAMS), state, params, **extra_args)


@BOTH
@pytest.mark.parametrize("name", ["memory_size", "fisher_size", "cycle_length"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(factory, name, value):
    with pytest.raises(ValueError, match=rf"naqopt\.\w+: `{name}` must be at least 1, got {value}"):
        factory(**{name: value})


@BOTH
@pytest.mark.parametrize("name", ["memory_size", "fisher_size", "cycle_length"])
@pytest.mark.parametrize("value", [2.5, "3", None])
def test_sizes_are_ints(factory, name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be an int"):
        factory(**{name: value})


@BOTH
def test_traced_sizes_point_to_static_args(factory):
    tx = optax.inject_hyperparams(factory)(0.1)
    with pytest.raises(TypeError, match=r"`memory_size` sets the shape.*static_args"):
        tx.init(PARAMS)


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("max_increase", 0.9),
        ("eps", 0.0),
        ("eps", np.inf),
        ("accumulator_decay", 1.0),
        ("accumulator_decay", -0.1),
    ],
)
def test_numbers_out_of_range(factory, name, value):
    with pytest.raises(ValueError, match=rf"naqopt\.\w+: `{name}` must be a finite number in"):
        factory(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_momentum", -0.1),
        ("max_momentum", 1.0),
        ("momentum_factor", 0.9),
        ("backoff", 0.0),
        ("backoff", 1.1),
    ],
)
def test_numbers_of_asnaq_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"naqopt.asnaq: `{name}` must be a finite number in"):
        naqopt.asnaq(**{name: value})


def test_momentum_bounds_out_of_order():
    with pytest.raises(ValueError, match=r"`min_momentum` must not exceed.*0\.9 > 0\.5"):
        naqopt.asnaq(min_momentum=0.9, max_momentum=0.5)


@BOTH
def test_words_for_numbers(factory):
    with pytest.raises(TypeError, match="`learning_rate` must be a number, got"):
        factory("0.1")


def test_single_gradient_is_a_flag():
    with pytest.raises(TypeError, match="`single_gradient` must be True or False, got 1"):
        naqopt.asnaq(single_gradient=1)


@BOTH
def test_history_dtypes(factory):
    with pytest.raises(ValueError, match=r"`history_dtype`.*float16.*jnp\.bfloat16"):
        factory(history_dtype=jnp.float16)
    with pytest.raises(TypeError, match="`history_dtype` must be a floating dtype"):
        factory(history_dtype=jnp.int32)


@BOTH
def test_missing_value_fn(factory):
    with pytest.raises(ValueError, match=r"`value_fn` is missing.*Example: tx\.update\("):
        update(factory(**SMALL))


@BOTH
def test_value_instead_of_value_fn(factory):
    with pytest.raises(TypeError, match="`value_fn` must be a function of the params"):
        update(factory(**SMALL), value_fn=loss(PARAMS))


@BOTH
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
        update(factory(**SMALL), value_fn=bad)


def test_monitor_fn_without_a_scalar():
    with pytest.raises(ValueError, match="`monitor_fn` must return a scalar"):
        update(naqopt.adaqn(**SMALL), value_fn=loss, monitor_fn=lambda p: p["b"])


@BOTH
def test_missing_params(factory):
    tx = factory(**SMALL)
    with pytest.raises(ValueError, match="`params` is missing"):
        tx.update(PARAMS, tx.init(PARAMS), value_fn=loss)


@BOTH
@pytest.mark.parametrize(
    ("leaf", "remedy"),
    [(jnp.ones(3, jnp.complex64), "split"), (jnp.arange(3), "keep it out")],
    ids=["complex", "integer"],
)
def test_params_that_cannot_be_trained(factory, leaf, remedy):
    with pytest.raises(TypeError, match=rf"`params\['b'\]` has dtype .*{remedy}"):
        factory(**SMALL).init({"w": jnp.ones(2), "b": leaf})


@BOTH
def test_structure_changed_after_init(factory):
    tx = factory(**SMALL)
    state = tx.init({**PARAMS, "c": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"`params` has another structure.*tx\.init\(params\)"):
        update(tx, state=state, value_fn=loss)


@BOTH
def test_shapes_changed_after_init(factory):
    tx = factory(**SMALL)
    state = tx.init({"w": jnp.ones((2, 3)), "b": jnp.zeros(4)})
    with pytest.raises(ValueError, match=r"`params\['b'\]` has shape \(3,\).*had \(4,\)"):
        update(tx, state=state, value_fn=loss)


@BOTH
def test_gradient_of_another_structure(factory):
    tx = factory(**SMALL)
    with pytest.raises(ValueError, match="`updates` has another structure"):
        tx.update({"w": PARAMS["w"]}, tx.init(PARAMS), PARAMS, value_fn=loss)
    with pytest.raises(ValueError, match="`grad` has another structure"):
        update(tx, value_fn=loss, grad={"w": PARAMS["w"]})


def test_grad_fn_of_another_structure():
    with pytest.raises(ValueError, match=r"`grad_fn\(params\)` has another structure"):
        update(naqopt.asnaq(**SMALL), value_fn=loss, grad_fn=lambda p: p["w"])


@BOTH
def test_swapped_arguments_and_foreign_states(factory):
    state = factory(**SMALL).init(PARAMS)
    with pytest.raises(ValueError, match=r"swapped; call eval_params\(state, params\)"):
        naqopt.eval_params(PARAMS, state)
    with pytest.raises(ValueError, match="no state of a naqopt optimizer"):
        naqopt.diagnostics(optax.adam(0.1).init(PARAMS))


def test_eval_params_of_other_params():
    state = naqopt.asnaq(**SMALL).init(PARAMS)
    with pytest.raises(ValueError, match="not the params that this state was made for"):
        naqopt.eval_params(state, {"w": jnp.ones((2, 3))})
    for shape in ((2, 5), (1, 3)):
        with pytest.raises(ValueError, match="not the params that this state was made for"):
            naqopt.eval_params(state, {"w": jnp.ones(shape), "b": jnp.zeros(3)})


@BOTH
def test_init_of_nothing_and_update_of_something(factory):
    tx = factory(**SMALL)
    with pytest.raises(ValueError, match="`updates` has another structure"):
        tx.update(PARAMS, tx.init({}), PARAMS, value_fn=loss)


@BOTH
def test_learning_rates_that_are_no_single_number(factory):
    for rate in (np.array([0.1]), jnp.array([0.1, 0.2])):
        with pytest.raises(ValueError, match="`learning_rate` must be a single number"):
            factory(rate)
    with pytest.raises(ValueError, match=r"`learning_rate` must give one number, got shape \(1,\)"):
        update(factory(lambda count: jnp.array([0.1]), **SMALL), value_fn=loss)


@BOTH
def test_eps_that_vanishes_in_float32(factory):
    with pytest.raises(ValueError, match="`eps` must be a finite number in"):
        factory(eps=1e-50)


def test_eval_params_of_a_vmapped_state_asks_for_vmap():
    tx = naqopt.asnaq(**SMALL)
    params = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    state = jax.vmap(tx.init)(params)
    with pytest.raises(ValueError, match=r"jax\.vmap\(naqopt\.eval_params\)"):
        naqopt.eval_params(state, params)
    jax.vmap(naqopt.eval_params)(state, params)


@BOTH
def test_gradients_of_python_numbers(factory):
    tx = factory(**SMALL)
    params = {"w": 1.0}
    grads = {"w": 2.0}
    square = lambda p: p["w"] ** 2  # noqa: E731
    updates, _ = tx.update(grads, tx.init(params), params, grad=grads, value_fn=square)
    assert updates["w"] < 0
