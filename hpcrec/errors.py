"""The exceptions of the project.

::

    HpcrecError            exit code 1   anything a user can be told in one sentence
    ├── ConfigError        exit code 2   a job file or an option is wrong
    ├── DataError          exit code 3   an input file is missing, damaged or not what was promised
    ├── StorageError       exit code 4   a result cannot be written (full disk, no permission)
    ├── DeviceError        exit code 5   a CPU/GPU resource is missing or too small
    ├── ParallelError      exit code 6   ranks, launcher or Dask workers failed
    ├── DivergedError      exit code 7   an algorithm left the finite numbers
    ├── QualityError       exit code 8   all is done and written, but a limit of [quality] is broken
    └── StoppedError       exit code 10  stopped on request (SIGTERM) after a checkpoint; the same command goes on
        └── TimeUpError    exit code 75  the same by SIGUSR1: the scheduler may requeue (EX_TEMPFAIL of sysexits.h)

A message says what was expected, what came, where (key, file, rank) and what to do.
"""

from __future__ import annotations


class HpcrecError(Exception):
    """Base of every error that a user is meant to read; ``exit_code`` is the process's answer."""

    exit_code = 1


class ConfigError(HpcrecError):
    """A job file, a key or an option is wrong; the message may list several faults, a line each."""

    exit_code = 2


class DataError(HpcrecError):
    """An input file is missing, damaged, or not of the shape, type or range that was promised."""

    exit_code = 3


class StorageError(HpcrecError):
    """A result, checkpoint or log cannot be written."""

    exit_code = 4


class DeviceError(HpcrecError):
    """A processor, a GPU or its memory is missing or too small for the plan."""

    exit_code = 5


class ParallelError(HpcrecError):
    """Ranks, the launcher or the workers of a cluster failed or disagree."""

    exit_code = 6


class WorkersLostError(ParallelError):
    """Workers of a cluster died, or went silent, and what they alone held is gone."""


class DivergedError(HpcrecError):
    """A reconstruction produced values that are not finite."""

    exit_code = 7


class QualityError(HpcrecError):
    """A run came to its end, and a figure of merit broke a limit that the job sets."""

    exit_code = 8


class StoppedError(HpcrecError):
    """All ranks have left on request, what was done is in checkpoints; not a fault, but not a finished run either."""

    exit_code = 10


class TimeUpError(StoppedError):
    """The same where whoever asked wants the run to be started again."""

    exit_code = 75


def no_memory(error: MemoryError) -> DeviceError:
    """Return what a user is told where memory ran out."""
    reason = f" ({error})" if str(error) else ""
    return DeviceError(
        f"no memory left{reason}: use fewer ranks on each node, or parallel.exchange = 'tiled' with a larger "
        "parallel.group_size, or a smaller parallel.memory_gib_per_rank, so that patterns wait in a scratch file; "
        "hpcrec check says what a rank needs"
    )
