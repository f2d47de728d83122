"""MNIST's pickle: arrays are read, whoever pickled them, and nothing else is."""

import gzip
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from benchmarks.data import labelled_images


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
    array = labelled_images._ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [0.25, 0.5])


def test_a_malicious_pickle_is_refused(tmp_path):
    target = tmp_path / "made"
    wheel = tmp_path / "malicious.whl"
    content = pickle.dumps([(np.zeros(3), _Malicious(str(target)))], 3)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))
    with pytest.raises(pickle.UnpicklingError, match=r"must not refer to \w+\.mkdir"):
        labelled_images._read_mnist_wheel(wheel)
    assert not target.exists()
