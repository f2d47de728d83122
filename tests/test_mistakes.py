"""What a newcomer gets wrong in a call, and the message that names the argument and the remedy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_calls import (
    ADAPTIVE,
    CALLS,
    EACH_WITH_LEARNING_RATE,
    ONLINE,
    PARAMS,
    TRUST_REGION,
    WITH_LINE_SEARCH,
    WITH_MATRIX,
    WITH_MOMENTUM,
    WITH_PAIRS,
    each,
    loss,
    small,
    update,
)

import naqopt

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


def test_a_restart_window_is_checked_without_a_search_too():
    with pytest.raises(ValueError, match="`restart_window` must be at least 1, got -3"):
        naqopt.naq(0.1, linesearch=None, restart_window=-3)


@pytest.mark.parametrize("factory", [naqopt.ssbroyden, naqopt.ssbfgs])
def test_messages_of_the_self_scaled_methods_name_their_own_arguments(factory):
    remedy = rf"naqopt\.{factory.__name__}\(linesearch=naqopt\.wolfe\(\)\)"
    with pytest.raises(ValueError, match=remedy):
        factory(linesearch=None)
    factory(linesearch=naqopt.wolfe())  # the remedy
    large = jax.ShapeDtypeStruct((40_000,), "float32")
    with pytest.raises(ValueError, match=r"it keeps a dense matrix.*naqopt\.bfgs\(\)"):
        jax.eval_shape(factory().init, large)
    jax.eval_shape(naqopt.bfgs().init, large)  # the remedy


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
