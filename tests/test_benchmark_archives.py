"""What the benchmarks keep of real data: checked on every load and built anew if damaged."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data import archives


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder."""
    chosen = tmp_path / "data"
    chosen.mkdir()
    monkeypatch.setenv("NAQOPT_DATA", str(chosen))
    return chosen


def _check_ones(arrays):
    archives.compare("ones", archives.sha256(np.ones(1000)), archives.sha256(arrays["ones"]))


def _build_ones():
    return {"ones": np.ones(1000)}


def _fail():
    raise AssertionError("built although it was kept")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not an archive",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:4000] + b"\x01" + content[4001:],
        lambda content: content[:20] + b"\xff" * 40 + content[60:],
        lambda content: pickle.dumps(np.ones(1000)),
    ],
    ids=["empty", "text", "half", "shorter", "bit", "header", "pickle"],
)
def test_a_damaged_file_is_built_anew(damage, folder, capsys):
    path = folder / "ones.npz"
    archives.kept("ones.npz", _check_ones, _build_ones)
    path.write_bytes(damage(path.read_bytes()))
    arrays = archives.kept("ones.npz", _check_ones, _build_ones)
    np.testing.assert_array_equal(arrays["ones"], np.ones(1000))
    assert f"{path} is damaged" in capsys.readouterr().err
    archives.kept("ones.npz", _check_ones, _fail)


def test_a_sound_file_with_other_content_is_built_anew(folder):
    np.savez(folder / "ones.npz", ones=np.full(1000, 2.0))
    arrays = archives.kept("ones.npz", _check_ones, _build_ones)
    np.testing.assert_array_equal(arrays["ones"], np.ones(1000))


def test_nothing_half_written_is_left(folder, monkeypatch):
    def savez(path, **arrays):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(OSError, match="no space left"):
        archives.kept("ones.npz", _check_ones, _build_ones)
    assert list(folder.iterdir()) == []


def test_fetching_at_once_does_no_harm(folder):
    together = threading.Barrier(4)
    results = []

    def build():
        together.wait(30)  # Nobody has written yet, so everybody will.
        return _build_ones()

    def load():
        results.append(archives.kept("ones.npz", _check_ones, build)["ones"])

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results, np.ones((4, 1000)))
    assert [path.name for path in folder.iterdir()] == ["ones.npz"]
    archives.kept("ones.npz", _check_ones, _fail)


def test_the_usual_folder_is_ignored_by_git(monkeypatch):
    monkeypatch.delenv("NAQOPT_DATA", raising=False)
    root = Path(__file__).resolve().parents[1]
    assert archives.data_folder() == root / ".cache" / "data"
    assert ".cache/" in (root / ".gitignore").read_text().splitlines()
