import errno
import os
import subprocess
import sys

import pytest

from hpcrec.errors import StorageError
from hpcrec.io import atomic
from hpcrec.io.atomic import atomic_path, remove_leftovers, write_bytes


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_new_file_replaces_the_old_and_nothing_else_stays(tmp_path):
    target = tmp_path / "result.bin"
    write_bytes(target, b"old")
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
        assert temporary.parent == tmp_path  # a rename is atomic inside one file system only
    assert target.read_bytes() == b"new"
    assert listing(tmp_path) == ["result.bin"]


def test_any_failure_keeps_the_old_file_and_removes_the_temporary_one(tmp_path):
    target = tmp_path / "result.bin"
    write_bytes(target, b"old")
    with pytest.raises(TypeError), atomic_path(target) as temporary:
        temporary.write_bytes(b"half" + None)
    assert target.read_bytes() == b"old"
    assert listing(tmp_path) == ["result.bin"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EFBIG, "check the output folder"),
    ],
)
def test_storage_faults_are_one_sentence_with_the_file_and_what_to_do(tmp_path, number, words):
    target = tmp_path / "result.bin"
    write_bytes(target, b"old")
    with pytest.raises(StorageError, match=words) as caught, atomic_path(target):
        raise OSError(number, os.strerror(number))
    assert str(target) in str(caught.value)
    assert "the earlier file is unchanged" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == ["result.bin"]


def test_a_failing_sync_is_not_taken_for_success(tmp_path, monkeypatch):
    target = tmp_path / "result.bin"
    write_bytes(target, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"


def test_missing_and_forbidden_folders(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="folder does not exist"):
        write_bytes(tmp_path / "none" / "result.bin", b"")

    def forbidden(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic.os, "open", forbidden)
    with pytest.raises(StorageError, match="no permission"):
        write_bytes(tmp_path / "result.bin", b"")


@pytest.mark.skipif(os.getuid() != 0 and not os.access("/proc", os.W_OK), reason="another fault comes first")
def test_a_file_system_that_takes_no_files():
    with pytest.raises(StorageError, match="/proc/result.bin: cannot be written"):
        write_bytes(atomic.Path("/proc/result.bin"), b"")


def test_only_what_dead_processes_of_this_host_left_is_removed(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    host, pid = atomic._host(), int(dead.stdout)
    names = [
        f".a.h5.{host}.{pid}.0.tmp",
        f".a.h5.{host}.{os.getpid()}.0.tmp",
        f".a.h5.other.{pid}.0.tmp",
        "a.h5",
        ".x.tmp",
    ]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in remove_leftovers(tmp_path)] == names[:1]
    assert listing(tmp_path) == sorted(names[1:])


def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_goes(tmp_path):
    target = tmp_path / "result.bin"
    write_bytes(target, b"old")
    program = (
        "import os, signal, sys; from pathlib import Path; from hpcrec.io.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert target.read_bytes() == b"old"
    assert len(listing(tmp_path)) == 2
    assert len(remove_leftovers(tmp_path)) == 1
    assert listing(tmp_path) == ["result.bin"]
