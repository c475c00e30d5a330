"""Which faults there are, and the draw: kind, rank arrangement and moment of each follow from the seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.chaos.series import CHECKPOINT_EVERY, ITERATIONS, N_TILTS, ROUNDS, VOLUME_ITERATIONS, Ranks

Stage = Literal["start", "sweep", "workers", "alignment", "volume"]
ANY: Final[tuple[Stage, ...]] = ("start", "sweep", "sweep", "workers", "alignment", "volume")
SWEEP: Final[tuple[Stage, ...]] = ("sweep",)
LATER: Final[tuple[Stage, ...]] = ("alignment", "volume")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of fault; ``stages`` in which it makes sense; ``remote``: Dask runs beside the job, not inside it."""

    text: str
    stages: tuple[Stage, ...]
    remote: bool = False


KINDS: Final = {
    "kill-rank": Kind(text="SIGKILL of a rank but the first", stages=ANY),
    "kill-master": Kind(text="SIGKILL of rank 0", stages=ANY),
    "kill-launcher": Kind(text="SIGKILL of mpiexec", stages=ANY),
    "kill-worker": Kind(text="SIGKILL of a local Dask worker", stages=LATER),
    "kill-remote-worker": Kind(text="SIGKILL of a worker whose nanny lives", stages=LATER, remote=True),
    "kill-nanny": Kind(text="SIGKILL of a worker's nanny", stages=LATER, remote=True),
    "kill-scheduler": Kind(text="SIGKILL of the Dask scheduler", stages=LATER, remote=True),
    "term-launcher": Kind(text="SIGTERM to mpiexec", stages=ANY),
    "term-rank": Kind(text="SIGTERM to one rank", stages=ANY),
    "usr1-launcher": Kind(text="SIGUSR1 to mpiexec", stages=ANY),
    "usr1-rank": Kind(text="SIGUSR1 to one rank", stages=ANY),
    "cut-checkpoint": Kind(text="killed, the newest checkpoint cut short", stages=("sweep", "volume")),
    "flip-checkpoint": Kind(text="killed, bytes of the newest checkpoint changed", stages=("sweep", "volume")),
    "cut-tilt": Kind(text="killed, the result of a tilt cut short", stages=LATER),
    "cut-projections": Kind(text="killed, projections.h5 cut short", stages=LATER),
    "flip-projections": Kind(text="killed, bytes of projections.h5 changed", stages=LATER),
    "full-disk": Kind(text="the disk of the run directory is full until the restart", stages=ANY[1:]),
    "hung-rank": Kind(text="SIGSTOP of a rank", stages=ANY[1:]),
}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """``delay`` s after an event: sweep ``number`` of ``tilt``, a round of alignment, an iteration of the volume.

    "start" counts from the launch, "workers" from the beginning of the stage that starts them.
    """

    stage: Stage
    tilt: int = 0
    number: int = 0
    delay: float = 0.0

    def __str__(self) -> str:
        where = {
            "start": "launch",
            "sweep": f"tilt {self.tilt} sweep {self.number}",
            "workers": "workers start",
            "alignment": f"alignment {self.number}",
            "volume": f"volume {self.number}",
        }[self.stage]
        return f"{where} +{self.delay:.2f} s"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a draw. ``rank`` is the one to strike, ``ranks`` how they work.

    ``luck`` in [0, 1) decides what else is left to chance: which worker, which bytes, how much room a full disk has.
    """

    index: int
    kind: str
    moment: Moment
    rank: int
    ranks: Ranks
    luck: float


def draw_faults(seed: int, n: int, kinds: Sequence[str] = ()) -> list[Fault]:
    """Return ``n`` faults: each kind as often as the others, in random order; the same for the same arguments."""
    names = list(kinds) or list(KINDS)
    rng = random.Random(f"kinds {seed}")
    chosen: list[str] = []
    while len(chosen) < n:
        chosen += rng.sample(names, len(names))
    return [_fault(seed, i, kind) for i, kind in enumerate(chosen[:n])]


def _fault(seed: int, index: int, kind: str) -> Fault:
    rng = random.Random(f"fault {seed} {index} {kind}")
    rank = {"kill-rank": 1, "kill-master": 0}.get(kind, rng.randrange(2))
    moment = _moment(rng, rng.choice(KINDS[kind].stages), at_checkpoint="-checkpoint" in kind)
    ranks: Ranks = rng.choice(("apart", "apart", "together"))
    luck = rng.random()
    if ranks == "together":
        ranks = rng.choice(("together", "tiles"))
    return Fault(index=index, kind=kind, moment=moment, rank=rank, ranks=ranks, luck=luck)


def _moment(rng: random.Random, stage: Stage, at_checkpoint: bool) -> Moment:
    """Draw a moment of a stage; ``at_checkpoint``: when the tilt in work has a checkpoint."""
    if stage == "start":
        return Moment(stage=stage, delay=rng.uniform(0.2, 4))
    if stage == "workers":
        return Moment(stage=stage, delay=rng.uniform(0, 3))
    if stage == "sweep":
        first, last = (CHECKPOINT_EVERY + 1, ITERATIONS - 1) if at_checkpoint else (1, ITERATIONS)
        number = rng.randint(first, last)
        return Moment(stage=stage, tilt=rng.randrange(N_TILTS), number=number, delay=rng.uniform(0, 0.05))
    last = ROUNDS if stage == "alignment" else VOLUME_ITERATIONS
    return Moment(stage=stage, number=rng.randint(1, last), delay=rng.uniform(0, 0.1))
