"""Trees, dtypes, sizes and rates as they come: nothing is compiled again, no dtype changes.

What is refused says which argument it is about.
"""

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optimizer_table import enable_x64, types

import naqopt


@functools.partial(jax.tree_util.register_dataclass, data_fields=["a", "b"], meta_fields=["name"])
@dataclasses.dataclass
class Layer:
    """A node of the user's own."""

    a: Any
    b: Any
    name: str = "layer"


DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3).map(tuple)


def trees(dtypes):
    """Trees of shapes and dtypes."""
    return st.recursive(
        st.tuples(SHAPES, st.sampled_from(dtypes)) | st.none(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=2).map(tuple)
            | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
            | st.builds(Layer, inner, inner)
        ),
        max_leaves=8,
    )


TREES = trees(DTYPES)
RATES = st.floats(0, 1e3) | st.sampled_from([0.0, 1e-30, 1, 1e3])


def schedule(rate):
    """A schedule that returns arrays, in NumPy's or in JAX's float32."""
    return lambda count: jnp.asarray(rate, jnp.float32) / (1 + 0 * count)


LEARNING_RATES = RATES | RATES.map(np.float64) | RATES.map(jnp.float32) | RATES.map(schedule)
SIZES = st.integers(1, 6)
CYCLES = {"memory_size": SIZES, "fisher_size": SIZES, "cycle_length": SIZES}
MEMORY = {"memory_size": SIZES | st.none()}
MOMENTUM = {"momentum": st.floats(0, 0.99) | st.just(naqopt.schedules.nesterov_momentum())}
RATE = {"learning_rate": LEARNING_RATES}
CALLS = {
    naqopt.adaqn: {**CYCLES, **RATE},
    naqopt.asnaq: {**CYCLES, **RATE, "single_gradient": st.booleans()},
    naqopt.bfgs: {**MEMORY, **RATE, "store_grad": st.booleans()},
    naqopt.naq: {**MEMORY, **RATE, **MOMENTUM, "restart_window": SIZES | st.none()},
    naqopt.moq: {**MEMORY, **RATE, **MOMENTUM},
    naqopt.mnaq: {**MEMORY, **MOMENTUM, "restart_window": SIZES | st.none()},
    naqopt.obfgs: {**MEMORY, **RATE, "normalize": st.booleans()},
    naqopt.onaq: {**MEMORY, **RATE, **MOMENTUM},
    naqopt.omoq: {**MEMORY, **RATE, **MOMENTUM},
    naqopt.multi_batch_omoq: {**MEMORY, **RATE, **MOMENTUM},
    naqopt.ssbroyden: {},
    naqopt.ssbfgs: {"store_grad": st.booleans()},
    naqopt.svrg: RATE,
    naqopt.svrg2: {**MEMORY, **RATE},
    naqopt.svr_naq: {**MEMORY, **RATE, **MOMENTUM},
    naqopt.lsr1: {"memory_size": SIZES},
    naqopt.sr1n: {**MEMORY, **MOMENTUM, "solver": st.sampled_from(["cg", "exact"])},
    naqopt.mosr1: {**MEMORY, **MOMENTUM},
}
OPTIMIZERS = st.sampled_from(sorted(CALLS, key=lambda call: call.__name__)).flatmap(
    lambda call: st.tuples(st.just(call), st.fixed_dictionaries({}, optional=CALLS[call]))
)


def is_leaf(node):
    return isinstance(node, tuple) and len(node) == 2 and node[1] in (*DTYPES, jnp.float64)


def params_of(tree):
    """Params of the shapes and dtypes, no two of them equal."""
    number = iter(range(10_000))

    def fill(leaf):
        shape, dtype = leaf
        size = int(np.prod(shape))
        return jnp.asarray(np.sin(next(number) + np.arange(size)).reshape(shape), dtype)

    return jax.tree.map(fill, tree, is_leaf=is_leaf)


def loss(params):
    sums = [jnp.sum(jnp.square(x.astype(jnp.float32) - 0.3)) for x in jax.tree.leaves(params)]
    return sum(sums, jnp.zeros(()))


def step(tx, params, state):
    value, grads = jax.value_and_grad(loss)(params)
    if hasattr(state, "take_snapshot"):
        state = naqopt.snapshot(state, params, grads)
    parts = {"part_grads": (grads, grads, grads)}  # which other optimizers do not look at
    updates, state = tx.update(
        grads, state, params, value=value, grad=grads, value_fn=loss, **parts
    )
    return optax.apply_updates(params, updates), state


def traced(tx, params):
    """Asserts that a step gives what it is given, in structure, shapes and dtypes."""
    state = jax.eval_shape(tx.init, params)
    found = jax.eval_shape(functools.partial(step, tx), params, state)
    assert types(found) == types((params, state))
    assert jax.tree.structure(found) == jax.tree.structure((params, state))


