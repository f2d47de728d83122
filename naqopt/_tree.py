"""Linear algebra on pytrees of parameters; `_history` has that on histories of them.

Products contract whole leaves without flattening them, so that sharded parameters stay where they
are, and accumulate in at least float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Tree = Any
Scalar = jax.Array
Mask = jax.Array  # an int32 with all bits set or none


def common_dtype(*dtypes: Any) -> Any:
    """Returns the narrowest dtype that holds all, also where promotion has to be explicit."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def accumulation_dtype(*dtypes: Any) -> Any:
    """Returns the widest of the dtypes, and at least float32."""
    return common_dtype(jnp.float32, *dtypes)


def scalar_dtype(tree: Tree) -> Any:
    """Returns the dtype of sums over all of a tree: at least float32."""
    return accumulation_dtype(*(leaf.dtype for leaf in jax.tree.leaves(tree)))


def is_empty(tree: Tree) -> bool:
    """Returns whether a tree has no leaf (an unused label of `optax.partition`)."""
    return not jax.tree.leaves(tree)


def widen(tree: Tree) -> Tree:
    """Returns the tree in at least float32."""
    return jax.tree.map(lambda x: x.astype(accumulation_dtype(x.dtype)), tree)


def zeros(tree: Tree) -> Tree:
    """Returns zeros of the tree's shapes in at least float32, sharded as the tree is."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=accumulation_dtype(x.dtype)), tree)


def replicated(ndim: int, *operands: jax.Array) -> NamedSharding | None:
    """The sharding of a sum over sharded axes, which an explicit mesh wants to be told."""
    for operand in operands:
        mesh = jax.typeof(operand).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return NamedSharding(mesh, PartitionSpec(*[None] * ndim))
    return None


@jax.custom_jvp
def together(*numbers: jax.Array) -> tuple[jax.Array, ...]:
    """Returns numbers (or arrays of one shape) as they are, computed once and in one place.

    XLA fuses what is cheap into each instruction that waits for it. A sum over L leaves that
    decides something has hundreds of them, so that compiled code would grow with L²; and every
    number that the state keeps would be a kernel that computes the whole step's decisions anew. A
    reduction of several arrays at once is fused into nothing: here each is the maximum of two
    copies of itself, as integers, which keep every bit. (On a CPU an optimization barrier, a loop
    of few rounds and a sum of a stack are all simplified away.)
    """
    bits = [_bits(x) for x in numbers]
    if len(bits) == 1:  # a reduction of one array would be fused: its bits are halved
        (whole,) = bits
        half = 4 * whole.dtype.itemsize
        low = whole & jnp.full_like(whole, 2**half - 1)
        low, high = _maxima([low, whole & jnp.full_like(whole, -(2**half))])
        bits = [low | high]
    else:
        bits = _maxima(bits)
    return tuple(_of_bits(x, number.dtype) for x, number in zip(bits, numbers, strict=True))


@together.defjvp
def _together_jvp(numbers: Any, tangents: Any) -> tuple[Any, Any]:
    """It is the identity, which its bits do not show."""
    return together(*numbers), tuple(tangents)


def _bits(x: jax.Array) -> jax.Array:
    """Returns the bits of floating numbers as signed integers, and a bool as one."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return lax.bitcast_convert_type(x, np.dtype(f"int{8 * x.dtype.itemsize}"))
    return x.astype(jnp.int32) if x.dtype == jnp.bool else x


def _of_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    """Returns what `_bits` was given."""
    if jnp.issubdtype(dtype, jnp.floating):
        return lax.bitcast_convert_type(bits, dtype)
    return bits != 0 if dtype == jnp.bool else bits


def _maxima(integers: list[jax.Array]) -> list[jax.Array]:
    """Returns the maximum of two copies of each array, all by one reduction."""
    copies = tuple(jnp.broadcast_to(x, (2, *x.shape)) for x in integers)
    least = tuple(np.array(jnp.iinfo(x.dtype).min, x.dtype) for x in integers)
    return list(lax.reduce(copies, least, _max_each, (0,)))


