"""Physics-informed networks: derivatives, true solutions, problems, and how runs are counted."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks.physics import references, runs, series
from benchmarks.physics.problems import PROBLEMS
from benchmarks.studies import physics_informed


def layers(widths=(2, 4, 3, 1)):
    draw = np.random.default_rng(0)
    return [
        (jnp.asarray(draw.normal(size=(a, b))), jnp.asarray(draw.normal(size=b)))
        for a, b in itertools.pairwise(widths)
    ]


def test_derivatives_are_those_of_automatic_differentiation(x64):
    net = layers()
    x, t = np.random.default_rng(1).uniform(-1, 1, (2, 5))
    orders = {"x": 3, "t": 2}

    def along(x, t):
        c = {"x": series.coordinate(x, "x", orders), "t": series.coordinate(t, "t", orders)}
        (n,) = series.network(net, [c["x"], series.cosine(c["t"], 2.0)])
        return c["t"] * n * series.sine(c["x"], 3.0) + c["x"] * 2.0 + 1.0

    def plain(x, t):
        h = jnp.stack([x, jnp.cos(2 * t)])
        for kernel, bias in net[:-1]:
            h = jnp.tanh(h @ kernel + bias)
        kernel, bias = net[-1]
        return t * (h @ kernel + bias)[0] * jnp.sin(3 * x) + 2 * x + 1

    found = along(jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose(found.value, jax.vmap(plain)(x, t), rtol=1e-12)
    for argument, name in enumerate(orders):
        derivative = plain
        for order in range(1, orders[name] + 1):
            derivative = jax.grad(derivative, argument)
            expected = jax.vmap(derivative)(x, t)
            np.testing.assert_allclose(found.d(name, order), expected, rtol=1e-9, atol=1e-9)


def differences(function, point, axis, step):
    """Returns the first three central differences along an axis."""
    shift = np.eye(2)[axis] * step
    f = [function(*(point + k * shift)[:, None])[..., 0] for k in range(-3, 4)]
    first = (f[4] - f[2]) / (2 * step)
    second = (f[4] - 2 * f[3] + f[2]) / step**2
    third = (f[5] - 2 * f[4] + 2 * f[2] - f[1]) / (2 * step**3)
    return first, second, third


def test_two_solitons_solve_the_equation_of_korteweg_and_de_vries():
    for point in ([3.0, 0.7], [9.0, 1.5], [6.5, 1.0]):
        point = np.array(point)
        u = references.two_solitons(*point[:, None])[0, 0]
        u_x, _, u_xxx = (d[0] for d in differences(references.two_solitons, point, 0, 3e-3))
        u_t = differences(references.two_solitons, point, 1, 1e-4)[0][0]
        assert abs(u_t + 6 * u * u_x + u_xxx) < 2e-3 * abs(u_t)


def test_burgers_solution():
    for point in ([0.3, 0.4], [-0.6, 0.8]):
        point = np.array(point)
        u = references.burgers(*point[:, None])[0, 0]
        u_x, u_xx, _ = (d[0] for d in differences(references.burgers, point, 0, 1e-4))
        u_t = differences(references.burgers, point, 1, 1e-4)[0][0]
        assert abs(u_t + u * u_x - 0.01 / np.pi * u_xx) < 1e-5


def test_the_soliton_of_second_order_is_at_its_highest_after_an_eighth_of_its_period():
    """|ψ(0, π/4)| = 4, and 2 again at π/2."""
    real, imaginary = references.schroedinger(np.zeros(3), np.array([0, np.pi / 4, np.pi / 2]))
    np.testing.assert_allclose(np.hypot(real, imaginary), [2, 4, 2], atol=2e-4)


def test_allen_cahn_solution():
    """Against its equation at the places where it is smooth."""
    point = np.array([0.25, 0.5])
    grid = functools.partial(references.allen_cahn)
    u = grid(*point[:, None])[0, 0]
    _, u_xx, _ = (d[0] for d in differences(grid, point, 0, 0.01))
    u_t = differences(grid, point, 1, 0.01)[0][0]
    assert abs(u_t - 1e-4 * u_xx + 5 * (u**3 - u)) < 2e-3


CLOSED = {
    "poisson": lambda x, y: jnp.sin(np.pi * x) * jnp.sin(np.pi * y),
    "nonlinear-poisson": lambda x, y: 1 + jnp.sin(4 * np.pi * x) * jnp.cos(4 * np.pi * y),
    "helmholtz": lambda x, y: jnp.sin(6 * np.pi * x) * jnp.sin(6 * np.pi * y),
    "convection": lambda x, t: jnp.sin(x - 30 * t),
}


@pytest.mark.parametrize("name", CLOSED)
def test_the_true_solution_has_no_residual(name, x64):
    problem = PROBLEMS[name]
    points = problem.draw(0, 16)
    x, y = (jnp.asarray(v) for v in points.values())
    u = CLOSED[name]

    def seconds(argument):
        first = jax.grad(u, argument)
        return tuple(jax.vmap(f)(x, y) for f in (first, jax.grad(first, argument)))

    names = dict(zip(points, (seconds(0), seconds(1)), strict=True))
    field = series.Series(u(x, y), names)
    coordinates, _ = problem.fields(problem.start(0), points)
    for residual in problem.residuals(coordinates, [field]):
        np.testing.assert_allclose(residual, 0, atol=1e-9)
    np.testing.assert_allclose(problem.exact(**points)[0], u(x, y), rtol=1e-9, atol=1e-12)


# The loss of KdV has the boundary, and Helmholtz's periodic equation needs none.
@pytest.mark.parametrize("name", [x for x in PROBLEMS if x not in ("kdv", "helmholtz")])
def test_what_is_known_of_a_solution_is_built_in(name, x64):
    """At the beginning or on the boundary the network has the true values, whatever it is."""
    problem = PROBLEMS[name]
    points = problem.draw(3, 16)
    last = list(problem.box)[-1]
    points[last] = np.full(16, problem.box[last][0])
    _, fields = problem.fields(problem.start(4), points)
    found = np.stack([f.value for f in fields])
    np.testing.assert_allclose(found, problem.exact(**points), atol=1e-9)


def test_a_recorder_counts_what_is_evaluated():
    recorder = runs.Recorder(budget=12, marks=3)
    counted = recorder.counted(lambda x, points: jnp.sum(points["scale"] * x**2))
    points = {"scale": jnp.ones(())}

    def loss(x):
        return counted(x, points)

    point = jnp.array([3.0, 4.0])
    value, grad = jax.jit(jax.value_and_grad(loss))(point)
    assert (float(value), grad.tolist()) == (25.0, [6.0, 8.0])
    jax.jit(loss)(point).block_until_ready()
    assert not recorder.done
    assert (recorder.gradients, recorder.losses) == (1, 1)
    for scale in (0.5, 2.0):
        for _ in range(6):
            jax.grad(loss)(scale * point)
    assert recorder.done
    recorder.finish()
    # The best point, and nothing beyond the budget.
    assert recorder.curve["gradients"] == [10, 11, 12]
    assert recorder.curve["loss"] == [6.25] * 3
    np.testing.assert_allclose(recorder.points[-1], 0.5 * point)


def test_a_study_writes_a_table_and_a_picture(tmp_path, monkeypatch):
    from benchmarks.physics import methods

    descend = functools.partial(methods._steps, lambda: optax.sgd(1e-4), False, lambda state: state)

    table = {
        "bfgs": methods.METHODS["bfgs"],
        "descent": methods.Method("descent", descend),
        "adam": methods.METHODS["adam"],
    }
    monkeypatch.setattr(methods, "METHODS", table)
    monkeypatch.setattr(methods, "ADAM_RATES", (0.001, 0.01))
    small = physics_informed.Size(tuple(table), 1, 64, 50, 30, 20, 1_000)
    monkeypatch.setattr(physics_informed, "QUICK", small)
    folder = tmp_path / "pinn-burgers"
    picture = physics_informed.run("burgers", physics_informed.REDUCED, folder, quick=True)
    assert picture.stat().st_size > 10_000
    text = (folder / "results.md").read_text()
    assert all(word in text for word in ("BFGS", "descent", "Adam, cosine decay, tuned (0.0"))
    before = (folder / "pinn-burgers.json").read_text()
    physics_informed.run("burgers", physics_informed.REDUCED, folder, quick=True)
    assert (folder / "pinn-burgers.json").read_text() == before


def test_warm_starts_are_further_than_the_start(x64):
    problem = PROBLEMS["poisson"]
    settings = {"points": 64, "adam_steps": 20, "budget": 1}
    task = physics_informed._Task(problem, settings)
    cold, warm = task.start(0, False), task.start(0, True)
    np.testing.assert_array_equal(cold, ravel_pytree(problem.start(0))[0])
    points = task.draw(cold, 0, 0)
    assert task.loss(warm, points) < task.loss(cold, points)


def test_new_points_lie_where_the_residual_is_large(x64):
    problem = PROBLEMS["burgers"]
    layers = problem.start(0)
    (mean, most) = (
        float(np.mean(problem.squares(layers, points)))
        for points in (
            dataclasses.replace(problem, focus=(0.0, 0.0)).redraw(layers, (0, 1), 500, 4_000),
            dataclasses.replace(problem, focus=(2.0, 0.0)).redraw(layers, (0, 1), 500, 4_000),
        )
    )
    assert most > 1.5 * mean
    found = problem.redraw(layers, (0, 1), 500, 4_000)
    again = problem.redraw(layers, (0, 1), 500, 4_000)
    other = problem.redraw(layers, (0, 2), 500, 4_000)
    for name, (low, high) in problem.box.items():
        assert found[name].shape == (500,)
        assert np.unique(found[name]).size == 500
        assert low <= found[name].min() <= found[name].max() <= high
        np.testing.assert_array_equal(found[name], again[name])
        assert np.any(found[name] != other[name])


METHODS_OF_A_MATRIX = ("ssbroyden", "bfgs", "scipy-bfgs", "optimistix-bfgs", "peer-ssbroyden")


@pytest.mark.parametrize("name", METHODS_OF_A_MATRIX)
def test_a_matrix_outlives_the_points(name, x64):
    """On a quadratic function whose minimum moves a method that knows the Hessian needs no time."""
    from benchmarks.physics import methods

    draw = np.random.default_rng(0)
    factor = draw.normal(size=(20, 20))
    hessian = jnp.asarray(factor @ factor.T + 0.1 * np.eye(20))
    places = jnp.asarray(draw.normal(size=(3, 20)))

    def loss(x, points):
        return 0.5 * (x - points["at"]) @ hessian @ (x - points["at"]) + 1e-3

    recorder = runs.Recorder(budget=10**6, block=150)
    minimiser = methods.METHODS[name].make(recorder.counted(loss), recorder)
    x = jnp.zeros(20)
    memory = minimiser.init(x)
    taken = []
    for number, place in enumerate(places):
        memory = minimiser.renew(memory, x) if number else memory
        recorder.begin_block()
        before, points = recorder.gradients, {"at": place}
        while jnp.linalg.norm(x - place) > 1e-3 and not recorder.block_done:
            x, memory = minimiser.advance(x, memory, points)
        assert jnp.linalg.norm(x - place) < 1e-3
        taken.append(recorder.gradients - before)
    # Without its matrix each of them takes as many as at first.
    assert max(taken[1:]) <= (20 if name == "optimistix-bfgs" else max(40, taken[0] / 2))


def test_a_run_changes_its_points_and_forgets_the_best_of_the_ones_before():
    blocks = []

    def draw(params, number):
        blocks.append((number, float(params[0])))
        return {"at": jnp.asarray(float(number))}

    def make(loss, recorder):
        def advance(params, memory, points):
            grad = jax.grad(loss)(params, points)
            return params - 0.4 * grad, memory + 1

        return runs.Minimiser(lambda params: 0, lambda memory, params: memory, advance)

    found = runs.run(
        make, lambda x, p: jnp.sum((x - p["at"]) ** 2) + p["at"], jnp.ones(1), draw, 40, block=20
    )
    assert [number for number, _ in blocks] == [0, 1]
    assert abs(blocks[1][1]) < 1e-6
    assert found.gradients == 40
    # Of the second block: its loss is never below 1, that of the first was 0.
    assert found.curve["loss"][-1] == pytest.approx(1)
    np.testing.assert_allclose(found.points[-1], 1, atol=1e-3)
