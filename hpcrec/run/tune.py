"""Choosing a few parameters of a job: trial reconstructions of part of a tilt, judged by patterns held out of them.

The tree-structured Parzen estimator (Bergstra, Bardenet, Bengio and Kégl, NeurIPS 24 (2011)) of Optuna (Akiba et al.,
KDD (2019)) proposes values. The study lies in an SQLite file: it goes on after an interruption, and several processes
may share it. The only home of optuna.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hpcrec.data.views import single_tilt
from hpcrec.errors import ConfigError, DataError, DivergedError
from hpcrec.geometry.scan import held_out_positions
from hpcrec.io.base import open_series
from hpcrec.parallel.communicator import SerialCommunicator
from hpcrec.run.config import check_job, fingerprint, key_type, with_values
from hpcrec.run.faults import value_at
from hpcrec.run.job import Job
from hpcrec.run.optics import chosen_slices, mode_count, slice_thickness
from hpcrec.run.picks import compact_subset, tilt_index
from hpcrec.run.runner import TiltRun
from hpcrec.run.start import common_grid

if TYPE_CHECKING:
    import optuna

HELD_OUT: Final = 0.1
FEWEST_POSITIONS: Final = 25
_SEED: Final = 1
_MANY_TRIALS: Final = 10
# What a trial sets itself, or what comes after it
_NOT_TRIED: Final = (
    *("ptychography.iterations", "ptychography.coarse_iterations", "ptychography.early_stop"),
    *("ptychography.checkpoint_every", "data.tilts", "data.drop_tilts"),
    *("quality.", "parallel.", "tomography.", "analysis.", "name", "version"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """A key of the job and the values it may take: ``choices``, or all from ``low`` to ``high``."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value that a trial is to take."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if self.whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def allows(self, value: Any) -> bool:
        """Whether a value is among those it may take."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How parameters are tried.

    tilt : number of the tilt in the input file; none: the one nearest to 0°
    positions : patterns of a trial, the nearest ones to the middle of the scan
    sweeps : of each trial
    trials : in the study, those of earlier calls included
    """

    tilt: int | None = None
    positions: int = 400
    sweeps: int = 20
    trials: int = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A finished trial: its ``values`` by key and its held-out ``error``; None if given up, with a ``reason``."""

    number: int
    values: Mapping[str, Any]
    error: float | None
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a study found: its best values by key, all trials (best first) and the importance of each parameter."""

    values: Mapping[str, Any]
    error: float
    trials: Sequence[Trial]
    importance: Mapping[str, float]


