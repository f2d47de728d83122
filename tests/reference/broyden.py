"""The dense matrix H of the Broyden class, plain and self-scaled, on flat float64 vectors.

With s = −αHg, so that Bs = −αg for B = H⁻¹, the gradient y changed by along s, and N parameters,

    ρ = 1/(sᵀy)   h = yᵀHy·ρ   b = sᵀBs·ρ   a = hb − 1   v = ρs − Hy/(yᵀHy)   φ = (1 − θ)/(1 + aθ)
    H⁺ = [H − Hy yᵀH/(yᵀHy) + φ(yᵀHy)vvᵀ]/τ + ρssᵀ
    B⁺ = τ[B − Bs sᵀB/(sᵀBs) + θ(sᵀBs)uuᵀ] + ρyyᵀ,   u = ρy − Bs/(sᵀBs)

are inverse to each other, and a rule is a choice of θ and τ:

    bfgs       θ = 0, τ = 1
    dfp        θ = 1, τ = 1
    ssbfgs     θ = 0, τ = min(1, 1/b)                                                    (Al-Baali)
    ssbroyden  c = √(a/(1 + a))   ρ⁻ = min(1, h(1 − c))   θ⁻ = (ρ⁻ − 1)/a   θ⁺ = 1/ρ⁻
               θ = max(θ⁻, min(θ⁺, (1 − b)/b))   σ = 1 + aθ   ρ_k = min(1, 1/b)
               τ = min(ρ_k|σ|^(1/(1 − N)), σ) where θ ≤ 0, else ρ_k min(|σ|^(1/(1 − N)), 1/θ)

The last is that of Urbán, Stefanou and Pons (arXiv 2405.04230), after Al-Baali. `update` writes out
its limits and spares the differences of nearly equal numbers on which it would otherwise depend;
`direct_update` takes it letter by letter.
"""

from dataclasses import dataclass

import numpy as np

from .quasi_newton import FULL_BATCH_MIN_CURVATURE, is_curved
from .vectors import is_finite, norm, quiet

SELF_SCALED = ("ssbfgs", "ssbroyden")
RULES = ("bfgs", "dfp", *SELF_SCALED)
SUFFICIENT_DECREASE = 1e-4  # c₁ of the Wolfe conditions
CURVATURE = 0.9  # c₂ of the Wolfe conditions
TRIALS = 100


@dataclass(frozen=True)
class Coefficients:
    """The numbers of one update, all without units; see the formulas above."""

    a: float
    b: float
    h: float
    theta: float
    phi: float
    tau: float


def self_scaled_broyden(a, b, size):
    """θ, σ and τ of SSBroyden from a ≥ 0 and b ≥ 0."""
    c = np.sqrt(a / (1.0 + a))  # c = √(a/(1 + a)), below 1
    # ρ⁻ = min(1, h(1 − c)). As 1 + a = hb, 1 − c = (1 − c²)/(1 + c) = 1/(hb(1 + c)), which spares
    # the difference: rounded, it is 0 from a = 10¹⁶ on, and σ with it.
    reach = b * (1.0 + c)
    rho_minus = 1.0 / max(1.0, reach)
    theta_plus = max(1.0, reach)  # θ⁺ = 1/ρ⁻
    # θ⁻ = (ρ⁻ − 1)/a; as a → 0 it falls to −∞ where b ≥ 1, and is 0 where b < 1. Below b = 1 it
    # decides nothing, being at most 0 < (1 − b)/b; the limit is −∞ for every b.
    theta_minus = (rho_minus - 1.0) / a if a > 0.0 else -np.inf
    # (1 − b)/b; as b → 0 it grows past every bound, as it does past θ⁺ from b = ½ downwards,
    # where θ⁺ is 1 (there reach < 2b).
    wanted = (1.0 - b) / b if b > 0.5 else theta_plus
    theta = max(theta_minus, min(theta_plus, wanted))  # θ = max(θ⁻, min(θ⁺, (1 − b)/b))
    # σ = 1 + aθ, at least 1 + aθ⁻ = ρ⁻ > 0; without this bound rounding may leave 0 or less.
    sigma = max(1.0 + a * theta, rho_minus)
    rho_k = 1.0 / max(1.0, b)  # ρ_k = min(1, 1/b); 1 as b → 0
    # |σ|^(1/(1 − N)); for one parameter y is a multiple of Bs, so that a = 0 and σ = 1
    root = sigma ** (1.0 / (1.0 - size)) if size > 1 else 1.0
    if theta <= 0.0:
        return theta, sigma, min(rho_k * root, sigma)  # τ = min(ρ_k|σ|^(1/(1 − N)), σ)
    return theta, sigma, rho_k * min(root, 1.0 / theta)  # τ = ρ_k min(|σ|^(1/(1 − N)), 1/θ)


