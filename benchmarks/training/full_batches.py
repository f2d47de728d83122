"""Steps on a loss of all examples at once; when they end is up to the loop that takes them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

Params = Any
State = Any


class Descent(NamedTuple):
    """A method on a loss.

    Attributes:
      tx: the method, which is given `value`, `grad` and `value_fn`.
      loss: from the params to a scalar.
      reuse: whether the state holds the value and gradient at the new params.
    """

    tx: optax.GradientTransformationExtraArgs
    loss: Callable[[Params], jax.Array]
    reuse: bool = False

    def value_and_grad(self, params: Params, state: State) -> tuple[jax.Array, Params]:
        """Returns the loss and its gradient, as the state holds them where it does."""
        if self.reuse:
            return optax.value_and_grad_from_state(self.loss)(params, state=state)
        return jax.value_and_grad(self.loss)(params)

    def move(
        self, params: Params, state: State, value: jax.Array, grad: Params
    ) -> tuple[Params, State]:
        """Returns params and state behind a step whose value and gradient are there."""
        updates, state = self.tx.update(
            grad, state, params, value=value, grad=grad, value_fn=self.loss
        )
        return optax.apply_updates(params, updates), state

    def step(self, params: Params, state: State) -> tuple[Params, State, Params]:
        """Returns params and state behind a step, and the gradient in front of it."""
        value, grad = self.value_and_grad(params, state)
        return *self.move(params, state, value, grad), grad
