"""What a newcomer gets wrong, and the message that names the argument and the remedy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import naqopt

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
SMALL = {"memory_size": 2, "fisher_size": 3, "cycle_length": 2}
# Every call with sizes so small that nothing takes long.
CALLS = {
    "adaqn": SMALL,
    "asnaq": SMALL,
    "bfgs": {"memory_size": 2},
    "naq": {"memory_size": 2},
    "moq": {"memory_size": 2},
    "mnaq": {"memory_size": 2},
    "obfgs": {"memory_size": 2},
    "onaq": {"memory_size": 2},
    "omoq": {"memory_size": 2},
    "multi_batch_omoq": {"memory_size": 2},
    "svrg": {},
    "svrg2": {"memory_size": 2},
    "svr_naq": {"memory_size": 2},
    "lsr1": {"memory_size": 2},
    "sr1n": {"memory_size": 2},
    "mosr1": {"memory_size": 2},
}
WITH_PAIRS = [name for name, sizes in CALLS.items() if sizes]
WITH_MATRIX = [name for name in WITH_PAIRS if name not in ("adaqn", "asnaq", "lsr1")]
TRUST_REGION = ["lsr1", "sr1n", "mosr1"]
ONLINE = ["obfgs", "onaq", "omoq", "multi_batch_omoq"]
WITH_MOMENTUM = ["naq", "moq", "mnaq", "svr_naq", "sr1n", "mosr1", *ONLINE[1:]]
WITH_LINE_SEARCH = ["bfgs", "naq", "moq"]


def each(names):
    """Runs a test for each of the calls, as its argument `factory`."""
    return pytest.mark.parametrize("factory", [getattr(naqopt, n) for n in names], ids=names)


EVERY, ADAPTIVE = each(CALLS), each(["adaqn", "asnaq"])
EACH_WITH_LEARNING_RATE = each([name for name in CALLS if name not in ("mnaq", *TRUST_REGION)])
EACH_THAT_NEEDS_THE_LOSS = each([name for name in CALLS if "omoq" not in name])


EVERY_AND_DENSE = pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        *(pytest.param(getattr(naqopt, name), {}, id=name) for name in CALLS),
        *(
            pytest.param(getattr(naqopt, name), {"memory_size": None}, id=f"{name}-dense")
            for name in WITH_MATRIX
        ),
    ],
)


def small(factory, *arguments, **others):
    return factory(*arguments, **{**CALLS[factory.__name__], **others})


def loss(p):
    return jnp.sum((p["w"] - 0.5) ** 2) + jnp.sum(p["b"] ** 2)


def update(tx, params=PARAMS, state=None, **extra_args):
    """Traces an update, which is when mistakes are found; nothing is computed."""
    state = tx.init(params) if state is None else state

    def traced():
        grads = jax.grad(loss)(PARAMS)
        closures = {"part_grads": (grads, grads, grads)} | extra_args
        return tx.update(grads, state, params, **closures)

    return jax.eval_shape(traced)


SIZES = pytest.mark.parametrize(
    ("factory", "name"),
    [
        pytest.param(getattr(naqopt, call), name, id=f"{call}-{name}")
        for call, sizes in CALLS.items()
        for name in sizes
    ],
)


@SIZES
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(factory, name, value):
    with pytest.raises(ValueError, match=rf"naqopt\.\w+: `{name}` must be at least 1, got {value}"):
        factory(**{name: value})


@SIZES
@pytest.mark.parametrize("value", [2.5, "3", None])
def test_sizes_are_ints(factory, name, value):
    if value is None and factory.__name__ in WITH_MATRIX:
        factory(**{name: value})  # asks for the dense matrix
        return
    with pytest.raises(TypeError, match=f"`{name}` must be an int"):
        factory(**{name: value})


@each(WITH_PAIRS)
def test_traced_sizes_point_to_static_args(factory):
    tx = optax.inject_hyperparams(factory)()
    with pytest.raises(TypeError, match=r"`memory_size` sets the shape.*static_args"):
        tx.init(PARAMS)


@EACH_WITH_LEARNING_RATE
@pytest.mark.parametrize("value", [-0.1, float("nan"), 1e39])
def test_learning_rates_out_of_range(factory, value):
    with pytest.raises(
        ValueError, match=r"naqopt\.\w+: `learning_rate` must be a finite number in"
    ):
        factory(value)


@ADAPTIVE
@pytest.mark.parametrize(
    ("name", "value"),
    [
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


@each(WITH_MOMENTUM)
@pytest.mark.parametrize("value", [1.0, -0.1, np.nan])
def test_momenta_out_of_range(factory, value):
    message = rf"naqopt\.{factory.__name__}: `momentum` must be a finite number in \[0, 1\)"
    with pytest.raises(ValueError, match=message):
        factory(momentum=value)


@each(WITH_MOMENTUM)
def test_momenta_that_are_no_single_number(factory):
    with pytest.raises(TypeError, match=r"`momentum` must be a number, got '0\.9'"):
        factory(momentum="0.9")
    with pytest.raises(TypeError, match=r"`momentum` must be a number, got None"):
        factory(momentum=None)
    with pytest.raises(ValueError, match=r"`momentum` must give one number, got shape \(2,\)"):
        update(small(factory, momentum=lambda count: jnp.zeros(2)), value_fn=loss)


@each(ONLINE)
@pytest.mark.parametrize(
    ("name", "value"), [("damping", -1.0), ("damping", np.inf), ("min_curvature", -1e-8)]
)
def test_numbers_of_the_online_calls_out_of_range(factory, name, value):
    with pytest.raises(ValueError, match=rf"naqopt\.\w+: `{name}` must be a finite number in"):
        factory(**{name: value})


@EACH_WITH_LEARNING_RATE
def test_words_for_numbers(factory):
    with pytest.raises(TypeError, match="`learning_rate` must be a number, got"):
        factory("0.1")


def test_single_gradient_is_a_flag():
    with pytest.raises(TypeError, match="`single_gradient` must be True or False, got 1"):
        naqopt.asnaq(single_gradient=1)


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [
        ("bfgs", "convergence_term", 1),
        ("naq", "convergence_term", 1),
        ("moq", "convergence_term", None),
        ("bfgs", "store_grad", "yes"),
        ("obfgs", "normalize", 0),
        ("onaq", "normalize", 1),
        ("omoq", "normalize", "no"),
        ("multi_batch_omoq", "normalize", "no"),
    ],
)
def test_flags(call, name, value):
    message = f"naqopt.{call}: `{name}` must be True or False, got {value!r}"
    with pytest.raises(TypeError, match=message):
        getattr(naqopt, call)(**{name: value})


@each(WITH_PAIRS)
def test_history_dtypes(factory):
    with pytest.raises(ValueError, match=r"`history_dtype`.*float16.*jnp\.bfloat16"):
        factory(history_dtype=jnp.float16)
    with pytest.raises(TypeError, match="`history_dtype` must be a floating dtype"):
        factory(history_dtype=jnp.int32)


@each(WITH_MATRIX)
def test_a_dense_matrix_has_no_history(factory):
    with pytest.raises(ValueError, match="`history_dtype` is the dtype of stored pairs"):
        factory(memory_size=None, history_dtype=jnp.bfloat16)


@each(WITH_MATRIX)
def test_a_dense_matrix_that_is_too_large(factory):
    """40,000² numbers of float32 are more than 4 GiB, 32,768² are not; neither is allocated."""
    tx = factory(memory_size=None)

    def init(d):
        params = {"w": jax.ShapeDtypeStruct((d - 8,), jnp.float32), "b": jnp.zeros((2, 4))}
        return jax.eval_shape(tx.init, params)

    message = rf"naqopt\.{factory.__name__}: `memory_size=None` .*40,000 × 40,000.*`memory_size=10`"
    with pytest.raises(ValueError, match=message):
        init(40_000)
    assert init(32_768).curvature.matrix["w"].shape == (32_768, 32_760)


# Line searches.


@each(WITH_LINE_SEARCH)
def test_what_is_no_line_search(factory):
    with pytest.raises(TypeError, match=r"`learning_rate` is a transformation.*`linesearch`"):
        factory(naqopt.armijo())
    with pytest.raises(TypeError, match=r"`linesearch` must be one of Optax's.*naqopt\.armijo\(\)"):
        factory(linesearch=naqopt.armijo)
    with pytest.raises(TypeError, match=r"`linesearch` must be one of Optax's.*got 'armijo'"):
        factory(linesearch="armijo")
    for other in (optax.sgd(0.1), optax.adam(0.1), optax.chain(optax.sgd(0.1), naqopt.armijo())):
        with pytest.raises(
            TypeError, match=r"`linesearch` keeps no step length.*optax\.chain\(\.\.\."
        ):
            factory(linesearch=other)


@each(WITH_LINE_SEARCH)
def test_neither_learning_rate_nor_line_search(factory):
    message = r"`learning_rate` and `linesearch` are both None.*\(0\.1, linesearch=None\)"
    with pytest.raises(ValueError, match=message):
        factory(linesearch=None)


@each(["bfgs", "naq", "mnaq", "lsr1", "sr1n"])
def test_values_of_several_losses(factory):
    with pytest.raises(ValueError, match=r"`value` must be the loss.*got shape \(3,\)"):
        update(small(factory), value=jnp.zeros(3), value_fn=loss)


@each(["sr1n", "mosr1"])
def test_what_is_no_solver(factory):
    message = rf"naqopt\.{factory.__name__}: `solver` must be \"cg\" or \"exact\", got 'newton'"
    with pytest.raises(ValueError, match=message):
        factory(solver="newton")


@each(TRUST_REGION)
@pytest.mark.parametrize("radius", [0.0, -1.0, 1e11, math.inf, math.nan])
def test_initial_radius_out_of_range(factory, radius):
    message = rf"naqopt\.{factory.__name__}: `initial_radius` must be a finite number in \[1e-10,"
    with pytest.raises(ValueError, match=message):
        factory(initial_radius=radius)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initial_radius", 2.0),
        ("initial_radius", None),
        ("radius_rule", naqopt.RadiusRule(grow=3.0)),
    ],
)
def test_what_a_line_search_has_not(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` is that of the trust region.*one of"):
        naqopt.lsr1(**{name: value}, linesearch=naqopt.armijo())
    naqopt.lsr1(initial_scale=2.0, linesearch=naqopt.armijo())  # which both have


@pytest.mark.parametrize("factory", [naqopt.lsr1, naqopt.sr1n, naqopt.mosr1])
@pytest.mark.parametrize(
    "rule",
    [
        {"shrink": 1.0},
        {"shrink": 0.0},
        {"grow": 0.5},
        {"boundary": 1.5},
        {"accept": 0.2},
        {"shrink_below": 0.8},
        {"accept": -1.0},
    ],
)
def test_a_radius_rule_out_of_range(factory, rule):
    (name,) = rule
    with pytest.raises(ValueError, match=rf"`radius_rule\.{name}` must be a finite number in"):
        factory(radius_rule=naqopt.RadiusRule(**rule))


def test_what_is_no_radius_rule():
    with pytest.raises(TypeError, match=r"`radius_rule` must be a naqopt.RadiusRule, such as"):
        naqopt.lsr1(radius_rule=(0.1, 0.75))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf])
def test_an_initial_scale_out_of_range(scale):
    for factory in (naqopt.sr1n, naqopt.ssbroyden):
        with pytest.raises(ValueError, match="`initial_scale` must be a finite number in"):
            factory(initial_scale=scale)


def test_an_initial_scale_without_a_dense_matrix():
    with pytest.raises(ValueError, match=r"naqopt\.bfgs: `initial_scale` needs the dense matrix"):
        naqopt.bfgs(initial_scale=1.0)
    with pytest.raises(ValueError, match=r"naqopt\.bfgs: `initial_scale` needs the dense matrix"):
        naqopt.bfgs(initial_scale="first_pair")
    naqopt.bfgs(memory_size=None, initial_scale=1.0)  # the remedy


def test_an_initial_scale_that_is_no_word():
    with pytest.raises(ValueError, match='`initial_scale` must be a number or "first_pair", got'):
        naqopt.bfgs(memory_size=None, initial_scale="first pair")
    naqopt.bfgs(memory_size=None, initial_scale="first_pair")  # the remedy


@pytest.mark.parametrize("factory", [naqopt.naq, naqopt.moq, naqopt.mnaq])
def test_a_restart_window_out_of_range(factory):
    with pytest.raises(ValueError, match="`restart_window` must be at least 1, got 0"):
        factory(restart_window=0)
    with pytest.raises(TypeError, match=r"`restart_window` must be an int, got 2\.5"):
        factory(restart_window=2.5)


@EACH_WITH_LEARNING_RATE
@pytest.mark.parametrize("value", [1j, np.complex64(1), np.array("0.1"), np.array(True)], ids=repr)
def test_what_is_no_real_number(factory, value):
    with pytest.raises(TypeError, match=r"naqopt\.\w+: `learning_rate` must be a number, got"):
        factory(value)


@each(WITH_PAIRS)
@pytest.mark.parametrize("value", ["bf16", 16, (), np.zeros(2)], ids=repr)
def test_what_is_no_dtype(factory, value):
    with pytest.raises(TypeError, match=r"`history_dtype` must be a dtype such as jnp\.bfloat16"):
        factory(history_dtype=value)


def test_an_array_for_a_word():
    with pytest.raises(ValueError, match="`solver` must be"):
        naqopt.sr1n(solver=np.zeros(2))
    with pytest.raises(ValueError, match="`update` must be one of"):
        naqopt.bfgs(memory_size=None, update=np.zeros(2))


# The call of `update`.


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
