"""What is known of the Hessian: pure state and pure functions, no Optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

from naqopt._tree import Scalar, Tree


class Curvature(NamedTuple):
    """An approximation H of the inverse Hessian that learns from pairs (s, y).

    As an Optax transformation is, it is made of pure functions; the state is whatever `init`
    returns.

    Attributes:
      init: from the params to the state, which knows nothing yet.
      rows: from a state to a history in it whose rows are like the params.
      precondition: from a state, a gradient g and γ to H g; H is γ I while the state knows nothing.
      update: from a state, s, y and whether to accept them to the next state and whether the pair
        was stored. It must be finite and sᵀy > c ‖s‖ ‖y‖. Arguments more are the numerator of the
        γ that the first pair sets, where it is not sᵀy, and sᵀBs.
      update_then_precondition: `update` and H⁺ g in one, where that saves a pass over the state;
        from the arguments of `update`, g and γ to what both return.
      clear: from a state and a condition to the state that knows nothing where the condition holds.
      asks_expected: whether `update` needs sᵀBs, the curvature along s that the matrix expected.
    """

    init: Callable[[Tree], Any]
    rows: Callable[[Any], Tree]
    precondition: Callable[[Any, Tree, Scalar], Tree]
    update: Callable[..., tuple[Any, Scalar]]
    clear: Callable[[Any, Scalar], Any]
    asks_expected: bool = False
    update_then_precondition: Callable[..., tuple[Any, Scalar, Tree]] | None = None
