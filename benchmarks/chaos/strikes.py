"""How each kind of fault strikes, and what damages files or fills the disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.chaos.attempt import Attempt
from benchmarks.chaos.dask_cluster import DaskCluster
from benchmarks.chaos.faults import Fault

SIGNALS: Final = {"term": signal.SIGTERM, "usr1": signal.SIGUSR1}
DISK_MIB: Final = 64
SPARE: Final = (0, 8192, 65536, 262144)  # bytes left on a full disk: none, an event or two, part of a checkpoint


@dataclass
class Disk:
    """Where a fault's run directory lies: on a small file system of its own if it may be filled."""

    folder: Path
    mounted: bool = False

    @property
    def ballast(self) -> Path:
        """The file that fills it."""
        return self.folder / "ballast"

    def fill(self, spare: int) -> None:
        """Leave ``spare`` bytes."""
        with self.ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        with self.ballast.open("r+b") as file:
            file.truncate(max(self.ballast.stat().st_size - spare, 0))

    def release(self) -> None:
        """Give the room back."""
        self.ballast.unlink(missing_ok=True)


@contextmanager
def disk(folder: Path, small: bool) -> Iterator[Disk]:
    """Give a folder; ``small``: a file system of its own where this process may mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not small:
        yield Disk(folder)
        return
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    try:
        yield Disk(folder, mounted)
    finally:
        if mounted:
            # Lazily: a process that outlived its job may still have a file open there
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def strike(fault: Fault, attempt: Attempt, cluster: DaskCluster | None, place: Disk) -> str:
    """Strike, and say what was hit; empty if there was nothing to hit."""
    name, _, target = fault.kind.partition("-")
    if name in SIGNALS or target == "launcher":
        return _send(attempt, fault, SIGNALS.get(name, signal.SIGKILL), target)
    if fault.kind == "full-disk":
        return _fill(fault, attempt, place)
    if fault.kind == "hung-rank":
        return _send(attempt, fault, signal.SIGSTOP, "rank")
    if fault.kind in ("kill-rank", "kill-master"):
        return _send(attempt, fault, signal.SIGKILL, "rank")
    if fault.kind == "kill-worker":
        return _pick(fault, attempt.workers(), "worker")
    if cluster is not None:
        victims = {"scheduler": cluster.schedulers, "nanny": cluster.nannies}.get(target, cluster.workers)()
        return _pick(fault, victims, target)
    # Files are damaged after the end: it comes at once, by the death of all ranks
    struck = [_signalled(pid, signal.SIGKILL) for pid in attempt.ranks().values()]
    return f"{sum(struck)} ranks killed"


def _send(attempt: Attempt, fault: Fault, number: int, target: str) -> str:
    """Send a signal to the launcher or to the fault's rank."""
    if target == "launcher":
        return "mpiexec" if _signalled(attempt.process.pid, number) else ""
    pid = attempt.ranks().get(fault.rank)
    return f"rank {fault.rank}" if pid is not None and _signalled(pid, number) else ""


def _pick(fault: Fault, pids: list[int], name: str) -> str:
    """Kill one of the processes."""
    if not pids:
        return ""
    i = int(fault.luck * len(pids))
    return f"{name} {i}" if _signalled(pids[i], signal.SIGKILL) else ""


def _signalled(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _fill(fault: Fault, attempt: Attempt, place: Disk) -> str:
    """Fill the disk; where none could be mounted, forbid the ranks to lengthen any file."""
    if place.mounted:
        spare = SPARE[int(fault.luck * len(SPARE))]
        place.fill(spare)
        return f"{spare} bytes left"
    for pid in attempt.members():
        with suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
    return "limit of file size 0"


def damage(fault: Fault, out: Path) -> str:
    """Cut or change the file that the kind means; say which and how, empty if there is none."""
    way, _, what = fault.kind.partition("-")
    patterns: dict[str, tuple[str, ...]] = {"checkpoint": ("checkpoints/sweeps_*.h5", "checkpoints/alignment_*.h5")}
    patterns |= {"tilt": ("checkpoints/tilt_*.h5",), "projections": ("projections.h5",)}
    if way not in ("cut", "flip"):
        return ""
    found = [path for pattern in patterns[what] for path in out.glob(pattern)]
    if not found:
        return ""
    newest = max(found, key=lambda path: path.stat().st_mtime_ns)
    # A checkpoint of tiles is an index and a part of each rank: any of them
    of_it = sorted(path for path in found if path.name.startswith(newest.name.partition(".")[0]))
    which, luck = divmod(fault.luck * len(of_it), 1)
    path = of_it[int(which)]
    size = path.stat().st_size
    at = int(luck * size)
    if way == "cut":
        os.truncate(path, at)
        return f"{path.name} cut to {at} of {size} bytes"
    with path.open("r+b") as file:
        file.seek(at)
        block = file.read(64)
        file.seek(at)
        file.write(bytes(value ^ 0xFF for value in block))
    return f"{path.name}: {len(block)} bytes changed at {at} of {size}"
