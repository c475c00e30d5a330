"""Arrays in scratch files."""

import gc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from hpcrec.data.spool import file_array
from hpcrec.errors import StorageError


def test_an_array_in_a_file_is_an_array(tmp_path):
    array = file_array(tmp_path, (2, 3, 5), np.dtype(np.complex64))
    array[1, 2] = 3 - 4j
    assert array.sum() == 5 * (3 - 4j)
    assert (array.shape, array.dtype) == ((2, 3, 5), np.complex64)
    assert list(tmp_path.iterdir()) == [], "no name is left"
    assert file_array(tmp_path, (0, 4), np.dtype(np.float32)).shape == (0, 4)


def test_its_space_is_given_back(tmp_path):
    def held():
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]

    def opened():
        links = []
        for path in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # another thread closed it
                links.append(str(path.readlink()))
        return [link for link in links if str(tmp_path) in link]

    array = file_array(tmp_path, (1 << 20,), np.dtype(np.float64))
    array[:] = 1
    assert len(held()) == 1
    del array
    gc.collect()
    assert held() == opened() == []


def test_a_disk_that_is_too_small_is_told_at_once(tmp_path):
    with pytest.raises(StorageError, match=r"cannot keep .* GiB that exceed the memory in .*parallel\.scratch"):
        file_array(tmp_path, (1 << 30, 1 << 20), np.dtype(np.complex64))
    with pytest.raises(StorageError, match="No such file or directory"):
        file_array(tmp_path / "none", (4,), np.dtype(np.complex64))
