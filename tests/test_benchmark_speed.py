"""The measurements of speed: what is made of times, the tasks, and the command on tiny sizes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from flax import nnx
from PIL import Image

import naqopt
from benchmarks.cli import main
from benchmarks.models import transformer
from benchmarks.reports import records
from benchmarks.speed import (
    calls,
    compiling,
    programs,
    report,
    sizes,
    stepping,
    tables,
    tasks,
    timing,
    vectors,
)
from benchmarks.speed.calls import CALLS, DENSE
from benchmarks.speed.sections import SECTIONS

TINY = sizes.Sizes(
    quick=True,
    calls=("onaq", "omoq", "svrg"),
    rounds=2,
    compile_rounds={1: 1, 4: 1},
    residual_blocks=1,
    transformer_blocks=1,
    arrays=4,
    array_parameters=80,
    compile_memories=(2, 300),
    memories=(1, 2),
    memory_parameters=50,
    networks=("MLP",),
    directions=(1000,),
    temporaries=2000,
    lengths=(10, 20, 40),
    array_counts=(1, 2),
    costs=1000,
    matrix=20,
    dense_compile_rounds={1: 1},
)


def command(*arguments):
    return CliRunner().invoke(main, ["speed", *map(str, arguments)])


def stored(folder):
    return json.loads((folder / "speed" / "speed.json").read_text())


class Clock:
    """A clock that only goes on while a function works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        """Tells the time."""
        return self.now

    def work(self, *seconds):
        """Returns a function that takes these seconds, one after the other, then the last."""
        left = list(seconds)

        def turn():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return turn


def test_turns_alternate_and_the_first_round_does_not_count():
    clock = Clock()
    times = timing.interleaved({"a": clock.work(90, 2, 4, 6), "b": clock.work(1)}, 3, clock=clock)
    assert times == {"a": [2, 4, 6], "b": [1, 1, 1]}
    times = timing.interleaved({"a": clock.work(90, 2)}, 2, warm_up=False, clock=clock)
    assert times == {"a": [90, 2]}


def test_each_round_has_every_turn_once_and_an_order_of_its_own():
    taken = []
    turns = {name: functools.partial(taken.append, name) for name in "abcd"}
    timing.interleaved(turns, 5)
    rounds = [tuple(taken[i : i + 4]) for i in range(0, len(taken), 4)]
    assert len(rounds) == 6
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 2


def test_a_function_twice_as_long_has_the_ratio_two():
    clock = Clock()
    times = timing.interleaved({"a": clock.work(2), "b": clock.work(1)}, 5, clock=clock)
    entry = timing.ratio("a / b", "here", times["a"], times["b"], 2.0, repeated=10)
    expected = {"value": 2.0, "low": 2.0, "high": 2.0, "top_ms": 200.0, "bottom_ms": 100.0}
    assert expected.items() <= entry.items()
    assert tables.met(entry)
    assert not tables.met(entry | {"target": 1.9})


def test_ratio_is_the_median_of_the_rounds():
    entry = timing.ratio("a / b", "here", [2.0, 4.0, 9.0], [1.0, 2.0, 3.0], repeated=10)
    assert (entry["value"], entry["high"], entry["rounds"]) == (2.0, 3.0, 3)
    assert entry["top_ms"] == 400.0
    assert "a / b" in tables.measurements([entry])


def test_the_table_marks_targets_and_leaves_out_empty_columns():
    entries = [
        timing.entry("fast", "here", 1.0, 1.5),
        timing.entry("slow", "here", 2.0, 1.5, note="why"),
        timing.entry("free", "here", 2.0),
        timing.entry("unknown", "here", None, 1.5),
    ]
    lines = tables.measurements(entries, "copies").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["what", "where", "copies", "target", "met", "note"]
    assert [row[4] for row in cells[2:]] == ["yes", "NO", "", "NO"]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_exponent_of_a_power(power):
    numbers = [10, 100, 1000, 10_000]
    value, used = timing.exponent(numbers, [3e-6 * n**power for n in numbers])
    assert value == pytest.approx(power)
    assert used == numbers[1:]


