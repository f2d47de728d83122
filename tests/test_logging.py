"""The guide of diagnostics, run as it stands: what its loggers leave behind, and its picture."""

import csv
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

pytestmark = pytest.mark.slow
GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "diagnostics.md"
LOGGED = (10, 20, 30)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that the guide has written into, and its names."""
    folder, names = tmp_path_factory.mktemp("guide"), {}
    blocks = re.findall(
        r"```\{(testsetup|testcode|testcleanup)\}\n(.*?)```",
        GUIDE.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", lambda: str(folder))
        patch.chdir(folder)
        for kind in ("testsetup", "testcode", "testcleanup"):
            for code in (code for found, code in blocks if found == kind):
                exec(code, names)
    return folder, names


def events(folder):
    """The scalars in TensorBoard's files, as its records are: length, sum, data, sum."""
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def test_three_loggers_hold_the_same(ran):
    folder, names = ran
    logged = names["logged"]
    assert [step for step, _ in logged] == list(LOGGED)
    board = {(step, name): x for step, name, x in events(folder / "runs")}
    with (folder / "onaq.csv").open() as file:
        rows = list(csv.DictReader(file))
    for (step, numbers), row in zip(logged, rows, strict=True):
        assert {"loss", "pairs_stored", "step_size", "steps_skipped"} < set(numbers)
        assert numbers["pairs_stored"] == step
        assert int(row.pop("step")) == step
        assert {name: float(x) for name, x in row.items()} == numbers
        assert {name: board[step, name] for name in numbers} == pytest.approx(numbers)
    assert len(board) == len(LOGGED) * len(logged[0][1])


def test_the_picture_shows_what_changes(ran):
    folder, names = ran
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    titles = [ax.get_title() for ax in names["figure"].axes]
    assert titles == list(names["panels"])
    for ax in names["figure"].axes:
        assert len(ax.lines) == 2
        for line in ax.lines:
            assert len(line.get_ydata()) == 320
            assert len(set(line.get_ydata().tolist())) > 1
    long_steps, short_steps = names["histories"].values()
    assert long_steps["restorations"][-1] > 1.5 * short_steps["restorations"][-1]
    assert long_steps["loss"][-40:].mean() > short_steps["loss"][-40:].mean()
    names["plt"].close(names["figure"])


def test_the_bar_counts_the_batches(ran, capsys):
    _, names = ran
    tqdm, loader = names["tqdm"], names["loader"]
    full_grad = names["naqopt"].full_gradient(
        names["loss_fn"], names["network"], tqdm.tqdm(loader, desc="full gradient")
    )
    assert "full gradient: 100%" in capsys.readouterr().err
    for name, gradient in names["full_grad"].items():
        np.testing.assert_array_equal(full_grad[name], gradient)
