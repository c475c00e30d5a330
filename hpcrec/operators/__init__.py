"""Linear maps with exact adjoints."""

from __future__ import annotations

from importlib import import_module
from typing import Any

OPERATORS = {
    "patches": "hpcrec.operators.patches:Patches",
    "subpixel_shift": "hpcrec.operators.propagate:SubpixelShift",
    "free_space_step": "hpcrec.operators.propagate:FreeSpaceStep",
    "far_field": "hpcrec.operators.propagate:FarField",
    "projection": "hpcrec.operators.projection:Projector",
}


def operator_class(name: str) -> Any:
    """Return the class of the table; its ``example()`` is what the shared adjoint test runs."""
    module, _, attribute = OPERATORS[name].partition(":")
    return getattr(import_module(module), attribute)
