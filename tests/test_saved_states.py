"""States that versions of the library have saved: read, or refused by the name of the version."""

import functools
import importlib.util
import itertools
import pathlib
import shutil
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import naqopt
from naqopt.saved_state import ADDED
from naqopt.state import Info

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
_SPEC = importlib.util.spec_from_file_location("make_states", FIXTURES / "make_states.py")
assert _SPEC is not None
assert _SPEC.loader is not None
make_states = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_states)

ARCHIVES = sorted(path.stem.removeprefix("states-") for path in FIXTURES.glob("*.zip"))
READ = {"0.2.0"}  # the others are refused


@functools.cache
def checkpoint(version):
    """What is known of a version's checkpoint, and what is read of it as names and arrays."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(FIXTURES / f"states-{version}.zip", folder)
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            return checkpointer.metadata(folder).item_metadata, checkpointer.restore(folder)


def made(name):
    """The optimizer, and what it expects of a checkpoint of params, state and later params."""
    tx = make_states.MAKES[name]()
    params = jax.eval_shape(make_states.start)
    return tx, {"params": params, "state": jax.eval_shape(tx.init, params), "later": params}


def each(versions):
    """Every optimizer of every such version."""
    return pytest.mark.parametrize(
        ("version", "name"),
        [
            pytest.param(version, name, id=f"{version}-{name}")
            for version in versions
            for name in make_states.MAKES
            if version != "0.1.0" or name in ("adaqn", "asnaq")
        ],
    )


def test_versions():
    """A version that adds to `Info` is named in `ADDED`, and has its archive."""
    assert sorted(itertools.chain(*ADDED.values())) == sorted(Info._fields)
    assert set(ADDED) <= set(ARCHIVES)
    assert naqopt.__version__ in ARCHIVES
    assert set(checkpoint("0.1.0")[0]) == {"adaqn", "asnaq"}
    for version in READ:
        assert set(checkpoint(version)[0]) == set(make_states.MAKES)


@each(sorted(READ))
def test_a_state_is_taken_for_what_it_is(version, name):
    _, expected = made(name)
    naqopt.check_saved_state(checkpoint(version)[0][name]["state"], expected["state"])


@functools.cache
def restored(version):
    """All states of an archive, read as the guide reads them."""
    expected = {name: made(name)[1] for name in make_states.MAKES}
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(FIXTURES / f"states-{version}.zip", folder)
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder, expected)


@pytest.mark.slow
@each(sorted(READ))
def test_a_run_goes_on_from_it(version, name):
    """To where it went in the version that saved it."""
    saved = restored(version)[name]
    tx, expected = made(name)
    chex.assert_trees_all_equal_shapes_and_dtypes(saved, expected)
    params, state = make_states.go_on(tx, saved["params"], saved["state"])
    chex.assert_trees_all_close(params, saved["later"], rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_equal_structs(state, saved["state"])
    assert not np.array_equal(params["w"], saved["params"]["w"])


@each(sorted(set(ARCHIVES) - READ))
def test_another_versions_state_is_refused_by_its_name(version, name):
    metadata, _ = checkpoint(version)
    _, expected = made(name)
    message = rf"saved by naqopt {version}, .* begin anew: state = tx\.init\(params\)"
    with pytest.raises(ValueError, match=message) as raised:
        naqopt.check_saved_state(metadata[name]["state"], expected["state"])
    assert "it lacks `info/bad_points_left`, `info/momentum_restarts`" in str(raised.value)


@pytest.mark.slow
@each(sorted(set(ARCHIVES) - READ))
def test_the_remedy_for_another_versions_state(version, name):
    saved = checkpoint(version)[1][name]
    tx, _ = made(name)
    before = make_states.loss(saved["params"])
    params, state = make_states.go_on(tx, saved["params"], tx.init(saved["params"]), steps=40)
    assert make_states.loss(naqopt.eval_params(state, params)) < before


def test_orbax_does_not_read_another_versions_state_either():
    """So that who does not ask is not given a state with numbers in wrong places."""
    expected = {name: made(name)[1] for name in ("adaqn", "asnaq")}
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(FIXTURES / "states-0.1.0.zip", folder)
        with (
            orbax.checkpoint.StandardCheckpointer() as checkpointer,
            pytest.raises(ValueError, match="not found in metadata_tree"),
        ):
            checkpointer.restore(folder, expected)


PARAMS = {"w": jnp.ones(3)}


def entries(tx, params=PARAMS, **changes):
    """A state as names and shapes, with other names in its `info`."""
    state = jax.eval_shape(tx.init, params)._asdict()
    state["info"] = {**state["info"]._asdict(), **changes}
    return {key: x for key, x in state.items() if x is not None}


def test_the_writers():
    tx = naqopt.omoq(memory_size=2)
    expected = jax.eval_shape(tx.init, PARAMS)
    naqopt.check_saved_state(entries(tx), expected)
    later = entries(tx, something_new=jnp.zeros(()))
    with pytest.raises(ValueError, match=r"a version after naqopt 0\.2\.0.*has besides `info/som"):
        naqopt.check_saved_state(later, expected)
    between = entries(tx)
    del between["info"]["radius"]
    with pytest.raises(ValueError, match=r"a version after naqopt 0\.1\.0.*lacks `info/radius`"):
        naqopt.check_saved_state(between, expected)
    with pytest.raises(ValueError, match="saved by something else than naqopt"):
        naqopt.check_saved_state(optax.adam(0.1).init(PARAMS), expected)
    with pytest.raises(ValueError, match=r"`state` holds no state .* check_saved_state\(saved, tx"):
        naqopt.check_saved_state(expected, PARAMS)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (naqopt.omoq(memory_size=3), "of another shape are `curvature/products`"),
        (naqopt.onaq(memory_size=2), "it lacks `pending/"),
        (optax.chain(optax.clip(1.0), naqopt.omoq(memory_size=2)), "it has besides `1/count`"),
    ],
    ids=["memory_size", "optimizer", "chain"],
)
def test_another_optimizer(other, difference):
    expected = jax.eval_shape(naqopt.omoq(memory_size=2).init, PARAMS)
    message = rf"saved of another optimizer or with other arguments or params \(.*{difference}"
    with pytest.raises(ValueError, match=message):
        naqopt.check_saved_state(jax.eval_shape(other.init, PARAMS), expected)


def test_a_state_dict_of_flax():
    serialization = pytest.importorskip("flax.serialization")
    for tx in (naqopt.asnaq(), optax.chain(optax.clip(1.0), naqopt.naq()), naqopt.bfgs()):
        state = tx.init(PARAMS)
        naqopt.check_saved_state(serialization.to_state_dict(state), state)
