"""Methods that several fits compare: first-order ones, and the family with a dense matrix."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

import naqopt
from benchmarks.training.fit import Method, Published

DENSE = {"memory_size": None}
CUSTOMARY = "-customary"

_FIRST_ORDER = {  # with the customary learning rate
    "sgd": ("SGD", optax.sgd, 0.01),
    "adagrad": ("AdaGrad", optax.adagrad, 0.01),
    "rmsprop": ("RMSprop", optax.rmsprop, 0.001),
    "adam": ("Adam", optax.adam, 0.001),
}


def first_order(**middle_rates: float) -> dict[str, Method]:
    """Returns first-order methods, each with a tuned learning rate and with the customary one.

    Args:
      **middle_rates: by name, the middle of the grid on which it is tuned.
    """
    methods = {}
    for name, middle_rate in middle_rates.items():
        label, make, customary = _FIRST_ORDER[name]
        tuned = Method(label, make, first_order=True, ours=False, middle_rate=middle_rate)
        methods[name] = tuned
        methods[name + CUSTOMARY] = dataclasses.replace(
            tuned, label=f"{label}, customary rate", learning_rate=customary
        )
    return methods


def family() -> dict[str, Method]:
    """Returns BFGS, and mNAQ by its momentum, with dense matrices."""
    methods = {
        "bfgs": Method("BFGS", naqopt.bfgs, DENSE),
        "bfgs-wolfe": Method("BFGS, Wolfe search", _wolfe_bfgs, DENSE),
        "mbfgs": Method("mBFGS (mNAQ, μ = 0)", naqopt.mnaq, {"momentum": 0.0, **DENSE}),
    }
    for momentum in (0.8, 0.85, 0.9, 0.95):
        options = {"momentum": momentum, **DENSE}
        methods[f"mnaq-{momentum:g}"] = Method(f"mNAQ, μ = {momentum:g}", naqopt.mnaq, options)
    return methods | {"amnaq": Method("amNAQ", _amnaq, DENSE)}


def searching() -> dict[str, Method]:
    """Returns NAQ and MoQ, which search along a line, with dense matrices, with and without ξ."""
    methods = {}
    for name, label, make in (("naq", "NAQ", naqopt.naq), ("moq", "MoQ", naqopt.moq)):
        options = {"momentum": 0.9, **DENSE}
        term = options | {"convergence_term": True}
        methods[f"{name}-term"] = Method(f"{label}, μ = 0.9, ξ", make, term)
        methods[name] = Method(f"{label}, μ = 0.9", make, options)
    return methods


def recycling() -> dict[str, Method]:
    """Returns SSBroyden and `optax.lbfgs`, each of whose steps hands on its last gradient."""
    limited = {"memory_size": 10}
    return {
        "ssbroyden": Method("SSBroyden", naqopt.ssbroyden, reuse=True),
        "optax-lbfgs": Method("optax.lbfgs, m = 10", optax.lbfgs, limited, ours=False, reuse=True),
    }


def beside(published: Mapping[str, Published], methods: Mapping[str, Method]) -> dict[str, Method]:
    """Returns the methods with the published figures of their names.

    They are the same beside a tuned and a customary learning rate, which the slides do not tell.
    """
    return {
        name: dataclasses.replace(method, published=published.get(name.removesuffix(CUSTOMARY)))
        for name, method in methods.items()
    }


def _amnaq(**options: Any) -> optax.GradientTransformation:
    return naqopt.mnaq(momentum=naqopt.schedules.nesterov_momentum(), **options)


def _wolfe_bfgs(**options: Any) -> optax.GradientTransformation:
    """Returns BFGS with the search of `optax.lbfgs`, whose pairs have positive curvature."""
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")
    return naqopt.bfgs(linesearch=search, **options)
