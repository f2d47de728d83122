"""What a method of the quasi-Newton family is composed of, and the state that it carries."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from naqopt import _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature import Curvature
from naqopt.optimizers._differences import Pending, without_pair
from naqopt.optimizers._stored import Stored, without_value
from naqopt.state import Info
from naqopt.steps.line_search import PreviousLoss, StepLength
from naqopt.steps.schedules import Momentum


class Method(NamedTuple):
    """What a method is composed of.

    Attributes:
      optimizer: the call's name, for messages.
      curvature: what becomes of the pairs, and H.
      two_gradients: whether the second gradient of a pair is taken within the step.
      step_length: how α is found.
      learning_rate: what d is scaled by before; None for 1.
      momentum: μ, a number or a schedule of the number of steps taken before; None for none.
      difference: (ε, s, ĝ) to y, where ε = ∇E(w⁺) − ĝ.
      normalize: whether d is divided by its norm.
      scale_first: whether H0 is I/‖ĝ‖, and not I, while no pair is stored.
      plain_first_scale: whether the first pair sets γ = sᵀε/yᵀy (mNAQ).
      restart_window: with how many of the last losses E(ŵ) is compared; None for no restarts.
      store_grad: whether the value and gradient at the new params are kept in the state.
      has_parts: whether batches have three parts, of one of which all gradients of a pair are.
    """

    optimizer: str
    curvature: Curvature
    two_gradients: bool
    step_length: StepLength
    learning_rate: optax.ScalarOrSchedule | None
    momentum: Momentum | None
    difference: Callable[[Tree, Tree, Tree], Tree]
    normalize: bool
    scale_first: bool
    plain_first_scale: bool = False
    restart_window: int | None = None
    store_grad: bool = False
    has_parts: bool = False

    @property
    def ahead(self) -> bool:
        """Whether the params are the look-ahead point."""
        return self.momentum is not None and self.two_gradients

    @property
    def behind(self) -> bool:
        """Whether the gradient at the look-ahead point is extrapolated from those behind it."""
        return self.momentum is not None and not self.two_gradients


class QuasiNewtonState(NamedTuple):
    """State of the quasi-Newton family; what a method does not need is None.

    Attributes:
      count: k, the steps taken; skipped ones do not count.
      momentum: μ, with which the present look-ahead point was made; None without look-ahead.
      velocity: v.
      curvature: the pairs, or the dense matrix.
      pending: what a method with one gradient a step keeps for the next.
      step_length: what the step length keeps.
      losses: the last E(w), newest last, the lowest number where unknown; None without restarts.
      stored: value and gradient at the params, with `store_grad`.
      info: scalars for `naqopt.diagnostics`.
    """

    count: jax.Array  # type: ignore[assignment]  # Optax's name for it
    momentum: jax.Array | None
    velocity: Tree | None
    curvature: Any
    pending: Pending | None
    step_length: Any
    losses: jax.Array | None
    stored: Stored | None
    info: Info

    def lookahead(self) -> Tree:
        """Returns μ v, what the params are ahead of the iterate by."""
        assert self.momentum is not None
        return _tree.scale(self.momentum, self.velocity)

    @property
    def of_gradients_alone(self) -> bool:
        """Whether a step looks at nothing but the gradient that it is given."""
        judges = (self.step_length, self.losses, self.stored)
        waits = self.pending is not None and self.pending.follows is None
        return waits and all(judge is None for judge in judges)

    def without_loss(self) -> "QuasiNewtonState":
        """Returns the state for a loss that has changed."""
        losses, number = self.losses, self.step_length
        return self._replace(
            **without_pair(self.pending, self.velocity),
            step_length=number.unknown() if isinstance(number, PreviousLoss) else number,
            losses=None if losses is None else jnp.full_like(losses, unknown_loss(losses.dtype)),
            stored=None if self.stored is None else without_value(self.stored),
        )


def unknown_loss(dtype: Any) -> Scalar:
    """Returns what stands for a loss that is not known, lower than any."""
    return jnp.finfo(dtype).min.astype(dtype)