def test_exponent_leaves_out_what_every_size_costs():
    numbers = [1, 10, 100, 1000, 10_000, 100_000]
    value, used = timing.exponent(numbers, [1 + n / 1000 for n in numbers])
    assert used == [1000, 10_000, 100_000]
    assert 0.8 < value < 1
    assert timing.exponent(numbers, [1.0] * 6) == (pytest.approx(0), used)


def test_donating_begins_anew_or_goes_on():
    def add(carry, amount):
        return carry + amount

    donated = jax.jit(add, donate_argnums=0)
    anew = timing.Donating(donated, jnp.zeros(2), 1.0)
    on = timing.Donating(donated, jnp.zeros(2), 1.0, restarts=False)
    for _ in range(2):
        anew.prepare(), on.prepare()
        results = anew(), on()
    np.testing.assert_array_equal(results, [[1, 1], [2, 2]])


def test_row_network_has_the_papers_size():
    params = tasks.row_network().params
    assert optax.tree.size(params) == 28 * 100 + 100 * 100 + 100 + 100 * 10 + 10
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    assert all(0.008 < float(jnp.std(kernel)) < 0.012 for kernel in kernels)
    assert all(not leaf.any() for leaf in jax.tree.leaves(params) if leaf.ndim == 1)


@pytest.mark.parametrize("arrays", [1, 2, 20])
def test_tanh_network_has_that_many_arrays(arrays):
    task = tasks.tanh_network(arrays)
    assert len(jax.tree.leaves(task.params)) == arrays
    alone = tasks.packed(task)
    assert alone.params.ndim == 1
    assert float(alone.loss(alone.params, alone.data)) == pytest.approx(
        float(task.loss(task.params, task.data))
    )


def test_quadratic_is_the_same_in_many_arrays():
    many, one = tasks.quadratic(4096, 4), tasks.quadratic(4096)
    assert len(jax.tree.leaves(many.params)) == 4
    losses = [task.loss(task.params, task.data) for task in (many, one)]
    # The curvatures repeat every 1,024 numbers.
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)


