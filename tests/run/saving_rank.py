"""What test_saves.py starts under mpiexec: ``python saving_rank.py memory FOLDER | full ARGUMENTS OF hpcrec``.

With ``memory`` four ranks write and read a checkpoint of 64 MiB, and rank 0 tells, in units of its tile, what it took
at most for each. With ``full`` rank 1 has no room for its second part.
"""

import sys
import tracemalloc
from pathlib import Path

import numpy as np

from hpcrec.cli.main import main
from hpcrec.errors import StorageError
from hpcrec.geometry.grid import Grid
from hpcrec.models.base import PtychographyState
from hpcrec.parallel import mpi
from hpcrec.parallel.exchange import make_exchange
from hpcrec.run import saves


def most(call):
    """Return the bytes that a call takes at most beside what is there, and what it returns."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    found = call()
    return tracemalloc.get_traced_memory()[1] - before, found


def measure(folder):
    group, n = mpi.world(), 1024
    grid = Grid(shape=(n, n), sampling=(1.0, 1.0), origin=(0.0, 0.0))
    places = (np.arange(20) + 2.0) * 46
    positions = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
    exchange = make_exchange("tiled", group, positions, grid, (32, 32))
    obj = np.full((8, *exchange.held.shape), 1 + group.rank, np.complex64)
    state = PtychographyState(
        obj=obj, probe=np.ones((1, 32, 32), np.complex64), positions=positions, grid=grid, box=exchange.held
    )
    own = exchange.share(np.arange(len(positions)))
    site = saves.Site(folder=folder, prefix="stage", group=group, exchange=exchange, places=np.sort(own))
    tracemalloc.start()
    saving = saves.make_saves(site, tiled=True)
    wrote, _ = most(lambda: saving.save(state, {"loss": np.zeros(1)}, wait=True))
    read, found = most(lambda: saves.find_checkpoint(site))
    core = exchange.core.slices(exchange.held)
    assert np.array_equal(found.arrays["obj"][(..., *core)], obj[(..., *core)])
    if group.rank == 0:
        print(wrote / obj.nbytes, read / obj.nbytes, 8 * 8 * n * n / obj.nbytes)


def without_room():
    write = saves.write_part

    def full(path, *content):
        if path.stem.endswith("-0001") and "000001" not in path.stem:
            raise StorageError(f"{path}: cannot be written: the disk is full; free some space")
        return write(path, *content)

    saves.write_part = full


if __name__ == "__main__":
    if sys.argv.pop(1) == "memory":
        measure(Path(sys.argv[1]))
    else:
        without_room()
        main()
