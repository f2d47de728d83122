"""What an optimizer has learnt of the inverse Hessian, handed out by `naqopt.inverse_hessian`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import naqopt
from naqopt.curvature import lbfgs, pairs

DRAW = np.random.default_rng(5)
FACTOR = DRAW.normal(size=(5, 5))
HESSIAN = FACTOR @ FACTOR.T + np.eye(5)
CALLS = {
    "dense": lambda: naqopt.bfgs(memory_size=None),
    "pairs, more than are kept": lambda: naqopt.bfgs(memory_size=3),
    "pairs, fewer than are kept": lambda: naqopt.bfgs(memory_size=30),
    "flattened": lambda: naqopt.flatten(naqopt.bfgs(memory_size=4)),
    "flattened, dense": lambda: naqopt.flatten(naqopt.ssbroyden()),
    "chained": lambda: optax.chain(optax.identity(), naqopt.naq(memory_size=4)),
}


def loss(params):
    vector, _ = ravel_pytree(params)
    return 0.5 * vector @ jnp.asarray(HESSIAN, vector.dtype) @ vector + 0.1 * jnp.sum(vector**4)


def start():
    return {"bias": jnp.asarray([1.0, -1.0]), "weight": jnp.asarray([[0.5], [2.0], [-1.5]])}


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(tx, function, params, state):
    value, grad = jax.value_and_grad(function)(params)
    tx = optax.with_extra_args_support(tx)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=function)
    return optax.apply_updates(params, updates), state


def train(tx, steps, function=loss):
    params = start()
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(tx, function, params, state)
    return params, state


@pytest.mark.parametrize("name", CALLS)
def test_all_forms_are_of_one_matrix(name, x64):
    _, state = train(CALLS[name](), 8)
    vector = jax.tree.map(lambda x: np.cos(x + 1), start())

    @jax.jit
    def forms(state):
        found = naqopt.inverse_hessian(state)
        return found.matrix(), found.multiply(vector), found.diagonal()

    matrix, product, diagonal = forms(state)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert np.all(np.linalg.eigvalsh(matrix) > 0)
    for tree in (product, diagonal):
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, start())
    np.testing.assert_allclose(
        ravel_pytree(product)[0], matrix @ ravel_pytree(vector)[0], atol=1e-12
    )
    np.testing.assert_allclose(ravel_pytree(diagonal)[0], np.diagonal(matrix), atol=1e-12)


@pytest.mark.parametrize("steps", [2, 9])
def test_pairs_give_the_matrix_of_the_two_loop_recursion(steps, x64):
    _, state = train(naqopt.bfgs(memory_size=4), steps)
    ring = state.curvature
    vector = jax.tree.map(jnp.sin, start())
    expected = jax.jit(lambda ring: lbfgs.two_loop(ring, vector, pairs.newest_scale(ring)))(ring)
    found = jax.jit(lambda state: naqopt.inverse_hessian(state).multiply(vector))(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, expected)


@pytest.mark.parametrize(
    ("update", "steps", "error"),
    [("bfgs", 6, 1e-12), ("ssbfgs", 15, 1e-12), ("ssbroyden", 15, 1e-3)],
)
def test_on_a_quadratic_it_becomes_the_inverse(update, steps, error, x64):
    """BFGS with an exact search after as many pairs as params; the self-scaled ones later."""
    search = optax.scale_by_zoom_linesearch(30, curv_rtol=1e-3)

    def quadratic(params):
        vector, _ = ravel_pytree(params)
        return 0.5 * vector @ HESSIAN @ vector

    tx = naqopt.bfgs(memory_size=None, update=update, linesearch=search)
    _, state = train(tx, steps, quadratic)
    matrix = np.asarray(jax.jit(lambda state: naqopt.inverse_hessian(state).matrix())(state))
    np.testing.assert_allclose(matrix @ HESSIAN, np.eye(5), atol=error)


def test_half_a_history_is_widened():
    _, state = train(naqopt.bfgs(memory_size=4, history_dtype=jnp.bfloat16), 6)
    assert naqopt.inverse_hessian(state).matrix().dtype == jnp.float32


@pytest.mark.parametrize("memory_size", [None, 3])
def test_nothing_is_known_before_the_first_pair(memory_size):
    state = naqopt.bfgs(memory_size=memory_size).init(start())
    found = naqopt.inverse_hessian(state)
    for tree in (found.multiply(start()), found.diagonal()):
        assert all(np.all(np.isnan(x)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("tx", "how_many"),
    [
        (optax.adam(1e-3), "no state"),
        (naqopt.asnaq(), "no state"),
        (naqopt.lsr1(), "no state"),
        (
            optax.partition({"a": naqopt.bfgs(), "b": naqopt.bfgs()}, {"bias": "a", "weight": "b"}),
            "several states",
        ),
    ],
    ids=["adam", "asnaq", "lsr1", "partition"],
)
def test_other_states_are_refused(tx, how_many):
    with pytest.raises(ValueError, match=rf"naqopt\.inverse_hessian: {how_many} of a BFGS-like"):
        naqopt.inverse_hessian(tx.init(start()))


@pytest.mark.parametrize("memory_size", [None, 3])
def test_of_several_runs_it_asks_for_vmap(memory_size):
    tx = naqopt.bfgs(memory_size=memory_size)
    state = jax.vmap(tx.init)(jax.tree.map(lambda x: jnp.stack([x, x, x]), start()))
    with pytest.raises(ValueError, match=r"several runs under vmap; .* jax\.vmap\(lambda state: "):
        naqopt.inverse_hessian(state)
    diagonals = jax.vmap(lambda state: naqopt.inverse_hessian(state).diagonal())(state)
    assert diagonals["bias"].shape == (3, 2)


@pytest.mark.parametrize("initial_scale", [None, "first_pair", 0.3])
def test_the_first_matrix(initial_scale, x64):
    """Of γ I, γ given, 1 or sᵀy/yᵀy, BFGS's update makes (I − ρ s yᵀ) γ (I − ρ y sᵀ) + ρ s sᵀ."""
    tx = naqopt.bfgs(0.1, memory_size=None, linesearch=None, initial_scale=initial_scale)
    (first, _), (second, state) = train(tx, 1), train(tx, 2)
    points = [ravel_pytree(tree)[0] for tree in (start(), first)]
    gradients = [ravel_pytree(jax.grad(loss)(tree))[0] for tree in (start(), first)]
    s, y = (np.asarray(after - before) for before, after in (points, gradients))
    rho = 1 / (s @ y)
    gamma = {None: 1, "first_pair": s @ y / (y @ y)}.get(initial_scale, initial_scale)
    left = np.eye(5) - rho * np.outer(s, y)
    expected = gamma * left @ left.T + rho * np.outer(s, s)
    np.testing.assert_allclose(naqopt.inverse_hessian(state).matrix(), expected, rtol=1e-9)
    step = ravel_pytree(second)[0] - points[1]
    np.testing.assert_allclose(step, -0.1 * expected @ gradients[1], rtol=1e-9)