def test_transformer_looks_at_nothing_that_comes_later():
    @jax.jit
    def network(codes):
        return transformer.Transformer(5, 8, 2, 2, 6, rngs=nnx.Rngs(0))(codes)

    codes = jax.random.randint(jax.random.key(0), (3, 6), 0, 5)
    changed = codes.at[:, 4].set((codes[:, 4] + 1) % 5)
    before, after = network(codes), network(changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert float(jnp.abs(before - after)[:, 4:].min(axis=(0, 2)).min()) > 0


def test_networks_have_the_arrays_that_they_are_chosen_for():
    def arrays(make, blocks):
        return len(jax.tree.leaves(jax.eval_shape(lambda: make(blocks).params)))

    assert arrays(tasks.resnet, 3) == 59
    assert arrays(tasks.text_transformer, 6) == 102


@pytest.mark.parametrize(("name", "cost"), [("adaqn", 62.8), ("asnaq", 63.8), ("onaq", 24)])
def test_costs_are_the_papers(name, cost):
    assert CALLS[name].count == pytest.approx(cost)
    assert CALLS["svrg"].count is None
    assert CALLS["bfgs"].with_options(memory_size=2).count == 4 * 2 + 2


def test_compilation_is_counted_without_a_cache():
    turn = compiling.Compiling(tasks.tanh_network(2), CALLS["svrg"])
    enabled = jax.config.jax_enable_compilation_cache
    with compiling._no_cache():
        assert not jax.config.jax_enable_compilation_cache
        turn.prepare()
        turn()
    assert jax.config.jax_enable_compilation_cache == enabled
    turn.settle()
    assert turn.kernels > 5


def test_kernels_are_fusions_and_what_stands_outside_of_them():
    text = """HloModule jit_step, is_scheduled=true

%add_region (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum.1 = f32[] add(%x, %y)
}

%fused_computation (param_0: f32[4]) -> f32[] {
  %param_0 = f32[4]{0} parameter(0)
  %zero = f32[] constant(0)
  %square = f32[4]{0} multiply(%param_0, %param_0)
  ROOT %sum.2 = f32[] reduce(%square, %zero), dimensions={0}, to_apply=%add_region
}

%called (param_1: f32[]) -> f32[] {
  %param_1 = f32[] parameter(0)
  ROOT %root = f32[] sqrt(%param_1)
}

ENTRY %main (a: f32[4]) -> (f32[], f32[4]) {
  %a = f32[4]{0} parameter(0)
  %a_copy = f32[4]{0} copy(%a)
  %norm = f32[] fusion(%a), kind=kLoop, calls=%fused_computation
  %call.1 = f32[] call(%norm), to_apply=%called
  ROOT %both = (f32[], f32[4]{0}) tuple(%call.1, %a_copy)
}
"""
    assert programs.kernels(text) == 3  # the copy, the fusion and the root


def test_steps_of_a_variance_reduced_call_have_their_snapshot():
    turn = stepping.steps(tasks.quadratic(20), CALLS["svrg"])
    turn.prepare()
    params, state = turn()
    assert int(state.snapshots) == 2
    assert int(naqopt.diagnostics(state)["steps_without_snapshot"]) == 5  # the first turn's
    assert float(jnp.linalg.norm(params["array_000"])) > 0


@pytest.mark.parametrize(
    ("name", "losses", "numbers"),
    [("onaq", 2, 2 * 4), ("asnaq", 4, 2 * 10 + 100), ("adaqn", 3, 2 * 10 + 100), ("svrg", 2, 0)],
)
def test_what_no_step_can_do_without(name, losses, numbers):
    """Gradients, two losses a cycle, and memories of m, m and m_F copies of the params."""
    task, traced = tasks.quadratic(20), []

    def loss(params, data):
        traced.append(params)
        return task.loss(params, data)

    turn = stepping.least(dataclasses.replace(task, loss=loss), CALLS[name])
    params, *memories, count = turn.start
    assert sum(optax.tree.size(memory) for memory in memories) == numbers * 20
    turn.prepare()
    params, *_, count = turn()
    assert int(count) == task.steps
    assert len({id(found) for found in traced}) == losses
    assert 0 < float(params["array_000"][0]) < 1  # on its way to the minimum


@pytest.fixture
def cheap(monkeypatch):
    """Puts plain gradient descent in the place of every call, which compiles at once."""

    def descent(memory_size=1, fisher_size=1, cycle_length=1, **options):
        del memory_size, fisher_size, cycle_length, options
        return optax.sgd(1e-3)

    for name, call in list(CALLS.items()):
        if name in ("adaqn", "asnaq", "bfgs", "onaq", "omoq", "svrg", "lsr1"):
            stub = dataclasses.replace(call, make=descent, takes_snapshots=False)
            monkeypatch.setitem(CALLS, name, stub)
        else:
            monkeypatch.delitem(CALLS, name)
    for name, call in list(DENSE.items()):
        monkeypatch.setitem(DENSE, name, dataclasses.replace(call, make=descent))
    for name in ("ADAM", "LBFGS"):
        monkeypatch.setattr(compiling, name, dataclasses.replace(calls.ADAM, make=descent))
    monkeypatch.setitem(tasks.NETWORKS, "MLP", lambda: tasks.tanh_network(2))
    for arrays, name in enumerate(("resnet", "text_transformer"), 1):
        monkeypatch.setattr(tasks, name, functools.partial(_tanh_network, arrays))
    monkeypatch.setattr(compiling.gc, "collect", lambda: 0)
    monkeypatch.setattr(vectors, "LARGE", 1)
    monkeypatch.setattr(sizes, "QUICK", TINY)


def _tanh_network(arrays, blocks):
    del blocks
    return tasks.tanh_network(arrays)


_SLOW = ("compile", "networks", "arrays", "memory", "steps")  # which compile most


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow if x in _SLOW else ()) for x in SECTIONS]
)
def test_every_section_is_measured(name, tmp_path, cheap):
    result = command("--quick", "--out", tmp_path, "--only", name)
    assert result.exit_code == 0, result.output
    content = stored(tmp_path)
    assert list(content["sections"]) == [name]
    section = content["sections"][name]
    assert section["device"] == content["device"] == records.environment()["device"]
    assert section["quick"]
    entries = section["entries"]
    assert all(isinstance(entry["value"], float) for entry in entries)
    assert any("target" in entry for entry in entries) == (name != "costs")
    names = [(entry["name"], entry["group"]) for entry in entries]
    assert len(set(names)) == len(names) >= 3
    check(name, {entry["name"]: entry for entry in entries})
    text = (tmp_path / "speed" / "results.md").read_text()
    assert f"## {section['title']}" in text
    assert section["device"] in text
    lines = {f"{name}.png"} if name in ("compile", "scaling", "memory") else set()
    drawn = {path.name for path in (tmp_path / "speed").glob("*.png")}
    # Costs of no time at all have no logarithm.
    assert drawn == {f"bars-{name}.png"} | lines or (name == "costs" and not drawn)
    for path in drawn:
        with Image.open(tmp_path / "speed" / path) as image:
            image.load()