FUZZ = functools.partial(
    settings, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@FUZZ(max_examples=80)
@given(optimizer=OPTIMIZERS, tree=TREES, flat=st.booleans())
def test_a_step_gives_what_it_is_given(optimizer, tree, flat):
    call, arguments = optimizer
    tx = call(**arguments)
    traced(naqopt.flatten(tx) if flat else tx, {"all": params_of(tree)})


@pytest.mark.slow
@FUZZ(max_examples=30)
@given(optimizer=OPTIMIZERS, tree=trees((*DTYPES, jnp.float64)))
def test_a_step_gives_what_it_is_given_with_64_bits(optimizer, tree):
    call, arguments = optimizer
    with enable_x64():
        traced(call(**arguments), {"all": params_of(tree)})


@pytest.mark.slow
@FUZZ(max_examples=20)
@given(optimizer=OPTIMIZERS, tree=TREES)
def test_steps_stay_finite_and_are_compiled_once(optimizer, tree):
    call, arguments = optimizer
    # A CPU that compiles quickly knows no float16.
    tree = jax.tree.map(
        lambda leaf: (leaf[0], jnp.bfloat16 if leaf[1] == jnp.float16 else leaf[1]),
        tree,
        is_leaf=is_leaf,
    )
    tx, params, traces = call(**arguments), {"all": params_of(tree)}, []

    @jax.jit
    def counted(params, state):
        traces.append(None)
        return step(tx, params, state)

    state = tx.init(params)
    for _ in range(4):
        params, state = counted(params, state)
    assert len(traces) == 1
    assert all(np.all(np.isfinite(np.asarray(x, np.float64))) for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "call",
    [
        naqopt.onaq,
        naqopt.sr1n,
        pytest.param(naqopt.asnaq, marks=pytest.mark.slow),
        pytest.param(naqopt.bfgs, marks=pytest.mark.slow),
    ],
)
def test_two_hundred_leaves(call):
    tree = {f"{i}": [((i % 3,), jnp.float32), ((), jnp.bfloat16)] for i in range(100)}
    traced(call(memory_size=1), params_of(tree))


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=3),
    st.just(np.zeros(2)),
    st.just(jnp.zeros(2)),
    st.just(jnp.zeros((), jnp.int32)),
    st.just(()),
)


@FUZZ(max_examples=150)
@given(data=st.data(), call=st.sampled_from(sorted(CALLS, key=lambda call: call.__name__)))
def test_what_is_refused_names_the_argument(data, call):
    """Anything at all for one argument: it works, or the message names the argument."""
    name = data.draw(st.sampled_from(sorted(inspect.signature(call).parameters)))
    value = data.draw(ANYTHING)
    try:
        traced(call(**{name: value}), {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)})
    except (TypeError, ValueError) as error:
        assert f"`{name}`" in str(error)  # noqa: PT017
        assert str(error).startswith("naqopt")  # noqa: PT017


GIVEN = {
    "bfgs": naqopt.bfgs(memory_size=1, store_grad=True),
    "mosr1": naqopt.mosr1(memory_size=1),
    "multi_batch_omoq": naqopt.multi_batch_omoq(memory_size=1),
    "flatten": naqopt.flatten(naqopt.onaq(memory_size=1)),
}
ARGUMENTS = ("updates", "params", "value", "grad", "value_fn", "grad_fn", "part_grads")
FUNCTIONS = st.sampled_from([jnp.sin, lambda p: p, lambda p: None, lambda p: "1", lambda p: 1])
TREES_OF_ANYTHING = st.fixed_dictionaries({"w": ANYTHING, "b": ANYTHING | FUNCTIONS})


@pytest.mark.slow
@FUZZ(max_examples=100)
@given(
    optimizer=st.sampled_from(sorted(GIVEN)),
    name=st.sampled_from(ARGUMENTS),
    value=ANYTHING | FUNCTIONS | TREES_OF_ANYTHING,
)
def test_what_update_refuses_it_names(optimizer, name, value):
    """Anything at all for one argument of the call."""
    if name in ("value_fn", "grad_fn") and value is jnp.sin:
        return  # what the caller's own function raises is the caller's
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}

    def right(p):
        return jnp.sum(p["w"] ** 2) + jnp.sum((p["b"] - 1) ** 2)

    grads = jax.grad(right)(params)
    given = {"updates": grads, "params": params, "value": right(params), "grad": grads}
    given |= {"value_fn": right, "part_grads": (grads, grads, grads), name: value}
    tx = GIVEN[optimizer]
    state = tx.init(params)
    positional = given.pop("updates"), state, given.pop("params")
    try:
        jax.eval_shape(lambda: tx.update(*positional, **given))
    except (TypeError, ValueError) as error:
        assert f"`{name}" in str(error)  # noqa: PT017
        assert str(error).startswith("naqopt")  # noqa: PT017