def _max_each(x: tuple[jax.Array, ...], y: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(lax.max(a, b) for a, b in zip(x, y, strict=True))


def total(columns: list[list[jax.Array]]) -> tuple[jax.Array, ...]:
    """Sums over the leaves: a list of numbers (or rows) for each leaf to one of their sums."""
    sums = [sum(column[1:], column[0]) for column in zip(*columns, strict=True)]
    return together(*sums) if len(columns) > 2 else tuple(sums)


# Up to how many numbers a leaf's sums are taken in one loop, which is then not vectorised. From 2¹²
# on XLA leaves a sum of float32 on a CPU to a library, and has hardly anything to compile.
_ONE_LOOP = 2**12 - 1


def _sums(products: list[jax.Array]) -> list[Scalar]:
    """Sums the numbers of each of several arrays of one shape.

    In small arrays all in one loop: on a CPU every sum of its own is a kernel more to compile.
    """
    axes = tuple(range(products[0].ndim))
    dtypes = {x.dtype for x in products}
    explicit = replicated(0, *products) is not None
    if len(products) == 1 or len(dtypes) > 1 or products[0].size > _ONE_LOOP or explicit:
        return [jnp.sum(x, axes) for x in products]
    zeros = tuple(np.zeros((), x.dtype) for x in products)
    return list(lax.reduce(tuple(products), zeros, _add_each, axes))


def _add_each(x: tuple[Scalar, ...], y: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    return tuple(a + b for a, b in zip(x, y, strict=True))


def dots(*pairs: tuple[Tree, Tree]) -> tuple[Scalar, ...]:
    """Returns aᵀb over all leaves for each pair of trees a, b; float32 zeros without leaves."""

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(a.dtype, b.dtype)
        return a.astype(dtype) * b.astype(dtype)

    products = [jax.tree.leaves(jax.tree.map(product, a, b)) for a, b in pairs]
    sums = [_sums(list(leaf)) for leaf in zip(*products, strict=True)]
    return total(sums) if sums else tuple(jnp.zeros((), jnp.float32) for _ in pairs)


def dot(a: Tree, b: Tree) -> Scalar:
    """Returns aᵀb over all leaves."""
    return dots((a, b))[0]


def squared_norm(tree: Tree) -> Scalar:
    """Returns ‖tree‖² over all leaves."""
    return dot(tree, tree)


def _none(conditions: Tree) -> Scalar:
    """Returns whether a condition holds for no coordinate of a tree."""
    counts = [[jnp.sum(x.astype(jnp.float32))] for x in jax.tree.leaves(conditions)]
    return total(counts)[0] == 0 if counts else jnp.ones((), bool)


def is_finite(tree: Tree) -> Scalar:
    """Returns whether every coordinate is finite."""
    return _none(jax.tree.map(lambda x: ~jnp.isfinite(x), tree))


def is_zero(tree: Tree) -> Scalar:
    """Returns whether every coordinate is 0, however short the tree is."""
    return _none(jax.tree.map(lambda x: x != 0, tree))


# Below the first a square is nothing beside a sum that overflows; by the second numbers are scaled
# so that no square of a finite one overflows.
_LARGE = {"float32": (2.0**32, 2.0**-80), "float64": (2.0**300, 2.0**-600)}


def norm(tree: Tree) -> Scalar:
    """Returns ‖tree‖, also where its square overflows: then that of what is large in it."""

    def shrunk(x: jax.Array) -> jax.Array:
        limit, factor = (jnp.asarray(c, x.dtype) for c in _LARGE[x.dtype.name])
        # Not all numbers times the factor: XLA makes x² c² of (x c)², and c² is 0. NaN is large.
        return jnp.where(jnp.abs(x) <= limit, 0, x * factor)

    large = jax.tree.map(shrunk, widen(tree))
    squared, small = dots((tree, tree), (large, large))
    fits = jnp.isfinite(squared)
    root = jnp.sqrt(jnp.where(fits, squared, small))
    return root / jnp.where(fits, 1, jnp.asarray(_LARGE[small.dtype.name][1], small.dtype))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a b, of small matrices; `a @ b` multiplies float32 in bfloat16 on a TPU."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def diagonal(matrix: jax.Array) -> jax.Array:
    """Returns the diagonal of a small matrix; `jnp.diagonal` would gather it."""
    return jnp.sum(jnp.where(np.eye(len(matrix), dtype=bool), matrix, 0), 1)


def ravel(tree: Tree) -> jax.Array:
    """Returns all leaves one after the other as a vector, the same on every device."""
    dtype = scalar_dtype(tree)

    return jnp.concatenate([replicate(x).astype(dtype).reshape(-1) for x in jax.tree.leaves(tree)])


def unravel(vector: jax.Array, like: Tree) -> Tree:
    """Returns a vector as a tree of the shapes of another, the inverse of `ravel`."""
    leaves, structure = jax.tree.flatten(like)
    parts, offset = [], 0
    for leaf in leaves:
        part = lax.slice_in_dim(vector, offset, offset + leaf.size)
        parts.append(shard_like(leaf, part.reshape(leaf.shape)))
        offset += leaf.size
    return jax.tree.unflatten(structure, parts)


def replicate(x: jax.Array) -> jax.Array:
    """Returns x the same on every device, where an explicit mesh wants to be told."""
    sharding = replicated(x.ndim, x)
    return x if sharding is None else jax.sharding.reshard(x, sharding)


def shard_like(like: jax.Array, x: jax.Array) -> jax.Array:
    """Returns x sharded as another array of its shape, where an explicit mesh wants to be told."""
    return (
        x
        if replicated(x.ndim, like) is None
        else jax.sharding.reshard(x, jax.typeof(like).sharding)
    )


def mask(condition: Scalar) -> Mask:
    """Returns a number with all bits set where the condition holds and none elsewhere."""
    return -condition.astype(jnp.int32)


def where(condition: Scalar, a: Tree, b: Tree) -> Tree:
    """Returns a where the condition holds and b elsewhere, leaf by leaf."""
    if all(leaf.ndim == 0 for leaf in jax.tree.leaves(a)):
        return jax.tree.map(functools.partial(lax.select, condition), a, b)
    (chosen,) = masks(condition)
    return choose((chosen, a), (~chosen, b))


def masks(*conditions: Scalar) -> tuple[Mask, ...]:
    """Returns the masks of several conditions, computed once."""
    return together(*map(mask, conditions))


def choose(*choices: tuple[Mask, Tree]) -> Tree:
    """Returns the tree whose mask is set, and zeros where none is, in the wider of their dtypes.

    On bits, since for a CPU a loop over an array is compiled once for every way that the conditions
    in it can fall: three selections in one kernel, and it is eight loops. Nor does what is not
    chosen matter, infinite or NaN as it may be.
    """
    return _choose(*zip(*choices, strict=True))


@jax.custom_jvp
def _choose(chosen: tuple[Mask, ...], trees: tuple[Tree, ...]) -> Tree:
    def either(*leaves: jax.Array) -> jax.Array:
        dtype = common_dtype(*(leaf.dtype for leaf in leaves))
        parts = []
        for mask, leaf in zip(chosen, leaves, strict=True):
            bits = _bits(leaf.astype(dtype))
            parts.append(mask.astype(bits.dtype) & bits)
        return _of_bits(functools.reduce(lax.bitwise_or, parts), dtype)

    return jax.tree.map(either, *trees)


@_choose.defjvp
def _choose_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """The same choice among the tangents, linear as that of bits is not."""
    chosen, trees = primals

    def either(*leaves: jax.Array) -> jax.Array:
        dtype = common_dtype(*(leaf.dtype for leaf in leaves))
        pairs = zip(chosen, (leaf.astype(dtype) for leaf in leaves), strict=True)
        return sum(lax.select(mask != 0, x, jnp.zeros_like(x)) for mask, x in pairs)  # type: ignore[return-value]

    return _choose(chosen, trees), jax.tree.map(either, *tangents[1])


def cond(condition: Scalar, if_true: Callable[[], Tree], if_false: Callable[[], Tree]) -> Tree:
    """Returns what one of two functions returns; the other is not evaluated.

    `lax.cond`, but for a call outside `jax.jit`, where that would compile both at every call.
    """
    if isinstance(condition, jax.core.Tracer):
        return lax.cond(condition, if_true, if_false)
    return if_true() if condition else if_false()


def scale(c: Scalar, tree: Tree) -> Tree:
    """Returns c times the tree, in the tree's dtypes."""
    return jax.tree.map(lambda x: c.astype(x.dtype) * x, tree)


def add(a: Tree, b: Tree) -> Tree:
    """Returns a + b in the dtypes of b: the wide b decides where a holds narrow params."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype) + y, a, b)


def add_scaled(a: Tree, c: Scalar, b: Tree) -> Tree:
    """Returns a + c b in the dtypes of a."""
    return jax.tree.map(lambda x, y: (x + c.astype(y.dtype) * y).astype(x.dtype), a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """Returns a − b in the dtypes of a; 0 where both are the same infinity (a mask, say)."""

    def difference(x: jax.Array, y: jax.Array) -> jax.Array:
        y = y.astype(x.dtype)
        return jnp.where(x == y, 0, x - y)

    return jax.tree.map(difference, a, b)


def cast_to(dtype: Any, x: jax.Array) -> jax.Array:
    """Returns the array in another dtype; what a narrower one cannot hold saturates."""
    largest = float(jnp.finfo(dtype).max)
    if largest < float(jnp.finfo(x.dtype).max):
        x = jnp.clip(x, -largest, largest)
    return x.astype(dtype)


def cast_as(like: Tree, tree: Tree) -> Tree:
    """Returns the tree in the dtypes of `like`; what a narrower one cannot hold saturates."""
    return jax.tree.map(lambda x, y: cast_to(x.dtype, y), like, tree)
