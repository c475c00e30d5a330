"""The clock, the sizes and the tables of a benchmark of one GPU."""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.table import Row, print_table
from hpcrec.engines import ENGINES
from hpcrec.models import launched

REHEARSED = "R E H E A R S A L :  no GPU ran this, kernels were emulated; seconds and rates mean nothing"


class Case(NamedTuple):
    """Pixels along a window, slices, probe modes, and whether probes move by parts of pixels."""

    n: int
    n_slices: int
    n_modes: int
    shifted: bool


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done.

    checked : gradients compared with double precision, of ``n_checked`` patterns; timed : cases of the table
    n_patterns : at most, of a timed call; chunks : patterns that the striped kernels take at a time of ``chunked``
    object_pixels : beside a window's, along each side of a timed object; batches : patterns of a call of PyTorch
    engines : that are run on either device, for so many iterations on side² patterns
    repeats : of what is timed, and as warm-up
    waves_bytes : of waves that are transformed; reductions : patches along each side
    """

    checked: tuple[Case, ...]
    n_checked: int
    timed: tuple[Case, ...]
    n_patterns: int
    object_pixels: int
    chunked: Case
    chunks: tuple[int, ...]
    batches: tuple[int, ...]
    engines: tuple[str, ...]
    iterations: int
    side: int
    repeats: tuple[int, int]
    waves_bytes: int
    reductions: int


_CHECKED = (
    (64, 3, 1, False), (128, 5, 1, False), (256, 3, 2, True), (64, 2, 2, True), (128, 2, 1, True), (256, 5, 1, False),
    (96, 2, 1, False), (192, 2, 1, True), (512, 2, 1, False), (384, 2, 1, False),
)  # fmt: skip
# The notes' own cases first, then the others by their share of what users have
_FIRST = ((128, 5, 1), (256, 5, 1), (64, 5, 1))
_OTHERS = [(n, s, m) for m in (1, 4) for s in (1, 5, 20) for n in (128, 256, 64) if (n, s, m) not in _FIRST]
FULL = Sizes(
    checked=tuple(Case(*case) for case in _CHECKED),
    n_checked=6,
    timed=tuple(Case(*case, shifted) for cases in (_FIRST, _OTHERS) for shifted in (False, True) for case in cases),
    n_patterns=8192,
    object_pixels=1024,
    chunked=Case(256, 5, 1, False),
    chunks=(64, 128, 256, 512, 1024),
    batches=(64, 1024),
    engines=tuple(ENGINES),
    iterations=10,
    side=6,
    repeats=(5, 2),
    waves_bytes=1 << 30,
    reductions=90,
)
REHEARSAL = Sizes(
    checked=(Case(64, 2, 1, False), Case(128, 1, 1, True)),
    n_checked=2,
    timed=(Case(64, 1, 1, False), Case(128, 2, 1, False), Case(128, 1, 1, True)),
    n_patterns=2,
    object_pixels=16,
    chunked=Case(128, 2, 1, False),
    chunks=(1,),
    batches=(2,),
    engines=("epie", "lsqml"),
    iterations=3,
    side=2,
    repeats=(1, 0),
    waves_bytes=1 << 18,
    reductions=2,
)


@dataclass(kw_only=True)
class Bench:
    """One run: the library of its arrays, its sizes, when it must end, and what it found.

    seconds : for all of it; a part that has not begun by then is left out and named
    parts : what is wanted; empty: all
    tables : rows by the name of their part; left : what there was no time for; failed : what ended in an error
    """

    cupy: Any
    sizes: Sizes
    about: Row
    seconds: float
    path: Path
    parts: tuple[str, ...] = ()
    rehearsal: bool = False
    began: float = field(default_factory=time.monotonic)
    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def has_time(self, what: str, needed: float = 0.0) -> bool:
        """Say whether ``needed`` seconds are left; what has none is named in the end."""
        if time.monotonic() - self.began + needed <= self.seconds:
            return True
        self.left.append(what)
        return False

    def part(self, name: str, rows: Callable[[Bench], Iterable[dict[str, object]]], needed: float = 0.0) -> None:
        """Run one part and print its table, which is kept after each row; after an error the others go on."""
        if self.parts and name not in self.parts or not self.has_time(name, needed):
            return
        start = time.monotonic()
        found = self.tables[name] = []
        with self.guarded(name):
            for row in rows(self):
                found.append(row)
                self.save()
        print_table(found, name if self.rehearsal else f"{name} ({time.monotonic() - start:.0f} s)")
        self.save()

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Keep an error as that of ``what`` and go on: it must not cost the rest its minutes on a GPU."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - kept, told in the end, and the exit code is not 0
            self.failed[what] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        finally:
            self.release()

    def release(self) -> None:
        """Give memory back that CuPy and PyTorch keep for themselves."""
        self.cupy.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()

    def save(self) -> None:
        """Write what was found so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"machine": dict(self.about), "tables": self.tables, "left": self.left, "failed": self.failed}
        if self.rehearsal:
            kept = {"rehearsal": REHEARSED, **kept}
        self.path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def seconds_of(self, work: Callable[[], object], most: float = 3.0) -> float:
        """Return the median time of a call by the device's own clock; repeats end after ``most`` seconds."""
        n_repeat, n_warmup = self.sizes.repeats
        benchmark = import_module("cupyx.profiler").benchmark
        told = benchmark(work, n_repeat=n_repeat, n_warmup=n_warmup, max_duration=most, name="work")
        return float(statistics.median(told.gpu_times[0]))

    def rate(self, count: float, seconds: float) -> float | None:
        """Return how many a second; a rehearsal has none."""
        return None if self.rehearsal else count / seconds

    def predicted(self, value: float | None) -> float | None:
        """Return what a design predicted; a rehearsal has nothing to hold it against."""
        return None if self.rehearsal else value

    @contextmanager
    def launches(self) -> Iterator[list[tuple[Any, Any]]]:
        """Note the events in front of and behind each launch of hpcrec's kernels meanwhile, see :meth:`seconds_in`."""
        seen: list[tuple[Any, Any]] = []
        launch = launched.launch

        def timed(*told: Any) -> None:
            start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            start.record()
            launch(*told)
            end.record()
            seen.append((start, end))

        launched.launch = timed
        try:
            yield seen
        finally:
            launched.launch = launch

    def seconds_in(self, work: Callable[[], object]) -> float | None:
        """Return the time that a call spends in hpcrec's kernels alone, None where it starts none."""
        with self.launches() as seen:
            work()
        for _, end in seen:
            end.synchronize()
        return sum(self.cupy.cuda.get_elapsed_time(*pair) for pair in seen) / 1e3 if seen else None
