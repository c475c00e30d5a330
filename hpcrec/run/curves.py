"""Correlations and spectra as plain arrays: how the analysis stage keeps them for the report."""

from __future__ import annotations

import numpy as np

from hpcrec.analysis.resolution import LastPeak, ShellCorrelation
from hpcrec.backend.array import Array


def correlation_arrays(name: str, curve: ShellCorrelation) -> dict[str, Array]:
    """Return a correlation as ``fsc/NAME`` (3, shell): frequency, correlation, independent voxels."""
    return {f"fsc/{name}": np.stack([curve.frequency, curve.correlation, curve.n_independent])}


def correlations(arrays: dict[str, Array], nyquist: float) -> dict[str, ShellCorrelation]:
    """Return the correlations kept in ``arrays``; ``nyquist`` in 1/Å."""
    return {
        name.removeprefix("fsc/"): ShellCorrelation(
            frequency=a[0], correlation=a[1], n_independent=a[2], nyquist=nyquist
        )
        for name, a in arrays.items()
        if name.startswith("fsc/")
    }


def peak_arrays(name: str, peak: LastPeak) -> dict[str, Array]:
    """Return a spectrum with its last peak as ``peaks/NAME/…``; a frequency of 0 means that no peak was found."""
    return {
        f"peaks/{name}/spectrum": peak.spectrum.astype(np.float32),
        f"peaks/{name}/axes": np.array(peak.axes),
        f"peaks/{name}/frequency": np.array([peak.frequency or 0.0]),
        f"peaks/{name}/near": np.array([-1 if peak.near is None else peak.near]),
        **{f"peaks/{name}/frequencies_{i}": q for i, q in enumerate(peak.frequencies)},
    }


def peaks(arrays: dict[str, Array]) -> dict[str, LastPeak]:
    """Return the last peaks kept in ``arrays``."""
    names = dict.fromkeys(key.split("/")[1] for key in arrays if key.startswith("peaks/"))
    found = {}
    for name in names:
        spectrum = arrays[f"peaks/{name}/spectrum"]
        frequency = float(arrays[f"peaks/{name}/frequency"][0])
        found[name] = LastPeak(
            frequency=frequency or None,
            resolution=1 / frequency if frequency else None,
            axes=tuple(int(i) for i in arrays[f"peaks/{name}/axes"]),
            spectrum=spectrum,
            near=None if (near := int(arrays[f"peaks/{name}/near"][0])) < 0 else near,
            frequencies=tuple(arrays[f"peaks/{name}/frequencies_{i}"] for i in range(spectrum.ndim)),
        )
    return found
