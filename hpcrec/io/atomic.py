"""Files that are either the old one or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

from hpcrec.errors import StorageError

_COUNTER: Final = count()
_UNDER_WAY: Final = threading.local()
_ADVICE: Final = {
    errno.ENOSPC: "the disk is full; free some space, or choose another output folder",
    errno.EDQUOT: "the disk quota is used up; free some space, or choose another output folder",
    errno.EACCES: "there is no permission to write there; choose another output folder or ask its owner",
    errno.EPERM: "there is no permission to write there; choose another output folder or ask its owner",
    errno.EROFS: "the file system is read-only; choose another output folder",
    errno.ENOENT: "the folder does not exist (any more); create it, or choose another output folder",
    errno.EIO: "the device reports an error; try another output folder and tell the administrator",
}


def storage_error(target: Path, fault: OSError) -> StorageError:
    """Return the one sentence that a user needs when ``target`` could not be written."""
    reason = _ADVICE.get(fault.errno or 0, f"{fault.strerror or fault}; check the output folder")
    kept = "; the earlier file is unchanged" if os.path.lexists(target) else ""
    return StorageError(f"{target}: cannot be written: {reason}{kept}")


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give the path of an empty temporary file beside ``target`` that takes its place when the block ends well.

    The file is brought to the disk before it is renamed, and the folder after. If the block or the disk fails the
    temporary file is removed and ``target`` stays as it was. Raises :class:`StorageError` for every :class:`OSError`.
    """
    temporary = target.with_name(f".{target.name}.{_host()}.{os.getpid()}.{next(_COUNTER)}.tmp")
    _UNDER_WAY.files = getattr(_UNDER_WAY, "files", 0) + 1
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666))
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(target)
        _sync(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as fault:
        raise storage_error(target, fault) from fault
    finally:
        with suppress(OSError):
            temporary.unlink()
        _UNDER_WAY.files -= 1


def writing() -> bool:
    """Whether this thread is within :func:`atomic_path`: HDF5 does not bear an exception in the middle of a file."""
    return bool(getattr(_UNDER_WAY, "files", 0))


def write_bytes(target: Path, content: bytes) -> None:
    """Write a small file atomically. Raises :class:`StorageError`."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove temporary files in ``folder`` that processes of this host left when they were killed; return them.

    Files of living processes and of other hosts are left alone. Raises :class:`StorageError`.
    """
    removed = []
    try:
        for path in sorted(folder.glob(".*.tmp")):
            parts = path.name.rsplit(".", 4)
            if len(parts) == 5 and parts[1] == _host() and parts[2].isdigit() and not _alive(int(parts[2])):
                path.unlink()
                removed.append(path)
    except OSError as fault:
        raise storage_error(folder, fault) from fault
    return removed


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder say so
            raise
    finally:
        os.close(descriptor)
