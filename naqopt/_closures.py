"""The loss and gradient functions that a caller hands to `update`."""

import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from naqopt import _checks, _tree
from naqopt._tree import Scalar, Tree

_EXAMPLE = (
    "tx.update(grads, state, params, value=value, grad=grads, value_fn=lambda p: loss_fn(p, batch))"
)
_EXAMPLE_OF_PARTS = (
    "part_grads = tuple(jax.grad(loss_fn)(params, part) for part in (newest, middle, oldest)); "
    "grads = jax.tree.map(lambda *g: sum(g) / 3, *part_grads); "
    "tx.update(grads, state, params, part_grads=part_grads)"
)


class Parts(NamedTuple):
    """The raw gradients of a batch's three parts.

    Attributes:
      newest: of the part that is in a batch for the first time.
      middle: of the one that was the newest a step ago.
      oldest: of the one that was the middle a step ago, and is left out of the next batch.
    """

    newest: Tree
    middle: Tree
    oldest: Tree


class Given(NamedTuple):
    """What a caller hands to `update`, checked.

    Gradients that are not finite come as zeros, so that nothing computed from them is lost either.

    Attributes:
      updates: what the transformations in front have made of the gradient.
      raw: the raw gradient at the params.
      params: the params.
      taken: whether all gradients are finite; if not, the step has to be skipped.
      norm: ‖updates‖.
      parts: the raw gradients of the batch's parts, where it has any; as they came.
    """

    updates: Tree
    raw: Tree
    params: Tree
    taken: Scalar
    norm: Scalar
    parts: Parts | None = None

    def uphill(self, slope: Callable[[], Scalar]) -> dict[str, Scalar]:
        """Returns the event that the direction does not descend the loss of the raw gradient.

        `slope` is that loss's along the direction. Where nothing in front has changed the gradient
        the direction is the method's own, and nothing is computed.
        """
        return {} if self.updates is self.raw else {"steps_uphill": slope() > 0}


def arguments(optimizer: str, like: Tree, updates: Tree, params: Tree, grad: Tree | None) -> Given:
    """Returns the checked arguments; `like` is a tree of the structure that init was given."""
    params = _checks.params(optimizer, params)
    _checks.same_structure(optimizer, "params", params, like)
    same = grad is None or same_leaves(grad, updates)  # nothing in front has changed it
    updates = _checks.gradients(optimizer, "updates", updates)
    _checks.same_structure(optimizer, "updates", updates, params)
    grad = None if same else _checks.gradients(optimizer, "grad", grad)
    raw = updates if same else pruned(optimizer, "grad", grad, updates)
    norm = _tree.norm(updates)
    taken = jnp.isfinite(norm)  # as is every coordinate, then
    if not same:
        taken = taken & _tree.is_finite(raw)
    (keep,) = _tree.masks(taken)
    updates = _tree.choose((keep, updates))
    raw = updates if same else _tree.choose((keep, raw))
    return Given(updates, raw, params, taken, jnp.where(taken, norm, 0))


def with_parts(optimizer: str, given: Given, part_grads: Any) -> Given:
    """Returns the arguments with the gradients of the batch's three parts, checked."""
    if part_grads is None:
        raise ValueError(
            f"naqopt.{optimizer}: `part_grads` is missing: this optimizer forms its pairs of the "
            f"gradients of the batch's three parts. Example: {_EXAMPLE_OF_PARTS}."
        )
    if not isinstance(part_grads, (tuple, list)) or len(part_grads) != 3:
        found = type(part_grads).__name__
        if isinstance(part_grads, (tuple, list)):
            found = f"{len(part_grads)} of them"
        raise ValueError(
            f"naqopt.{optimizer}: `part_grads` must be a tuple of three gradients, of the newest, "
            f"the middle and the oldest part of the batch, got {found}. "
            f"Example: {_EXAMPLE_OF_PARTS}."
        )
    parts = Parts(
        *(
            pruned(
                optimizer,
                f"part_grads[{i}]",
                _checks.gradients(optimizer, f"part_grads[{i}]", part),
                given.updates,
            )
            for i, part in enumerate(part_grads)
        )
    )
    taken = given.taken & _tree.is_finite(parts)
    return given._replace(taken=taken, norm=jnp.where(taken, given.norm, 0), parts=parts)


