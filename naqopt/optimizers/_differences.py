"""The differences y of pairs: what is added to them, and those that wait for the next gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from naqopt import _closures, _tree
from naqopt._tree import Scalar, Tree

# What is added to ε = ∇E(w⁺) − ĝ: the functions of `Method.difference`.


def plain_difference(epsilon: Tree, s: Tree, g: Tree) -> Tree:
    """Returns y = ε."""
    del s, g
    return epsilon


def damped_difference(damping: Any) -> Callable[[Tree, Tree, Tree], Tree]:
    """Returns the function to y = ε + λ s."""

    def difference(epsilon: Tree, s: Tree, g: Tree) -> Tree:
        del g
        return jax.tree.map(lambda e, x: (e + damping * x).astype(e.dtype), epsilon, s)

    return difference


def convergent_difference(epsilon: Tree, s: Tree, g: Tree) -> Tree:
    """Returns y = ε + ξ s with ξ = ω‖ĝ‖ + max(−εᵀs/‖s‖², 0), ω = 2 if ‖ĝ‖² > 1e-2, else 100."""
    squared_g, squared_s = _tree.squared_norm(g), _tree.squared_norm(s)
    omega = jnp.where(squared_g > 1e-2, 2, 100)
    negative = -_tree.dot(epsilon, s) / jnp.where(squared_s > 0, squared_s, 1)
    xi = omega * jnp.sqrt(squared_g) + jnp.maximum(negative, 0)
    return jax.tree.map(lambda e, x: e + xi.astype(e.dtype) * x, epsilon, s)


# Pairs of methods with one gradient a step.


class Pending(NamedTuple):
    """The pair that waits for the gradient of the next step.

    Attributes:
      waits: whether there is one.
      s: w⁺ − ŵ.
      extrapolated: ĝ, of raw gradients; of batches in parts that of the part Ω.
      previous: ∇E(w), the raw gradient of the last step; None without momentum, where it is ĝ. Of
        batches in parts that of the newest part.
      previous_updates: what the transformations in front made of it; None without momentum.
      has_previous: whether there are these two, of the loss of now; None without momentum.
      expected: sᵀBs; None where nobody asks.
      follows: whether `previous` is of what the next batch has as its middle part; None where
        batches have no parts.
    """

    waits: jax.Array
    s: Tree
    extrapolated: Tree
    previous: Tree | None
    previous_updates: Tree | None
    has_previous: jax.Array | None
    expected: jax.Array | None = None
    follows: jax.Array | None = None


def init_pending(
    params: Tree, has_momentum: bool, expects: bool = False, has_parts: bool = False
) -> Pending:
    """Returns that no pair waits."""
    return Pending(
        waits=jnp.zeros((), bool),
        s=_tree.zeros(params),
        extrapolated=_tree.zeros(params),
        previous=_tree.zeros(params) if has_momentum else None,
        previous_updates=_tree.zeros(params) if has_momentum else None,
        has_previous=jnp.zeros((), bool) if has_momentum else None,
        expected=jnp.zeros((), _tree.scalar_dtype(params)) if expects else None,
        follows=jnp.zeros((), bool) if has_parts else None,
    )


def without_pair(pending: Pending | None, velocity: Tree | None) -> dict[str, Any]:
    """Returns both as fields of a state, so that no pair waits and nothing is extrapolated.

    Without the gradient before there is none at the look-ahead point: the next step goes from w.
    """
    if pending is None:
        return {}
    # One array each, as a state is donated.
    flags = {
        name: jnp.zeros_like(flag)
        for name in ("waits", "has_previous", "follows")
        if (flag := getattr(pending, name)) is not None
    }
    fields: dict[str, Any] = {"pending": pending._replace(**flags)}
    if pending.has_previous is not None:
        fields["velocity"] = jax.tree.map(jnp.zeros_like, velocity)
    return fields


def chain(pending: Pending, formed: Scalar, taken: Scalar) -> tuple[Scalar, Scalar | None]:
    """Returns `waits` and `follows` after a step whose pair, if it is formed, has to wait.

    The three gradients of a pair of batches in parts are of one part Ω, the newest at one step, the
    middle at the next and the oldest at that after it. A skipped step lets a batch go by: what
    waited for its oldest part waits in vain, and of the next batch's middle part the gradient at
    the last iterate is not known. So neither the step before it nor that behind it gives a pair.
    """
    if pending.follows is None:
        return jnp.where(taken, formed, pending.waits), None
    assert pending.has_previous is not None
    # Where there is nothing to extrapolate from v is 0, and the middle part's gradient is ĝ.
    known = pending.follows | ~pending.has_previous
    return taken & formed & known, taken


def settle(
    update: Callable[..., tuple[Any, Scalar]],
    difference: Callable[[Tree, Tree, Tree], Tree],
    curvature: Any,
    pending: Pending,
    raw: Tree,
    taken: Scalar,
    product: Callable[[], Tree] | None = None,
) -> tuple[Any, dict[str, Scalar], Tree | None]:
    """Forms the pair that waited for this gradient: y = ∇E(w⁺) − ĝ and what is added to it.

    Where `update` returns a product with the new state as its third, `product` is that with the
    present one, for steps without a pair.
    """

    def form() -> tuple[Any, ...]:
        epsilon = _tree.subtract(raw, pending.extrapolated)
        y = difference(epsilon, pending.s, pending.extrapolated)
        asked = {} if pending.expected is None else {"expected": pending.expected}
        return update(curvature, pending.s, y, jnp.ones((), bool), **asked)

    # Not masked but conditional, as the direction reads what is stored here: XLA would fuse a
    # masked store into each of its readers, every time into a copy of the rings.
    formed = taken & pending.waits

    def keep() -> tuple[Any, ...]:
        products = () if product is None else (product(),)
        return curvature, jnp.zeros((), bool), *products

    settled, stored, *products = _tree.cond(formed, form, keep)
    events = {"pairs_stored": stored, "pairs_refused": formed & ~stored}
    return settled, events, products[0] if products else None


def extrapolate(pending: Pending, mu: Scalar, updates: Tree, raw: Tree) -> tuple[Tree, Tree]:
    """Returns (1+μ) g − μ g_prev of the updates and of the raw gradients, each of its own kind.

    μ is 0 at the first step, behind which nothing is, and where the loss has changed since; of raw
    gradients of parts also where the last one was of another part.
    """

    def onward(known: Scalar | None, now: Tree, before: Tree) -> Tree:
        assert known is not None
        weight = jnp.where(known, mu, 0)
        return _tree.add(now, _tree.scale(weight, _tree.subtract(now, before)))

    known = pending.has_previous
    if pending.follows is None and _closures.same_leaves(updates, raw):
        extrapolated = onward(known, raw, pending.previous)
        return extrapolated, extrapolated
    known_of_raw = known if pending.follows is None else pending.follows
    extrapolated = onward(known_of_raw, raw, pending.previous)
    return onward(known, updates, pending.previous_updates), extrapolated