def check(name, entries):
    """All calls are gradient descent here."""
    if name == "compile":
        assert {x["arrays"] for x in entries.values() if "arrays" in x} == {4}
        same = entries["onaq / optax.lbfgs"]
        assert same["kernels"] == same["peer_kernels"] > 0
        assert entries["onaq, flattened, 4 arrays / 1 array"]["target"] == 1.2
    if name == "temporaries":
        assert all(x["value"] == 0 for x in entries.values() if "target" in x)
    if name == "memory":
        assert {"compiling lsr1 / optax.lbfgs", "lsr1"} <= set(entries)
    if name == "steps":
        plain = {key.replace(", flattened", ""): x.get("target") for key, x in entries.items()}
        assert plain["onaq step / 2 gradients"] == 1.3
        assert plain["omoq step / optax.adam step"] == 1.5
        assert plain["svrg step / 2 gradients"] is None
    if name == "costs":
        assert "count" not in entries["svrg"]
        assert entries["onaq"]["formula"] == "6 m"


@pytest.fixture
def fake(monkeypatch):
    """Puts sections of one line in the place of all; returns the names of those measured."""
    measured = []

    def measure(name, sizes):
        measured.append(name)
        return [timing.entry(name, "here", float(len(measured)))]

    for name, section in SECTIONS.items():
        stub = dataclasses.replace(section, measure=functools.partial(measure, name))
        monkeypatch.setitem(SECTIONS, name, stub)
    return measured


def test_only_leaves_the_other_sections_as_they_are(tmp_path, fake):
    assert command("--out", tmp_path).exit_code == 0
    before = stored(tmp_path)["sections"]
    assert fake == list(SECTIONS)
    assert command("--out", tmp_path, "--quick", "--only", "steps,compile").exit_code == 0
    after = stored(tmp_path)["sections"]
    assert fake[len(SECTIONS) :] == ["steps", "compile"]
    assert list(after) == list(before)
    assert {name for name in after if after[name] != before[name]} == {"steps", "compile"}
    result = command("--out", tmp_path, "--only", "stairs")
    assert result.exit_code == 2
    assert "unknown section stairs" in result.output


def test_an_interrupted_run_goes_on(tmp_path, fake, monkeypatch):
    whole = SECTIONS["networks"]

    def interrupt(sizes):
        raise KeyboardInterrupt

    monkeypatch.setitem(SECTIONS, "networks", dataclasses.replace(whole, measure=interrupt))
    assert command("--out", tmp_path).exit_code != 0
    assert list(stored(tmp_path)["sections"]) == fake == ["compile"]
    monkeypatch.setitem(SECTIONS, "networks", whole)
    assert "interrupted" in command("--out", tmp_path).output
    assert fake == list(SECTIONS)
    command("--out", tmp_path)
    assert fake == 2 * list(SECTIONS)


def test_files_of_another_device_bear_its_name(monkeypatch):
    assert report.suffix() == ""
    monkeypatch.setattr(report.jax, "default_backend", lambda: "gpu")
    kind = type("Device", (), {"device_kind": "NVIDIA H100 80GB HBM3"})
    monkeypatch.setattr(report.jax, "devices", lambda: [kind])
    assert report.suffix() == "-nvidia-h100-80gb-hbm3"
