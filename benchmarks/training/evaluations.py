"""Evaluations of a loss, counted when they run and not when they are traced."""

from collections.abc import Callable, Sequence

import jax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Counter:
    """Counts what a compiled program evaluates.

    Attributes:
      evaluations: of the loss, each of them alone or together with its gradient.
      gradients: how many of them had their gradient taken.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Starts from zero."""
        self.evaluations = self.gradients = 0

    @property
    def losses(self) -> int:
        """Evaluations of the loss alone."""
        return self.evaluations - self.gradients

    def loss(self, functions: Sequence[Callable[[jax.Array], jax.Array]]) -> Loss:
        """Returns a counted function of a point and of the index of one of these functions.

        With the index as an argument of the compiled program, one program serves several functions.
        """

        @jax.custom_jvp
        def counted(value: jax.Array) -> jax.Array:
            jax.debug.callback(self._evaluated)
            return value

        @counted.defjvp
        def _(primals, tangents):
            # The gradient runs the transpose of the derivative, also under `jax.linearize`.
            tangent = jax.custom_derivatives.linear_call(
                lambda _, tangent: tangent, transposed, (), *tangents
            )
            return counted(*primals), tangent

        def transposed(_, cotangent: jax.Array) -> jax.Array:
            jax.debug.callback(self._differentiated)
            return cotangent

        return lambda point, index: counted(jax.lax.switch(index, functions, point))

    def _evaluated(self) -> None:
        self.evaluations += 1

    def _differentiated(self) -> None:
        self.gradients += 1
