"""Optax's own tests of its optimizers, as it ships them, run with this library's table.

`contrib._common_test`, `_src.float64_test` and `_src.sharding_test` are run as they are; only what
their tables would name is exchanged. An entry hands its optimizer what Optax's own do without: the
loss, which the first of them passes to entries called "sophia" as `obj_fn`, the gradients of parts,
and snapshots. Not run: the other parameters of `wrap`, which repeat a case where there is no
wrapper, and what `LEFT_OUT` names; where a case cannot apply to a method the test says so.
"""

import importlib
import inspect
import os
import re
import unittest
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from optax._src import float64_test
from optax.contrib import _common_test
from optimizer_table import EPOCH, ROWS, each, own_state

import naqopt

METHODS = [row for row in ROWS if not row.flat]
EACH = each(ROWS, quick=())
EACH_METHOD = each(METHODS, quick=())
# A method of each core, on all of Optax's targets; the others on one.
ON_ALL_TARGETS = ("bfgs", "asnaq", "sr1n")


def numbers(row):
    """The arguments of a row that are numbers, which can be injected."""
    return {
        name: value
        for name, value in row.arguments.items()
        if isinstance(value, float) and name not in row.static_args
    }


def sum_of_squares(tree):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


def entry(row):
    """The row as a factory for Optax's tables."""

    def factory(**arguments):
        tx = row.factory(**{**row.arguments, **arguments})

        def update(updates, state, params=None, *, obj_fn=sum_of_squares, **extra_args):
            def snapshot(state):
                full_grad = jax.grad(obj_fn)(naqopt.eval_params(state, params))
                return naqopt.snapshot(state, params, full_grad)

            if row.full_gradients(1):
                due = own_state(state).count % EPOCH == 0
                state = jax.lax.cond(due, snapshot, lambda state: state, state)
            parts = {"part_grads": (updates,) * 3} if row.has_parts else {}
            return tx.update(updates, state, params, value_fn=obj_fn, **parts, **extra_args)

        # Compiled, as some cases take their steps without jit.
        compiled = jax.jit(update, static_argnames="obj_fn")
        return optax.GradientTransformationExtraArgs(tx.init, compiled)

    known = inspect.signature(row.factory).parameters
    named = [known[name] for name in numbers(row)]
    # Where the learning rate may be None too, Optax would not look at schedules.
    factory.__signature__ = inspect.Signature(
        p.replace(annotation=optax.ScalarOrSchedule) if p.name == "learning_rate" else p
        for p in named
    )
    return factory


def original(case, name):
    """A test of Optax's before it was given its parameters."""
    cases = [
        getattr(case, found) for found in dir(case) if re.fullmatch(f"{name}(\\d+|_.*)", found)
    ]
    (method,) = {inspect.unwrap(found) for found in cases if name == original_name(found)}
    return method


def original_name(test):
    """Its name there: those of several tests may begin alike."""
    return inspect.unwrap(test).__code__.co_name


@pytest.fixture
def run(monkeypatch):
    """Runs a case of `ContribTest` for a row."""

    def run(row, name, **parameters):
        monkeypatch.setattr(optax.contrib, "sophia", entry(row))
        arguments = {"opt_name": "sophia", "opt_kwargs": numbers(row)}
        arguments |= {"wrapper_name": None, "wrapper_kwargs": None}
        method = original(_common_test.ContribTest, name)
        method(_common_test.ContribTest(), **{**arguments, **parameters})

    return run


@EACH
def test_optimizers_accept_extra_args(run, row):
    run(row, "test_optimizers_accept_extra_args", wrap=False)


@EACH_METHOD
def test_optimizers_can_be_wrapped_in_inject_hyperparams(run, row):
    run(row, "test_optimizers_can_be_wrapped_in_inject_hyperparams")


@EACH_METHOD
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_preserve_dtype(run, row, dtype):
    run(row, "test_preserve_dtype", dtype=dtype)


@EACH_METHOD
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradient_accumulation(run, row, dtype):
    run(row, "test_gradient_accumulation", dtype=dtype)


