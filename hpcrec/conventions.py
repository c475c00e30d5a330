"""The one page of conventions; ``tests/test_conventions.py`` pins every line of it.

Units inside the package
    length Å · frequency 1/Å (k = 1/λ, without 2π) · angle rad · energy eV · intensity counts per pixel ·
    potential V, projected potential V·Å, interaction parameter σ in rad/(V·Å).
    Other units are converted in ``io`` and ``run/config.py`` only; a name there carries its unit
    (``tilt_deg``, ``semiangle_mrad``, ``energy_ev``).

Components and axes
    Always in array order: (z, y, x), (y, x), (ky, kx). Right-handed: x to the right, y down, z along the beam.
    patterns (position, ky, kx) · probe (mode, y, x) · object (slice, y, x) · volume (z, y, x) ·
    exit wave (position, mode, y, x). The last two axes are the Fourier axes.

Fourier transform
    F(k) = (1/√n) Σ f(r) exp(−2πi k·r): unitary, forward sign −.
    Real space is centred at index n//2; reciprocal space has its zero frequency at [0, 0] in memory.
    Patterns are shifted once when read; no shifts in loops.

Waves
    plane wave exp(+2πi k·r); a step of Δz > 0 downstream multiplies the spectrum by exp(−iπλΔz k²);
    transmission of electrons exp(+iσV), so a positive potential gives a positive phase.

Probe
    ψ(k) = A(k) exp(−iχ(k)), χ = (2π/λ) Σ C_nm (λk)^(n+1) cos(m(φ − φ_nm)) / (n+1), C_nm in Å;
    C10 > 0 is overfocus, and equals the focused probe propagated by +C10.
    The word "defocus" occurs at the edge only (job files): positive defocus is underfocus, C10 = −defocus.

Positions and grids
    positions are float64, Å, (y, x): where the probe's centre pixel (n//2, n//2) sits on the sample.
    ``grid.origin`` is the coordinate of the centre of pixel [0, 0]; pixel = (position − origin) / sampling.

Rotations
    ``Pose.rotation`` is an active right-handed 3×3 matrix in components (x, y, z): r_lab = R r_sample.
    A tilt t about an axis at in-plane angle a from y: R = Rz(a) Ry(t) Rz(−a).
    Shifts are applied after the projection, on the detector: +dy, +dx moves the image content to +y, +x.

Precision
    complex64/float32 arrays (complex128/float64 on request), float64 geometry and reductions.
    A detector mask is boolean, True = good pixel.
"""

from __future__ import annotations

from typing import Final

FFT_FORWARD_SIGN: Final = -1
PROPAGATION_SIGN: Final = -1
TRANSMISSION_SIGN: Final = +1
