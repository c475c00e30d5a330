"""Does the number of ranks change the answer? Real MPI runs: ``python -m benchmarks.rank_agreement [JOB.toml]``.

One tilt, ten sweeps, on 1, 2, 3 and 5 ranks that share it: relative difference of the object from one rank, for each
engine, exchange and precision; the final data error for ePIE. Default job: jobs/nanocube.toml, tilt 18.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from hpcrec.io.results import TiltResult, read_tilt_result, tilt_path

RANKS = (1, 2, 3, 5)
CASES = [(e, p) for e in ("gradient", "lsqml", "epie") for p in ("single", "double")]
TILT = 18


def run(job: str, folder: Path, n_ranks: int, engine: str, precision: str, exchange: str) -> TiltResult:
    out = folder / f"{engine}-{precision}-{exchange}-{n_ranks}"
    bin_folder = Path(sys.executable).parent
    settings = {
        "data.tilts": f"[{TILT}]",
        "ptychography.engine": engine,
        "ptychography.precision": precision,
        "ptychography.iterations": 10,
        "parallel.exchange": exchange,
        "parallel.group_size": n_ranks,
    }
    command = [bin_folder / "mpiexec", "-n", n_ranks, bin_folder / "hpcrec", "run", job, "--out", out]
    command += ["--until", "ptychography"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, timeout=600)
    return read_tilt_result(tilt_path(out / "checkpoints", TILT))


def main() -> None:
    job = sys.argv[1] if len(sys.argv) > 1 else "jobs/nanocube.toml"
    print("engine    precision  exchange    " + "  ".join(f"{n} ranks".rjust(9) for n in RANKS[1:]) + "   data error")
    with tempfile.TemporaryDirectory() as folder:
        for engine, precision in CASES:
            one = run(job, Path(folder), 1, engine, precision, "replicated")
            for exchange in ("replicated", "tiled"):
                many = [run(job, Path(folder), n, engine, precision, exchange) for n in RANKS[1:]]
                differences = [np.linalg.norm(m.obj - one.obj) / np.linalg.norm(one.obj) for m in many]
                errors = [r.data_error[-1] for r in (one, *many)]
                spread = max(errors) / min(errors) - 1
                row = "  ".join(f"{d:9.1e}" for d in differences)
                print(
                    f"{engine:9} {precision:10} {exchange:11} {row}   {errors[0]:.5f} (spread {spread:.1e})", flush=True
                )


if __name__ == "__main__":
    main()
