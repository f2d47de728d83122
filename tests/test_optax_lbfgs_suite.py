"""Optax's own tests of `optax.lbfgs`, as it ships them, run with `bfgs` and `naq` in its place."""

import re

import optax
import pytest
from optax._src import alias, alias_test

import naqopt

# It knows no float16.
pytestmark = pytest.mark.default_compiler

CASES = [name for name in dir(alias_test.LBFGSTest) if name.startswith("test")]

_COMPLEX = "complex params, which naqopt refuses with a message"
_PRIVATE = "a test of private functions of Optax's"
_UNSCALED = "scale_init_precond=False, which naqopt does not offer"
_UNITS = "the first step has length min(‖g‖, 1) in optax.lbfgs and 1 in naqopt, as that has units"
_NEGATIVE = "optax.lbfgs stores a pair of negative curvature here, which naqopt refuses"

# Not run, and why.
EXCEPTED = {
    "test_plain_preconditioning": _PRIVATE,
    **{f"test_preconditioning_by_lbfgs_on_trees{i}": _PRIVATE for i in range(4)},
    **{f"test_preconditioning_by_lbfgs_on_vectors{i}": _PRIVATE for i in range(4)},
    **{f"test_against_plain_implementation{i}": _UNSCALED for i in (1, 3, 5, 7, 9)},
    "test_against_plain_implementation4": _UNITS,  # ‖g‖ is 0.34 at the start
    "test_multiclass_logreg1": _UNSCALED,
    "test_binary_logreg1": _UNSCALED,
    "test_against_plain_implementation2": _NEGATIVE,
    **{f"test_lbfgs_complex{i}": _COMPLEX for i in range(2)},
    **{f"test_lbfgs_complex_rosenbrock{i}": _COMPLEX for i in range(2)},
    **{f"test_state_shape_dtype_shard_stability{i}": _COMPLEX for i in range(8, 12)},
}

ZOOM = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")


def bfgs(learning_rate=None, memory_size=10, scale_init_precond=True, linesearch=ZOOM):
    """`naqopt.bfgs` with the arguments and defaults of `optax.lbfgs`."""
    assert scale_init_precond
    return naqopt.bfgs(learning_rate, memory_size=memory_size, linesearch=linesearch)


def naq(learning_rate=None, memory_size=10, scale_init_precond=True, linesearch=ZOOM):
    """`naqopt.naq` without momentum, which is BFGS."""
    assert scale_init_precond
    return naqopt.naq(
        learning_rate,
        momentum=0.0,
        convergence_term=False,
        memory_size=memory_size,
        linesearch=linesearch,
    )


@pytest.mark.slow
# One case calls scikit-learn as was usual before its version 1.8.
@pytest.mark.filterwarnings("ignore:'penalty' was deprecated:FutureWarning")
@pytest.mark.parametrize("case", [name for name in CASES if name not in EXCEPTED])
@pytest.mark.parametrize("factory", [bfgs, naq], ids=["bfgs", "naq"])
def test_case(factory, case, monkeypatch):
    monkeypatch.setattr(alias, "lbfgs", factory)
    alias_test.LBFGSTest(case).debug()


def test_the_excepted_cases_exist():
    assert set(EXCEPTED) < set(CASES)
    assert len(CASES) - len(EXCEPTED) >= 20
    # And the parameters are counted as was assumed above.
    for name, reason in EXCEPTED.items():
        document = getattr(alias_test.LBFGSTest, name).__doc__ or ""
        if reason == _UNSCALED:
            assert "scale_init_precond=False" in document
        if "stability" in name:
            assert re.search("complex(64|128)", document)
    assert "himmelblau" in alias_test.LBFGSTest.test_against_plain_implementation2.__doc__
    assert "matyas" in alias_test.LBFGSTest.test_against_plain_implementation4.__doc__