@EACH_METHOD
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(jnp.float16, marks=pytest.mark.default_compiler),
        jnp.bfloat16,
        jnp.float32,
        jnp.float64,
    ],
    ids=lambda dtype: jnp.dtype(dtype).name,
)
def test_state_shape_dtype_shard_stability(run, row, dtype):
    run(row, "test_state_shape_dtype_shard_stability", dtype=dtype)


@EACH_METHOD
def test_optimizers_accept_learning_rate_schedule(run, row):
    name = "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such"
    if "learning_rate" in numbers(row):
        run(row, name)
    else:  # the case does not apply, and says so
        assert row.name in WITHOUT_LEARNING_RATE
        with pytest.raises(unittest.SkipTest, match="doesn't accept a learning schedule"):
            run(row, name)


WITHOUT_LEARNING_RATE = ("mnaq", "lsr1", "lsr1_search", "sr1n", "sr1n_dense", "mosr1")


def converging():
    """Rows and targets: each method on one, a method of each core on all."""
    targets = ("parabola", "rosenbrock", "matrix_parabola", "mixed_tensor_target")
    return [
        pytest.param(
            row,
            target,
            id=f"{row.name}-{target}",
            marks=[pytest.mark.slow, pytest.mark.xdist_group(row.name)],
        )
        for row in METHODS
        for target in (targets if row.name in ON_ALL_TARGETS else targets[:1])
    ]


@pytest.mark.parametrize(("row", "target"), converging())
def test_optimizers(run, row, target):
    """30,000 steps, and to 3 % of the minimum."""
    arguments = numbers(row)
    if row.name.split("_")[0] in ("obfgs", "onaq", "omoq", "multi", "svr", "adaqn", "asnaq"):
        # Steps of a constant length do not come to rest.
        initial = 0.3 if row.name == "asnaq" and target != "parabola" else 1.0
        arguments["learning_rate"] = naqopt.schedules.inverse_sqrt(initial)
    target = getattr(_common_test, f"_setup_{target}")
    run(row, "test_optimizers", target=target, dtype="float32", opt_kwargs=arguments)


@EACH
def test_float64(row, monkeypatch):
    """Dtypes of a tree of both widths, which turns 64-bit numbers on and off itself."""
    method = original(float64_test.Float64Test, "test_mixed_dtype_input_outputs")
    method(float64_test.Float64Test(), entry(row), {})


@pytest.fixture
def sharding_test(monkeypatch):
    """Optax's module, which must not be the first to ask for devices: it sets XLA's flags."""
    assert len(jax.devices()) == 8
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    # It compares versions as texts, by which 0.10 is older than 0.7, and would skip all.
    monkeypatch.setattr(jax, "__version__", "0.9.9")
    with warnings.catch_warnings(action="ignore"):
        return importlib.import_module("optax._src.sharding_test")


SHARDING = (
    "test_init_with_abstract_input",
    "test_state_sharding_type_init_match_update",
    "test_state_sharding_type_preserved_with_jit",
)


@pytest.mark.default_compiler  # their params are float16
@EACH_METHOD
@pytest.mark.parametrize("name", SHARDING)
def test_sharding(row, name, sharding_test):
    tx, case = entry(row)(), sharding_test.ShardingTest()
    method = original(sharding_test.ShardingTest, name)
    if name == "test_init_with_abstract_input" and row.restores:  # which keep a copy of the params
        with pytest.raises(TypeError, match=r"take jax\.eval_shape"):
            method(case, tx)
    else:
        method(case, tx)


LEFT_OUT = {"microbatch_with_explicit_sharding": "of no optimizer"}


@pytest.mark.slow
def test_nothing_of_the_suites_is_left_out(sharding_test):
    cases = {
        original_name(getattr(case, name)): case
        for case in (_common_test.ContribTest, float64_test.Float64Test, sharding_test.ShardingTest)
        for name in dir(case)
        if name.startswith("test_")
    }
    ours = inspect.getsource(inspect.getmodule(entry))
    left_out = {name for name in cases if f'"{name}"' not in ours}
    assert left_out == {f"test_{name}" for name in LEFT_OUT}
    assert len(cases) == 12
