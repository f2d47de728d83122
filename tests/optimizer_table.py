"""The optimizers that go through the common tests, and the small problem they train there.

A new optimizer adds a row to `ROWS`; the tests name none.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import naqopt
from naqopt.flatten import FlattenState


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One optimizer and what the tests may expect of it.

    Attributes:
      name: the name of its test cases.
      factory: the call.
      arguments: keyword arguments; sizes so small that rings wrap and cycles end several times in
        `STEPS` steps, and a step size with which the problem below is learned in them.
      static_args: what `optax.inject_hyperparams` has to be told.
      gradients: gradients a step, the caller's included.
      losses: from the number of steps taken to the number of evaluations without a gradient, the
        trials of line searches (`info.search_trials`) left out.
      lookahead: whether the params are a look-ahead point.
      raw_statistics: from a state to those of its parts that are made of raw gradients alone,
        whatever a transformation in front makes of the updates; None where one step leaves none.
      searches: whether a line search decides, so that a loss that is not finite refuses the step.
      pairs_formed: from the number of steps taken to that of pairs stored, refused or dropped at a
        restoration, where pairs are formed once a cycle or epoch; None where every step forms one.
      restores: whether it can return to an anchor.
      rejects: whether a trust region decides, so that a loss or a gradient at the trial point that
        is not finite makes the step a rejected one.
      full_gradients: from the number of steps taken to that of full gradients.
      has_parts: whether it asks for the gradients of the batch's parts, which the caller takes.
      flat: whether it is handed vectors in place of the params, so that what its state holds is
        shaped as those, and params sharded over devices are refused.
      rounding: by how much more than in other rows rounding grows in a run.
      slow: whether its cases are left to `make test-full`.
    """

    name: str
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    arguments: dict[str, Any]
    static_args: tuple[str, ...]
    gradients: int
    losses: Callable[[int], int]
    lookahead: bool
    raw_statistics: Callable[[Any], Any] | None
    searches: bool = False
    pairs_formed: Callable[[int], int] | None = None
    restores: bool = False
    rejects: bool = False
    has_parts: bool = False
    flat: bool = False
    rounding: float = 1.0
    full_gradients: Callable[[int], int] = lambda steps: 0
    slow: bool = False


_SIZES = ("memory_size", "fisher_size", "cycle_length", "history_dtype")
_CYCLE = {"memory_size": 2, "fisher_size": 4, "cycle_length": 3, "eps": 1e-2}


