"""No constant of a method has units, but for those of the papers' own formulas.

A loss times a power of two, or params times another, leave every rounding as it is: a run in other
units is the same run to the last bits, if what has units is converted with them. What has is listed
by name in `IN_UNITS`; the docstrings of these arguments say so.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from deterministic_runs import trajectory

import naqopt

LOSSES = [2.0**-33, 2.0**33]  # 1e-10 and 1e10
LENGTHS = [2.0**-20, 2.0**20]  # 1e-6 and 1e6
START = np.array([-1.2, 1.0, -0.5, 1.3])


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


ZOOM = optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")

SEARCHING = {
    "bfgs": (naqopt.bfgs, {}),
    "bfgs_dense": (naqopt.bfgs, {"memory_size": None, "initial_scale": "first_pair"}),
    "bfgs_zoom": (naqopt.bfgs, {"linesearch": ZOOM}),
    "bfgs_wolfe": (naqopt.bfgs, {"linesearch": naqopt.wolfe()}),
    "naq": (naqopt.naq, {"momentum": 0.5, "convergence_term": False}),
    "naq_dense": (naqopt.naq, {"momentum": 0.5, "convergence_term": False, "memory_size": None}),
    "moq": (naqopt.moq, {"momentum": 0.5}),
    "lsr1_search": (naqopt.lsr1, {"linesearch": naqopt.armijo()}),
}
STEPPING = {
    "lsr1": (naqopt.lsr1, {"initial_radius": 1.0}),
    "lsr1_scaled": (naqopt.lsr1, {"initial_radius": 1.0, "initial_scale": 50.0}),
    "lsr1_search_scaled": (naqopt.lsr1, {"linesearch": naqopt.armijo(), "initial_scale": 50.0}),
    "sr1n": (naqopt.sr1n, {"initial_radius": 1.0}),
    "sr1n_exact": (naqopt.sr1n, {"initial_radius": 1.0, "solver": "exact"}),
    "sr1n_dense": (naqopt.sr1n, {"initial_radius": 1.0, "memory_size": None}),
    "mosr1": (naqopt.mosr1, {"initial_radius": 1.0}),
    "obfgs": (naqopt.obfgs, {"learning_rate": 0.02, "damping": 1.0}),
    "onaq": (naqopt.onaq, {"learning_rate": 0.02, "damping": 1.0}),
    "omoq": (naqopt.omoq, {"learning_rate": 0.02, "damping": 1.0}),
    "svrg": (naqopt.svrg, {"learning_rate": 1e-4}),
}
# By argument: powers of the loss's unit and of the params' unit. What is not here and has units all
# the same are constants of formulas: ω of ξ (`convergence_term`, mNAQ), mNAQ's Lip and δ, and the
# Fisher products of adaQN and aSNAQ, which take the place of a Hessian without having its units.
IN_UNITS = {
    "initial_radius": (0, 1),  # Δ_0
    "initial_scale": (1, -2),  # γ
    "damping": (1, -2),  # λ
}
RATES = {"svrg": (-1, 2)}  # a normalised direction has the params' units, a gradient has others


# The others differ from one of these in a part that has no constants.
QUICK = ("bfgs", "moq", "lsr1", "lsr1_search", "sr1n", "mosr1", "onaq", "svrg")


def each(names):
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in names]
    )


def converted(name, options, loss, length):
    """The options in other units."""
    powers = IN_UNITS | {"learning_rate": RATES.get(name, (0, 1))}
    return {
        key: x * loss ** powers[key][0] * length ** powers[key][1] if key in powers else x
        for key, x in options.items()
    }


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def run_in_units(name, loss, length, steps):
    """Iterates and losses on Rosenbrock's function; the units are traced, so that all share one."""
    factory, options = (SEARCHING | STEPPING)[name]
    if name in STEPPING:
        options = converted(name, options, loss, length)

    def in_units(x):
        return loss * rosenbrock(x / length)

    return trajectory.__wrapped__(factory(**options), in_units, START * length, steps)[:2]


def iterates(name, loss=1.0, length=1.0):
    return np.asarray(run_in_units(name, loss, length, 25)[0]) / length


@functools.cache
def plain_iterates(name):
    return iterates(name)


@each([*SEARCHING, *STEPPING])
def test_a_run_does_not_see_the_unit_of_the_loss(x64, name):
    for loss in LOSSES:
        np.testing.assert_allclose(iterates(name, loss=loss), plain_iterates(name), rtol=1e-5)


