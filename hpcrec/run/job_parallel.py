"""The job file's section [parallel]."""

from __future__ import annotations

from typing import Literal

from hpcrec.backend.device import DeviceName
from hpcrec.options import options


@options
class ParallelSection:
    """How ranks and workers share the work; changes no result beyond round-off.

    device : of the ranks: "cpu", "gpu" (a host's GPUs go to its ranks in turn), or "auto": GPUs where CuPy sees some
    gpu_messages : how sums of GPUs pass between ranks: through "host" memory, by an "mpi" that takes arrays on GPUs, by
        "nccl" (a GPU for each rank); "auto" takes "mpi" where the MPI says that it can, else "host"
    exchange : "replicated" keeps the whole object on each rank of a group, "tiled" a part with its halo
    group_size : ranks that share one tilt, by messages, to the end; "auto" is 1 unless memory asks for more or tilts
        are fewer than ranks; those on one host then work as threads of the first, and ranks without a tilt lend their
        cores to others there, unless an exchange is chosen
    halo_margin_angstrom : how far positions may move before a tile must hold more pixels
    halo_cut : tiles exchange only what the starting probe reaches with more than this share of its largest amplitude,
        and the margin; results then differ with the ranks by about as much. 0: whole windows
    balance : of ranks that share a tilt: "equal" shares of the patterns, or in proportion to their "measured" speeds
        where these differ by more than 15 %; results then repeat to round-off, not bit by bit
    overlap : whether messages of tiles travel while a rank computes what no other sees: "always", "never", or "auto":
        where the ranks of a tilt are on several hosts; on processors
    large_results : a tilt's object of tiles over 1 GiB as a file of each rank ("parts"), or as "one" that all write,
        for which h5py must have been built with MPI; "auto" takes one where it was
    threads : of a rank's compiled loops; "auto" takes the cores that it need not share with other ranks
    memory_gib_per_rank : what a rank may use; 0 takes the machine's memory divided by the ranks on it
    scratch : folder on a fast local disk for patterns that exceed a rank's memory; empty takes the run directory
    workers : Dask processes of the tomography stage; 0 takes one a core, at most one a rank
    save_every : iterations of the volume between saved states, so at most these are done again after a loss
    cluster : where: "local" to rank 0, in each rank ("mpi"), or in batch_jobs of a batch_system ("jobqueue")
    scheduler : a running Dask scheduler instead: its address, or the .json file that it wrote
    unencrypted_scheduler : allow that one on another host without TLS, though it runs what anybody there sends it
    patience_s : how long a rank may give no sign of life before the job ends with its name (three times as long where
        no other rank is on its machine); 0: for ever
    stall_s : how long a rank may work on one batch of patterns before it counts as lost in a loop; 0: for ever
    """

    device: DeviceName = "auto"
    gpu_messages: Literal["auto", "host", "mpi", "nccl"] = "auto"
    exchange: Literal["auto", "replicated", "tiled"] = "auto"
    group_size: int | Literal["auto"] = "auto"
    halo_margin_angstrom: float = 2.0
    halo_cut: float = 0.0
    balance: Literal["equal", "measured"] = "equal"
    overlap: Literal["auto", "always", "never"] = "auto"
    large_results: Literal["auto", "parts", "one"] = "auto"
    threads: int | Literal["auto"] = "auto"
    memory_gib_per_rank: float = 0.0
    scratch: str = ""
    workers: int = 0
    save_every: int = 10
    cluster: Literal["local", "mpi", "jobqueue"] = "local"
    batch_system: Literal["htcondor", "lsf", "moab", "oar", "pbs", "sge", "slurm"] = "slurm"
    batch_jobs: int = 1
    scheduler: str = ""
    unencrypted_scheduler: bool = False
    patience_s: float = 40.0
    stall_s: float = 21600.0
