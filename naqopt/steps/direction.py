"""The direction of descent."""

import jax
import jax.numpy as jnp

from naqopt import _tree
from naqopt._tree import Scalar, Tree


def descent(product: Tree, norm: Scalar, g: Tree, normalize: bool = True) -> Tree:
    """Returns d = −H g, divided by ‖H g‖ if asked for; −g/‖g‖ where H g is not finite.

    Args:
      product: H g, in at least float32.
      norm: ‖H g‖.
      g: the gradient, finite; a zero gradient has a zero direction.
      normalize: whether d has length 1.

    Returns:
      d, in the dtypes of `product`.
    """
    usable = jnp.isfinite(norm)
    length = norm if normalize else jnp.ones_like(norm)
    length = jnp.where(usable, length, jnp.sqrt(_tree.squared_norm(g)).astype(norm.dtype))
    inverse = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    return jax.tree.map(
        lambda h, x: -inverse.astype(h.dtype) * jnp.where(usable, h, x.astype(h.dtype)), product, g
    )