def coefficients(h, b, size, rule):
    """θ, φ and τ of a rule, from yᵀHy/(sᵀy) and sᵀBs/(sᵀy) and the number of parameters.

    For "bfgs" and "dfp" b may be anything, as neither needs it.
    """
    # a = hb − 1. (sᵀy)² ≤ yᵀHy·sᵀBs makes it at least 0. Rounding, of which late in a run s and y
    # have much more than one part in 10¹⁶, does not: and with a = −10⁻¹⁶ the formulas as they stand
    # take θ⁻ = 10⁸ for θ and τ = 10⁻⁸, which multiplies H by 10⁸.
    a = h * b - 1.0
    a = 0.0 if a < 0.0 else a
    if rule == "bfgs":
        theta, phi, tau = 0.0, 1.0, 1.0
    elif rule == "dfp":
        theta, phi, tau = 1.0, 0.0, 1.0
    elif rule == "ssbfgs":
        theta, phi, tau = 0.0, 1.0, 1.0 / max(1.0, b)  # τ = min(1, 1/b); 1 as b → 0
    else:
        theta, sigma, tau = self_scaled_broyden(a, b, size)
        phi = (1.0 - theta) / sigma  # φ = (1 − θ)/(1 + aθ)
    return Coefficients(a=a, b=b, h=h, theta=theta, phi=phi, tau=tau)


@quiet
def measure(H, s, y, g, alpha=None, rule="ssbroyden"):
    """The coefficients of the update with a pair, or `None` where the pair is to be refused.

    Args:
      H: the matrix, symmetric and positive definite.
      s: the step, along −Hg.
      y: what the gradient changed by.
      g: the gradient from which the step's direction was computed: that at the step's beginning,
        ĝ for NAQ and MoQ.
      alpha: the step size; `None` finds it.
      rule: one of `RULES`.
    """
    if not is_curved(s, y, FULL_BATCH_MIN_CURVATURE):  # sᵀy > 10⁻⁸‖s‖‖y‖
        return None
    rho = 1.0 / (s @ y)  # ρ = 1/(sᵀy)
    h = (y @ H @ y) * rho  # h = yᵀHy·ρ
    if not (np.isfinite(h) and h > 0.0):
        return None
    if alpha is None:
        p = -(H @ g)
        alpha = s @ (p / norm(p)) / norm(p)  # α = sᵀp/(pᵀp), p = −Hg
    b = -alpha * (s @ g) * rho  # b = sᵀBs·ρ = −α sᵀg·ρ
    if rule in SELF_SCALED and not (b >= 0.0 and np.isfinite(h * b)):
        return None
    found = coefficients(h, b, s.size, rule)
    scale = 1.0 / found.tau if found.tau > 0.0 else np.inf
    return found if np.isfinite(scale) and np.isfinite(found.phi) else None


def apply(H, s, y, found):
    """The next matrix by the coefficients of `measure`."""
    rho = 1.0 / (s @ y)  # ρ = 1/(sᵀy)
    Hy = H @ y
    yHy = y @ Hy
    v = rho * s - Hy / yHy  # v = ρs − Hy/(yᵀHy)
    # [H − Hy yᵀH/(yᵀHy) + φ(yᵀHy)vvᵀ]: a symmetric H gives a symmetric H⁺, to the last bit
    bracket = H - np.outer(Hy, Hy) / yHy + found.phi * yHy * np.outer(v, v)
    return bracket / found.tau + rho * np.outer(s, s)  # H⁺ = […]/τ + ρssᵀ


@quiet
def update(H, s, y, g, alpha=None, rule="ssbroyden"):
    """The next matrix, and whether the pair was stored; a refused pair leaves H as it is.

    For the arguments see `measure`.
    """
    found = measure(H, s, y, g, alpha, rule)
    H_next = H if found is None else apply(H, s, y, found)
    return (H_next, True) if found is not None and is_finite(H_next) else (H, False)


