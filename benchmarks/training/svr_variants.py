"""The choices that the reconstruction of SVR-NAQ makes, and the variants that change one each."""

import dataclasses
from collections.abc import Mapping

# What k of the step size 1/√k counts.
ALL_STEPS, AFTER_WARMUP, WITHIN_EPOCH, EPOCHS, NOTHING = (
    "all steps",
    "steps after the SVRG epoch",
    "steps within the epoch",
    "epochs",
    "nothing",
)
# γ of H0 = γ I.
MEAN, NEWEST, ONE = "mean", "newest", "one"
# What is added to y.
CONVERGENCE = "convergence term"


@dataclasses.dataclass(frozen=True)
class Choices:
    """One reading of SVR-NAQ; the defaults are those of `naqopt.svr_naq`.

    Attributes:
      warmup_rate: α of the SVRG epoch; None for no such epoch.
      learning_rate: α_0.
      counted: what k of α_k = α_0/√k counts; `NOTHING` for a constant α.
      normalized: whether the direction has length 1.
      momentum: μ.
      keep_velocity: whether v goes on over a snapshot, rather than from 0.
      variance_reduced: whether G is the control variate, rather than the mini-batch gradient.
      snapshot_average: whether a snapshot is taken at the mean of the epoch's iterates.
      memory_size: m; None for a dense matrix, 0 for H = I.
      scale: γ from the stored pairs: `MEAN`, `NEWEST` or `ONE`.
      by_pairs: whether the two-loop recursion goes pair by pair; rounding alone depends on that.
      damping: λ of y + λ s; `CONVERGENCE` for the ξ of global convergence.
    """

    warmup_rate: float | None = 0.025
    learning_rate: float = 1.0
    counted: str = ALL_STEPS
    normalized: bool = True
    momentum: float = 0.9
    keep_velocity: bool = True
    variance_reduced: bool = True
    snapshot_average: bool = False
    memory_size: int | None = 4
    scale: str = MEAN
    by_pairs: bool = False
    damping: float | str = 0.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """A line of the tables.

    Attributes:
      group: which choice it varies.
      label: how.
      choices: all of them.
    """

    group: str
    label: str
    choices: Choices


BASELINE = "baseline"
_UNNORMALIZED = {"normalized": False}
_CONSTANT = {"counted": NOTHING}
_SVRG2 = {**_UNNORMALIZED, **_CONSTANT, "momentum": 0.0}

VARIANTS: Mapping[str, Variant] = {
    name: Variant(group, label, Choices(**changes))
    for name, group, label, changes in (
        (BASELINE, "baseline", "as in the library", {}),
        ("by-pairs", "rounding", "no change but rounding", {"by_pairs": True}),
        ("raw-decay-1", "length", "not normalized, 1/√k", _UNNORMALIZED),
        (
            "raw-decay-0.1",
            "length",
            "not normalized, 0.1/√k",
            {**_UNNORMALIZED, "learning_rate": 0.1},
        ),
        (
            "raw-0.1",
            "length",
            "not normalized, α = 0.1",
            {**_UNNORMALIZED, **_CONSTANT, "learning_rate": 0.1},
        ),
        (
            "raw-0.025",
            "length",
            "not normalized, α = 0.025",
            {**_UNNORMALIZED, **_CONSTANT, "learning_rate": 0.025},
        ),
        ("momentum-0", "momentum", "μ = 0 (SVRG+II, normalized)", {"momentum": 0.0}),
        *(
            (f"momentum-{mu:g}", "momentum", f"μ = {mu:g}", {"momentum": mu})
            for mu in (0.5, 0.8, 0.95)
        ),
        ("no-warmup", "first epoch", "no SVRG epoch", {"warmup_rate": None}),
        *(
            (f"warmup-{rate:g}", "first epoch", f"SVRG epoch at {rate:g}", {"warmup_rate": rate})
            for rate in (0.1, 0.316)
        ),
        ("gamma-newest", "H0", "γ of the newest pair", {"scale": NEWEST}),
        ("gamma-1", "H0", "γ = 1", {"scale": ONE}),
        *(
            (f"rate-{rate:g}", "step size", f"α_0 = {rate:g}", {"learning_rate": rate})
            for rate in (0.316, 3.16)
        ),
        ("k-later", "step size", "k from 1 after the SVRG epoch", {"counted": AFTER_WARMUP}),
        ("k-epoch", "step size", "k within the epoch", {"counted": WITHIN_EPOCH}),
        ("k-epochs", "step size", "k counts epochs", {"counted": EPOCHS}),
        ("constant", "step size", "α = 0.03", {**_CONSTANT, "learning_rate": 0.03}),
        ("average", "snapshot", "at the mean of the iterates", {"snapshot_average": True}),
        ("velocity-zeroed", "velocity", "zeroed at a snapshot", {"keep_velocity": False}),
        ("no-reduction", "gradient", "no variance reduction", {"variance_reduced": False}),
        ("no-curvature", "memory", "no curvature, H = I", {"memory_size": 0}),
        *((f"m-{m}", "memory", f"m = {m}", {"memory_size": m}) for m in (1, 2, 8)),
        ("dense", "memory", "dense", {"memory_size": None}),
        ("damped", "pairs", "y + s, as in oNAQ", {"damping": 1.0}),
        ("convergence", "pairs", "y + ξ s, convergence term", {"damping": CONVERGENCE}),
        ("svrg2-0.01", "SVRG+II", "α = 0.01", {**_SVRG2, "learning_rate": 0.01}),
        ("svrg2-0.025", "SVRG+II", "α = 0.025", {**_SVRG2, "learning_rate": 0.025}),
    )
}
