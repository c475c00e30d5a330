"""Where a result comes from: version, packages, machine, inputs and seeds, written before the work begins."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

import hpcrec


def collect_provenance(job: Mapping[str, Any], inputs: list[dict[str, Any]], n_ranks: int, mpi: str) -> dict[str, Any]:
    """Return what is needed to tell how and from what a run was made.

    ``job`` is the raw job, ``inputs`` the identities of the files read, ``mpi`` the name of the MPI library in use.
    """
    return {
        "hpcrec": {"version": hpcrec.__version__, **_source_state()},
        "started": now(),
        "command": sys.argv,
        "job": dict(job),
        "inputs": inputs,
        "seed": job.get("ptychography", {}).get("seed", 1),
        "machine": {
            "host": socket.gethostname(),
            "system": platform.platform(),
            "processor": _processor(),
            "cores": psutil.cpu_count(logical=True),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "python": platform.python_version(),
        },
        "ranks": n_ranks,
        "mpi": mpi,
        "scheduler": {k: v for k, v in sorted(os.environ.items()) if k in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")},
        "packages": {
            d.name: d.version for d in sorted(importlib.metadata.distributions(), key=lambda d: d.name.lower())
        },
    }


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _source_state() -> dict[str, Any]:
    """Return the commit of a checkout and whether it was changed; nothing for an installed package or without git."""
    root = Path(hpcrec.__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return {}

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