def plain_coefficients(h, b, size, rule):
    """θ and τ letter by letter, for a > 0 and b > 0 far from the limits."""
    if rule in ("bfgs", "dfp"):
        return (0.0 if rule == "bfgs" else 1.0), 1.0
    if rule == "ssbfgs":
        return 0.0, min(1.0, 1.0 / b)
    a = h * b - 1.0
    c = np.sqrt(abs(a) / (1.0 + a))
    rho_minus = min(1.0, h * (1.0 - c))
    theta_minus = (rho_minus - 1.0) / a
    theta_plus = 1.0 / rho_minus
    theta = max(theta_minus, min(theta_plus, (1.0 - b) / b))
    sigma = 1.0 + a * theta
    rho_k = min(1.0, 1.0 / b)
    root = abs(sigma) ** (1.0 / (1.0 - size))
    if theta <= 0.0:
        return theta, min(rho_k * root, sigma)
    return theta, rho_k * min(root, 1.0 / theta)


def direct_update(H, s, y, rule):
    """The next matrix by way of B = H⁻¹; for a pair that is not to be refused."""
    B = np.linalg.inv(H)
    rho = 1.0 / (s @ y)
    sBs = s @ B @ s
    theta, tau = plain_coefficients(rho * (y @ H @ y), rho * sBs, s.size, rule)
    u = rho * y - B @ s / sBs
    # B⁺ = τ[B − Bs sᵀB/(sᵀBs) + θ(sᵀBs)uuᵀ] + ρyyᵀ
    bracket = B - np.outer(B @ s, B @ s) / sBs + theta * sBs * np.outer(u, u)
    return np.linalg.inv(tau * bracket + rho * np.outer(y, y))


def strong_wolfe(loss_and_gradient, w, d, curvature=CURVATURE):
    """A step size that satisfies the strong Wolfe conditions, or 0 where none was found.

    E(w + αd) ≤ E(w) + c₁αgᵀd and |∇E(w + αd)ᵀd| ≤ c₂|gᵀd|, by doubling and then halving. At `low`
    the first holds and the slope is below c₂gᵀd; at `high` the first fails or the slope is above
    −c₂gᵀd. Between two such points there is always a step size that satisfies both.
    """
    start, g = loss_and_gradient(w)
    slope = g @ d
    if not slope < 0.0:
        return 0.0
    low, high, alpha = 0.0, np.inf, 1.0
    for _ in range(TRIALS):
        value, gradient = loss_and_gradient(w + alpha * d)
        next_slope = gradient @ d
        decreases = value <= start + SUFFICIENT_DECREASE * alpha * slope  # NaN does not
        if not decreases or not next_slope <= -curvature * slope:
            high = alpha
        elif next_slope < curvature * slope:
            low = alpha
        else:
            return alpha
        alpha = 0.5 * (low + high) if high < np.inf else 2.0 * alpha
    return 0.0


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
      w: the iterate after the step.
      gradient_norm: the norm of its gradient.
      alpha: the step size; 0 where the search found none.
      stored: whether the pair was stored.
      coefficients: those of the update, or `None` where the pair was refused before there were any.
    """

    w: np.ndarray
    gradient_norm: float
    alpha: float
    stored: bool
    coefficients: Coefficients | None


@quiet
def minimize(loss_and_gradient, w, rule, steps, search=strong_wolfe, tolerance=0.0):
    """The steps of a full-batch run, at most `steps` of them.

    The matrix is I/‖g‖ while there is no pair, and (sᵀy/yᵀy)I before its first update. Where the
    search fails the pairs are forgotten; where it fails without a pair the run ends.

    Args:
      loss_and_gradient: the two as a function of a point.
      w: the first iterate.
      rule: one of `RULES`.
      steps: the most steps to take.
      search: the step size as a function of `loss_and_gradient`, a point and a direction.
      tolerance: the norm of the gradient at which the run ends.
    """
    w = np.array(w, dtype=np.float64)
    identity = np.eye(w.size)
    H, run = None, []
    _, g = loss_and_gradient(w)
    while len(run) < steps and norm(g) > tolerance:
        p = -(H @ g) if H is not None else -g / norm(g)  # p = −Hg
        alpha = search(loss_and_gradient, w, p)
        if alpha == 0.0:
            run.append(Step(w, norm(g), 0.0, False, None))
            if H is None:
                break
            H = None
            continue
        w_next = w + alpha * p  # w⁺ = w + αp
        _, g_next = loss_and_gradient(w_next)
        s, y = w_next - w, g_next - g
        # Before the first update H = (sᵀy/yᵀy)I. The step along −g was also one along this −Hg.
        before = (s @ y) / norm(y) / norm(y) * identity if H is None else H
        found = measure(before, s, y, g, rule=rule)
        H_next, stored = update(before, s, y, g, rule=rule)
        H = H_next if stored else H
        w, g = w_next, g_next
        run.append(Step(w, norm(g), alpha, stored, found))
    return run
