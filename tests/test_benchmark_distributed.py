"""Two processes of `jax.distributed`, and a checkpoint on another layout of devices."""

import pytest
from click.testing import CliRunner

from benchmarks import distributed
from benchmarks.cli import main
from benchmarks.reports import records


@pytest.mark.slow
def test_two_processes_train_as_one_and_a_checkpoint_keeps_its_bits(tmp_path):
    result = CliRunner().invoke(main, ["distributed", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    content = records.read(tmp_path / "distributed" / "distributed.json")
    assert content["optimizers"].keys() == distributed.OPTIMIZERS.keys()
    for entry in content["optimizers"].values():
        assert entry["checkpoint_equal"]
        assert entry["checkpoint_arrays"] > 20
        assert entry["loss_deviation"] < distributed.TOLERANCE
        assert entry["resumed_params_deviation"] < distributed.TOLERANCE
        assert entry["last_loss"] < 0.8 * entry["first_loss"]
    assert (tmp_path / "distributed" / "distributed.png").exists()
    assert "multi_batch_omoq" in (tmp_path / "distributed" / "results.md").read_text()


def test_a_process_that_fails_is_said_so(tmp_path):
    task = distributed.Task("one", str(tmp_path), 1, 1, devices=0)
    with pytest.raises(RuntimeError, match=r"a layout: a process ended with \d+:\n"):
        distributed._launch("a layout", [task])
