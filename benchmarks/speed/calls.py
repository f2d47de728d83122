"""The calls of the package whose speed is measured, and their peers in Optax."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

import naqopt


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the papers say that a step costs beside its gradients, in multiply-adds a parameter.

    Attributes:
      per_pair: factor of the memory size.
      constant: what does not depend on it.
      cyclic: whether (m_F + 4)/L is added: the accumulated Fisher matrix and the ends of the
        cycles. The loss that the papers count there belongs to the gradients.
    """

    per_pair: int
    constant: int = 0
    cyclic: bool = False

    @property
    def formula(self) -> str:
        """The cost in the papers' symbols."""
        terms = [f"{self.per_pair} m"]
        terms += [str(self.constant)] if self.constant else []
        terms += ["(m_F + 4) / L"] if self.cyclic else []
        return " + ".join(terms)

    def count(self, options: Mapping[str, Any]) -> float:
        """Returns the cost with the arguments of a call."""
        count = self.per_pair * options["memory_size"] + self.constant
        if self.cyclic:
            count += (options["fisher_size"] + 4) / options["cycle_length"]
        return count


@dataclasses.dataclass(frozen=True)
class Call:
    """A row of the table.

    Attributes:
      label: its name in tables and pictures.
      make: the factory.
      gradients: that a step takes, the caller's included.
      cost: where a paper states it.
      options: arguments other than the defaults.
      takes_snapshots: whether it wants a full gradient before every epoch.
    """

    label: str
    make: Callable[..., optax.GradientTransformation]
    gradients: int
    cost: Cost | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    takes_snapshots: bool = False

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """Returns the Optax transformation, which takes `value`, `grad` and `value_fn`."""
        return optax.with_extra_args_support(self.make(**self.options))

    def with_options(self, **options: Any) -> "Call":
        """Returns the same with other arguments."""
        return dataclasses.replace(self, options={**self.options, **options})

    @property
    def count(self) -> float | None:
        """What the papers count for a step with these arguments, beside its gradients."""
        return None if self.cost is None else self.cost.count(self.arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, defaults included."""
        parameters = inspect.signature(self.make).parameters.values()
        return {x.name: x.default for x in parameters} | dict(self.options)


@functools.wraps(naqopt.multi_batch_omoq)
def _multi_batch_omoq(**options: Any) -> optax.GradientTransformationExtraArgs:
    """Takes one gradient for those of all parts: what smaller batches cost is not its own."""
    tx = naqopt.multi_batch_omoq(**options)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        del extra_args
        return tx.update(updates, state, params, part_grads=(updates,) * 3)

    return optax.GradientTransformationExtraArgs(tx.init, update)


# The papers' tables; they state nothing for the calls without a cost.
_FULL_BATCH, _ONLINE = Cost(4, 2), Cost(6)

CALLS: Mapping[str, Call] = {
    "adaqn": Call("adaqn", naqopt.adaqn, 1, Cost(4, 2, cyclic=True)),
    "asnaq": Call("asnaq", naqopt.asnaq, 2, Cost(4, 3, cyclic=True)),
    "asnaq-single": Call(
        "asnaq, single gradient",
        naqopt.asnaq,
        1,
        Cost(4, 3, cyclic=True),
        {"single_gradient": True},
    ),
    "bfgs": Call("bfgs", naqopt.bfgs, 1, _FULL_BATCH),
    "naq": Call("naq", naqopt.naq, 2, _FULL_BATCH),
    "moq": Call("moq", naqopt.moq, 1, _FULL_BATCH),
    "mnaq": Call("mnaq", naqopt.mnaq, 2, _FULL_BATCH),
    "obfgs": Call("obfgs", naqopt.obfgs, 2, _ONLINE),
    "onaq": Call("onaq", naqopt.onaq, 2, _ONLINE),
    "omoq": Call("omoq", naqopt.omoq, 1, _ONLINE),
    "multi_batch_omoq": Call("multi_batch_omoq", _multi_batch_omoq, 1),
    "svrg": Call("svrg", naqopt.svrg, 2, takes_snapshots=True),
    "svrg2": Call("svrg2", naqopt.svrg2, 2, takes_snapshots=True),
    "svr_naq": Call("svr_naq", naqopt.svr_naq, 2, takes_snapshots=True),
    "lsr1": Call("lsr1", naqopt.lsr1, 2),
    "lsr1-armijo": Call("lsr1, armijo", naqopt.lsr1, 1, options={"linesearch": naqopt.armijo()}),
    "sr1n": Call("sr1n", naqopt.sr1n, 2),
    "mosr1": Call("mosr1", naqopt.mosr1, 1),
}
# Their matrix has as many rows as there are parameters, so that only small networks can step.
DENSE: Mapping[str, Call] = {
    "bfgs-dense": Call("bfgs, dense", naqopt.bfgs, 1, options={"memory_size": None}),
    "moq-dense": Call("moq, dense", naqopt.moq, 1, options={"memory_size": None}),
    "naq-dense": Call("naq, dense", naqopt.naq, 2, options={"memory_size": None}),
    "ssbfgs": Call("ssbfgs", naqopt.ssbfgs, 1),
    "ssbroyden": Call("ssbroyden", naqopt.ssbroyden, 1),
}
ADAM = Call("optax.adam", functools.partial(optax.adam, 1e-3), 1)
SGD = Call("optax.sgd", functools.partial(optax.sgd, 0.1), 1)
LBFGS = Call("optax.lbfgs", optax.lbfgs, 1)


def chosen(names: Sequence[str]) -> dict[str, Call]:
    """Returns the calls of these names, in the order of the table; all of them for no name."""
    return {name: call for name, call in CALLS.items() if not names or name in names}


def flat(call: Call) -> Call:
    """Returns the call that hands its optimizer one vector in place of many arrays."""

    def make(**options: Any) -> optax.GradientTransformation:
        return naqopt.flatten(call.make(**options))

    return dataclasses.replace(call, label=f"{call.label}, flattened", make=make)