def _losses_of_cycles(steps: int) -> int:
    """Two losses at the end of every cycle but the first."""
    return 2 * (steps // _CYCLE["cycle_length"] - 1)


def _pairs_of_cycles(steps: int) -> int:
    """One at the end of every cycle but the first."""
    return steps // _CYCLE["cycle_length"] - 1


def _quasi_newton(
    name: str,
    factory: Callable[..., optax.GradientTransformationExtraArgs],
    arguments: dict[str, Any],
    gradients: int,
    *,
    searches: bool = False,
    losses: Callable[[int], int] = lambda steps: 0,
    rounding: float = 1.0,
    has_parts: bool = False,
) -> Row:
    """A row of the quasi-Newton core, with two pairs unless it is dense."""
    return Row(
        name=name,
        factory=factory,
        arguments={"memory_size": 2, **arguments},
        static_args=("memory_size", "restart_window", "history_dtype")
        if factory in (naqopt.naq, naqopt.moq, naqopt.mnaq)
        else ("memory_size", "history_dtype"),
        gradients=gradients,
        losses=losses,
        lookahead=gradients == 2 and "momentum" in arguments,
        raw_statistics=(lambda state: state.pending.extrapolated) if gradients == 1 else None,
        searches=searches,
        rounding=rounding,
        has_parts=has_parts,
        # Dense as limited but for the matrix. bfgs has the searches, onaq the look-ahead point,
        # omoq the pair that waits; the others lie between them.
        slow=name.endswith("dense") or name not in ("bfgs", "onaq", "omoq"),
    )


EPOCH = 6  # steps between snapshots


def _snapshots(steps: int) -> int:
    """One before the first step of every epoch."""
    return -(-steps // EPOCH)


def _variance_reduced(
    name: str,
    factory: Callable[..., optax.GradientTransformationExtraArgs],
    arguments: dict[str, Any],
) -> Row:
    """A row of the variance-reduced methods, with two pairs unless it is dense."""
    has_pairs = factory is not naqopt.svrg
    return Row(
        name=name,
        factory=factory,
        arguments={"memory_size": 2, **arguments} if has_pairs else arguments,
        static_args=("memory_size", "history_dtype") if has_pairs else (),
        gradients=2,
        losses=lambda steps: 0,
        lookahead="momentum" in arguments,
        raw_statistics=None,
        pairs_formed=lambda steps: _snapshots(steps) - 1 if has_pairs else 0,
        full_gradients=_snapshots,
        slow=name != "svr_naq",  # which begins as svrg and has the pairs of svrg2
    )


def _rank_one(
    name: str,
    factory: Callable[..., optax.GradientTransformationExtraArgs],
    arguments: dict[str, Any],
    gradients: int,
    *,
    losses: Callable[[int], int] = lambda steps: 0,
    searches: bool = False,
) -> Row:
    """A row of the rank-one family, with two pairs unless it is dense."""
    return Row(
        name=name,
        factory=factory,
        arguments={"memory_size": 2, **arguments},
        static_args=("memory_size", "history_dtype")
        + (
            ("linesearch", "store_grad", "initial_scale", "initial_radius")
            if factory is naqopt.lsr1
            else ("solver",)
        ),
        gradients=gradients,
        losses=losses,
        lookahead=factory is naqopt.sr1n,
        raw_statistics=(lambda state: state.pending.extrapolated) if gradients == 1 else None,
        searches=searches,
        rejects=not searches,
        rounding=100.0,  # an indefinite model is nearly singular now and then
        slow=name != "sr1n",  # which has the look-ahead, the trust region and the pairs
    )


ROWS = [
    Row(
        name="adaqn",
        factory=naqopt.adaqn,
        arguments={"learning_rate": 0.2, **_CYCLE},
        static_args=_SIZES,
        gradients=1,
        losses=_losses_of_cycles,
        lookahead=False,
        raw_statistics=lambda state: state.memory,
        pairs_formed=_pairs_of_cycles,
        restores=True,
        rounding=10.0,  # from one of three seeds it grows a thousandfold, in float64 too
        slow=True,  # asnaq without momentum
    ),
    Row(
        name="asnaq",
        factory=naqopt.asnaq,
        arguments={"learning_rate": 0.5, "min_momentum": 0.3, "max_momentum": 0.8, **_CYCLE},
        static_args=_SIZES,
        gradients=2,
        losses=_losses_of_cycles,
        lookahead=True,
        raw_statistics=lambda state: state.memory,
        pairs_formed=_pairs_of_cycles,
        restores=True,
    ),
    Row(
        name="asnaq_single_gradient",
        factory=naqopt.asnaq,
        arguments={
            "learning_rate": 0.5,
            "min_momentum": 0.3,
            "max_momentum": 0.8,
            "single_gradient": True,
            "backoff": 0.9,
            **_CYCLE,
        },
        static_args=_SIZES,
        gradients=1,
        losses=_losses_of_cycles,
        lookahead=True,
        raw_statistics=lambda state: state.memory,
        pairs_formed=_pairs_of_cycles,
        restores=True,
        slow=True,  # between adaqn and asnaq
    ),
    _quasi_newton("bfgs", naqopt.bfgs, {"learning_rate": 1.0}, 1, searches=True),
    _quasi_newton(
        "ssbroyden_dense",
        naqopt.bfgs,
        {"learning_rate": 1.0, "memory_size": None, "update": "ssbroyden"},
        1,
        searches=True,
        rounding=100.0,  # where a is large and b ≈ 1 the matrix follows b a times as fast
    ),
    _quasi_newton(
        "naq",
        naqopt.naq,
        {"learning_rate": 1.0, "momentum": 0.5},
        2,
        searches=True,
        rounding=10.0,  # a search that ends one trial earlier, a restart a step later
    ),
    _quasi_newton(
        "naq_dense",
        naqopt.naq,
        {"learning_rate": 1.0, "momentum": 0.5, "memory_size": None},
        2,
        searches=True,
    ),
    _quasi_newton(
        "moq",
        naqopt.moq,
        {"learning_rate": 1.0, "momentum": 0.5},
        1,
        searches=True,
        losses=lambda steps: steps,  # at ŵ, where the line search starts
    ),
    _quasi_newton("mnaq", naqopt.mnaq, {"momentum": 0.5}, 2),
    _quasi_newton("obfgs", naqopt.obfgs, {"learning_rate": 0.3}, 2),
    _quasi_newton("onaq", naqopt.onaq, {"learning_rate": 0.2, "momentum": 0.5}, 2),
    _quasi_newton("omoq", naqopt.omoq, {"learning_rate": 0.2, "momentum": 0.5}, 1),
    _quasi_newton(
        "omoq_dense",
        naqopt.omoq,
        {"learning_rate": 0.2, "momentum": 0.5, "memory_size": None},
        1,
    ),
    _quasi_newton(
        "multi_batch_omoq",
        naqopt.multi_batch_omoq,
        {"learning_rate": 0.2, "momentum": 0.5},
        1,
        has_parts=True,
    ),
    _quasi_newton(
        "multi_batch_omoq_dense",
        naqopt.multi_batch_omoq,
        {"learning_rate": 0.2, "momentum": 0.5, "memory_size": None},
        1,
        has_parts=True,
    ),
    _variance_reduced("svrg", naqopt.svrg, {"learning_rate": 0.5}),
    _variance_reduced("svrg2", naqopt.svrg2, {"learning_rate": 0.1}),
    _variance_reduced(
        "svr_naq",
        naqopt.svr_naq,
        {"learning_rate": 0.2, "momentum": 0.5, "warmup_learning_rate": 0.5},
    ),
    _variance_reduced(
        "svr_naq_dense",
        naqopt.svr_naq,
        {
            "learning_rate": 0.2,
            "momentum": 0.5,
            "warmup_learning_rate": 0.5,
            "memory_size": None,
        },
    ),
    _rank_one("lsr1", naqopt.lsr1, {"initial_scale": 0.3}, 2),
    _rank_one("lsr1_search", naqopt.lsr1, {"linesearch": naqopt.armijo()}, 1, searches=True),
    _rank_one("sr1n", naqopt.sr1n, {"momentum": 0.5, "convergence_term": True}, 2),
    _rank_one(
        "sr1n_dense",
        naqopt.sr1n,
        {"momentum": 0.5, "convergence_term": True, "solver": "exact", "memory_size": None},
        2,
    ),
    _rank_one(
        "mosr1",
        naqopt.mosr1,
        {"momentum": 0.5, "solver": "exact"},
        1,
        losses=lambda steps: 2 * steps,  # before and after the step
    ),
]


def _flat(row: Row, *, slow: bool) -> Row:
    """The row's optimizer inside `naqopt.flatten`."""

    @functools.wraps(row.factory)  # whose signature inject_hyperparams reads
    def factory(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        return naqopt.flatten(row.factory(*args, **kwargs))

    raw = row.raw_statistics
    return dataclasses.replace(
        row,
        name=f"{row.name}_flat",
        factory=factory,
        raw_statistics=None if raw is None else lambda state: raw(state.inner_state),
        flat=True,
        slow=slow,
    )


_BY_NAME = {row.name: row for row in ROWS}
ROWS += [
    _flat(_BY_NAME["onaq"], slow=False),
    _flat(_BY_NAME["asnaq"], slow=True),
    _flat(_BY_NAME["multi_batch_omoq"], slow=True),
]


def own_state(state: Any) -> Any:
    """The state of the optimizer itself, within that of `naqopt.flatten`."""
    return state.inner_state if isinstance(state, FlattenState) else state


def with_info(state: Any, **changes: Any) -> Any:
    """The state with other values in its `info`."""
    own = own_state(state)
    changed = own._replace(info=own.info._replace(**changes))
    return state._replace(inner_state=changed) if isinstance(state, FlattenState) else changed


def skipped(row: Row, state: Any) -> Any:
    """The state after one step more that was skipped: counters move, and no parts overlap."""
    info = own_state(state).info
    after = with_info(
        state,
        steps_skipped=info.steps_skipped + 1,
        skipped_in_a_row=info.skipped_in_a_row + 1,
    )
    if not row.has_parts:
        return after
    own = own_state(after)
    pending = own.pending._replace(waits=jnp.array(False), follows=jnp.array(False))
    own = own._replace(pending=pending)
    return after._replace(inner_state=own) if isinstance(after, FlattenState) else own


def each(rows: list[Row], quick: tuple[str, ...] | None = None) -> Any:
    """Runs a test for each of the rows, as its argument `row`; `quick` names those of CI."""

    # Tests of one row run in one process (`pytest --dist loadgroup`) and share its compiled steps.
    def marks(row: Row) -> list[Any]:
        group = pytest.mark.xdist_group(row.name)
        slow = row.slow if quick is None else row.name not in quick
        return [group, pytest.mark.slow] if slow else [group]

    return pytest.mark.parametrize(
        "row", [pytest.param(row, id=row.name, marks=marks(row)) for row in rows]
    )


EACH_ROW = each(ROWS)
# What a wrapper or a transformation of JAX does hardly depends on the method: in CI one row of each
# core stands for all, with a line search, with cycles, and with a trust region.
FEW_IN_CI = ("bfgs", "asnaq", "sr1n")
EACH_ROW_FEW_IN_CI = each(ROWS, FEW_IN_CI)
EACH_ROW_WITH_LEARNING_RATE = each([row for row in ROWS if "learning_rate" in row.arguments])
EACH_ROW_WITH_SIZES = each([row for row in ROWS if row.arguments.get("memory_size") is not None])


@functools.cache
def transformation(row: Row, **arguments: Any) -> optax.GradientTransformationExtraArgs:
    """The row's optimizer, one object for equal arguments, as compiled functions are kept by it."""
    return row.factory(**{**row.arguments, **arguments})


def enable_x64(enabled: bool = True) -> Any:
    """A context with 64-bit numbers, or without."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    from jax.experimental import enable_x64 as context

    return context(enabled)


# The problem: a small noisy regression, a new batch on every step.

STEPS = 24
SHAPES = {"bias": (8,), "gain": (), "weight": (4, 8)}
_BATCH_SIZE = 16


def init_params(seed: int = 0, dtypes: Any = jnp.float32) -> dict[str, jax.Array]:
    """Random params of ranks 1, 0 and 2; `dtypes` is one dtype or a dict of them."""
    generator = np.random.default_rng(seed)
    values = {name: generator.normal(0, 0.3, shape) for name, shape in SHAPES.items()}
    values["gain"] = np.array(1.0)
    dtypes = dtypes if isinstance(dtypes, dict) else dict.fromkeys(SHAPES, dtypes)
    return {name: jnp.asarray(value, dtypes[name]) for name, value in values.items()}


@functools.cache
def stacked_batches() -> tuple[np.ndarray, np.ndarray]:
    """Inputs (STEPS, 16, 4) and targets (STEPS, 16, 8), in float32."""
    generator = np.random.default_rng(1)
    teacher = generator.normal(size=SHAPES["weight"])
    inputs = generator.normal(size=(STEPS, _BATCH_SIZE, SHAPES["weight"][0]))
    noise = 0.2 * generator.normal(size=(STEPS, _BATCH_SIZE, SHAPES["bias"][0]))
    targets = 1.5 * np.tanh(inputs @ teacher + 0.3) + noise
    return inputs.astype(np.float32), targets.astype(np.float32)


def batch(k: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch of step k."""
    inputs, targets = stacked_batches()
    return inputs[k % STEPS], targets[k % STEPS]


def regression_loss(params: Any, batch: Any) -> jax.Array:
    """The mean squared error on a batch."""
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["weight"] + params["bias"])
    return jnp.mean(jnp.square(params["gain"] * hidden - targets))


_jitted_loss = jax.jit(regression_loss)


def total_loss(params: Any) -> float:
    """The loss on the data of all steps, in float32."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    return float(_jitted_loss(params, stacked_batches()))


# The training: the documented call, in a scan or step by step.


def take_due_snapshot(state: Any, params: Any, loss: Any = regression_loss) -> Any:
    """Returns the state, every `EPOCH` steps with the snapshot that its optimizer may ask for.

    The full gradient is that of the batches of all steps.
    """
    found = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, "take_snapshot"))
    counts = [node.count for node in found if hasattr(node, "take_snapshot")]
    if not counts:
        return state

    def snapshot() -> Any:
        iterate = naqopt.eval_params(state, params)
        full_grad = jax.grad(loss)(iterate, stacked_batches())
        return naqopt.snapshot(state, params, full_grad)

    # Of a leafless tree, which an unused label has, the count stays.
    return jax.lax.cond(jnp.max(jnp.stack(counts)) % EPOCH == 0, snapshot, lambda: state)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def merge(trained: Any, params: Any) -> Any:
    """Puts params where `optax.masked` left holes; the identity where it left none."""
    return jax.tree.map(lambda q, p: p if _is_masked(q) else q, trained, params, is_leaf=_is_masked)


def _asks_for_parts(state: Any) -> bool:
    """Whether a state in the tree is of an optimizer that wants the gradients of parts."""
    found = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, "pending"))
    return any(
        getattr(getattr(node, "pending", None), "follows", None) is not None for node in found
    )


# The parts of a batch here, of eight examples each, as eight devices can share them. Batches do not
# overlap: what that is good for is tested elsewhere.
_PARTS = (slice(0, 8), slice(4, 12), slice(8, 16))


def part_gradients(state: Any, params: Any, batch: Any, loss: Any) -> dict[str, Any]:
    """The extra argument `part_grads` where the optimizer asks for it, and nothing elsewhere."""
    if not _asks_for_parts(state):
        return {}
    parts = (tuple(x[rows] for x in batch) for rows in _PARTS)
    return {"part_grads": tuple(jax.grad(loss)(params, part) for part in parts)}


def take_step(
    tx: Any, params: Any, state: Any, batch: Any, loss: Any = regression_loss, **extra_args: Any
) -> tuple[Any, Any, Any]:
    """One step as users write it; returns params, state and the updates."""

    def value_fn(p: Any) -> jax.Array:
        return loss(merge(p, params), batch)

    state = take_due_snapshot(state, params, loss)
    value, grads = jax.value_and_grad(value_fn)(params)
    extra_args |= part_gradients(state, params, batch, loss)
    updates, state = tx.update(
        grads, state, params, value=value, grad=grads, value_fn=value_fn, **extra_args
    )
    return optax.apply_updates(params, updates), state, updates


@functools.partial(jax.jit, static_argnames=("tx", "loss"))
def run(
    tx: Any, params: Any, batches: Any, state: Any = None, *, loss: Any = regression_loss
) -> tuple[Any, Any, Any]:
    """Trains on every batch; returns params, state and the params after each step, stacked."""

    def body(carry: Any, batch: Any) -> tuple[Any, Any]:
        params, state, _ = take_step(tx, *carry, batch, loss)
        return (params, state), params

    (params, state), path = jax.lax.scan(
        body, (params, tx.init(params) if state is None else state), batches
    )
    return params, state, path


@functools.cache
def plain_run(row: Row) -> tuple[Any, Any, Any]:
    """The run that wrapped, sharded and otherwise different ones are compared with."""
    return run(transformation(row), init_params(), stacked_batches())


def after(path: Any, steps: int) -> Any:
    """The params after so many steps of a run."""
    return jax.tree.map(lambda x: x[steps - 1], path)


jitted_take_due_snapshot = jax.jit(take_due_snapshot)
value_and_gradient = jax.jit(jax.value_and_grad(regression_loss))


@functools.partial(jax.jit, static_argnames="tx")
def update(
    tx: Any, updates: Any, state: Any, params: Any, batch: Any, value: Any, grad: Any
) -> tuple[Any, Any]:
    """`tx.update` with gradients that need not be those of the batch, to inject faults."""

    def value_fn(p: Any) -> jax.Array:
        return regression_loss(merge(p, params), batch)

    parts = part_gradients(state, params, batch, regression_loss)
    return tx.update(updates, state, params, value=value, grad=grad, value_fn=value_fn, **parts)


def step(tx: Any, params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
    """One step by the compiled `update`; returns params and state."""
    state = jitted_take_due_snapshot(state, params)
    value, grads = value_and_gradient(params, batch)
    updates, state = update(tx, grads, state, params, batch, value, grads)
    return optax.apply_updates(params, updates), state


def states_of_plain_run(row: Row, steps: int) -> list[tuple[Any, Any]]:
    """Params and states before each of so many steps, and after the last."""
    tx, params = transformation(row), init_params()
    points = [(params, tx.init(params))]
    for k in range(steps):
        points.append(step(tx, *points[-1], batch(k)))
    return points


def assert_finite(tree: Any) -> None:
    """Asserts that all numbers of a tree are finite."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64))), jax.tree_util.keystr(path)


def types(tree: Any) -> Any:
    """Shape, dtype and weakness of every leaf: what decides whether jit compiles again."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
