"""The trust-region subproblem against its optimality conditions, and the rule of the radius."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_table import enable_x64

from naqopt.curvature import indefinite, sr1
from naqopt.optimizers._subproblem import solve_by_eigenvectors
from naqopt.steps import trust_region
from naqopt.steps.trust_region import exact, next_radius, steihaug

CASES, SIZE = 3_000, 7
TOLERANCES = {"float64": 1e-12, "float32": 2e-6}


def diagonal_cases(kind):
    """Eigenvalues, gradients and radii over many orders of magnitude."""
    draw = np.random.default_rng(sum(map(ord, kind)))

    def powers(low, high, shape=(CASES, 1)):
        return 10.0 ** draw.uniform(low, high, size=shape)

    eigenvalues = draw.normal(size=(CASES, SIZE)) * powers(-3, 3)
    gradients = draw.normal(size=(CASES, SIZE)) * powers(-4, 4)
    radii = powers(-4, 4, (CASES,))
    rows, lowest = np.arange(CASES), np.argmin(eigenvalues, axis=1)
    if kind == "interior":
        eigenvalues = np.abs(eigenvalues) + 0.1
        radii = 2 * np.linalg.norm(gradients / eigenvalues, axis=1)
    elif kind == "convex":
        eigenvalues = np.abs(eigenvalues)
    elif kind == "hard":
        gradients[rows, lowest] = 0
    elif kind == "nearly hard":
        gradients[rows, lowest] *= 1e-13
    elif kind == "singular":
        eigenvalues = np.abs(eigenvalues)
        eigenvalues[rows, lowest] = 0
        gradients[rows, lowest] = 0
    elif kind == "multiple":
        eigenvalues[:, 1] = eigenvalues[:, 0] = -np.abs(eigenvalues).max(axis=1)
        gradients[: CASES // 2, :2] = 0
    elif kind == "zero gradient":
        gradients[:] = 0
    return eigenvalues, gradients, radii


def lowest_models(eigenvalues, gradients, radii):
    """The least value of the model of each case, by bisection in extended precision."""
    eigenvalues, gradients = eigenvalues.astype(np.longdouble), gradients.astype(np.longdouble)
    radii = radii.astype(np.longdouble)
    cases, lowest = np.arange(len(radii)), np.argmin(eigenvalues, axis=1)
    least = eigenvalues[cases, lowest]
    gaps = eigenvalues + np.maximum(0, -least)[:, None]

    def step(delta):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gradients == 0, 0, -gradients / (gaps + delta[:, None]))

    def length(s):
        return np.sqrt(np.sum(s**2, axis=1))

    # Within the region, and from there along the lowest eigenvector to its boundary.
    inner = step(np.zeros_like(radii))
    inside = length(inner) <= radii
    inner[~inside] = 0
    onward = np.sqrt(np.maximum(radii**2 - length(inner) ** 2, 0))
    inner[cases, lowest] += np.where(least < 0, onward, 0) * np.where(
        inner[cases, lowest] >= 0, 1, -1
    )
    # At the boundary by a shift.
    high = 2 * length(gradients) / radii
    low = high * np.longdouble(1e-40)
    for _ in range(300):
        middle = np.sqrt(low * high)
        enough = length(step(middle)) <= radii
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    s = np.where(inside[:, None], inner, step(high))
    return np.sum(gradients * s + eigenvalues * s**2 / 2, axis=1).astype(float)


KINDS = (
    "indefinite",
    "interior",
    "convex",
    "hard",
    "nearly hard",
    "singular",
    "multiple",
    "zero gradient",
)


each_exact = jax.jit(jax.vmap(exact))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_solutions_are_optimal(kind, dtype):
    """(B + σI)s = −g, σ ≥ 0, σ(Δ − ‖s‖) = 0 and B + σI ⪰ 0: necessary and sufficient."""
    tolerance = TOLERANCES[dtype]
    with enable_x64(dtype == "float64"):
        cases = [np.asarray(x, dtype) for x in diagonal_cases(kind)]
        found = each_exact(*cases)
        step, sigma, reduction = (np.asarray(x, np.float64) for x in found)
    eigenvalues, gradients, radii = (x.astype(np.float64) for x in cases)
    lengths, largest = np.linalg.norm(step, axis=1), np.abs(eigenvalues).max(axis=1)
    assert np.all(lengths <= radii * (1 + 1e-5))
    residual = np.linalg.norm((eigenvalues + sigma[:, None]) * step + gradients, axis=1)
    assert np.all(
        residual <= tolerance * (np.linalg.norm(gradients, axis=1) + largest * lengths + 1e-300)
    )
    assert np.all(sigma >= 0)
    assert np.all(eigenvalues.min(axis=1) + sigma >= -tolerance * largest)
    slack = sigma / (largest + sigma) * (radii - lengths) / radii
    assert np.all(slack <= tolerance)
    model = np.sum(gradients * step + eigenvalues * step**2 / 2, axis=1)
    np.testing.assert_allclose(reduction, -model, rtol=10 * tolerance, atol=1e-300)
    lowest = lowest_models(eigenvalues[::10], gradients[::10], radii[::10])
    assert np.all(model[::10] <= lowest + 1e-6 * np.abs(lowest))
    # The kind is what its name says.
    inside = lengths < radii * (1 - 1e-6)
    expected = {"interior": 1.0, "zero gradient": 0.0, "hard": 0.0}.get(kind)
    if expected is not None:
        assert np.mean(inside) == pytest.approx(expected, abs=0.01)


def test_what_is_not_present_is_left_out():
    eigenvalues = jnp.array([2.0, -5.0, 1.0])
    gradient = jnp.array([1.0, 3.0, -1.0])
    present = jnp.array([True, False, True])
    found = exact(eigenvalues, gradient, jnp.array(10.0), present)
    np.testing.assert_allclose(found.step, [-0.5, 0.0, 1.0], rtol=1e-6)
    assert found.sigma == 0


# The limited memory: the solver by the eigenvectors of the compact form.

D, M = 12, 5


def tree(vector):
    return {"a": vector[..., :8].reshape(*vector.shape[:-1], 4, 2), "b": vector[..., 8:]}


def flat(vectors):
    a = np.asarray(vectors["a"], np.float64)
    b = np.asarray(vectors["b"], np.float64)
    return np.concatenate([a.reshape(*a.shape[:-2], 8), b], axis=-1)


def memory_cases(kind, count=1_200):
    """Pairs of random symmetric matrices; some of them make Ψ rank-deficient."""
    draw = np.random.default_rng(sum(map(ord, kind)))
    hessians = draw.normal(size=(count, D, D))
    hessians = hessians + np.swapaxes(hessians, 1, 2)
    s = draw.normal(size=(count, M, D))
    if kind == "repeated steps":
        s[:, 2:4] = s[:, :2]
    elif kind == "one plane":
        s[:, 2:] = draw.normal(size=(count, M - 2, 2)) @ s[:, :2]
    elif kind == "multiples of the identity":
        hessians[:] = 3 * np.eye(D)
    elif kind == "scales":
        s *= 10.0 ** draw.uniform(-3, 3, size=(count, M, 1))
    y = np.einsum("kij,kmj->kmi", hessians, s)
    if kind == "noise":
        y += 0.3 * draw.normal(size=y.shape) * np.linalg.norm(s, axis=2, keepdims=True)
    sizes = draw.integers(0, M + 1, size=count) if kind == "sizes" else np.full(count, M)
    gradients = draw.normal(size=(count, D))
    if kind == "no gradient outside":
        gradients = np.einsum("km,kmi->ki", draw.normal(size=(count, M)), y)
    return s, y, sizes, gradients, 10.0 ** draw.uniform(-2, 2, size=count)


MEMORY_KINDS = (
    "plain",
    "sizes",
    "repeated steps",
    "one plane",
    "multiples of the identity",
    "scales",
    "noise",
    "no gradient outside",
)


@functools.cache
def solver(dtype):
    functions = indefinite.limited(M)

    def one(s, y, size, gradient, radius):
        memory = functions.init(tree(gradient))
        for i in range(M):
            memory, _ = functions.update(memory, tree(s[i]), tree(y[i]), i < size)
        found = solve_by_eigenvectors(functions, memory, tree(gradient), radius)
        multiply = functions.multiply(memory)
        matrix = jax.vmap(multiply)(tree(jnp.eye(D, dtype=gradient.dtype)))
        by_cg = steihaug(multiply, tree(gradient), radius, 1e-12, 2 * M + 2)
        return found, matrix, memory.size, by_cg

    return jax.jit(jax.vmap(one))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", MEMORY_KINDS)
def test_steps_of_the_limited_memory_are_optimal(kind, dtype):
    """For the matrix that `multiply` gives, by a dense eigendecomposition in float64."""
    tolerance = {"float64": 1e-7, "float32": 2e-2}[dtype]
    with enable_x64(dtype == "float64"):
        s, y, sizes, gradients, radii = (
            x if x.dtype.kind == "i" else np.asarray(x, dtype) for x in memory_cases(kind)
        )
        found, matrices, kept, by_cg = solver(dtype)(s, y, sizes, gradients, radii)
        step = flat(found.step)
        matrices, cg = flat(matrices), flat(by_cg.step)
    assert np.all(np.isfinite(step))
    assert np.all(np.isfinite(matrices))
    assert np.all(np.asarray(kept) <= sizes)
    if kind == "plain":
        assert np.all(np.asarray(kept) == M)
    radii, gradients = radii.astype(np.float64), gradients.astype(np.float64)
    assert np.all(np.linalg.norm(step, axis=1) <= radii * (1 + 1e-5))
    assert np.all(np.linalg.norm(cg, axis=1) <= radii * (1 + 1e-5))
    # Every fourth.
    step, cg, matrices, gradients, radii = (x[::4] for x in (step, cg, matrices, gradients, radii))
    matrices = (matrices + np.swapaxes(matrices, 1, 2)) / 2
    values, vectors = np.linalg.eigh(matrices)
    a = np.einsum("kji,kj->ki", vectors, gradients)
    lowest = lowest_models(values, a, radii)
    exact_model, cg_model = (
        np.sum(x * gradients, axis=1) + np.einsum("ki,kij,kj->k", x, matrices, x) / 2
        for x in (step, cg)
    )
    worst = (exact_model - lowest) / np.abs(lowest)
    assert np.max(worst) < max(tolerance, 1e-6)
    # Conjugate gradients reduce the model at least as the step along −g does.
    slope, curvature = np.sum(a**2, axis=1), np.sum(values * a**2, axis=1)
    to_minimum = slope / np.where(curvature > 0, curvature, 1)
    length = radii / np.sqrt(slope)
    length = np.where(curvature > 0, np.minimum(length, to_minimum), length)
    cauchy = -length * slope + length**2 * curvature / 2
    assert np.all(cg_model <= cauchy + tolerance * np.abs(cauchy))
    assert np.all(cg_model >= lowest - tolerance * np.abs(lowest))
    if dtype == "float32":
        assert np.median(worst) < 1e-5


def test_conjugate_gradients_find_the_minimum_of_a_convex_model(x64):
    draw = np.random.default_rng(0)
    for _ in range(20):
        root = draw.normal(size=(D, D))
        matrix = root @ root.T + 0.1 * np.eye(D)
        gradient = draw.normal(size=D)
        found = steihaug(
            lambda v: jnp.asarray(matrix) @ v,  # noqa: B023
            jnp.asarray(gradient),
            jnp.asarray(1e6),
            1e-12,
            4 * D,
        )
        np.testing.assert_allclose(found.step, -np.linalg.solve(matrix, gradient), rtol=1e-6)
        np.testing.assert_allclose(found.product, matrix @ found.step, rtol=1e-8, atol=1e-8)
        assert found.iterations <= 4 * D


def test_conjugate_gradients_stop_where_they_should():
    def find(eigenvalues, gradient, radius, iterations=10):
        return steihaug(
            lambda v: jnp.array(eigenvalues) * v,
            jnp.array(gradient),
            jnp.array(radius),
            1e-6,
            iterations,
        )

    none = find([1.0, 2.0], [0.0, 0.0], 1.0)
    assert none.iterations == 0
    np.testing.assert_array_equal(none.step, [0.0, 0.0])
    # The first direction has no positive curvature: to the boundary along −g.
    np.testing.assert_allclose(find([-1.0, -1.0], [3.0, 4.0], 5.0).step, [-3, -4], rtol=1e-6)
    np.testing.assert_allclose(find([0.0, 0.0], [3.0, 4.0], 5.0).step, [-3, -4], rtol=1e-6)
    # The first step would lead out.
    np.testing.assert_allclose(find([1.0, 1.0], [3.0, 4.0], 2.5).step, [-1.5, -2], rtol=1e-6)
    assert find([1.0, 5.0], [3.0, 4.0], 100.0, iterations=1).iterations == 1


RULE = trust_region.RadiusRule()


def test_the_rule_of_the_radius():
    def after(ratio, length, radius=2.0):
        return float(next_radius(RULE, jnp.array(radius), jnp.array(ratio), jnp.array(length)))

    assert after(0.8, 1.7) == 4.0
    assert after(0.8, 1.5) == 2.0  # well inside
    assert after(0.75, 2.0) == 2.0
    assert after(0.5, 2.0) == 2.0
    assert after(0.1, 2.0) == 2.0
    assert after(0.09, 2.0) == after(-3.0, 2.0) == after(np.nan, 2.0) == 1.0
    assert after(-1.0, 1e-10, 1e-10) == pytest.approx(trust_region.MIN_RADIUS)
    assert after(1.0, 1e10, 1e10) == pytest.approx(trust_region.MAX_RADIUS)


# The memory itself.


@pytest.mark.parametrize("inverse", [False, True])
def test_the_compact_form_is_the_rank_one_updates_one_after_the_other(inverse, x64):
    """Oldest first from γI, or from I/γ for the inverse; at every position of the ring."""
    draw = np.random.default_rng(1)
    update = jax.jit(functools.partial(sr1.update, inverse=inverse))
    for _ in range(5):
        hessian = draw.normal(size=(D, D))
        hessian += hessian.T
        memory, pairs = sr1.init(tree(jnp.zeros(D)), M), []
        for _ in range(2 * M + 1):
            s = draw.normal(size=D) * 10.0 ** draw.uniform(-3, 1)
            y = hessian @ s + 0.1 * np.linalg.norm(s) * draw.normal(size=D)
            memory, stored = update(memory, tree(jnp.array(s)), tree(jnp.array(y)), jnp.array(True))
            pairs += [(s, y)] if stored else []
            gamma = float(memory.gamma)
            matrix = np.eye(D) / gamma if inverse else gamma * np.eye(D)
            for a, b in pairs[len(pairs) - int(memory.size) :]:
                known, given = (b, a) if inverse else (a, b)
                residual = given - matrix @ known
                matrix = matrix + np.outer(residual, residual) / (residual @ known)
            vector = draw.normal(size=D)
            factor = sr1.factor(memory, inverse)
            product = flat(sr1.multiply(memory, factor, tree(jnp.array(vector))))
            expected = matrix @ vector
            np.testing.assert_allclose(
                product, expected, atol=1e-9 * np.linalg.norm(expected), rtol=1e-8
            )
        assert int(memory.size) == M
        # The secant equation of the newest pair; γ half of the largest curvature, or of their mean.
        s, y = pairs[-1]
        known, given = (y, s) if inverse else (s, y)
        np.testing.assert_allclose(
            flat(sr1.multiply(memory, sr1.factor(memory, inverse), tree(jnp.array(known)))),
            given,
            atol=1e-8 * np.linalg.norm(given),
        )
        curvatures = [s @ y / (s @ s) for s, y in pairs[-int(memory.size) :]]
        positive = [x for x in curvatures if x > 0]
        chosen = np.mean(positive) if inverse else max(positive)
        assert memory.gamma == pytest.approx(chosen / 2)


def test_pairs_that_are_refused():
    functions = indefinite.limited(3)
    memory = functions.init(jnp.zeros(3))
    yes = jnp.array(True)

    def stored(s, y, memory=memory, accept=yes):
        return bool(functions.update(memory, jnp.array(s), jnp.array(y), accept)[1])

    assert stored([1.0, 0.0, 0.0], [2.0, 1.0, 0.0])
    assert not stored([1.0, 0.0, 0.0], [2.0, 1.0, 0.0], accept=jnp.array(False))
    assert not stored([1.0, 0.0, 0.0], [1.0, 0.0, 0.0])  # B = I explains it
    assert not stored([1.0, 0.0, 0.0], [1.0, 1.0, 0.0])  # sᵀ(y − Bs) = 0
    assert not stored([0.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    for bad in (np.nan, np.inf):
        assert not stored([1.0, 0.0, 0.0], [2.0, bad, 0.0])
        assert not stored([bad, 0.0, 0.0], [2.0, 1.0, 0.0])
    assert stored([1.0, 0.0, 0.0], [-2.0, 1.0, 0.0])  # negative curvature is welcome
    # What γI explains but for rounding would make M⁻¹ singular, and cost the other pairs.
    memory, _ = functions.update(memory, jnp.array([1.0, 0, 0]), jnp.array([2.0, 1, 0]), yes)
    for change, expected in ((1e-5, False), (1e-2, True)):
        third = [0.0, 0.0, float(memory.gamma) * (1 + change)]
        assert stored([0.0, 0.0, 1.0], third, memory=memory) == expected


def test_a_multiple_of_the_identity_is_learnt_as_gamma():
    """The pair y = 5s adds nothing to γI with a given γ of 5; by half of it, it adds the rest."""
    pair = jnp.array([1.0, 2.0, 0.0]), jnp.array([5.0, 10.0, 0.0])
    for scale, size in ((5.0, 0), (None, 1)):
        functions = indefinite.limited(3, initial_scale=scale)
        memory, stored = functions.update(functions.init(jnp.zeros(3)), *pair, jnp.array(True))
        assert stored == (size == 1)
        assert memory.size == size
        np.testing.assert_allclose(functions.multiply(memory)(pair[0]), pair[1], rtol=1e-6)
        rest = functions.multiply(memory)(jnp.array([0.0, 0.0, 1.0]))
        np.testing.assert_allclose(rest, [0, 0, 5 if scale else 2.5], rtol=1e-6)


def test_what_is_not_known_is_a_multiple_of_the_identity():
    """As a step says, until the first pair and after a clear; of a given γ whatever it says."""
    for functions in (indefinite.limited(3), indefinite.dense_rank_one("sr1n")):
        state, yes = functions.init(jnp.zeros(3)), jnp.array(True)
        for _ in range(2):
            before = state.gamma
            assert functions.begin(state, jnp.array(8.0), ~yes).gamma == before
            state = functions.begin(state, jnp.array(7.0), yes)
            np.testing.assert_allclose(functions.multiply(state)(jnp.ones(3)), [7, 7, 7])
            pair = jnp.array([1.0, 0.0, 0.0]), jnp.array([2.0, 1.0, 0.0])
            state, stored = functions.update(state, *pair, yes)
            assert stored
            state = functions.begin(state, jnp.array(9.0), yes)
            np.testing.assert_allclose(functions.multiply(state)(pair[0]), pair[1], rtol=1e-6)
            state = functions.clear(state, yes)
    for functions in (
        indefinite.limited(3, initial_scale=3.0),
        indefinite.dense_rank_one("sr1n", initial_scale=3.0),
    ):
        state = functions.begin(functions.init(jnp.zeros(3)), jnp.array(7.0), jnp.array(True))
        np.testing.assert_allclose(functions.multiply(state)(jnp.ones(3)), [3, 3, 3])


def test_the_dense_matrix_is_the_rank_one_updates(x64):
    draw = np.random.default_rng(2)
    hessian = draw.normal(size=(D, D))
    hessian += hessian.T
    functions = indefinite.dense_rank_one("sr1n")
    state, matrix = functions.init(tree(jnp.zeros(D))), None
    update = jax.jit(functions.update)
    for _ in range(D + 2):
        s = draw.normal(size=D)
        y = hessian @ s
        state, _ = update(state, tree(jnp.array(s)), tree(jnp.array(y)), jnp.array(True))
        if matrix is None:
            matrix = (s @ y / (s @ s) / 2 if s @ y > 0 else 1.0) * np.eye(D)
        residual = y - matrix @ s
        if np.linalg.norm(residual) > 1e-6 * np.linalg.norm(y):
            matrix = matrix + np.outer(residual, residual) / (residual @ s)
        product = flat(jax.vmap(functions.multiply(state))(tree(jnp.eye(D))))
        np.testing.assert_allclose(product, matrix, atol=1e-7 * np.abs(matrix).max())
    # After as many steps as there are dimensions it is the Hessian itself.
    np.testing.assert_allclose(product, hessian, atol=1e-6 * np.abs(hessian).max())
    eigen = functions.eigen(state)
    np.testing.assert_allclose(np.sort(eigen.eigenvalues), np.linalg.eigvalsh(hessian), atol=1e-5)
    vector = draw.normal(size=D)
    again = eigen.combine(eigen.eigenvalues * eigen.project(tree(jnp.array(vector))))
    np.testing.assert_allclose(flat(again), hessian @ vector, atol=1e-5)
