"""The direction of descent."""

import jax.numpy as jnp

from naqopt import _tree
from naqopt._tree import Scalar, Tree


def descent(
    product: Tree,
    norm: Scalar,
    g: Tree,
    norm_g: Scalar,
    rate: Scalar,
    normalize: bool | Scalar = True,
) -> tuple[Tree, Scalar]:
    """Returns α d and its length; d = −H g, divided by ‖H g‖ if asked for.

    Where H g is not finite, d = −g/‖g‖.

    Args:
      product: H g, in at least float32.
      norm: ‖H g‖.
      g: the gradient, finite; a zero gradient has a zero direction.
      norm_g: ‖g‖.
      rate: α; where it is not finite, or ‖α d‖ is not, the result is zero.
      normalize: whether d has length 1.

    Returns:
      α d, in the dtypes of `product`, and ‖α d‖, which may not be finite.
    """
    usable = jnp.isfinite(norm)
    divisor = jnp.where(usable, jnp.where(normalize, norm, 1), norm_g.astype(norm.dtype))
    inverse = jnp.where(divisor > 0, 1 / jnp.where(divisor > 0, divisor, 1), 0)
    length = rate * jnp.where(usable, norm * inverse, 1)
    factor = jnp.where(jnp.isfinite(length), -rate * inverse, 0)
    usable, length, factor = _tree.together(_tree.mask(usable), length, factor)
    chosen = _tree.choose((usable, product), (~usable, _tree.cast_as(product, g)))
    return _tree.scale(factor, chosen), length
