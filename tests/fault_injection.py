"""A fault of every kind, at every place, at every step: what becomes of each run, as a table.

`python tests/fault_injection.py` prints it; `test_fault_table` asserts it. One compiled function a
method trains all its runs at once, with what the fault is, where and when as arguments.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_table import (
    ROWS,
    Row,
    init_params,
    part_gradients,
    regression_loss,
    stacked_batches,
    take_due_snapshot,
    transformation,
)

import naqopt

KINDS = {"NaN": np.nan, "Inf": np.inf, "1e30": 1e30, "0": 0.0, "denormal": 1e-40}
RECOVERED = 1.1  # times the undisturbed loss

# Where: in one array of a gradient or in all; in every loss of a step; or in every loss but that at
# the params, which a search or a trust region tries.
_NOWHERE, _LEFT_OUT = 0, 1
PLACES = {
    "gradient, one array": 2,
    "gradient": 3,
    "second gradient, one array": 4,
    "second gradient": 5,
    "losses": 6,
    "trials": 7,
}
_ARRAY = "weight"

# When: at each of the first steps. The others are to recover in.
FAULT_STEPS = 16
_BATCHES = 8
# How long: until the undisturbed run has come to rest. The term ξ of mNAQ makes that late, and what
# a false pair leaves in a dense matrix. Steps of a constant length never rest: the median of the
# last third of the losses is compared.
_STEPS = {
    "mnaq": 192,
    "multi_batch_omoq": 240,
    "multi_batch_omoq_dense": 432,
    "mosr1": 240,
}
_STEPS_ON_ALL, _STEPS_ON_BATCHES = 72, 144

# As they are called by default: the table's sizes and terms are chosen to meet every branch.
_ARGUMENTS: dict[str, Any] = {"memory_size": 8, "convergence_term": False}

METHODS = [row for row in ROWS if not row.flat]  # inside `flatten` they are the same


def judged(row: Row) -> bool:
    """Whether a loss decides on steps or cycles."""
    return row.searches or row.rejects or row.restores or row.name == "mnaq"


def on_all_data(row: Row) -> bool:
    """Whether the method is one for full batches."""
    return judged(row) and not row.restores


def _cases(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place, kind and step of every run; first those without a fault."""
    places = [PLACES["gradient, one array"], PLACES["gradient"]]
    if row.gradients == 2:
        places += [PLACES["second gradient, one array"], PLACES["second gradient"]]
    if judged(row):
        places += [PLACES["losses"], PLACES["trials"]]
    steps = range(FAULT_STEPS)
    cases = [(_NOWHERE, "", 0)] + [(_LEFT_OUT, "", k) for k in steps]
    cases += [(place, kind, k) for place in places for kind in KINDS for k in steps]
    place, kind, step = zip(*cases, strict=True)
    return np.array(place), np.array(kind), np.array(step)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the runs of one method, one element a run with a fault.

    Attributes:
      place: where the fault was.
      kind: the fault's name.
      step: when it was.
      finite: whether params and state stayed finite on every step.
      counted: whether a counter of `naqopt.diagnostics` says other than in the undisturbed run.
      ignored: whether the params after the step are to the bit those of the undisturbed run.
      level: the last losses' median, in units of the undisturbed run's.
      scatter: the largest such number of runs that had no fault and left out one step.
    """

    place: np.ndarray
    kind: np.ndarray
    step: np.ndarray
    finite: np.ndarray
    counted: np.ndarray
    ignored: np.ndarray
    level: np.ndarray
    scatter: float

    def recovered(self) -> np.ndarray:
        """Whether the run ended within 10 % of the undisturbed ones."""
        return self.level <= RECOVERED * max(1.0, self.scatter)


@functools.cache
def outcome(row: Row) -> Outcome:
    """Trains a method once for each fault."""
    changed = {
        name: value
        for name, value in _ARGUMENTS.items()
        if row.arguments.get(name) not in (None, False)
    }
    tx = transformation(row, **changed)
    inputs, targets = (jnp.asarray(x[:_BATCHES]) for x in stacked_batches())
    data = tuple(jnp.concatenate(list(x)) for x in (inputs, targets))
    length = _STEPS.get(row.name, _STEPS_ON_ALL if on_all_data(row) else _STEPS_ON_BATCHES)

    def run(place: jax.Array, value: jax.Array, at: jax.Array) -> Any:
        def body(carry: Any, k: jax.Array) -> Any:
            params, state = carry
            now = jnp.where(k == at, place, _NOWHERE)
            batch = data if on_all_data(row) else (inputs[k % _BATCHES], targets[k % _BATCHES])

            def spoil(tree: Any, one_array: str, everywhere: str) -> Any:
                whole = now == PLACES[everywhere]
                return {
                    name: jnp.where(
                        whole | ((now == PLACES[one_array]) & (name == _ARRAY)), value, leaf
                    )
                    for name, leaf in tree.items()
                }

            def gradient(p: Any) -> Any:
                return jax.grad(regression_loss)(p, batch)

            def grad_fn(p: Any) -> Any:
                return spoil(gradient(p), "second gradient, one array", "second gradient")

            def value_fn(p: Any) -> jax.Array:
                elsewhere = jnp.any(jnp.array([jnp.any(p[name] != params[name]) for name in p]))
                bad = (now == PLACES["losses"]) | ((now == PLACES["trials"]) & elsewhere)
                return jnp.where(bad, value, regression_loss(p, batch))

            def callers(tree: Any) -> Any:
                return spoil(tree, "gradient, one array", "gradient")

            grads = callers(gradient(params))
            before = take_due_snapshot(state, params, lambda p, _: regression_loss(p, data))
            closures = part_gradients(before, params, batch, regression_loss)
            closures = {name: tuple(map(callers, parts)) for name, parts in closures.items()}
            closures |= {"value_fn": value_fn, "grad_fn": grad_fn, "value": value_fn(params)}
            updates, after = tx.update(grads, before, params, grad=grads, **closures)
            new = optax.apply_updates(params, updates), after
            new = jax.tree.map(lambda x, y: jnp.where(now == _LEFT_OUT, x, y), carry, new)
            finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(new)]
            info = naqopt.diagnostics(new[1])
            counters = [x for x in info.values() if jnp.issubdtype(x.dtype, jnp.integer)]
            loss = regression_loss(naqopt.eval_params(new[1], new[0]), data)
            vector = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(new[0])])
            return new, (jnp.all(jnp.array(finite)), jnp.stack(counters), vector, loss)

        params = init_params()
        return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(length))[1]

    place, kind, step = _cases(row)
    value = np.array([KINDS.get(name, 0.0) for name in kind], np.float32)
    ends = jax.jit(jax.vmap(run))(place, value, step)
    finite, counters, params, losses = jax.tree.map(np.asarray, ends)
    runs = np.arange(len(place))
    levels = np.median(losses[:, -length // 3 :], axis=1)
    faulty = place > _LEFT_OUT
    return Outcome(
        place=place[faulty],
        kind=kind[faulty],
        step=step[faulty],
        finite=np.all(finite, axis=1)[faulty],
        counted=np.any(counters[runs, step] != counters[0, step], axis=1)[faulty],
        ignored=np.all(params[runs, step] == params[0, step], axis=1)[faulty],
        level=(levels / levels[0])[faulty],
        scatter=np.max(levels[place == _LEFT_OUT]) / levels[0],
    )


FINITE_FAULTS = ("1e30", "0", "denormal")


def summary(row: Row) -> dict[str, tuple[int, ...]]:
    """Of each kind of fault: runs, lost ones, those noticed or without effect, and recovered."""
    found = outcome(row)
    noticed = found.counted | found.ignored
    numbers = {}
    for kind in KINDS:
        runs = found.kind == kind
        columns = np.ones_like(runs), ~found.finite, noticed, found.recovered()
        numbers[kind] = tuple(int(np.sum(column[runs])) for column in columns)
    return numbers


def table_row(row: Row) -> str:
    """A method's line of the table."""
    numbers = summary(row)
    runs, lost, _, _ = np.sum(list(numbers.values()), axis=0)
    not_finite = [numbers[kind] for kind in KINDS if kind not in FINITE_FAULTS]
    noticed = f"{sum(x[2] for x in not_finite)} of {sum(x[0] for x in not_finite)}"
    recovered = [f"{recovered} of {of}" for of, _, _, recovered in numbers.values()]
    return "| " + " | ".join([f"`{row.name}`", f"{runs}", f"{lost}", noticed, *recovered]) + " |"


def table() -> str:
    """The table of the guide on diagnostics, by method and fault, in Markdown."""
    head = ["method", "runs", "lost", "NaN, Inf noticed", *(f"{kind} recovered" for kind in KINDS)]
    rule = "|" + "---|" * len(head)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *map(table_row, METHODS)])


if __name__ == "__main__":
    print(table())  # noqa: T201
