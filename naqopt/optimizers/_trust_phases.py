"""The phases of a step of the rank-one family, in the order of `_indefinite`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from naqopt import _tree
from naqopt._tree import Scalar, Tree
from naqopt.steps import trust_region

_LARGER = 16  # times γ, where a step without a pair was rejected and left none


class Fates(NamedTuple):
    """What becomes of a step, as masks.

    Attributes:
      goes: it is accepted, or the momentum goes on without one.
      back: it is rejected or refused, so that the params are w again.
      stays: the velocity is as it was: it is rejected, or nothing happens.
      skips: nothing happens, or a bad point is left.
      accepts: it is accepted.
      declines: it is not.
      away: a bad point is left.
    """

    goes: Scalar
    back: Scalar
    stays: Scalar
    skips: Scalar
    accepts: Scalar
    declines: Scalar
    away: Scalar


def first_radius(radius: Scalar, gradient: Tree, moving: Scalar) -> Scalar:
    """Returns the radius, at the first gradient that is not zero that gradient's norm."""
    norm = _tree.norm(gradient).astype(radius.dtype)
    first = jnp.clip(norm, trust_region.MIN_RADIUS, trust_region.MAX_RADIUS)
    return jnp.where((radius > 0) | ~moving, radius, first)


def first_gamma(
    curvature: Any, norm: Scalar, radius: Scalar, rejected_before: Scalar | None
) -> Scalar:
    """Returns γ = ‖ĝ‖/Δ, by which a step leads to the boundary while no curvature is known.

    After a rejected step that has left no pair it is larger than the last one.
    """
    gamma = norm / radius
    if rejected_before is None:
        return gamma
    larger = jnp.maximum(_LARGER * curvature.gamma.astype(gamma.dtype), gamma)
    return jnp.where(rejected_before, larger, gamma)


def ratio(here: Scalar, there: Scalar, predicted: Scalar, usable: Scalar) -> Scalar:
    """Returns ared / pred, the part that the loss falls by of what the model predicts.

    Beneath rounding the ratio is noise, hence the slack of ε |E| on both. Conn, Gould and Toint
    (17.4.2) have 10 ε |E|, by which the loss can rise ten times as far
    (`test_a_loss_whose_decrease_is_beneath_its_rounding`).
    """
    sound = usable & (predicted > 0)
    slack = jnp.finfo(here.dtype).eps * jnp.abs(here)
    reduction = here - there + slack
    return jnp.where(sound, reduction / jnp.where(sound, predicted + slack, 1), 0)


def moved(
    fates: Fates, step: Tree, lookahead: Tree, velocity: Tree, next_momentum: Scalar | None
) -> tuple[Tree, Tree]:
    """Returns v⁺ and by what the params move; the next μ is given where they are ahead of w."""
    onward = _tree.add(lookahead, step)
    following = _tree.choose((fates.goes, onward), (fates.stays, velocity))
    if next_momentum is None:  # from w, by v⁺
        to_previous = jax.tree.map(jnp.negative, velocity)
        return following, _tree.choose((fates.goes, onward), (fates.away, to_previous))
    # from ŵ, by s and to the next look-ahead point
    to_iterate = jax.tree.map(jnp.negative, lookahead)
    move = _tree.choose((fates.goes, step), (fates.back | fates.away, to_iterate))
    return following, _tree.add(move, _tree.scale(next_momentum, following))
