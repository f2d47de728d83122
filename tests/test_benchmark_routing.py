"""Global routing: grid, environment, A*, replay and learning on cases that a hand can follow."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.sparse import csgraph

import naqopt
from benchmarks.routing import astar, environment, learning, methods, netlists, replay, runs
from benchmarks.routing import grid as grids
from benchmarks.studies import routing

RIGHT, LEFT, AHEAD, BACK, UP, DOWN = range(6)
# Two rows of three cells and one wire on each edge: what the first net takes the second cannot.
NARROW = grids.make(3, 2, capacity=1, vias=2)
AROUND = [UP, AHEAD, DOWN, RIGHT, UP, BACK, DOWN]


def narrow_netlist():
    """Returns nets from (0, 0) to (2, 0), and from (0, 0) to (1, 0)."""
    start = np.array([NARROW.cell(0, 0)] * 2)
    goal = np.array([NARROW.cell(2, 0), NARROW.cell(1, 0)])
    return netlists.Netlist(start, goal, np.arange(2))


def walk(grid, netlist, actions):
    """Returns observation, outcome and whether an episode is over, for every action."""
    state, found = environment.reset(grid, netlist), []
    for action in actions:
        before = environment.observe(grid, netlist, state).tolist()
        outcome = environment.step(grid, netlist, state, action)
        state, over = environment.proceed(grid, netlist, outcome.state, outcome.ended)
        found.append((before, outcome, bool(over)))
    return state, found


def test_the_grid_has_x_on_layer_1_y_on_layer_2_and_vias():
    assert len(NARROW.position) == 12
    # 4 along x, 3 along y, 6 vias, and the closed one.
    assert sorted(NARROW.capacity.tolist()) == [0] + [1] * 7 + [2] * 6
    assert NARROW.capacity[-1] == 0
    middle, above = NARROW.cell(1, 0), NARROW.cell(1, 0, 2)
    places = NARROW.position[NARROW.neighbour[middle]].tolist()
    assert places == [[2, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 2], [1, 0, 1]]
    places = NARROW.position[NARROW.neighbour[above]].tolist()
    assert places == [[1, 0, 2], [1, 0, 2], [1, 1, 2], [1, 0, 2], [1, 0, 2], [1, 0, 1]]
    for cell, action in itertools.product(range(12), range(6)):
        other, edge = NARROW.neighbour[cell, action], NARROW.edge[cell, action]
        if other == cell:
            assert edge == 13
        else:
            assert (NARROW.neighbour[other, action ^ 1], NARROW.edge[other, action ^ 1]) == (
                cell,
                edge,
            )


def test_an_episode_by_hand():
    actions = [AHEAD, RIGHT, LEFT, RIGHT, RIGHT, *AROUND]
    state, found = walk(NARROW, narrow_netlist(), actions)
    # Layer 1 has no way ahead; (0, 0) to (1, 0) takes the only place, so that there is none back.
    assert [before for before, *_ in found[:7]] == [
        [0, 0, 1, 1, 0, 0, 0, 2, 0, 2, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 2, 0, 2, 0, 0],
        [1, 0, 1, 1, 0, 0, 0, 2, 0, 1, 0, 0],
        [1, 0, 1, 1, 0, 0, 0, 2, 0, 1, 0, 0],
        # the second net, for which the way is closed
        [0, 0, 1, 0, 0, 0, 0, 2, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 2, 0, 1, 0, 0],
        [0, 0, 2, 0, 0, 1, 0, 0, 1, 1, 0, -1],
    ]
    assert [int(o.reward) for _, o, _ in found] == [-1, -1, -1, 100, -1] + 6 * [-1] + [100]
    assert [int(o.wired) for _, o, _ in found] == [0, 1, 0, 1, 0] + 7 * [1]
    assert [bool(o.ended) for _, o, _ in found] == [False] * 3 + [True] + [False] * 7 + [True]
    assert [over for *_, over in found] == [False] * 11 + [True]
    wires = np.asarray(found[-1][1].state.wires)
    assert wires.sum(axis=1).tolist() == [2, 7]
    np.testing.assert_array_equal(found[-1][1].state.capacity, NARROW.capacity - wires.sum(axis=0))
    for here, fresh in zip(state, environment.reset(NARROW, narrow_netlist()), strict=True):
        np.testing.assert_array_equal(here, fresh)


def test_a_net_that_does_not_arrive_ends_and_keeps_its_places():
    state, found = walk(NARROW, narrow_netlist(), [RIGHT] + [AHEAD] * (environment.LIMIT - 1))
    assert [bool(o.ended) for _, o, _ in found] == [False] * (environment.LIMIT - 1) + [True]
    assert not any(o.reached for _, o, _ in found)
    assert (int(state.pair), int(state.cell), int(state.taken)) == (1, 0, 0)
    assert state.capacity[NARROW.edge[0, RIGHT]] == 0


def test_a_net_takes_a_place_on_an_edge_once():
    grid = grids.make(3, 1, capacity=2)
    # One net of three pins, (1, 0) to (2, 0) and to (0, 0), and another from (0, 0) to (1, 0).
    netlist = netlists.Netlist(np.array([1, 1, 0]), np.array([2, 0, 1]), np.array([0, 0, 1]))
    state, found = walk(grid, netlist, [LEFT, RIGHT, RIGHT, LEFT])
    assert [int(o.wired) for _, o, _ in found] == [1, 0, 1, 0]
    assert state.capacity[grid.edge[0, RIGHT]] == 1
    _, found = walk(grid, netlist, [LEFT, RIGHT, RIGHT, LEFT, RIGHT])
    assert int(found[-1][1].wired) == 1
    assert found[-1][1].state.capacity[grid.edge[0, RIGHT]] == 0


def test_routes_of_astar_by_hand():
    assert astar.route(NARROW, *narrow_netlist()) == [[RIGHT, RIGHT], AROUND]
    found = astar.wires(NARROW, [0, 0], [0, 1], [[RIGHT, RIGHT], AROUND])
    assert found.sum(axis=1).tolist() == [2, 7]
    assert found[0, NARROW.edge[0, RIGHT]]
    # Nobody can get out of a corner whose edges are taken.
    assert astar.shortest(NARROW, np.zeros_like(NARROW.capacity), 0, 2) == []


def test_astar_shares_the_edges_of_a_net():
    grid = grids.make(3, 1, capacity=1)
    cells = np.array([0, 1, 0]), np.array([1, 2, 2])
    # An edge that is full is closed for its own net too, as in the environment.
    assert astar.route(grid, *cells, np.array([0, 0, 0])) == [[RIGHT], [RIGHT], []]
    grid = grids.make(3, 1, capacity=2)
    # The third net finds a place where the first two are one.
    assert astar.route(grid, *cells, np.array([0, 0, 1])) == [[RIGHT], [RIGHT], [RIGHT, RIGHT]]
    two = np.array([0, 0, 0, 0]), np.array([2, 2, 2, 2])
    assert list(map(len, astar.route(grid, *two, np.array([0, 0, 1, 2])))) == [2, 2, 2, 0]


def exhaustive(grid, capacity):
    """Returns the steps from every cell to every other over the edges that are open."""
    steps = np.zeros((len(grid.position),) * 2)
    for cell, action in np.argwhere(capacity[grid.edge] > 0):
        steps[cell, grid.neighbour[cell, action]] = 1
    return csgraph.shortest_path(steps, unweighted=True)


def test_the_bound_of_astar_is_the_distance_on_an_empty_grid():
    grid = grids.make(4, 3)
    cells, goals = len(grid.position), np.flatnonzero(grid.position[:, 2] == 1)
    found = [[astar.distance(grid, cell, goal) for goal in goals] for cell in range(cells)]
    np.testing.assert_array_equal(found, exhaustive(grid, grid.capacity)[:, goals])


def test_astar_is_as_short_as_an_exhaustive_search():
    grid, random = grids.make(5, 4), np.random.default_rng(0)
    blocked = 0
    for _ in range(40):
        capacity = (random.random(len(grid.capacity)) < 0.6).astype(int)
        capacity[-1] = 0
        start, goal = random.choice(20, 2, replace=False)
        actions = astar.shortest(grid, capacity, int(start), int(goal))
        blocked += not actions
        assert (len(actions) or np.inf) == exhaustive(grid, capacity)[start, goal]
        cell = start
        for action in actions:
            assert capacity[grid.edge[cell, action]]
            cell = grid.neighbour[cell, action]
        assert not actions or cell == goal
    assert 0 < blocked < 40


def test_a_net_of_several_pins_is_cut_by_its_tree_and_large_nets_come_first():
    grid = grids.make()
    pins = grid.position[[grid.cell(0, 0), grid.cell(5, 0), grid.cell(2, 0), grid.cell(2, 3)]]
    found = netlists.tree(pins)
    assert found[0] == (0, 2)
    assert sorted(found[1:]) == [(2, 1), (2, 3)]
    small, large = [0, 1], [grid.cell(7, 0), grid.cell(0, 7), grid.cell(7, 7)]
    found = netlists.cut(grid, [small, large])
    assert found.start.tolist() == [large[0], large[2], 0]
    assert found.goal.tolist() == [large[2], large[1], 1]
    assert found.net.tolist() == [0, 0, 1]


def test_netlists_come_from_their_seeds():
    grid = grids.make()
    first, routes = netlists.draw(grid, 3, 20)
    again, _ = netlists.draw(grid, 3, 20)
    other, _ = netlists.draw(grid, 4, 20)
    np.testing.assert_array_equal(first, again)
    assert np.any(np.array(first) != np.array(other))
    assert len(first.net) == len(routes) == 20
    assert all(routes)
    assert np.all(first.start != first.goal)
    assert np.all(grid.position[np.concatenate([first.start, first.goal]), 2] == 1)
    halves = np.abs(grid.position[first.start] - grid.position[first.goal]).sum(axis=1)
    assert np.all(np.diff(halves) <= 0)


def test_a_netlist_has_so_many_pairs_whatever_its_nets():
    netlist, routes = netlists.draw(grids.make(), 0, 20, most_pins=4)
    assert len(routes) == 20
    assert netlist.net.max() < 19
    wires = astar.wires(grids.make(), netlist.start, netlist.net, routes)
    assert wires.sum() < sum(map(len, routes))


def test_the_replay_begins_with_the_steps_of_astar():
    netlist = narrow_netlist()
    routes = astar.route(NARROW, *netlist)
    rows = replay.demonstration(NARROW, netlist, routes)
    _, found = walk(NARROW, netlist, itertools.chain(*routes))
    assert rows.shape == (9, 26)
    assert rows.dtype == np.int8
    assert rows[:, :12].tolist() == [before for before, *_ in found]
    assert rows[:, 24].tolist() == [RIGHT, RIGHT, *AROUND]
    assert rows[:, 25].tolist() == [-1, 100, -1, -1, -1, -1, -1, -1, 100]
    # Where a net goes on, what follows a step is what the next one sees.
    assert rows[2:8, 12:24].tolist() == rows[3:9, :12].tolist()
    assert rows[1, 12:24].tolist() == [2, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0]


def test_the_replay_is_a_ring():
    rows = np.arange(3 * 26, dtype=np.int8).reshape(3, 26)
    ring = replay.begin(rows, size=7)
    assert ring.rows[:, 0].tolist() == [0, 26, 52, 0, 26, 52, 0]
    new = replay.Transition(jnp.full(12, 1), jnp.int32(4), jnp.int32(100), jnp.full(12, 2))
    for _ in range(8):
        ring = replay.push(ring, new)
    assert int(ring.oldest) == 1
    assert ring.rows.tolist() == [[1] * 12 + [2] * 12 + [4, 100]] * 7
    ring = replay.push(replay.begin(rows, size=7), new)
    batch = replay.sample(ring, jnp.array([0.0, 0.14, 0.15, 0.999]))
    assert batch.action.tolist() == [4, 4, 50, 24]
    assert batch.reward.tolist() == [100, 100, 51, 25]
    assert batch.observation[2].tolist() == list(range(26, 38))
    assert batch.following[2].tolist() == list(range(38, 50))


def network(params, observations):
    """Returns Q by NumPy."""
    h, params = np.asarray(observations, float), np.asarray(params, float)
    for n, m in ((12, 32), (32, 64), (64, 32), (32, 6)):
        weights, bias, params = np.split(params, [n * m, (n + 1) * m])
        h = h @ weights.reshape(n, m) + bias
        h = np.maximum(h, 0) if params.size else h
    return h


def test_the_network():
    params = learning.start(0)
    assert params.shape == (4806,)
    assert -0.5 <= params.min() < -0.49
    assert 0.49 < params.max() <= 0.5
    assert params[12 * 32 : 13 * 32].tolist() == [0.0] * 32
    assert params[-6:].tolist() == [0.0] * 6
    assert np.sum(params == 0) == 32 + 64 + 32 + 6
    params += 0.01
    observations = np.random.default_rng(0).integers(-7, 8, (5, 12))
    found = learning.q_values(learning.layers(jnp.asarray(params)), jnp.asarray(observations))
    np.testing.assert_allclose(found, network(params, observations), rtol=1e-4, atol=1e-4)


def constant(values):
    """Returns the params of a network whose Q is the same everywhere."""
    return jnp.zeros(4806).at[-6:].set(jnp.array(values, jnp.float32))


def test_the_target_of_double_q_learning_by_hand():
    batch = replay.Transition(
        jnp.zeros((2, 12), jnp.int8),
        jnp.array([0, 3], jnp.int8),
        jnp.array([-1, 100], jnp.int8),
        jnp.zeros((2, 12), jnp.int8),
    )
    # Q likes action 3 best, for which the target has 7; its own largest is 20.
    q = learning.layers(constant([1, 2, 3, 9, 4, 5]))
    target = learning.layers(constant([0, 20, 0, 7, 0, 0]))
    y = learning.targets(q, target, batch)
    np.testing.assert_allclose(y, [-1 + 0.9 * 7, 100], rtol=1e-6)
    # Q(s, a) is 1 and 9.
    np.testing.assert_allclose(learning.loss(q, batch, y), ((5.3 - 1) ** 2 + 91**2) / 2, rtol=1e-6)


def small_task(nets=3, seed=0):
    return runs.task(grids.make(), seed, nets)


@pytest.mark.parametrize("exploring", [False, True])
def test_a_step_by_hand(monkeypatch, exploring):
    monkeypatch.setattr(learning, "EPSILON", 1.0 if exploring else 0.0)
    grid, task, tx = grids.make(), small_task(), optax.with_extra_args_support(optax.sgd(1e-3))
    learner = learning.begin(tx, grid, task.netlist, task.rows, 5, episodes=1)
    found = jax.jit(lambda learner: learning.step(tx, grid, task.netlist, learner))(learner)
    uniform = jax.random.uniform(jax.random.fold_in(learner.key, 0), (34,))
    before = environment.observe(grid, task.netlist, learner.state)
    greedy = int(np.argmax(network(learner.params, before)))
    action = int(6 * uniform[1]) if exploring else greedy
    outcome = environment.step(grid, task.netlist, learner.state, action)
    after = environment.observe(grid, task.netlist, outcome.state)
    row = [*before.tolist(), *after.tolist(), action, int(outcome.reward)]
    assert found.replay.rows[0].tolist() == row
    rows = np.asarray(found.replay.rows[(50_000 * uniform[2:]).astype(int)], int)
    best = network(learner.params, rows[:, 12:24]).argmax(axis=1)
    behind = network(learner.target, rows[:, 12:24])[np.arange(32), best]
    y = rows[:, 25] + 0.9 * np.where(rows[:, 25] == 100, 0, behind)

    def loss(params):
        q = learning.q_values(learning.layers(params), jnp.asarray(rows[:, :12]))
        return jnp.mean((y - q[np.arange(32), rows[:, 24]]) ** 2)

    expected = learner.params - 1e-3 * jax.grad(loss)(learner.params)
    np.testing.assert_allclose(found.params, expected, rtol=1e-3, atol=1e-4)
    assert found.log.totals.tolist() == [
        [int(outcome.reward), int(outcome.reached), int(outcome.wired), 1]
    ]


def test_a_method_with_a_look_ahead_acts_with_its_iterate(monkeypatch):
    monkeypatch.setattr(learning, "EPSILON", 0.0)
    grid, task, tx = grids.make(), small_task(), naqopt.mnaq(momentum=0.5)
    learner = learning.begin(tx, grid, task.netlist, task.rows, 5, episodes=1)
    iterate, ahead = constant([0, 0, 0, 9, 0, 0]), constant([0, 8, 0, 0, 0, 0])
    memory = learner.memory._replace(velocity=2 * (ahead - iterate), momentum=jnp.float32(0.5))
    np.testing.assert_array_equal(naqopt.eval_params(memory, ahead), iterate)
    learner = learner._replace(params=ahead, memory=memory)
    found = jax.jit(lambda learner: learning.step(tx, grid, task.netlist, learner))(learner)
    assert int(found.replay.rows[0, 24]) == 3


def test_the_target_follows_every_ten_nets():
    grid, task = grids.make(), small_task()
    tx = naqopt.asnaq(0.01, memory_size=2, fisher_size=4, min_momentum=0.9)
    learner = learning.begin(tx, grid, task.netlist, task.rows, 5, episodes=8)
    step = jax.jit(lambda learner: learning.step(tx, grid, task.netlist, learner))
    start = np.asarray(learner.target)
    while learner.nets < 10:
        np.testing.assert_array_equal(learner.target, start)
        learner = step(learner)
    iterate = naqopt.eval_params(learner.memory, learner.params)
    np.testing.assert_allclose(learner.target, 0.95 * start + 0.05 * iterate, atol=1e-6)
    assert np.abs(iterate - learner.params).max() > 1e-4  # the look-ahead is elsewhere


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("adam", "asnaq") else pytest.mark.slow)
        for name in methods.METHODS
    ],
)
def test_a_run_is_finite_repeats_itself_and_is_compiled_once(name):
    router = runs.Router(methods.METHODS[name], grids.make(), episodes=12)
    rate = methods.METHODS[name].middle_rate
    learner, seconds = router.run(small_task(), rate)
    again, _ = router.run(small_task(), rate)
    other, _ = router.run(small_task(seed=1), 2 * rate)
    assert router.advance._cache_size() == 1
    assert seconds > 0
    totals = np.asarray(learner.log.totals)
    np.testing.assert_array_equal(totals, again.log.totals)
    np.testing.assert_array_equal(learner.params, again.params)
    assert np.any(totals != np.asarray(other.log.totals))
    assert np.all(np.isfinite(learner.params))
    reward, arrived, length, steps = totals.T
    np.testing.assert_array_equal(reward, 100 * arrived - (steps - arrived))
    assert np.all(length <= steps)
    assert np.all((arrived >= 0) & (arrived <= 3))
    assert int(learner.steps) == steps.sum()
    assert int(learner.nets) == 36
    told = runs.told(learner, seconds, with_wires=True)
    assert sum(map(len, told["wires"])) == told["length"]
    assert len(told["rewards"]) == 3
    assert told["rewards"][-1] == np.mean(reward[10:])


def test_the_best_episode_has_most_nets_then_the_highest_reward_and_is_the_first():
    task = small_task()
    tx = optax.sgd(0.1)
    learner = learning.begin(tx, grids.make(), task.netlist, task.rows, 0, episodes=5)
    totals = [[280, 2, 9, 22], [-150, 0, 8, 150], [270, 3, 9, 33], [281, 3, 7, 22], [281, 3, 8, 22]]
    log = learner.log._replace(totals=jnp.array(totals))
    told = runs.told(learner._replace(log=log), 1.0)
    best = {"reward": 281, "episode": 4, "arrived": 3, "length": 7, "steps": 249}
    assert {key: told[key] for key in best} == best


def test_the_wires_are_those_of_the_first_best_episode():
    task = small_task()
    learner = learning.begin(optax.sgd(0.1), grids.make(), task.netlist, task.rows, 0, episodes=4)
    log = learner.log
    for episode, (reward, arrives) in enumerate(((90, 1), (80, 2), (95, 1), (80, 2))):
        state = learner.state._replace(wires=learner.state.wires.at[0, episode].set(True))
        for part, over in ((0, False), (reward, True)):
            outcome = environment.Outcome(state, part, 0, arrives * over, over)
            log = learning._record(log, outcome, over)
    assert log.totals[:, :2].tolist() == [[90, 1], [80, 2], [95, 1], [80, 2]]
    assert np.argwhere(log.wires).tolist() == [[0, 1]]


def test_learning_finds_the_way():
    """Five nets on a grid with room for all: all of them, hardly longer than A*'s."""
    task = small_task(nets=5)
    router = runs.Router(methods.METHODS["adam"], grids.make(), episodes=60)
    told = runs.told(*router.run(task, 1e-3))
    assert told["arrived"] == 5
    assert told["length"] <= task.wires.sum() + 4


def test_a_study_writes_a_table_and_a_picture_and_goes_on(tmp_path, monkeypatch):
    table = {name: methods.METHODS[name] for name in ("adam", "rmsprop")}
    monkeypatch.setattr(routing, "METHODS", table)
    size = routing.Size(nets=2, netlists=2, episodes=6, tuning=1)
    folder = tmp_path / "routing"
    picture = routing.run(size, folder, seeds=1)
    assert picture.stat().st_size > 10_000
    path = folder / "routing.json"
    first = json.loads(path.read_text())
    assert set(first["methods"]["adam"]["runs"]) >= {"0.0001"}
    routing.run(size, folder)
    both = json.loads(path.read_text())
    for name, entry in both["methods"].items():
        assert entry["tried"] == first["methods"][name]["tried"]
        for rate, found in entry["runs"].items():
            assert list(found) == ["0", "1"]
            assert found["0"] == first["methods"][name]["runs"][rate]["0"]
    before = path.read_text()
    routing.run(size, folder)
    assert path.read_text() == before
    text = (folder / "results.md").read_text()
    assert all(word in text for word in ("Adam", "RMSprop", "of 2", "Learning rates"))
