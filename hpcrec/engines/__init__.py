"""Update rules, one a file."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hpcrec.errors import ConfigError

ENGINES = {
    "epie": "hpcrec.engines.epie:Epie",
    "rpie": "hpcrec.engines.rpie:Rpie",
    "mpie": "hpcrec.engines.mpie:Mpie",
    "pie": "hpcrec.engines.pie:Pie",
    "three_pie": "hpcrec.engines.three_pie:ThreePie",
    "wasp": "hpcrec.engines.wasp:Wasp",
    "dm": "hpcrec.engines.difference_map:DifferenceMap",
    "raar": "hpcrec.engines.raar:Raar",
    "er": "hpcrec.engines.error_reduction:ErrorReduction",
    "relaxed_average": "hpcrec.engines.relaxed_average:RelaxedAverage",
    "lsqml": "hpcrec.engines.lsqml:LsqMl",
    "cg": "hpcrec.engines.cg:ConjugateGradient",
    "lbfgs": "hpcrec.engines.lbfgs:Lbfgs",
    "gradient": "hpcrec.engines.gradient:GradientEngine",
}


def engine_class(name: str) -> Any:
    """Return the engine's class; its ``Options`` is the class of its options. Raises ConfigError for another name."""
    if name not in ENGINES:
        raise ConfigError(f"engine: {name!r} is not known; expected one of {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)
