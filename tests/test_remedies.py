"""What a message advises is done as it says, and works: a mistake, its message, and the remedy.

The remedy of each row is run and has to train, or to give what was asked for.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import naqopt

PARAMS = {"w": jnp.ones(3), "b": jnp.array(2.0)}
CYCLES = {"memory_size": 2, "fisher_size": 4, "cycle_length": 2}
STATIC = {
    "adaqn": ("memory_size", "fisher_size", "cycle_length", "history_dtype"),
    "onaq": ("memory_size", "history_dtype"),
}


def loss(p, _=None):
    return jnp.sum((p["w"] - jnp.array([0.5, -1.0, 0.0])) ** 2) + (p["b"] - 1) ** 2


def train(tx, params=None, loss=loss, state=None, steps=30, **extra_args):
    """Trains; returns the iterate and the state."""
    params = PARAMS if params is None else params
    tx = optax.with_extra_args_support(tx)
    state = tx.init(params) if state is None else state

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        given = {"value": value, "grad": grads, "value_fn": loss, **extra_args}
        updates, state = tx.update(grads, state, params, **given)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return naqopt.eval_params(state, params), state


def trains(tx, params=None, loss=loss, **others):
    """Whether the loss falls to less than half."""
    start = PARAMS if params is None else params
    end, _ = train(tx, start, loss, **others)
    assert loss(end) < 0.5 * loss(start)


def update(tx, params=PARAMS, state=None, grads=None, **extra_args):
    """One call, traced only."""
    state = tx.init(params) if state is None else state
    grads = jax.grad(loss)(PARAMS) if grads is None else grads
    return jax.eval_shape(lambda: tx.update(grads, state, params, **extra_args))


def snapshot_trains():
    tx = naqopt.svrg(0.1)
    state = tx.init(PARAMS)
    full_grad = naqopt.full_gradient(loss, PARAMS, [jnp.zeros(1)])
    trains(tx, state=naqopt.snapshot(state, PARAMS, full_grad))


def dropping(tx):
    """As `optax.MultiSteps.gradient_transformation` gives it: chain hands it no extra arguments."""
    return optax.GradientTransformation(tx.init, tx.update)


def gives(call):
    """A remedy that gives what was asked for, and trains nothing."""
    assert call() is not None


def used_up():
    batches = iter([jnp.zeros(2)])
    naqopt.full_gradient(loss, PARAMS, batches)
    return batches


def per_example(p):
    return jnp.stack([loss(p), loss(p)])


def with_accuracy(p):
    return loss(p), {"accuracy": 1.0}


def stacked():
    return jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)


def vmapped_state():
    return jax.vmap(naqopt.onaq(memory_size=2).init)(stacked())


class Mistake(NamedTuple):
    """A mistake, a pattern of its message, and what it advises."""

    make: Callable[[], Any]
    message: str
    remedy: Callable[[], Any]


def of_a_number(call, name, bad, good, interval=r"must be a finite number in", **others):
    """A number out of the range that the message states, and one within it."""
    factory = getattr(naqopt, call)
    others = {"memory_size": 2, **others}
    if call in ("adaqn", "asnaq"):
        others = {**CYCLES, **others}
    return Mistake(
        lambda: factory(**{name: bad}),
        rf"naqopt\.{call}: `{name}` {interval}",
        lambda: trains(factory(**{**others, name: good}), steps=100),
    )


bfgs, onaq = naqopt.bfgs, naqopt.onaq
_INTEGERS = {**PARAMS, "n": jnp.arange(3)}

MISTAKES = {
    # Numbers, sizes, flags.
    "a negative rate": of_a_number("onaq", "learning_rate", -0.1, 0.1),
    "a rate that is no number": of_a_number("onaq", "learning_rate", np.nan, 0.1),
    "a word for a rate": of_a_number("obfgs", "learning_rate", "0.1", 0.1, "must be a number"),
    "a vector for a rate": of_a_number(
        "omoq", "learning_rate", np.array([0.1]), np.array(0.1), "must be a single number"
    ),
    "a schedule of vectors": Mistake(
        lambda: update(onaq(lambda k: jnp.array([0.1])), value_fn=loss),
        r"`learning_rate` must give one number, got shape \(1,\)",
        lambda: trains(onaq(lambda k: jnp.array(0.1)), steps=100),
    ),
    "a momentum of 1": of_a_number("naq", "momentum", 1.0, 0.5),
    "no memory": of_a_number("bfgs", "memory_size", 0, 1, "must be at least 1, got 0"),
    "half a pair": of_a_number("bfgs", "memory_size", 2.5, 2, "must be an int"),
    "no Fisher matrix": of_a_number(
        "adaqn", "fisher_size", 0, 1, "must be at least 1", learning_rate=0.1
    ),
    "no cycle": of_a_number("asnaq", "cycle_length", 0, 1, "must be at least 1"),
    "no restart window": of_a_number("mnaq", "restart_window", 0, 1, "must be at least 1"),
    "a loss that must fall": of_a_number("adaqn", "max_increase", 0.9, 1.0, learning_rate=0.1),
    "no ε": of_a_number("adaqn", "eps", 0.0, 1e-8, learning_rate=0.1),
    "an ε beneath float32": of_a_number("asnaq", "eps", 1e-50, 1e-8, learning_rate=0.1),
    "a sum by decay 1": of_a_number("adaqn", "accumulator_decay", 1.0, 0.9, learning_rate=0.1),
    "no back-off": of_a_number("asnaq", "backoff", 0.0, 0.9, learning_rate=0.1),
    "a momentum that shrinks where it grows": of_a_number(
        "asnaq", "momentum_factor", 0.9, 1.1, learning_rate=0.1
    ),
    "negative damping": of_a_number("onaq", "damping", -1.0, 0.0, learning_rate=0.1),
    "no radius": of_a_number("lsr1", "initial_radius", 0.0, 1.0),
    "no first matrix": of_a_number("sr1n", "initial_scale", 0.0, 1.0),
    "momenta out of order": Mistake(
        lambda: naqopt.asnaq(min_momentum=0.9, max_momentum=0.5),
        "`min_momentum` must not exceed `max_momentum`",
        lambda: trains(naqopt.asnaq(0.1, min_momentum=0.5, max_momentum=0.9, **CYCLES)),
    ),
    "one for True": of_a_number(
        "onaq", "normalize", 1, True, "must be True or False", learning_rate=0.1
    ),
    "pairs in float16": of_a_number(
        "onaq",
        "history_dtype",
        jnp.float16,
        jnp.bfloat16,
        r".*use jnp\.bfloat16",
        learning_rate=0.1,
    ),
    "pairs of ints": of_a_number(
        "bfgs", "history_dtype", jnp.int32, jnp.float32, "must be a floating dtype"
    ),
    "a wrong name of a dtype": of_a_number(
        "bfgs", "history_dtype", "bf16", jnp.bfloat16, r"must be a dtype such as jnp\.bfloat16"
    ),
    "a complex rate": of_a_number("onaq", "learning_rate", 0.1j, 0.1, "must be a number"),
    "a dtype of pairs beside a matrix": Mistake(
        lambda: bfgs(memory_size=None, history_dtype=jnp.bfloat16),
        "leave one of the two out",
        lambda: (trains(bfgs(memory_size=None)), trains(bfgs(history_dtype=jnp.bfloat16))),
    ),
    "a matrix that is too large": Mistake(
        lambda: jax.eval_shape(bfgs(memory_size=None).init, jax.ShapeDtypeStruct((40_000,), "f4")),
        "Keep curvature pairs instead: `memory_size=10`",
        lambda: trains(
            bfgs(memory_size=10), jnp.ones(40_000), lambda p: jnp.sum((p - 3) ** 2), steps=3
        ),
    ),
    "a scale without a matrix": Mistake(
        lambda: bfgs(initial_scale=1.0),
        "`initial_scale` needs the dense matrix, which is `memory_size=None`",
        lambda: trains(bfgs(initial_scale=1.0, memory_size=None)),
    ),
    "a word that is none": Mistake(
        lambda: bfgs(initial_scale="first pair", memory_size=None),
        '`initial_scale` must be a number or "first_pair"',
        lambda: trains(bfgs(initial_scale="first_pair", memory_size=None)),
    ),
    "an update of pairs": Mistake(
        lambda: bfgs(update="ssbroyden"),
        "needs the dense matrix, which is `memory_size=None`",
        lambda: trains(bfgs(update="ssbroyden", memory_size=None)),
    ),
    "an update that there is not": Mistake(
        lambda: bfgs(update="sr1", memory_size=None),
        "`update` must be one of .*ssb",
        lambda: trains(bfgs(update="ssbfgs", memory_size=None)),
    ),
    "a solver that there is not": Mistake(
        lambda: naqopt.sr1n(solver="newton"),
        '`solver` must be "cg" or "exact"',
        lambda: (trains(naqopt.sr1n(solver="cg")), trains(naqopt.sr1n(solver="exact"))),
    ),
    "a tuple for a rule": Mistake(
        lambda: naqopt.lsr1(radius_rule=(0.1, 0.75)),
        r"such as naqopt\.RadiusRule\(shrink=0\.25\)",
        lambda: trains(naqopt.lsr1(radius_rule=naqopt.RadiusRule(shrink=0.25))),
    ),
    "a radius that does not shrink": Mistake(
        lambda: naqopt.lsr1(radius_rule=naqopt.RadiusRule(shrink=1.0)),
        r"`radius_rule\.shrink` must be a finite number in \(0, 1\)",
        lambda: trains(naqopt.lsr1(radius_rule=naqopt.RadiusRule(shrink=0.9))),
    ),
    # Line searches.
    "a search for a rate": Mistake(
        lambda: bfgs(naqopt.armijo()),
        r"naqopt\.bfgs\(linesearch=naqopt\.armijo\(\)\)",
        lambda: trains(bfgs(linesearch=naqopt.armijo())),
    ),
    "the maker of a search": Mistake(
        lambda: bfgs(linesearch=naqopt.armijo),
        r"such as naqopt\.armijo\(\) or optax\.scale_by_zoom_linesearch\(max_linesearch_steps=20\)",
        lambda: trains(bfgs(linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=20))),
    ),
    "clipping for a search": Mistake(
        lambda: bfgs(linesearch=optax.clip(1.0)),
        r"goes in front: optax\.chain\(\.\.\., naqopt\.bfgs\(\.\.\.\)\)",
        lambda: trains(optax.chain(optax.clip(1.0), bfgs())),
    ),
    "neither a rate nor a search": Mistake(
        lambda: bfgs(linesearch=None),
        r"naqopt\.bfgs\(0\.1, linesearch=None\), or naqopt\.bfgs\(linesearch=naqopt\.armijo\(\)\)",
        lambda: trains(bfgs(0.1, linesearch=None), steps=60),
    ),
    "a radius beside a search": Mistake(
        lambda: naqopt.lsr1(initial_radius=2.0, linesearch=naqopt.armijo()),
        "give one of them",
        lambda: (
            trains(naqopt.lsr1(initial_radius=2.0)),
            trains(naqopt.lsr1(linesearch=naqopt.armijo())),
        ),
    ),
    # What update is given.
    "no params": Mistake(
        lambda: onaq().update(PARAMS, onaq().init(PARAMS), value_fn=loss),
        r"tx\.update\(grads, state, params, \.\.\.\)",
        lambda: trains(onaq(0.1)),
    ),
    "no loss": Mistake(
        lambda: update(onaq()),
        r"Example: tx\.update\(grads, state, params, value=value, grad=grads, value_fn=lambda p",
        lambda: trains(onaq(0.1)),  # `train` calls it so
    ),
    "a value for a loss": Mistake(
        lambda: update(onaq(), value_fn=loss(PARAMS)),
        "`value_fn` must be a function of the params",
        lambda: trains(onaq(0.1), value_fn=lambda p: loss(p)),
    ),
    "a loss of many examples": Mistake(
        lambda: update(onaq(), value_fn=per_example),
        r"`value_fn=lambda p: jnp\.mean\(losses\(p\)\)`",
        lambda: trains(onaq(0.1), value_fn=lambda p: jnp.mean(per_example(p))),
    ),
    "a loss and more": Mistake(
        lambda: update(onaq(), value_fn=with_accuracy),
        r"drop the auxiliary output, `value_fn=lambda p: loss_fn\(p\)\[0\]`",
        lambda: trains(onaq(0.1), value_fn=lambda p: with_accuracy(p)[0]),
    ),
    "values of many examples": Mistake(
        lambda: update(bfgs(), value=jnp.zeros(3), value_fn=loss),
        "Average it, or leave it out: `value_fn` is evaluated then",
        lambda: (
            trains(bfgs(), value=None),
            trains(bfgs(), value=jnp.mean(per_example(PARAMS)), steps=1),
        ),
    ),
    "integer params": Mistake(
        lambda: onaq().init(_INTEGERS),
        "keep it out of the params that are trained",
        lambda: trains(
            optax.partition(
                {"train": onaq(0.1), "keep": optax.set_to_zero()},
                {"w": "train", "b": "train", "n": "keep"},
            ),
            {**PARAMS, "n": jnp.arange(3.0)},
        ),
    ),
    "other params than init had": Mistake(
        lambda: update(onaq(), state=onaq().init({"w": jnp.ones(3)}), value_fn=loss),
        r"call tx\.init\(params\) again after changing the params",
        lambda: trains(onaq(0.1), state=onaq(0.1).init(PARAMS)),
    ),
    "other shapes than init had": Mistake(
        lambda: update(bfgs(), state=bfgs().init({**PARAMS, "w": jnp.ones(4)}), value_fn=loss),
        r"`params\['w'\]` has shape \(3,\).*call tx\.init\(params\) again",
        lambda: trains(bfgs(), state=bfgs().init(PARAMS)),
    ),
    "a gradient by something else": Mistake(
        lambda: update(onaq(), value_fn=loss, grad=PARAMS["w"]),
        r"pass what jax\.grad of the loss by these params returns",
        lambda: trains(onaq(0.1)),
    ),
    "a function among the params": Mistake(
        lambda: onaq().init({**PARAMS, "f": jnp.tanh}),
        r"`params\['f'\]` must be an array, got .*: keep it out of the params that are trained",
        lambda: trains(onaq(0.1)),
    ),
    "a gradient of integers": Mistake(
        lambda: update(onaq(), grads={"w": jnp.ones(3, int), "b": jnp.array(1)}, value_fn=loss),
        r"`updates\['b'\]` has dtype int32, and .*; pass what jax\.grad of the loss by",
        lambda: trains(onaq(0.1)),
    ),
    "a function for the gradient": Mistake(
        lambda: update(onaq(), value_fn=loss, grad=jax.grad(loss)),
        "`grad` must be an array, got function: pass what jax.grad of the loss by these params ret",
        lambda: trains(onaq(0.1)),
    ),
    "a gradient for its function": Mistake(
        lambda: update(onaq(), value_fn=loss, grad_fn=jax.grad(loss)(PARAMS)),
        r"`grad_fn` must be a function of the params, such as jax\.grad\(value_fn\), got dict",
        lambda: trains(onaq(0.1), grad_fn=jax.grad(loss)),
    ),
    "a complex loss": Mistake(
        lambda: update(onaq(), value_fn=lambda p: loss(p) + 0j),
        r"got complex64\. .* take the real part, `value_fn=lambda p: jnp\.real\(loss_fn\(p\)\)`",
        lambda: trains(onaq(0.1), value_fn=lambda p: jnp.real(loss(p) + 0j)),
    ),
    "a complex value": Mistake(
        lambda: update(bfgs(), value=loss(PARAMS) + 0j, value_fn=loss),
        r"got complex64\. Take the real part, or leave it out",
        lambda: (
            trains(bfgs(), value=jnp.real(loss(PARAMS) + 0j), steps=1),
            trains(bfgs(), value=None),
        ),
    ),
    "a function for the value": Mistake(
        lambda: update(bfgs(), value=loss, value_fn=loss),
        r"one number, got function\. Give the number, or leave it out",
        lambda: (trains(bfgs(), value=loss(PARAMS), steps=1), trains(bfgs(), value=None)),
    ),
    # Wrappers.
    "sizes under inject_hyperparams": Mistake(
        lambda: optax.inject_hyperparams(onaq)().init(PARAMS),
        r"optax\.inject_hyperparams\(naqopt\.onaq, static_args=\('memory_size', \.\.\.\)\)",
        lambda: trains(optax.inject_hyperparams(onaq, static_args=STATIC["onaq"])(0.1)),
    ),
    "sizes of adaQN under inject_hyperparams": Mistake(
        lambda: optax.inject_hyperparams(naqopt.adaqn)().init(PARAMS),
        r"optax\.inject_hyperparams\(naqopt\.adaqn, static_args=\('memory_size', \.\.\.\)\)",
        lambda: trains(
            optax.inject_hyperparams(naqopt.adaqn, static_args=STATIC["adaqn"])(0.1, **CYCLES)
        ),
    ),
    "a factory to flatten": Mistake(
        lambda: naqopt.flatten(onaq),
        r"such as naqopt\.flatten\(naqopt\.onaq\(0\.1\)\)",
        lambda: trains(naqopt.flatten(onaq(0.1))),
    ),
    "a wrapper that drops the loss": Mistake(
        lambda: update(optax.chain(dropping(onaq(0.1))), value_fn=loss),
        r"GradientTransformationExtraArgs\(wrapped\.init, wrapped\.update\)",
        lambda: trains(
            optax.chain(optax.GradientTransformationExtraArgs(*dropping(onaq(0.1)))), steps=60
        ),
    ),
    # What reads the state.
    "arguments of eval_params swapped": Mistake(
        lambda: naqopt.eval_params(PARAMS, onaq().init(PARAMS)),
        r"call eval_params\(state, params\)",
        lambda: gives(lambda: naqopt.eval_params(onaq().init(PARAMS), PARAMS)),
    ),
    "eval_params of several runs": Mistake(
        lambda: naqopt.eval_params(vmapped_state(), stacked()),
        r"call jax\.vmap\(naqopt\.eval_params\)\(state, params\)",
        lambda: gives(lambda: jax.vmap(naqopt.eval_params)(vmapped_state(), stacked())),
    ),
    "diagnostics of another library": Mistake(
        lambda: naqopt.diagnostics(optax.adam(0.1).init(PARAMS)),
        r"pass the state that tx\.init or tx\.update returned",
        lambda: gives(lambda: naqopt.diagnostics(onaq().init(PARAMS))),
    ),
    "arguments of snapshot swapped": Mistake(
        lambda: naqopt.snapshot(PARAMS, naqopt.svrg().init(PARAMS), PARAMS),
        r"call snapshot\(state, params, full_grad\)",
        snapshot_trains,
    ),
    "a snapshot of what takes none": Mistake(
        lambda: naqopt.snapshot(onaq().init(PARAMS), PARAMS, PARAMS),
        r"holds no state of naqopt\.svrg.*other optimizers take no snapshots",
        lambda: trains(onaq(0.1)),
    ),
    "a snapshot in bfloat16": Mistake(
        lambda: naqopt.snapshot(
            naqopt.svrg().init(PARAMS),
            PARAMS,
            jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS),
        ),
        r"Give it in float32, as jax\.grad of the loss by these params does",
        snapshot_trains,
    ),
    "arguments of full_gradient swapped": Mistake(
        lambda: naqopt.full_gradient(PARAMS, loss, [jnp.zeros(2)]),
        r"call full_gradient\(loss_fn, params, batches\)",
        lambda: gives(lambda: naqopt.full_gradient(loss, PARAMS, [jnp.zeros(2)])),
    ),
    "a generator that is used up": Mistake(
        lambda: naqopt.full_gradient(loss, PARAMS, used_up()),
        "make it anew",
        lambda: gives(lambda: naqopt.full_gradient(loss, PARAMS, iter([jnp.zeros(2)]))),
    ),
    "a batch with a number": Mistake(
        lambda: naqopt.full_gradient(lambda p, b: loss(p) * b[1], PARAMS, [(jnp.zeros(2), 3.0)]),
        "Bind what is no example in `loss_fn`",
        lambda: gives(
            lambda: naqopt.full_gradient(lambda p, b: loss(p) * 3.0, PARAMS, [jnp.zeros(2)])
        ),
    ),
    "a changed loss of adaQN": Mistake(
        lambda: naqopt.forget_loss(naqopt.adaqn(**CYCLES).init(PARAMS)),
        r"naqopt\.asnaq and naqopt\.adaqn keep nothing of a loss and go on as they are",
        lambda: trains(
            naqopt.adaqn(0.1, **CYCLES),
            state=train(naqopt.adaqn(0.1, **CYCLES), loss=lambda p: 2 * loss(p), steps=3)[1],
        ),
    ),
    "a changed loss of SVRG": Mistake(
        lambda: naqopt.forget_loss(naqopt.svrg().init(PARAMS)),
        r"want a new full gradient: naqopt\.snapshot\(state, params, full_grad\)",
        snapshot_trains,
    ),
    "the inverse Hessian of SVRG": Mistake(
        lambda: naqopt.inverse_hessian(naqopt.svrg().init(PARAMS)),
        "pass the state of one, as tx.init or tx.update returned it",
        lambda: gives(lambda: naqopt.inverse_hessian(train(bfgs(), steps=3)[1])),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_message_names_the_remedy(name):
    mistake = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=mistake.message) as raised:
        mistake.make()
    assert str(raised.value).startswith("naqopt")


# One of each kind of remedy in CI: most train with another number.
IN_CI = (
    *("a schedule of vectors", "the maker of a search", "values of many examples"),
    *("integer params", "sizes under inject_hyperparams", "a wrapper that drops the loss"),
    *(
        "eval_params of several runs",
        "arguments of snapshot swapped",
        "a generator that is used up",
    ),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in MISTAKES],
)
def test_the_remedy_works(name):
    MISTAKES[name].remedy()


def test_there_are_as_many_rows_as_were_asked_for():
    assert len(MISTAKES) >= 40


COMPLEX = {
    "adaqn": lambda: naqopt.adaqn(0.5, **CYCLES),
    "asnaq": lambda: naqopt.asnaq(0.1, **CYCLES),
    "bfgs": bfgs,
    "bfgs_dense": lambda: bfgs(memory_size=None),
    "naq": naqopt.naq,
    "moq": naqopt.moq,
    "mnaq": naqopt.mnaq,
    "obfgs": lambda: naqopt.obfgs(0.1),
    "onaq": lambda: onaq(0.1),
    "omoq": lambda: naqopt.omoq(0.1),
    "ssbroyden": naqopt.ssbroyden,
    "svrg": lambda: naqopt.svrg(0.1),
    "svrg2": lambda: naqopt.svrg2(0.1),
    "svr_naq": lambda: naqopt.svr_naq(0.1),
    "lsr1": naqopt.lsr1,
    "sr1n": naqopt.sr1n,
    "mosr1": naqopt.mosr1,
    "flatten": lambda: naqopt.flatten(bfgs()),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_params_are_trained_as_the_message_says(name):
    z = jnp.array([1 + 2j, -3j])
    tx = COMPLEX[name]()
    with pytest.raises(TypeError, match="dtype complex64") as raised:
        tx.init(z)
    replacement, join = re.search(
        r"train (\{.*\}) in its place.*: z = (.*)\.$", str(raised.value)
    ).groups()

    def loss(p):
        return jnp.mean(jnp.abs(eval(join, {"p": p}) - (3 + 4j)) ** 2)

    trains(tx, eval(replacement, {"z": z}), loss, steps=60)
