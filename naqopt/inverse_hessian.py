"""The inverse Hessian that an optimizer has learnt, as a result of its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from naqopt import _history, _tree
from naqopt._tree import Scalar, Tree
from naqopt.curvature import pairs
from naqopt.curvature.dense import Dense
from naqopt.curvature.pairs import Pairs
from naqopt.flatten import from_vectors, to_vectors
from naqopt.state import check_wrappers, find_states


class InverseHessian(NamedTuple):
    """H, a dense matrix or γ I + Wᵀ M W; a pytree, so that it can leave a compiled function.

    Attributes:
      rows: W, 2 m rows like the params; of a dense matrix H itself, a row for each coordinate.
      middle: M, (2 m, 2 m); None for a dense matrix.
      scale: γ; None for a dense matrix.
      layouts: those of the `naqopt.flatten` around the optimizer, the outermost first.
    """

    rows: Tree
    middle: jax.Array | None
    scale: Scalar | None
    layouts: tuple[Tree, ...] = ()

    def multiply(self, vector: Tree) -> Tree:
        """Returns H v of a tree like the params: 2 d² or 8 m d operations."""
        for layout in self.layouts:
            vector = to_vectors(layout, vector)
        vector = _tree.widen(vector)
        if self.middle is None:
            product = _history.combine(_tree.ravel(vector), self.rows)
        else:
            assert self.scale is not None
            inner = _tree.matmul(self.middle, _history.dot(self.rows, vector))
            product = _tree.add(_tree.scale(self.scale, vector), _history.combine(inner, self.rows))
        return self._outside(product)

    def diagonal(self) -> Tree:
        """Returns the diagonal of H, a tree like the params."""
        if self.middle is None:
            ends = np.cumsum([0] + [rows[0].size for rows in jax.tree.leaves(self.rows)])
            blocks = [
                jnp.diagonal(rows.reshape(len(rows), -1)[start:end]).reshape(rows.shape[1:])
                for rows, start, end in zip(
                    jax.tree.leaves(self.rows), ends[:-1], ends[1:], strict=True
                )
            ]
            return self._outside(jax.tree.unflatten(jax.tree.structure(self.rows), blocks))
        middle, scale = self.middle, self.scale
        assert scale is not None

        def of_leaf(rows: jax.Array) -> jax.Array:
            w = rows.reshape(len(rows), -1)
            return (scale + jnp.sum(_tree.matmul(middle, w) * w, axis=0)).reshape(rows.shape[1:])

        return self._outside(jax.tree.map(of_leaf, self.rows))

    def matrix(self) -> jax.Array:
        """Returns H, (d, d), in the order of `jax.flatten_util.ravel_pytree(params)`."""
        like = jax.tree.map(lambda rows: jnp.zeros_like(rows[0]), self.rows)
        flat, unravel = ravel_pytree(self._outside(like))
        return jax.vmap(lambda row: ravel_pytree(self.multiply(unravel(row)))[0])(
            jnp.eye(len(flat), dtype=flat.dtype)
        )

    def _outside(self, tree: Tree) -> Tree:
        for layout in reversed(self.layouts):
            tree = from_vectors(layout, tree)
        return tree


def inverse_hessian(state: optax.OptState) -> InverseHessian:
    r"""Returns the inverse Hessian that a BFGS-like optimizer has learnt.

    The dense matrix as it is, or of :math:`m` pairs the compact form (Byrd, Nocedal and Schnabel)

    .. math::
      H = \gamma I + W^\top M W, \qquad W = \begin{bmatrix} S \\ Y \end{bmatrix}, \qquad
      M = \begin{bmatrix} R^{-\top} (D + \gamma Y Y^\top) R^{-1} & -\gamma R^{-\top} \\
      -\gamma R^{-1} & 0 \end{bmatrix}

    with the pairs as rows, :math:`R_{ij} = s_i^\top y_j` where j is not older than i, :math:`D` its
    diagonal and :math:`\gamma` the newest pair's. (The steps of the online and the variance-reduced
    methods have the mean over the pairs in its place.)

    Args:
      state: the optimizer's state, wrapped or not, of `naqopt.bfgs`, `naq`, `moq`, `mnaq`,
        `ssbfgs`, `ssbroyden`, `obfgs`, `onaq`, `omoq`, `multi_batch_omoq`, `svrg2` or `svr_naq`;
        `nnx.as_pure(optimizer.opt_state)` of a `flax.nnx.Optimizer`.

    Returns:
      An `InverseHessian` with `multiply(v)`, `diagonal()` and `matrix()`, and the factors `rows`,
      `middle` and `scale` (of Pathfinder, say). All numbers are NaN while no pair is known.

    Raises:
      ValueError: if no such state is found, or several, or one of several runs under `jax.vmap`, or
        one in a wrapper of which `naqopt.eval_params` raises.

    Example:
      >>> import jax, jax.numpy as jnp, naqopt, optax
      >>> loss = lambda p: 0.5 * (p[0] ** 2 + 10 * p[1] ** 2)  # Hessian diag(1, 10)
      >>> params = jnp.array([3.0, 1.0])
      >>> tx = naqopt.bfgs(memory_size=None)
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grad = jax.value_and_grad(loss)(params)
      ...   updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(10):
      ...   params, state = step(params, state)
      >>> print(naqopt.inverse_hessian(state).diagonal().round(1))
      [1.  0.1]

    References:
      Byrd, Nocedal and Schnabel, *Representations of quasi-Newton matrices and their use in limited
      memory methods*, Mathematical Programming 63, 1994.

    Costs nothing for a dense matrix and (2 m)² products of vectors for pairs. What it is worth: it
    is exact along the directions of late steps, where the loss was measured, and keeps γ, or what
    it began with, elsewhere; with few steps, limited memory, noise or damping (`obfgs`, `onaq`,
    `omoq`) it is no estimate of a variance. A mean of n log-likelihoods has n times the covariance.
    For standard errors take a dense matrix, far more steps than params, and compare with
    `jax.hessian` where d² numbers of it can be had. The pair of the last step of a method with one
    gradient a step is not in it yet.
    """
    check_wrappers("inverse_hessian", state)
    found = [x for x in find_states(state) if isinstance(_curvature(x.state), Dense | Pairs)]
    if len(found) != 1:
        how_many = "several states" if found else "no state"
        raise ValueError(
            f"naqopt.inverse_hessian: {how_many} of a BFGS-like optimizer (naqopt.bfgs, naq, moq, "
            "mnaq, ssbfgs, ssbroyden, obfgs, onaq, omoq) found; pass the state of one, as tx.init "
            "or tx.update returned it."
        )
    ((_, layouts, own),) = found
    curvature = _curvature(own)
    if curvature.size.ndim:
        raise ValueError(
            "naqopt.inverse_hessian: the state is that of several runs under vmap; call it of one, "
            "as in jax.vmap(lambda state: naqopt.inverse_hessian(state).diagonal())(state)."
        )
    if isinstance(curvature, Dense):
        known = jnp.where(curvature.size > 0, 1, jnp.nan)
        rows = jax.tree.map(lambda x: x * known.astype(x.dtype), curvature.matrix)
        return InverseHessian(rows, None, None, layouts)
    return _of_pairs(curvature, layouts)


def _curvature(state: Any) -> Any:
    return getattr(state, "curvature", None)


def _of_pairs(ring: Pairs, layouts: tuple[Tree, ...]) -> InverseHessian:
    order = pairs.newest_first(ring)[::-1]  # the oldest first
    m = len(order)
    filled = (np.arange(m) >= m - ring.size).astype(ring.products.dtype)

    def rows_of(history: Tree) -> Tree:
        def take(rows: jax.Array) -> jax.Array:
            rows = rows[order].astype(_tree.accumulation_dtype(rows.dtype))
            return rows * filled.astype(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1))

        return jax.tree.map(take, history)

    s, y = rows_of(ring.s), rows_of(ring.y)
    # Rows without a pair are zero, and 1 on R's diagonal.
    r = jnp.triu(ring.products[order][:, order]) * filled[:, None] * filled[None]
    r = r + jnp.diag(1 - filled)
    yy = sum(
        (
            _tree.matmul(rows.reshape(m, -1), rows.reshape(m, -1).T).astype(r.dtype)
            for rows in jax.tree.leaves(y)
        ),
        jnp.zeros_like(r),
    )
    gamma = jnp.where(ring.size > 0, pairs.newest_scale(ring), jnp.nan)
    inverse = jax.scipy.linalg.solve_triangular(r, jnp.eye(m, dtype=r.dtype))
    corner = _tree.matmul(inverse.T, _tree.matmul(jnp.diag(jnp.diagonal(r)) + gamma * yy, inverse))
    middle = jnp.block([[corner, -gamma * inverse.T], [-gamma * inverse, jnp.zeros_like(r)]])
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), s, y)
    return InverseHessian(rows, middle, gamma, layouts)
