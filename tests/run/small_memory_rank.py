"""What test_gather.py starts under mpiexec: ``python small_memory_rank.py memory FOLDER | run ARGUMENTS OF hpcrec``.

With ``memory`` four ranks write an object of 64 MiB in parts and rank 0 tells, in MiB, its tile and what it took at
most beside it. With ``run`` every object in tiles is too large for the first rank's memory.
"""

import sys
import tracemalloc
from pathlib import Path

import numpy as np

from hpcrec.cli.main import main
from hpcrec.geometry.grid import Grid
from hpcrec.io import lazy
from hpcrec.io.store import record_digest
from hpcrec.parallel import mpi
from hpcrec.parallel.exchange import make_exchange
from hpcrec.run import gather


def measure(folder):
    group, n = mpi.world(), 1024
    lazy.BLOCK_BYTES = 1 << 20
    grid = Grid(shape=(n, n), sampling=(1.0, 1.0), origin=(0.0, 0.0))
    places = (np.arange(20) + 2.0) * 46
    positions = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
    exchange = make_exchange("tiled", group, positions, grid, (32, 32))
    obj = np.full((8, *exchange.held.shape), 1 + group.rank, np.complex64)
    tracemalloc.start()
    found = gather.written_in_parts(exchange, obj, grid, folder / "tilt_0001.h5", 1)
    if found is not None:
        record_digest({"object": found}, {})
        print(obj.nbytes / 2**20, tracemalloc.get_traced_memory()[1] / 2**20)


if __name__ == "__main__":
    if sys.argv.pop(1) == "memory":
        measure(Path(sys.argv[1]))
    else:
        gather.IN_MEMORY_BYTES = 0
        main()
