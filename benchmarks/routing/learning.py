"""Double deep Q-learning, compiled whole: environment, replay and optimizer in one loop.

One step of the optimizer follows each step of the environment, on a batch of the replay:

  Y = R + γ Q_target(s′, argmax_a Q(s′, a)),    E = mean (Y − Q(s, a))²

Decided here, where the published settings are silent:

- Behind the goal nothing comes, Y = R. A net that has used up its steps is not at an end: the
  observation does not tell how many it has had.
- Methods with a look-ahead act, and judge s′, with their iterate (`naqopt.eval_params`); Y is
  computed once a step, so that both gradients and the check of a cycle are of one loss.
- The target begins as a copy of Q. Nothing is learnt before the first step.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import naqopt
from benchmarks.routing import environment
from benchmarks.routing import replay as ring
from benchmarks.routing.grid import ACTIONS, Grid
from benchmarks.routing.netlists import Netlist
from benchmarks.routing.replay import Replay, Transition

Layers = Sequence[tuple[jax.Array, jax.Array]]

WIDTHS = (12, 32, 64, 32, 6)
DISCOUNT = 0.9
EPSILON = 0.05
BATCH = 32
TARGET_SHARE = 0.05
TARGET_EVERY = 10  # two-pin nets


def start(seed: int) -> np.ndarray:
    """Returns fresh params as one vector: weights U(−0.5, 0.5), biases 0."""
    random = np.random.default_rng(seed)
    parts = [
        np.append(random.uniform(-0.5, 0.5, n * m), np.zeros(m))
        for n, m in itertools.pairwise(WIDTHS)
    ]
    return np.concatenate(parts).astype(np.float32)


def layers(params: jax.Array) -> Layers:
    """Returns weights and biases of the layers that a vector of params is made of."""
    shapes = [shape for n, m in itertools.pairwise(WIDTHS) for shape in ((n, m), (m,))]
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    parts = [x.reshape(y) for x, y in zip(jnp.split(params, ends), shapes, strict=True)]
    return list(zip(parts[::2], parts[1::2], strict=True))


def q_values(network: Layers, observations: jax.Array) -> jax.Array:
    """Returns Q of the six actions, (…, 6), at observations, (…, 12)."""
    h = observations.astype(network[0][0].dtype)
    for weights, bias in network[:-1]:
        h = jax.nn.relu(h @ weights + bias)
    weights, bias = network[-1]
    return h @ weights + bias


def taken(values: jax.Array, actions: jax.Array) -> jax.Array:
    """Returns of the values of all actions, (batch, 6), those of the actions taken, (batch,)."""
    return jnp.take_along_axis(values, actions[:, None].astype(jnp.int32), axis=1)[:, 0]


def targets(network: Layers, target: Layers, batch: Transition) -> jax.Array:
    """Returns Y, (batch,): Q chooses the next action, the target network says what it is worth."""
    best = jnp.argmax(q_values(network, batch.following), axis=1)
    worth = taken(q_values(target, batch.following), best)
    going_on = batch.reward < environment.GOAL
    return batch.reward + DISCOUNT * going_on * worth


def loss(network: Layers, batch: Transition, y: jax.Array) -> jax.Array:
    """Returns the mean of (Y − Q(s, a))²."""
    return jnp.mean((y - taken(q_values(network, batch.observation), batch.action)) ** 2)


class Log(NamedTuple):
    """What the episodes came to.

    Attributes:
      totals: (episodes, 4): rewards, nets that arrived, places on edges (the wire length), steps.
      best: most nets and then the highest reward of an episode, as `score` orders them.
      wires: (nets, edges + 1), the wires of the first such episode.
      episode: how many have ended.
    """

    totals: jax.Array
    best: jax.Array
    wires: jax.Array
    episode: jax.Array


def score(reward: Any, arrived: Any) -> Any:
    """Returns a number that is larger for more nets, and of as many for a higher reward."""
    return arrived * 1_000_000 + reward


class Learner(NamedTuple):
    """All of a run.

    Attributes:
      params: of Q, (4806,); the look-ahead point of a method that has one.
      memory: the optimizer's state.
      target: params of the target network.
      replay: the transitions.
      state: of the environment.
      key: of all random choices.
      steps: taken.
      nets: two-pin nets that have ended.
      log: of the episodes.
    """

    params: jax.Array
    memory: optax.OptState
    target: jax.Array
    replay: Replay
    state: environment.State
    key: jax.Array
    steps: jax.Array
    nets: jax.Array
    log: Log


def begin(
    tx: optax.GradientTransformation,
    grid: Grid,
    netlist: Netlist,
    rows: np.ndarray,
    seed: int,
    episodes: int,
) -> Learner:
    """Returns a run before its first step.

    Args:
      tx: the optimizer.
      grid: to route on.
      netlist: to be routed.
      rows: transitions that fill the replay.
      seed: of the params and all random choices.
      episodes: that the log has room for.
    """
    params = jnp.asarray(start(seed))
    state = environment.reset(grid, netlist)
    zero = jnp.zeros((), jnp.int32)
    totals = jnp.zeros((episodes, 4), jnp.int32)
    return Learner(
        params=params,
        memory=tx.init(params),
        target=params,
        replay=ring.begin(rows),
        state=state,
        key=jax.random.key(seed),
        steps=zero,
        nets=zero,
        log=Log(totals, jnp.full((), jnp.iinfo(jnp.int32).min, jnp.int32), state.wires, zero),
    )


def step(
    tx: optax.GradientTransformationExtraArgs, grid: Grid, netlist: Netlist, learner: Learner
) -> Learner:
    """Returns the run one step of the environment and one of the optimizer later."""
    uniform = jax.random.uniform(
        jax.random.fold_in(learner.key, learner.steps), (2 + BATCH,), learner.params.dtype
    )
    network = layers(naqopt.eval_params(learner.memory, learner.params))

    # ε-greedy: one step of the environment
    observation = environment.observe(grid, netlist, learner.state)
    greedy = jnp.argmax(q_values(network, observation))
    explored = (uniform[1] * len(ACTIONS)).astype(greedy.dtype)
    action = jnp.where(uniform[0] < EPSILON, explored, greedy)
    outcome = environment.step(grid, netlist, learner.state, action)
    following = environment.observe(grid, netlist, outcome.state)
    replay = ring.push(learner.replay, Transition(observation, action, outcome.reward, following))

    # one step of the optimizer
    batch = ring.sample(replay, uniform[2:])
    y = targets(network, layers(learner.target), batch)

    def value_fn(params: jax.Array) -> jax.Array:
        return loss(layers(params), batch, y)

    def grad_fn(params: jax.Array) -> jax.Array:
        # By layers and then joined: through the slices of a vector it takes twice as long.
        return jnp.concatenate(
            [x.ravel() for x in jax.tree.leaves(jax.grad(loss)(layers(params), batch, y))]
        )

    grad = grad_fn(learner.params)
    updates, memory = tx.update(
        grad, learner.memory, learner.params, grad=grad, value_fn=value_fn, grad_fn=grad_fn
    )
    params = optax.apply_updates(learner.params, updates)

    # target ← 0.95 target + 0.05 Q, every 10 two-pin nets
    nets = learner.nets + outcome.ended
    due = outcome.ended & (nets % TARGET_EVERY == 0)
    share = jnp.where(due, TARGET_SHARE, 0.0).astype(params.dtype)
    moved = naqopt.eval_params(memory, params) - learner.target

    state, over = environment.proceed(grid, netlist, outcome.state, outcome.ended)
    return Learner(
        params=params,
        memory=memory,
        target=learner.target + share * moved,
        replay=replay,
        state=state,
        key=learner.key,
        steps=learner.steps + 1,
        nets=nets,
        log=_record(learner.log, outcome, over),
    )


def _record(log: Log, outcome: environment.Outcome, over: jax.Array) -> Log:
    """Adds a step to its episode, and closes the episode where it is over."""
    added = jnp.stack([outcome.reward, outcome.reached, outcome.wired, jnp.ones((), jnp.int32)])
    totals = log.totals.at[log.episode].add(added)
    reached = score(totals[log.episode, 0], totals[log.episode, 1])
    better = over & (reached > log.best)
    return Log(
        totals=totals,
        best=jnp.where(better, reached, log.best),
        wires=jnp.where(better, outcome.state.wires, log.wires),
        episode=log.episode + over,
    )


def advance(
    tx: optax.GradientTransformationExtraArgs,
    grid: Grid,
    netlist: Netlist,
    learner: Learner,
    until: jax.Array,
) -> Learner:
    """Returns the run when so many of its episodes have ended.

    The loop has as many rounds as the environment has steps: a net that has arrived makes place
    for the next at once, and an episode for the next. Netlists run one after the other: under
    `vmap` the condition at the end of aSNAQ's cycles becomes a choice between arrays, with both
    branches computed at every step.
    """
    return jax.lax.while_loop(
        lambda learner: learner.log.episode < until,
        lambda learner: step(tx, grid, netlist, learner),
        learner,
    )
