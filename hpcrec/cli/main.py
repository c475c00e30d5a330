"""The ``hpcrec`` command."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from hpcrec import __version__
from hpcrec.backend.threads import limit_libraries
from hpcrec.errors import DeviceError, HpcrecError, StoppedError, no_memory

# Of address space: measured, libraries and compilers take nearly as much before any data
_LEAST_GIB = 0.75

app = typer.Typer(
    name="hpcrec",
    help="From raw diffraction patterns to phase images, volumes and atoms.\n\n"
    "Start with: hpcrec check JOB.toml, then hpcrec run JOB.toml (or mpiexec -n N hpcrec run JOB.toml).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
calibrate = typer.Typer(
    help="Measure on the data what a job file must say of the instrument.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(calibrate, name="calibrate")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"hpcrec {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Hold what all commands share."""


Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job, e.g. ptychography.iterations=10."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run directory; default runs/<name>-<date>.")]


@app.command()
def run(
    target: Annotated[Path, typer.Argument(metavar="JOB.toml|DIR", help="Job file, or a run directory to continue.")],
    out: Out = None,
    override: Set = None,
    until: Annotated[
        str, typer.Option("--until", metavar="STAGE", help="Stop after ptychography, tomography or analysis.")
    ] = "report",
    verbose: Annotated[bool, typer.Option("--verbose", help="Also log what is of use to developers.")] = False,
) -> None:
    """Reconstruct: one job file in; phase images, volume, atoms and a report out. Continues what was interrupted."""
    from hpcrec.run.stop import listening

    with listening():
        from hpcrec.cli.run import run_job

        run_job(target, out, override or [], until, verbose)


@app.command()
def check(
    target: Annotated[Path, typer.Argument(metavar="JOB.toml", help="Job file.")],
    override: Set = None,
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Number of MPI ranks to plan for.")] = 1,
) -> None:
    """Check a job file and its data, and say memory per rank and time before anything starts."""
    from hpcrec.cli.check import check_job_file

    check_job_file(target, override or [], ranks)


@app.command()
def tune(
    target: Annotated[Path, typer.Argument(metavar="JOB.toml", help="Job file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.toml", help="Job file to write, with the best values.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            metavar="KEY=RANGE",
            help="A key to search: KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,C; give it once for each key.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials, those of earlier calls included.")] = 20,
    positions: Annotated[int, typer.Option("--positions", min=1, help="Patterns of a trial, about the middle.")] = 400,
    sweeps: Annotated[int, typer.Option("--sweeps", min=2, help="Sweeps of a trial.")] = 20,
    tilt: Annotated[
        int | None, typer.Option("--tilt", help="Number of the tilt; default: the one nearest to 0°.")
    ] = None,
    override: Set = None,
) -> None:
    """Search a few keys of a job by trial reconstructions, scored on patterns held out of them.

    The study lies beside --out (.sqlite3): the same command goes on with it, and several may share it at a time.
    """
    from hpcrec.cli.tune import tune_job
    from hpcrec.run.tune import TuneOptions

    options = TuneOptions(tilt=tilt, positions=positions, sweeps=sweeps, trials=trials)
    tune_job(target, override or [], parameter or [], options, out)


@app.command()
def info() -> None:
    """Say which MPI, cores, memory and libraries hpcrec sees here."""
    from hpcrec.cli.info import print_info

    print_info()


@app.command()
def simulate(
    target: Annotated[Path, typer.Argument(metavar="SAMPLE.toml", help="Description of sample, microscope and scan.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.h5", help="File to write.")],
    override: Set = None,
) -> None:
    """Simulate a tilt series of 4D-STEM data by multislice, with its truth, for trying things out."""
    from hpcrec.cli.simulate import simulate_file

    simulate_file(target, out, override or [])


@calibrate.callback()
def _calibrations() -> None:
    """Hold the calibrations together, be there one or many."""


@calibrate.command("data")
def calibrate_data(
    target: Annotated[Path, typer.Argument(metavar="JOB.toml", help="Job file; its turns and flips are tried anew.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="BLOCK.toml", help="File for the block to write.")
    ] = None,
    tilt: Annotated[
        int | None, typer.Option("--tilt", help="Number of the tilt; default: the one nearest to 0°.")
    ] = None,
    override: Set = None,
    move: Annotated[
        str, typer.Option("--move", metavar="WHAT", help="What the block moves: frames, positions, or auto.")
    ] = "auto",
    turn: Annotated[
        list[float] | None, typer.Option("--turn", metavar="DEG", help="Try this turn of the scan, too; repeatable.")
    ] = None,
    positions: Annotated[int, typer.Option("--positions", min=9, help="Positions in a trial reconstruction.")] = 256,
    sweeps: Annotated[int, typer.Option("--sweeps", min=1, help="Sweeps of a trial reconstruction.")] = 12,
) -> None:
    """Find how frames and scan are flipped and turned, and the defocus; print and write the block for the job file."""
    from hpcrec.cli.calibrate import examine_data

    examine_data(target, out, tilt, override or [], move, turn or [], positions, sweeps)


@app.command()
def preview(
    target: Annotated[Path, typer.Argument(metavar="JOB.toml", help="Job file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Picture to write.")] = Path("preview.png"),
    method: Annotated[
        str, typer.Option("--method", help="ssb, wdd, icom, or parallax, which needs no raster.")
    ] = "parallax",
    tilt: Annotated[
        int | None, typer.Option("--tilt", help="Number of the tilt; default: the one nearest to 0°.")
    ] = None,
    override: Set = None,
) -> None:
    """Show the phase of one tilt at once, by a direct method."""
    from hpcrec.cli.preview import preview_job

    preview_job(target, out, method, tilt, override or [])


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory.")],
) -> None:
    """Write report.html anew from what a run directory holds."""
    from hpcrec.cli.report import rewrite_report

    rewrite_report(directory)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory.")],
    file_format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="cxi (NeXus), tiff or mrc.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder; default DIR/FORMAT.")] = None,
) -> None:
    """Write phases, amplitudes, probes and volume of a run in a format other programs read."""
    from hpcrec.cli.export import export_directory

    export_directory(directory, file_format, out)


def _check_address_space() -> None:
    """Refuse a process whose libraries could not load or would end it without a word."""
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY and allowed < _LEAST_GIB * 2**30:
        raise DeviceError(
            f"this process may have {allowed / 2**30:.2f} GiB of address space (ulimit -v), and hpcrec needs "
            f"{_LEAST_GIB:g} GiB before any data: raise the limit, or ask the scheduler for more memory"
        )


def _refuse(fault: HpcrecError) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(str(fault))}", highlight=False, soft_wrap=True)
    sys.exit(fault.exit_code)


def main() -> None:
    """Run the command line; end with the exit code of ``errors.py`` and one sentence for a user's mistake."""
    faults = limit_libraries(os.environ)
    try:
        _check_address_space()
        from hpcrec.parallel import mpi

        if mpi.starts_first(os.environ):
            for fault in faults:
                Console(stderr=True).print(f"[yellow]warning:[/] {escape(fault)}", highlight=False, soft_wrap=True)
        with mpi.guard():
            app()
    except StoppedError as leave:
        if mpi.starts_first(os.environ):
            Console(stderr=True).print(
                f"[bold yellow]stopped:[/] {escape(str(leave))}", highlight=False, soft_wrap=True
            )
        sys.exit(leave.exit_code)
    except HpcrecError as fault:
        _refuse(fault)
    except MemoryError as error:
        _refuse(no_memory(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
