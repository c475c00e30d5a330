"""Probe modes: the orthogonal form of a partially coherent probe."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import ComplexArray, array_module, to_host


def orthogonal_rotation(probe: ComplexArray) -> ComplexArray:
    """Return the unitary U (mode, mode) that makes the modes of ``probe`` (mode, y, x) orthogonal, strongest first.

    The modes Σ_l U_kl P_l give the same intensities as P (Thibault and Menzel, Nature 494, 68 (2013)): U are the
    eigenvectors of the Gram matrix ⟨P_k, P_l⟩. Each eigenvector's largest component is made positive, so that modes
    that are orthogonal and sorted already are left as they are. U, a few numbers, is on the host.
    """
    flat = probe.reshape(len(probe), -1).astype(np.complex128)
    vectors = np.linalg.eigh(to_host(flat.conj() @ flat.T))[1][:, ::-1].T
    largest = vectors[np.arange(len(probe)), abs(vectors).argmax(axis=1)]
    return vectors * (largest.conj() / abs(largest))[:, None]  # type: ignore[no-any-return]


def rotate_modes(rotation: ComplexArray, modes: ComplexArray) -> ComplexArray:
    """Return Σ_l U_kl P_l of modes (mode, y, x), in their own precision; U (mode, mode) is on the host."""
    xp = array_module(modes)
    return xp.tensordot(xp.asarray(rotation.astype(modes.dtype)), modes, axes=1)  # type: ignore[no-any-return]