def parse_parameter(raw: Mapping[str, Any], text: str) -> Parameter:
    """Return the parameter that ``key=low:high``, ``key=low:high:log`` or ``key=a,b,c`` describes.

    Raises
    ------
    ConfigError : another form, an unknown key (with the nearest known one), values that the job refuses.
    """
    key, equals, span = text.partition("=")
    key = key.strip()
    form = f"--parameter {text}: expected key=low:high, key=low:high:log or key=a,b,c"
    if not key or not equals or not span:
        raise ConfigError(form)
    if key.startswith(_NOT_TRIED):
        raise ConfigError(
            f"--parameter {text}: {key} changes no trial; search keys of data, probe, detector, ptychography, refine "
            "or constraints, and set the length of a trial with --sweeps"
        )
    if ":" not in span:
        choices = tuple(_scalar(part.strip()) for part in span.split(","))
        for value in choices:
            check_job(with_values(raw, {key: value}))
        return Parameter(key=key, choices=choices)
    low, high, *rest = span.split(":")
    try:
        parameter = Parameter(key=key, low=float(low), high=float(high), log=rest == ["log"])
    except ValueError:
        raise ConfigError(form) from None
    if rest not in ([], ["log"]) or not -np.inf < parameter.low < parameter.high < np.inf:
        raise ConfigError(form + ", low below high")
    if parameter.log and parameter.low <= 0:
        raise ConfigError(f"--parameter {text}: a logarithmic range must begin above 0")
    parameter = dataclasses.replace(parameter, whole=key_type(raw, key) is int)
    if parameter.whole and not (parameter.low.is_integer() and parameter.high.is_integer()):
        raise ConfigError(f"--parameter {text}: {key} takes whole numbers")
    for bound in (parameter.low, parameter.high):
        check_job(with_values(raw, {key: int(bound) if parameter.whole else bound}))
    return parameter


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Study:
    """A search over parameters of a job; ``path`` is its SQLite file.

    Raises
    ------
    ConfigError : optuna is not installed, no such tilt, too few positions, the file holds another study.
    """

    def __init__(
        self, raw: Mapping[str, Any], parameters: Sequence[Parameter], options: TuneOptions, path: Path
    ) -> None:
        if not parameters:
            raise ConfigError("nothing to tune: give --parameter key=low:high at least once")
        keys = [p.key for p in parameters]
        if len(set(keys)) < len(keys):
            raise ConfigError(f"--parameter: each key may be given once, got {', '.join(keys)}")
        self._raw, self._parameters, self._options = raw, parameters, options
        job = check_job(raw)
        with open_series(job.data) as series:
            self._i_tilt = tilt_index(series, options.tilt)
            positions = series.facts.positions[self._i_tilt]
            self._chosen = compact_subset(positions, options.positions)
            n_held = len(held_out_positions(positions[self._chosen], HELD_OUT))
        if len(self._chosen) < FEWEST_POSITIONS or n_held == 0:
            raise ConfigError(
                f"{len(self._chosen)} positions are too few to hold some out: give --positions {FEWEST_POSITIONS} or "
                "more, of a scan in two directions"
            )
        with _alone(path):
            self._study = self._open(path, job)

    def _open(self, path: Path, job: Job) -> optuna.Study:
        library = _optuna()
        from sqlalchemy.exc import SQLAlchemyError

        try:
            study: optuna.Study = library.create_study(
                storage=f"sqlite:///{path.resolve()}", study_name="hpcrec", load_if_exists=True, direction="minimize"
            )
        except (library.exceptions.OptunaError, SQLAlchemyError, RuntimeError) as fault:
            raise ConfigError(
                f"{path}: cannot be used as a study ({fault}); remove it, or give another --out"
            ) from None
        # A sampler that begins with the same seed, later or in another process, would repeat its first proposals
        opened = int(study.user_attrs.get("opened", 0))
        study.set_user_attr("opened", opened + 1)
        study.sampler = library.samplers.TPESampler(seed=_SEED + opened)
        study.pruner = library.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=self._options.sweeps // 2)
        about = json.dumps(
            {
                "job": fingerprint(self._raw, "ptychography"),
                "tilt": self._i_tilt,
                "positions": len(self._chosen),
                "sweeps": self._options.sweeps,
                "parameters": [dataclasses.asdict(p) for p in self._parameters],
            }
        )
        known = study.user_attrs.get("about")
        if known is not None and known != about:
            raise ConfigError(
                f"{path}: holds a study of another job or other parameters; remove it, or give another --out"
            )
        if known is None:
            study.set_user_attr("about", about)
            now = {p.key: value_at(job, p.key) for p in self._parameters}
            if all(p.allows(now[p.key]) for p in self._parameters):
                study.enqueue_trial(now)
        return study

    def run(self, heard: Callable[[Trial, int], None]) -> Tuned:
        """Make the trials that are left; ``heard(trial, n_done)`` follows each. Return what all of them found."""
        while len(found := self.trials()) < self._options.trials:
            known = {t.number for t in found}
            self._study.optimize(self._objective, n_trials=1)
            # Another process may have ended trials meanwhile
            new = [trial for trial in self.trials() if trial.number not in known]
            for n_done, trial in enumerate(sorted(new, key=lambda t: t.number), len(known) + 1):
                heard(trial, n_done)
        return self.result()

    def trials(self) -> list[Trial]:
        """Return the finished trials, the best first."""
        states = _optuna().trial.TrialState
        done = self._study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))
        trials = [
            Trial(
                number=t.number,
                values=t.params,
                error=t.value if t.state == states.COMPLETE else None,
                reason=t.user_attrs.get("reason", "" if t.state == states.COMPLETE else "worse than the others"),
            )
            for t in done
        ]
        return sorted(trials, key=lambda t: (np.inf if t.error is None else t.error, t.number))

    def result(self) -> Tuned:
        """Return what the study has found; raises ConfigError where no trial came to its end."""
        trials = self.trials()
        if not trials or trials[0].error is None:
            why = trials[0].reason if trials else "no trial was made"
            raise ConfigError(f"no trial gave a result ({why}); choose other ranges")
        return Tuned(values=trials[0].values, error=trials[0].error, trials=trials, importance=self._importance(trials))

    def _importance(self, trials: Sequence[Trial]) -> dict[str, float]:
        """Return the share of each parameter (PED-ANOVA), where there are enough trials to tell."""
        complete = [t for t in trials if t.error is not None]
        if len(self._parameters) < 2 or len(complete) < _MANY_TRIALS:
            return {}
        module = _optuna().importance
        found: dict[str, float] = module.get_param_importances(
            self._study, evaluator=module.PedAnovaImportanceEvaluator()
        )
        return found

    def _objective(self, trial: optuna.Trial) -> float:
        pruned = _optuna().TrialPruned
        values = {p.key: p.suggest(trial) for p in self._parameters}

        def hear(event: Mapping[str, Any]) -> None:
            if event["event"] == "sweep":
                trial.report(event["held_out_error"], event["iteration"])
                if trial.should_prune():
                    raise pruned

        try:
            return self._error(values, hear)
        except (ConfigError, DataError, DivergedError) as fault:
            trial.set_user_attr("reason", str(fault))
            raise pruned from fault

    def _error(self, values: Mapping[str, Any], hear: Callable[[Mapping[str, Any]], None]) -> float:
        """Return the data error of the held-out patterns after a reconstruction with these values."""
        job = trial_job(check_job(with_values(self._raw, values)), self._options.sweeps)
        with open_series(job.data) as series, tempfile.TemporaryDirectory(prefix="hpcrec-tune-") as folder:
            part = single_tilt(series, self._i_tilt, self._chosen)
            with closing(
                TiltRun(job, part, common_grid(job, part), 0, SerialCommunicator(), Path(folder), hear)
            ) as run:
                outcome = run.run()
        assert outcome is not None
        error = float(outcome.held_out_error[-1])
        if not np.isfinite(error):
            raise DivergedError("the error of the held-out patterns is not finite")
        return error


def trial_job(job: Job, sweeps: int) -> Job:
    """Return the job of a trial: ``sweeps`` sweeps, some patterns held out, no checkpoint."""
    changed = dataclasses.replace(
        job.ptychography, iterations=sweeps, checkpoint_every=sweeps, early_stop_tolerance=0.0
    )
    return dataclasses.replace(
        job, ptychography=changed, quality=dataclasses.replace(job.quality, hold_out=HELD_OUT, frc=False)
    )


_COUNTED: Final[dict[str, Callable[[Job], Any]]] = {
    "probe.modes": mode_count,
    "ptychography.slices": chosen_slices,
    "ptychography.slice_thickness_angstrom": slice_thickness,
}


def _value(job: Job, key: str) -> Any:
    """Return the value of a key of the job; None where one of its tables is left out, a number for "auto"."""
    return _COUNTED[key](job) if key in _COUNTED else value_at(job, key)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Open studies one process after the other: Optuna makes the tables of a new file without a lock."""
    try:
        file = path.with_suffix(".lock").open("w")
    except OSError as fault:
        raise ConfigError(f"cannot write beside {path}: {fault.strerror}; give another --out") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError('hpcrec tune needs Optuna: install it with pip install "hpcrec[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
