"""One process of a run over several devices: `python -m benchmarks.distributed.worker TASK`.

A small tanh network learns from a fixed teacher, in float64: its params are sharded over all
devices of all processes, and so are the examples of every batch. The first process writes losses
and final numbers; a run that is to be resumed writes a checkpoint by Orbax on its way.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import naqopt

OPTIMIZERS: Mapping[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "onaq": lambda: naqopt.onaq(naqopt.schedules.inverse_sqrt(0.3)),
    "multi_batch_omoq": lambda: naqopt.multi_batch_omoq(naqopt.schedules.inverse_sqrt(0.3)),
    "asnaq": lambda: naqopt.asnaq(0.1, memory_size=3, fisher_size=16),
}
PART_SIZE = 16  # a multiple of the number of devices
_SHAPES = {"bias": (64,), "gain": (), "hidden": (16, 64), "output": (64, 8)}
_SPECS = {
    "bias": PartitionSpec("x"),
    "gain": PartitionSpec(),
    "hidden": PartitionSpec(None, "x"),
    "output": PartitionSpec("x"),
}
_EXAMPLES = 480
_Tree = Any


@dataclasses.dataclass(frozen=True)
class Task:
    """What a process does.

    Attributes:
      name: of the run, and of its files.
      folder: where they go.
      steps: the length of the run.
      checkpoint_at: after how many steps it is saved.
      devices: how many each process has.
      processes: how many there are.
      process: which one this is.
      port: where the first process listens, on the loopback.
      resume: from which run's checkpoint it goes on, if any.
    """

    name: str
    folder: str
    steps: int
    checkpoint_at: int
    devices: int
    processes: int = 1
    process: int = 0
    port: int = 0
    resume: str | None = None

    def checkpoint(self, name: str, optimizer: str) -> Path:
        """Returns where a run's checkpoint is."""
        return Path(self.folder) / "checkpoints" / f"{name}-{optimizer}"


def loss(params: _Tree, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The mean squared error over a batch or a part of it."""
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["hidden"] + params["bias"])
    return jnp.mean(jnp.square(params["gain"] * (hidden @ params["output"]) - targets))


def batches(steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of a run, three parts each, the same in every process."""
    draw = np.random.default_rng(1)
    inputs = draw.normal(size=(_EXAMPLES, 16))
    targets = np.tanh(inputs @ draw.normal(size=(16, 8))) + 0.1 * draw.normal(size=(_EXAMPLES, 8))
    order, count = None, 0
    while True:
        before, order = order, draw.permutation(_EXAMPLES)
        for rows in np.asarray(naqopt.sliding_batches(order, PART_SIZE, before)):
            if count == steps:
                return
            count += 1
            yield inputs[rows], targets[rows]


def step(
    tx: optax.GradientTransformationExtraArgs, params: _Tree, state: Any, batch: Any
) -> tuple[_Tree, Any, jax.Array]:
    """Takes a step, part by part, as every optimizer may."""
    parts = [jax.tree.map(lambda x: x[i], batch) for i in range(3)]  # noqa: B023
    found = [jax.value_and_grad(loss)(params, part) for part in parts]
    value, grads = jax.tree.map(lambda *x: sum(x) / len(x), *found)
    updates, state = tx.update(
        grads,
        state,
        params,
        value=value,
        grad=grads,
        value_fn=lambda p: sum(loss(p, part) for part in parts) / len(parts),
        part_grads=tuple(grad for _, grad in found),
    )
    return optax.apply_updates(params, updates), state, value


def start(mesh: Mesh) -> _Tree:
    """The first params, sharded."""
    draw = np.random.default_rng(0)
    values = {name: np.asarray(draw.normal(0, 0.3, shape)) for name, shape in _SHAPES.items()}
    return {name: spread(values[name], NamedSharding(mesh, spec)) for name, spec in _SPECS.items()}


def spread(values: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array of which every process holds its devices' shards."""
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def gathered(tree: Any) -> list[np.ndarray]:
    """All numbers of a tree, in every process."""
    return [np.asarray(x) for x in jax.tree.leaves(multihost_utils.process_allgather(tree, True))]


def train(task: Task, optimizer: str) -> dict[str, Any]:
    """Trains to the end, or from a checkpoint to the end; returns losses and numbers."""
    tx = OPTIMIZERS[optimizer]()
    mesh = jax.make_mesh((jax.device_count(),), ("x",), (AxisType.Auto,))
    params = start(mesh)
    shardings = naqopt.state_sharding(tx, params)
    examples = NamedSharding(mesh, PartitionSpec(None, "x"))
    first, losses, result = 0, [], {}
    if task.resume is None:
        state = jax.jit(tx.init, out_shardings=shardings)(params)
    else:
        first = task.checkpoint_at
        shapes = jax.eval_shape(tx.init, params), jax.eval_shape(lambda p: p, params)
        places = shardings, jax.tree.map(lambda x: x.sharding, params)
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places
        )
        with ocp.StandardCheckpointer() as checkpointer:
            path = task.checkpoint(task.resume, optimizer)
            state, params = checkpointer.restore(path, abstract)
        result["restored"] = gathered((state, params))
    one_step = jax.jit(functools.partial(step, tx))
    for k, batch in enumerate(batches(task.steps)):
        if k < first:
            continue
        placed = tuple(spread(x, examples) for x in batch)
        # Devices share the threads of a few cores: steps in flight together may starve.
        params, state, value = jax.block_until_ready(one_step(params, state, placed))
        losses.append(float(value))
        if k + 1 == task.checkpoint_at and task.resume is None:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(task.checkpoint(task.name, optimizer), (state, params))
                checkpointer.wait_until_finished()
            result["saved"] = gathered((state, params))
    return result | {"losses": [np.asarray(losses)], "params": gathered(params)}


def main(task: Task) -> None:
    """Trains by every optimizer, and writes what came of it."""
    jax.config.update("jax_enable_x64", True)
    if task.processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{task.port}", task.processes, task.process)
    if jax.device_count() != task.processes * task.devices:
        raise RuntimeError(f"{jax.device_count()} devices, {task.processes} × {task.devices} asked")
    arrays = {
        f"{optimizer}/{kind}/{i}": array
        for optimizer in OPTIMIZERS
        for kind, found in train(task, optimizer).items()
        for i, array in enumerate(found)
    }
    if task.process == 0:
        np.savez(Path(task.folder) / f"{task.name}.npz", **arrays)


if __name__ == "__main__":
    main(Task(**json.loads(sys.argv[1])))
