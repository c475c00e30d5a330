"""What is refined beside object and probe, one quantity a file."""

from __future__ import annotations

from importlib import import_module
from typing import Any

REFINEMENTS = {
    "positions": "hpcrec.refine.positions:Positions",
    "annealing": "hpcrec.refine.annealing:Annealing",
    "affine": "hpcrec.refine.affine:Affine",
    "tilt": "hpcrec.refine.tilt:Tilt",
    "position_tilt": "hpcrec.refine.tilt:PositionTilt",
    "thickness": "hpcrec.refine.thickness:Thickness",
    "aberrations": "hpcrec.refine.aberrations:Aberrations",
    "variable_probe": "hpcrec.refine.variable_probe:VariableProbe",
    "intensity": "hpcrec.refine.intensity:Intensity",
    "background": "hpcrec.refine.background:Background",
}


def refinement_class(name: str) -> Any:
    """Return the class of a refinement; its ``Options`` is the class of its options."""
    module, _, attribute = REFINEMENTS[name].partition(":")
    return getattr(import_module(module), attribute)
