"""Every call with sizes so small that nothing takes long, for tests of mistakes."""

import jax
import jax.numpy as jnp
import pytest

import naqopt

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
SMALL = {"memory_size": 2, "fisher_size": 3, "cycle_length": 2}
# Every call with sizes so small that nothing takes long.
CALLS = {
    "adaqn": SMALL,
    "asnaq": SMALL,
    "bfgs": {"memory_size": 2},
    "naq": {"memory_size": 2},
    "moq": {"memory_size": 2},
    "mnaq": {"memory_size": 2},
    "obfgs": {"memory_size": 2},
    "onaq": {"memory_size": 2},
    "omoq": {"memory_size": 2},
    "multi_batch_omoq": {"memory_size": 2},
    "svrg": {},
    "svrg2": {"memory_size": 2},
    "svr_naq": {"memory_size": 2},
    "lsr1": {"memory_size": 2},
    "sr1n": {"memory_size": 2},
    "mosr1": {"memory_size": 2},
}
WITH_PAIRS = [name for name, sizes in CALLS.items() if sizes]
WITH_MATRIX = [name for name in WITH_PAIRS if name not in ("adaqn", "asnaq", "lsr1")]
TRUST_REGION = ["lsr1", "sr1n", "mosr1"]
ONLINE = ["obfgs", "onaq", "omoq", "multi_batch_omoq"]
WITH_MOMENTUM = ["naq", "moq", "mnaq", "svr_naq", "sr1n", "mosr1", *ONLINE[1:]]
WITH_LINE_SEARCH = ["bfgs", "naq", "moq"]


def each(names):
    """Runs a test for each of the calls, as its argument `factory`."""
    return pytest.mark.parametrize("factory", [getattr(naqopt, n) for n in names], ids=names)


EVERY, ADAPTIVE = each(CALLS), each(["adaqn", "asnaq"])
EACH_WITH_LEARNING_RATE = each([name for name in CALLS if name not in ("mnaq", *TRUST_REGION)])
EACH_THAT_NEEDS_THE_LOSS = each([name for name in CALLS if "omoq" not in name])


EVERY_AND_DENSE = pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        *(pytest.param(getattr(naqopt, name), {}, id=name) for name in CALLS),
        *(
            pytest.param(getattr(naqopt, name), {"memory_size": None}, id=f"{name}-dense")
            for name in WITH_MATRIX
        ),
    ],
)


def small(factory, *arguments, **others):
    return factory(*arguments, **{**CALLS[factory.__name__], **others})


def loss(p):
    return jnp.sum((p["w"] - 0.5) ** 2) + jnp.sum(p["b"] ** 2)


def update(tx, params=PARAMS, state=None, **extra_args):
    """Traces an update, which is when mistakes are found; nothing is computed."""
    state = tx.init(params) if state is None else state

    def traced():
        grads = jax.grad(loss)(PARAMS)
        closures = {"part_grads": (grads, grads, grads)} | extra_args
        return tx.update(grads, state, params, **closures)

    return jax.eval_shape(traced)
