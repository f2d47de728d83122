"""How much the states hold and what a compiled update takes besides."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import naqopt

ROWS = {
    "adaqn": (naqopt.adaqn, {}, 3),
    "asnaq": (naqopt.asnaq, {}, 6),
    "asnaq_single_gradient": (naqopt.asnaq, {"single_gradient": True}, 6),
}


def elements(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("m_l", "m_f"), [(10, 100), (3, 7)])
@pytest.mark.parametrize("name", ROWS)
def test_state_size(name, m_l, m_f):
    """Exactly 2 m_L + m_F copies and the documented constant, beside the small numbers."""
    factory, arguments, constant = ROWS[name]
    params = {"a": jnp.zeros((40, 5)), "b": jnp.zeros(7), "c": jnp.zeros(())}
    tx = factory(memory_size=m_l, fisher_size=m_f, **arguments)
    state = jax.eval_shape(tx.init, params)
    scalars = sum(leaf.shape == () for leaf in jax.tree.leaves(state))
    # The scalar param's own copies are counted with the copies.
    small = m_l**2 + m_l + scalars - constant
    assert elements(state) - small == (2 * m_l + m_f + constant) * elements(params)
    assert f"2 m_L + m_F + {constant} copies" in factory.__doc__


QUASI_NEWTON = {  # the call, its arguments, copies beside the 2 m of the pairs
    "bfgs": (naqopt.bfgs, {}, 2),
    "bfgs_store_grad": (naqopt.bfgs, {"store_grad": True}, 3),
    "naq": (naqopt.naq, {}, 1),
    "moq": (naqopt.moq, {}, 5),
    "mnaq": (naqopt.mnaq, {}, 1),
    "obfgs": (naqopt.obfgs, {}, 0),
    "onaq": (naqopt.onaq, {}, 1),
    "omoq": (naqopt.omoq, {}, 5),
    "multi_batch_omoq": (naqopt.multi_batch_omoq, {}, 5),
    "svrg2": (naqopt.svrg2, {}, 2),
    "svr_naq": (naqopt.svr_naq, {}, 3),
    "lsr1": (naqopt.lsr1, {}, 0),
    "lsr1_search": (naqopt.lsr1, {"linesearch": naqopt.armijo()}, 2),
    "lsr1_store_grad": (naqopt.lsr1, {"store_grad": True}, 1),
    "sr1n": (naqopt.sr1n, {}, 1),
    "mosr1": (naqopt.mosr1, {}, 5),
}
RANK_ONE = [name for name in QUASI_NEWTON if "sr1" in name]  # which keep four small matrices


@pytest.mark.parametrize("name", QUASI_NEWTON)
def test_state_size_of_the_quasi_newton_family(name):
    """Exactly 2 m copies of the params, or d with a dense matrix, and the documented constant."""
    factory, arguments, constant = QUASI_NEWTON[name]
    params = {"a": jnp.zeros((40, 5)), "b": jnp.zeros(7), "c": jnp.zeros(())}
    for m in (3, 10) if factory is naqopt.lsr1 else (3, 10, None):
        state = jax.eval_shape(factory(memory_size=m, **arguments).init, params)
        # The scalar param's own copies are counted with the copies.
        small = sum(leaf.shape == () for leaf in jax.tree.leaves(state)) - constant
        window = inspect.signature(factory).parameters.get("restart_window")
        small += window.default if window else 0  # the last losses
        if m is not None:
            small += 4 * m**2 if name in RANK_ONE else m**2 + m
        rows = elements(params) if m is None else 2 * m
        assert elements(state) - small == (rows + constant) * elements(params)
    text = " ".join(factory.__doc__.split())
    if name.endswith("store_grad"):
        assert "one more with `store_grad`" in text
    elif name == "lsr1_search":
        assert "with a line search 2 m + 2" in text
    else:
        assert (f"2 m + {constant} copies" if constant else "2 m copies") in text
        default = inspect.signature(factory).parameters["memory_size"].default
        assert f"({2 * default + constant} by default)" in text


def test_state_size_of_svrg():
    params = {"a": jnp.zeros((40, 5)), "b": jnp.zeros(7)}
    state = jax.eval_shape(naqopt.svrg().init, params)
    scalars = sum(leaf.shape == () for leaf in jax.tree.leaves(state))
    assert elements(state) - scalars == 2 * elements(params)
    assert "2 copies of the params" in naqopt.svrg.__doc__


@pytest.mark.parametrize("memory_size", [3, None], ids=["limited", "dense"])
@pytest.mark.parametrize("factory", [naqopt.bfgs, naqopt.omoq, naqopt.svr_naq, naqopt.sr1n])
def test_frozen_leaves_take_no_memory(factory, memory_size):
    """Under `optax.partition`, as with the params that are trained alone."""
    params = {
        "body": jnp.zeros((40, 5)),
        "head": {"kernel": jnp.zeros((5, 3)), "bias": jnp.zeros(3)},
    }
    tx = factory(memory_size=memory_size)
    labels = {"body": "freeze", "head": "train"}
    frozen = optax.partition({"train": tx, "freeze": optax.set_to_zero()}, labels)
    states = [jax.eval_shape(tx.init, params["head"]), jax.eval_shape(frozen.init, params)]
    assert elements(states[0]) == elements(states[1]) > 0


def test_bfloat16_history_halves_the_rings():
    params = {"a": jnp.zeros((40, 5))}
    full = jax.eval_shape(naqopt.asnaq().init, params)
    half = jax.eval_shape(naqopt.asnaq(history_dtype=jnp.bfloat16).init, params)

    def size(state):
        rings = (state.memory.pairs.s, state.memory.pairs.y, state.memory.fisher.gradients)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(rings))

    assert 2 * size(half) == size(full) == 120 * 200 * 4
    assert half.memory.accumulator["a"].dtype == half.velocity["a"].dtype == jnp.float32


@pytest.mark.parametrize("name", QUASI_NEWTON)
def test_bfloat16_history_halves_the_pairs_and_nothing_else(name):
    factory, arguments, _ = QUASI_NEWTON[name]
    params = {"a": jnp.zeros((40, 5))}
    full, half = (
        jax.eval_shape(factory(history_dtype=dtype, **arguments).init, params)
        for dtype in (None, jnp.bfloat16)
    )
    for pair in ("s", "y"):
        assert getattr(half.curvature, pair)["a"].dtype == jnp.bfloat16

    def rest(state):
        return state._replace(curvature=state.curvature._replace(s=None, y=None))

    assert rest(half) == rest(full)


@pytest.mark.parametrize("name", {**ROWS, **QUASI_NEWTON})
def test_a_history_wider_than_the_params_widens_nothing_else(name, x64):
    factory, arguments, _ = {**ROWS, **QUASI_NEWTON}[name]
    tx = factory(history_dtype=jnp.float64, **arguments)
    params = {"a": jnp.zeros((4, 5), jnp.float32)}

    def update(grads, state, params):
        return tx.update(
            grads,
            state,
            params,
            value_fn=lambda p: jnp.sum(p["a"] ** 2),
            part_grads=(grads, grads, grads),
        )

    state = jax.eval_shape(tx.init, params)
    _, after = jax.eval_shape(update, params, state, params)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)


@pytest.mark.parametrize("name", {**ROWS, **QUASI_NEWTON})
def test_temporaries_of_a_donated_update(name):
    """At d = 10⁶ at most 8 copies of the params beyond the gradient's own, and no ring copied."""
    factory, arguments, constant = {**ROWS, **QUASI_NEWTON}[name]
    d = 1_000_000
    params = {"kernel": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
    tx = factory(**arguments)

    def loss(p):
        return jnp.sum(jnp.square(jnp.tanh(p["kernel"]) - 1))

    def update(grads, state, params):
        parts = (grads, grads, grads)
        return tx.update(grads, state, params, value_fn=loss, part_grads=parts)

    def memory(function, *shapes, donate=()):
        lowered = jax.jit(function, donate_argnums=donate).lower(*shapes)
        # Buffers are decided before machine code is made, which is not looked at.
        compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
        return compiled.memory_analysis()

    gradient = memory(jax.grad(loss), params)
    state = jax.eval_shape(tx.init, params)
    step = memory(update, params, state, params, donate=(0, 1))
    if hasattr(state, "take_snapshot"):
        taken = memory(naqopt.snapshot, state, params, params, donate=0)
        assert taken.temp_size_in_bytes <= 5 * 4 * d
    copies = (step.temp_size_in_bytes - gradient.temp_size_in_bytes) / (4 * d)
    assert copies <= 8
    # The donated state is updated in place, the gradient's buffer becomes the update's.
    m = inspect.signature(factory).parameters["memory_size"].default
    rows = 2 * m + (100 if name in ROWS else 0)
    assert step.alias_size_in_bytes >= (rows + constant + 1) * 4 * d


DENSE = {
    "bfgs": lambda: naqopt.bfgs(memory_size=None),
    "naq": lambda: naqopt.naq(memory_size=None, update="ssbroyden"),
    "moq": lambda: naqopt.moq(memory_size=None, update="dfp"),
    "mnaq": lambda: naqopt.mnaq(memory_size=None),
    "onaq": lambda: naqopt.onaq(memory_size=None),
    "ssbfgs": naqopt.ssbfgs,
    "ssbroyden": naqopt.ssbroyden,
    "ssbroyden, flattened": lambda: naqopt.flatten(naqopt.ssbroyden()),
}


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_matrix_is_changed_in_place(name):
    """At most two of it are alive at once, one of them the state's own, which is donated."""
    tx = DENSE[name]()
    params = {"bias": jnp.zeros(30), "weight": jnp.zeros((30, 9))}

    def loss(params):
        return jnp.sum(jnp.square(jnp.tanh(params["weight"]).sum(1) + params["bias"] - 1))

    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile()
    found = compiled.memory_analysis()
    matrix = 4 * elements(params) ** 2
    assert found.alias_size_in_bytes >= matrix
    assert found.temp_size_in_bytes <= matrix + 60_000  # and the vectors