def loss(
    optimizer: str, name: str, function: Callable[[Tree], Any] | None, arguments: str = "p"
) -> Callable[[Tree], Any]:
    """Returns the function with its result checked to be one real number.

    `arguments` are those of the user's function, for messages.

    Raises:
      ValueError: if the function is missing, or (when called) does not return a scalar.
      TypeError: if it is something else than a function, or cannot be called with the params alone.
    """
    if function is None:
        raise ValueError(
            f"naqopt.{optimizer}: `{name}` is missing: this optimizer evaluates the loss of the "
            f"step's batch itself. Example: {_EXAMPLE}. If it is given, what stands around drops "
            "it, being no optax.GradientTransformationExtraArgs: make "
            "optax.GradientTransformationExtraArgs(wrapped.init, wrapped.update) of it."
        )
    if not callable(function):
        raise TypeError(
            f"naqopt.{optimizer}: `{name}` must be a function of the params, got "
            f"{type(function).__name__}. Example: {_EXAMPLE}."
        )

    if not _takes_params_alone(function):
        raise TypeError(
            f"naqopt.{optimizer}: `{name}` must be a function of the params alone, but it asks for "
            f"more: {inspect.signature(function)}. Bind the rest, the step's batch above all: "
            f"`{name}=lambda p: loss_fn(p, batch)`."
        )

    def checked(params: Tree) -> jax.Array:
        value = function(params)
        if (
            not (hasattr(value, "shape") or isinstance(value, (int, float)))
            or jnp.shape(value) != ()
        ):
            found = getattr(value, "shape", None)
            found = type(value).__name__ if found is None else f"an array of shape {found}"
            raise ValueError(
                f"naqopt.{optimizer}: `{name}` must return a scalar, got {found}. Average it, "
                f"`{name}=lambda {arguments}: jnp.mean(losses({arguments}))`, or drop the "
                f"auxiliary output, `{name}=lambda {arguments}: loss_fn({arguments})[0]`."
            )
        result = jnp.asarray(value)
        if not jnp.issubdtype(result.dtype, jnp.floating):
            raise TypeError(
                f"naqopt.{optimizer}: `{name}` must return a real floating number, got "
                f"{result.dtype.name}. Of a complex one take the real part, "
                f"`{name}=lambda {arguments}: jnp.real(loss_fn({arguments}))`; whole numbers have "
                "no gradient."
            )
        return result

    return checked


def _takes_params_alone(function: Callable[..., Any]) -> bool:
    """Returns whether a function can be called with one argument, as far as can be told."""
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def gradient(
    optimizer: str,
    value_fn: Callable[[Tree], jax.Array],
    grad_fn: Callable[[Tree], Tree] | None,
    params: Tree,
) -> Tree:
    """Returns the gradient at params, by `grad_fn` where the caller gives one."""
    if grad_fn is None:
        return jax.grad(value_fn)(params)
    if not callable(grad_fn):
        raise TypeError(
            f"naqopt.{optimizer}: `grad_fn` must be a function of the params, such as "
            f"jax.grad(value_fn), got {type(grad_fn).__name__}."
        )
    result = _checks.gradients(optimizer, "grad_fn(params)", grad_fn(params))
    _checks.same_structure(optimizer, "grad_fn(params)", result, params)
    return result


def value_and_gradient(
    optimizer: str,
    value_fn: Callable[[Tree], jax.Array],
    grad_fn: Callable[[Tree], Tree] | None,
    params: Tree,
) -> tuple[jax.Array, Tree]:
    """Returns the loss and its gradient at params, by `grad_fn` where the caller gives one."""
    if grad_fn is None:
        return jax.value_and_grad(value_fn)(params)
    return value_fn(params), gradient(optimizer, value_fn, grad_fn, params)


def with_gradient(
    optimizer: str,
    value_fn: Callable[[Tree], jax.Array],
    grad_fn: Callable[[Tree], Tree] | None,
) -> Callable[[Tree], jax.Array]:
    """Returns the loss, whose derivative is the caller's `grad_fn` where there is one.

    A line search that differentiates the loss would otherwise go behind its back.
    """
    if grad_fn is None:
        return value_fn

    @jax.custom_vjp
    def value(params: Tree) -> jax.Array:
        return value_fn(params)

    def forward(params: Tree) -> tuple[jax.Array, Tree]:
        return value_fn(params), params

    def backward(params: Tree, cotangent: jax.Array) -> tuple[Tree]:
        g = gradient(optimizer, value_fn, grad_fn, params)
        return (jax.tree.map(lambda p, x: (cotangent * x).astype(p.dtype), params, g),)

    value.defvjp(forward, backward)
    return value


def same_leaves(a: Tree, b: Tree) -> bool:
    """Returns whether two trees hold the very same arrays."""
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(leaves_a) == len(leaves_b) and all(map(operator.is_, leaves_a, leaves_b))


def pruned(optimizer: str, name: str, tree: Tree, like: Tree) -> Tree:
    """Returns the tree with the holes of `like`, checked to have its structure and shapes.

    Under `optax.masked` updates and states hold an `optax.MaskedNode` for each leaf that belongs to
    others, while extra arguments such as `grad` arrive whole.
    """
    try:
        result = jax.tree.map(
            lambda x, t: x if isinstance(x, optax.MaskedNode) else t,
            like,
            tree,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )
    except ValueError:
        result = tree
    _checks.same_structure(optimizer, name, result, like)
    return result
