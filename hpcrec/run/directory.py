"""The run directory: what lies where, and whether an existing one may be continued.

::

    job.toml          the frozen job           provenance.json   versions, machine, inputs, seeds
    events.jsonl      every event with time    checkpoints/      tilts and stages, atomic
    projections.h5    phase projections        volume.h5, .mrc   the volume, its alignment and half sets
    atoms.xyz         traced atoms             quality.json      figures      report.html   the page
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcrec.errors import ConfigError, DataError, StorageError
from hpcrec.io.atomic import write_bytes
from hpcrec.run.config import STAGE_SECTIONS, changed_keys, job_text

FREE_KEYS = ("ptychography.checkpoint_every:", "data.drop_tilts:", "quality.max_")
STAGES = ("ptychography", "tomography", "analysis", "report")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths inside one run directory."""

    path: Path

    @property
    def job(self) -> Path:
        """The frozen job file."""
        return self.path / "job.toml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def projections(self) -> Path:
        """The gathered phase projections."""
        return self.path / "projections.h5"

    @property
    def volume(self) -> Path:
        """The volume with alignment, projections and half sets."""
        return self.path / "volume.h5"

    @property
    def atoms(self) -> Path:
        """The traced atoms."""
        return self.path / "atoms.xyz"

    @property
    def quality(self) -> Path:
        """Figures of merit as JSON."""
        return self.path / "quality.json"

    @property
    def provenance(self) -> Path:
        """Where the result comes from."""
        return self.path / "provenance.json"

    @property
    def stages(self) -> Path:
        """Which stages are done, and with what settings."""
        return self.path / "checkpoints" / "stages.json"

    @property
    def events(self) -> Path:
        """The event log."""
        return self.path / "events.jsonl"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def stop(self) -> Path:
        """Asks a running job to stop, see :mod:`hpcrec.run.stop`."""
        return self.path / "stop"

    @property
    def ranks(self) -> Path:
        """Folder of the ranks' signs of life, see :mod:`hpcrec.run.watch`."""
        return self.path / ".ranks"

    def read_json(self, path: Path) -> dict[str, Any]:
        """Return a JSON file of the run; empty where it is missing. Raises DataError if it is damaged."""
        if not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as fault:
            raise DataError(f"{path}: is damaged ({fault}); remove it, and start the same command again") from None

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, atomically."""
        write_bytes(path, (json.dumps(content, indent=2, default=_plain) + "\n").encode())


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value.tolist()


def default_path(name: str) -> Path:
    """Return ``runs/<name>-<date>-<time>``."""
    return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def open_directory(path: Path, raw: Mapping[str, Any]) -> RunDirectory:
    """Make a run directory, or open one that holds the same job.

    Sections after the ptychography may change: their stages are computed again. ``parallel`` may change freely.

    Raises
    ------
    ConfigError : the directory holds a run with other data or ptychography, or is no run directory.
    StorageError : it cannot be written.
    """
    directory = RunDirectory(path)
    old: dict[str, Any] | None = None
    if directory.job.exists():
        old = frozen_job(directory.job)
        fixed = [
            line
            for name in (*STAGE_SECTIONS["ptychography"], "name")
            for line in _changes(old, raw, name)
            if not line.startswith(FREE_KEYS)
        ]
        if fixed:
            raise ConfigError(
                f"{path} holds a run of another job ({'; '.join(fixed[:3])}): "
                "give another --out, or put these keys back to continue it"
            )
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is no run directory: give another --out")
    try:
        directory.checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise StorageError(f"cannot write to {path}: {fault.strerror}; choose another --out") from None
    if old != raw:
        write_bytes(directory.job, job_text(raw).encode())
    return directory


def frozen_job(path: Path) -> dict[str, Any]:
    """Return the raw tables of a run directory's ``job.toml``; raises ConfigError for a damaged one."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path} is damaged ({fault}): copy the job file there, or give another --out") from None


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], section: str) -> list[str]:
    # Limits alone may come and go: their section may be missing altogether
    empty: dict[str, Any] | None = {} if section == "quality" else None
    return changed_keys(old.get(section, empty), new.get(section, empty), section)


def find_job(target: Path, out: Path | None) -> tuple[Path, Path | None]:
    """Return the job file and the run directory meant by ``hpcrec run TARGET``: a job file, or a run directory."""
    if target.is_dir():
        if not (target / "job.toml").exists():
            raise ConfigError(f"{target} is a folder without job.toml: give a job file or a run directory")
        if out is not None and out.resolve() != target.resolve():
            raise ConfigError(f"{target} is a run directory already: leave --out away to continue it")
        return target / "job.toml", target
    return target, out
