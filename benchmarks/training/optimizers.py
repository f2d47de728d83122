"""The optimizers that the experiments compare, by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import naqopt

Rate = float | jax.Array

COSINE = "cosine decay"
# Step sizes, from α_0 (which is what the grid search tunes), the steps in an epoch and in all.
SCHEDULES: Mapping[str, Callable[[Rate, int, int], optax.Schedule]] = {
    "a / sqrt(k)": lambda rate, *_: naqopt.schedules.inverse_sqrt(rate),
    "10 a / (10 + k)": lambda rate, *_: naqopt.schedules.harmonic(rate, 10),
    "halved every epoch": lambda rate, epoch, _: optax.exponential_decay(
        rate, epoch, 0.5, staircase=True
    ),
    COSINE: lambda rate, _, steps: optax.cosine_decay_schedule(rate, steps),
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A row of the table.

    Attributes:
      label: its name in plots and tables.
      make: the factory, called with the options and, where there is one, a learning rate or the
        schedule that begins there.
      quick_learning_rate: what the quick forms use where no grid search has been stored; None for a
        method without a learning rate.
      gradients_per_step: mini-batch gradients that a step takes, the caller's included.
      options: what differs from the factory's defaults; `schedule` names one of `SCHEDULES`.
      ours: whether `naqopt.diagnostics` has anything to say about its state.
      middle_rate: the middle of its grid, a power of √10.
      takes_snapshots: whether it wants a full gradient before every epoch.
      monitored: whether its paper judges its cycles on a fixed set of examples.
      printed_rate: the papers' own rate (or that of a known case), run too where the tuned differs.
      parts: of how many parts its batches are, which overlap but for one; the gradient of each is
        taken by itself.
    """

    label: str
    make: Callable[..., optax.GradientTransformation]
    quick_learning_rate: float | None
    gradients_per_step: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ours: bool = True
    middle_rate: float = 0.01
    printed_rate: float | None = None
    takes_snapshots: bool = False
    monitored: bool = False
    parts: int = 1

    @property
    def gradients_per_example(self) -> int:
        """How many gradients of each example an epoch takes."""
        return self.gradients_per_step * self.parts + self.takes_snapshots

    @property
    def ends(self) -> bool:
        """Whether its step size depends on how long the run is."""
        return self.options.get("schedule") == COSINE

    def transformation(
        self, learning_rate: Rate | None, steps_per_epoch: int = 1, epochs: int = 1
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the Optax transformation, which takes `value`, `grad` and `value_fn`."""
        options = dict(self.options)
        if self.quick_learning_rate is None:
            return optax.with_extra_args_support(self.make(**options))
        schedule = options.pop("schedule", None)
        rate: Any = learning_rate
        if schedule:
            rate = SCHEDULES[schedule](rate, steps_per_epoch, epochs * steps_per_epoch)
        return optax.with_extra_args_support(self.make(rate, **options))


def _asnaq(label: str, **options: Any) -> Optimizer:
    """Returns a row for aSNAQ or a variant of it."""
    gradients = 1 if options.get("single_gradient") else 2
    return Optimizer(label, naqopt.asnaq, 0.0316, gradients, options)


def _online(label: str, make: Callable[..., Any], memory_size: int | None, **options: Any):
    """Returns a row for an online method as the papers have it: α_0 = 1, and its schedule."""
    schedule = "10 a / (10 + k)" if make is naqopt.obfgs else "a / sqrt(k)"
    gradients = 1 if make in (naqopt.omoq, naqopt.multi_batch_omoq) else 2
    parts = 3 if make is naqopt.multi_batch_omoq else 1
    options = {"memory_size": memory_size, "schedule": schedule} | options
    rates = {"middle_rate": 1.0, "printed_rate": 1.0}
    return Optimizer(label, make, 1.0, gradients, options, parts=parts, **rates)


def _accelerated(make: Callable[..., Any]) -> Callable[..., optax.GradientTransformation]:
    """Returns SR1-N or MoSR1 with a momentum named by a number, so that it can stand in a file."""

    def factory(max_momentum: float, **options: Any) -> optax.GradientTransformation:
        return make(momentum=naqopt.schedules.nesterov_momentum(max_momentum), **options)

    return factory


def _lsr1(shrink: float, grow: float, **options: Any) -> optax.GradientTransformation:
    """Returns L-SR1 by the factors of its radius."""
    return naqopt.lsr1(radius_rule=naqopt.RadiusRule(shrink=shrink, grow=grow), **options)


def _forgetful_bfgs(every: int, **options: Any) -> optax.GradientTransformationExtraArgs:
    """Returns BFGS that forgets its pairs every so many steps."""
    tx = naqopt.bfgs(**options)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        pairs = state.curvature
        size = jnp.where(state.count % every == 0, 0, pairs.size)
        state = state._replace(curvature=pairs._replace(size=size))
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _svr(label: str, memory_size: int | None, **options: Any) -> Optimizer:
    """Returns a row for SVR-NAQ as its paper has it: α_0 = 1 and its schedule."""
    options = {"memory_size": memory_size, "schedule": "a / sqrt(k)"} | options
    rates = {"middle_rate": 1.0, "printed_rate": 1.0}
    return Optimizer(label, naqopt.svr_naq, 1.0, 2, options, takes_snapshots=True, **rates)


SVR_MOMENTA = (0.5, 0.8, 0.85, 0.95)  # 0.9 is the default
ACCELERATED = {"memory_size": 8, "max_momentum": 0.9}
# What the paper on L-SR1 varies in figure 6; its defaults are 0.5 and 2, m = 5 and batches of 128.
RADIUS_CHOICES = {
    f"lsr1-radius-{shrink:g}-{grow:g}": (shrink, grow)
    for shrink, grow in ((0.2, 1.2), (0.2, 2.0), (0.5, 1.2), (0.8, 1.2), (0.8, 2.0))
}
# m = 8 is what the authors of L-SR1-N give both.
MEMORY_CHOICES = {f"lsr1-memory-{m}": m for m in (2, 8, 10)}
BATCH_CHOICES = {f"lsr1-batch-{size}": size for size in (512, 2048, 8192)}

OPTIMIZERS: Mapping[str, Optimizer] = {
    "adam": Optimizer("Adam", optax.adam, 0.00316, ours=False),
    # Adam as its experts would run it: a shorter memory of the squares, and a rate that ends at 0.
    "adam-cosine": Optimizer(
        "Adam, β 0.95 and 0.99, cosine decay",
        optax.adam,
        0.00316,
        options={"b1": 0.95, "b2": 0.99, "schedule": COSINE},
        ours=False,
    ),
    "adagrad": Optimizer("Adagrad", optax.adagrad, 0.1, ours=False),
    "sgd": Optimizer(
        "SGD, Nesterov 0.9",
        optax.sgd,
        0.0316,
        options={"momentum": 0.9, "nesterov": True},
        ours=False,
    ),
    "lbfgs": Optimizer(
        "optax.lbfgs", optax.lbfgs, 0.1, options={"linesearch": None}, ours=False, printed_rate=0.1
    ),
    "adaqn": Optimizer("adaQN", naqopt.adaqn, 0.0316),
    "adaqn-eps": Optimizer("adaQN, ε 1e-4", naqopt.adaqn, 0.0316, options={"eps": 1e-4}),
    "adaqn-monitored": Optimizer(
        "adaQN, ε 1e-4, monitoring set",
        naqopt.adaqn,
        0.0316,
        options={"eps": 1e-4},
        monitored=True,
    ),
    "asnaq": dataclasses.replace(_asnaq("aSNAQ"), printed_rate=0.01),
    "asnaq-eps": _asnaq("aSNAQ, ε 1e-8", eps=1e-8),
    "asnaq-backoff": _asnaq("aSNAQ, back-off", backoff=0.9),
    "asnaq-rms": _asnaq("aSNAQ, RMS", accumulator_decay=0.9),
    "asnaq-rms-backoff": _asnaq("aSNAQ, RMS, back-off", accumulator_decay=0.9, backoff=0.9),
    "asnaq-single": _asnaq("aSNAQ, one gradient", single_gradient=True),
    "asnaq-single-backoff": _asnaq(
        "aSNAQ, one gradient, back-off", single_gradient=True, backoff=0.9
    ),
    "asnaq-single-backoff-rms": _asnaq(
        "aSNAQ, one gradient, back-off, RMS",
        single_gradient=True,
        backoff=0.9,
        accumulator_decay=0.9,
    ),
    "obfgs": _online("oBFGS", naqopt.obfgs, None),
    "onaq": _online("oNAQ", naqopt.onaq, None),
    "omoq": _online("oMoQ", naqopt.omoq, None),
    "olbfgs": _online("oLBFGS", naqopt.obfgs, 4),
    "olnaq": _online("oLNAQ", naqopt.onaq, 4),
    "olnaq-95": _online("oLNAQ, μ 0.95", naqopt.onaq, 4, momentum=0.95),
    "onaq-plain": _online("oNAQ, not normalised", naqopt.onaq, None, normalize=False),
    "olnaq-plain": _online("oLNAQ, not normalised", naqopt.onaq, 4, normalize=False),
    "onaq-80": _online("oNAQ, μ 0.8", naqopt.onaq, None, momentum=0.8),
    "olnaq-80": _online("oLNAQ, μ 0.8", naqopt.onaq, 4, momentum=0.8),
    "olmoq": _online("oLMoQ", naqopt.omoq, 4),
    "olmoq-multi": _online("oLMoQ, multi-batch", naqopt.multi_batch_omoq, 4),
    # Without λ a pair is refused where its curvature is negative.
    "olmoq-undamped": _online("oLMoQ, λ 0", naqopt.omoq, 4, damping=0.0),
    "olmoq-multi-undamped": _online(
        "oLMoQ, multi-batch, λ 0", naqopt.multi_batch_omoq, 4, damping=0.0
    ),
    # The papers' step sizes for convolutional networks; they do not print the first one.
    "olmoq-halved": Optimizer(
        "oLMoQ, α halved every epoch",
        naqopt.omoq,
        0.1,
        options={"memory_size": 4, "schedule": "halved every epoch"},
        middle_rate=0.1,
    ),
    "svrg": Optimizer(
        "SVRG", naqopt.svrg, 0.025, 2, middle_rate=0.0316, printed_rate=0.025, takes_snapshots=True
    ),
    "svrg2": Optimizer(
        "SVRG+II",
        naqopt.svrg2,
        0.025,
        2,
        middle_rate=0.0316,
        printed_rate=0.025,
        takes_snapshots=True,
    ),
    "svr-naq": _svr("SVR-NAQ", None),
    "svr-lnaq": _svr("SVR-LNAQ", 4),
    **{
        f"svr-{kind}-{mu:g}": _svr(f"SVR-{kind.upper()}, μ {mu:g}", memory_size, momentum=mu)
        for kind, memory_size in (("naq", None), ("lnaq", 4))
        for mu in SVR_MOMENTA
    },
    # The peers of the paper on L-SR1; what search its L-BFGS had is not said.
    "lbfgs-search": Optimizer("LBFGS, line search", naqopt.bfgs, None, 1, {"memory_size": 5}),
    "lbfgs-forgetting": Optimizer(
        "LBFGS, line search, forgetting",
        _forgetful_bfgs,
        None,
        1,
        {"memory_size": 5, "every": 5},
    ),
    "sgd-plain": Optimizer("SGD", optax.sgd, 0.0316, ours=False),
    "momentum": Optimizer(
        "SGD, momentum 0.9", optax.sgd, 0.0316, options={"momentum": 0.9}, ours=False
    ),
    "adadelta": Optimizer("AdaDelta", optax.adadelta, 1.0, ours=False, middle_rate=1.0),
    "lsr1": Optimizer("L-SR1", naqopt.lsr1, None, 2),
    # As the authors have it on mini-batches: m = 8 and a momentum of at most 0.9.
    "sr1n": Optimizer("L-SR1-N", _accelerated(naqopt.sr1n), None, 2, ACCELERATED),
    "mosr1": Optimizer("L-MoSR1", _accelerated(naqopt.mosr1), None, 1, ACCELERATED),
    **{
        name: Optimizer(
            f"L-SR1, radius × {shrink:g} and {grow:g}",
            _lsr1,
            None,
            2,
            {"shrink": shrink, "grow": grow},
        )
        for name, (shrink, grow) in RADIUS_CHOICES.items()
    },
    **{
        name: Optimizer(f"L-SR1, m {m}", naqopt.lsr1, None, 2, {"memory_size": m})
        for name, m in MEMORY_CHOICES.items()
    },
    **{
        name: Optimizer(f"L-SR1, b {size}", naqopt.lsr1, None, 2)
        for name, size in BATCH_CHOICES.items()
    },
}

# Rows that are compared with each other.
ASNAQ_VARIANTS = (
    "adam",
    "adam-cosine",
    "asnaq",
    "asnaq-backoff",
    "asnaq-rms",
    "asnaq-rms-backoff",
    "asnaq-single",
    "asnaq-single-backoff",
    "asnaq-single-backoff-rms",
)
SVR_BY_MOMENTUM = tuple(
    name
    for kind in ("naq", "lnaq")
    for name in (f"svr-{kind}", *(f"svr-{kind}-{mu:g}" for mu in SVR_MOMENTA))
)
DENSE = ("obfgs", "onaq", "omoq")
LIMITED = ("olbfgs", "olnaq", "olmoq")