@each(STEPPING)
def test_a_run_does_not_see_the_unit_of_the_params(x64, name):
    for length in LENGTHS:
        np.testing.assert_allclose(iterates(name, length=length), plain_iterates(name), rtol=1e-5)


def steps_in_units(name, loss, length):
    """After how many steps the loss is at most 1e-10 in its unit."""
    losses = np.asarray(run_in_units(name, loss, length, 400)[1])
    return np.flatnonzero(losses <= 1e-10 * loss)[0] + 1


@each(SEARCHING)
@pytest.mark.parametrize("loss", [*LOSSES, 1.0])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_search_arrives_in_as_many_steps_in_every_unit(x64, name, loss, length):
    """Its first step has no length to go by and seeks one, so that runs are not the same."""
    assert abs(steps_in_units(name, loss, length) - steps_in_units(name, 1.0, 1.0)) <= 20


@pytest.mark.parametrize("factory", [naqopt.bfgs, naqopt.naq, naqopt.moq, naqopt.lsr1, naqopt.sr1n])
def test_variables_of_very_different_units(x64, factory):
    def loss(x):
        return 0.5 * (x[0] - 1) ** 2 + 0.5 * (x[1] / 1e6 - 1) ** 2

    end = trajectory(factory(), loss, np.zeros(2), 400)[0][-1]
    np.testing.assert_allclose(end, [1, 1e6], rtol=1e-4)


HYPERBOLA = {
    "bfgs": naqopt.bfgs(),
    "bfgs_dense": naqopt.bfgs(memory_size=None),
    "bfgs_first_pair": naqopt.bfgs(memory_size=None, initial_scale="first_pair"),
    "naq": naqopt.naq(),
    "moq": naqopt.moq(),
    "lsr1": naqopt.lsr1(),
    "lsr1_search": naqopt.lsr1(linesearch=naqopt.armijo()),
    "sr1n": naqopt.sr1n(),
    "mosr1": naqopt.mosr1(),
}


def hyperbola(x):
    return jnp.where(x > 0, x + 1 / x, jnp.inf)


@pytest.mark.parametrize("name", HYPERBOLA)
@pytest.mark.parametrize("start", [30.0, 1500.0, 1e5])
def test_a_far_start_is_reached_back_from(x64, name, start):
    """The first steps have to lengthen; and no iterate has an infinite loss."""
    steps = trajectory(HYPERBOLA[name], hyperbola, start, 100)
    np.testing.assert_allclose(steps[0][-1], 1, rtol=1e-3)
    assert np.all(np.isfinite(steps[1]))


@pytest.mark.parametrize("start", [30.0, 1500.0])
@pytest.mark.parametrize("factory", [naqopt.naq, naqopt.mnaq])
def test_a_look_ahead_point_of_infinite_loss_restarts_the_momentum(x64, factory, start):
    """Its gradient is zero, so that nothing else would hold it."""
    _, losses, ahead, state = trajectory(factory(), hyperbola, start, 400)
    assert np.all(np.isfinite(losses))
    assert losses[-1] < hyperbola(start)
    infinite = np.sum(~np.isfinite(ahead))
    assert naqopt.diagnostics(state)["momentum_restarts"] >= infinite


HUGE = {  # in float32 the square of 1e25 is infinite, and G of adaQN and aSNAQ is made of squares
    naqopt.bfgs: 1e25,
    naqopt.onaq: 1e25,
    naqopt.lsr1: 1e25,
    naqopt.asnaq: 1e19,
    naqopt.adaqn: 1e19,
    naqopt.svrg: 1e19,
}


@pytest.mark.parametrize("factory", HUGE)
def test_a_huge_gradient_is_finite(factory):
    """Its step is taken."""
    tx = factory()
    params = jnp.array([1.0, -1.0])
    state = tx.init(params)
    scale = HUGE[factory]

    def loss(x):
        return scale * jnp.sum(jnp.abs(x))

    @jax.jit
    def step(grad, state):
        return tx.update(grad, state, params, value=loss(params), grad=grad, value_fn=loss)

    updates, state = step(scale * np.sign(params), state)
    assert np.all(np.isfinite(updates))
    assert np.all(updates != 0)
    info = naqopt.diagnostics(state)
    assert info["steps_skipped"] == info["steps_refused"] == 0
    for bad in (jnp.inf, jnp.nan):
        updates, state = step(np.array([0.0, bad], np.float32), state)
        assert np.all(updates == 0)
    assert naqopt.diagnostics(state)["steps_skipped"] == 2
