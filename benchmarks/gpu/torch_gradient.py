"""The same gradient written for PyTorch the usual way: indexed patches, FFTs, automatic derivative."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from hpcrec.models.chain import Chain
from hpcrec.objectives.losses import AMPLITUDE_FLOOR


def torch_fault(place: str) -> str | None:
    """Say why PyTorch cannot compute at ``place``, "cuda" or "cpu", or return None."""
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    torch = import_module("torch")
    return None if place == "cpu" or torch.cuda.is_available() else "PyTorch sees no GPU"


def torch_gradient(chain: Chain, patterns: Any, place: str, *, compiled: bool) -> Callable[[], tuple[Any, Any]]:
    """Return what computes the gradients of patterns on whole pixels by object and probe (dL/d conj z) once.

    ``chain`` and ``patterns`` are on the device of hpcrec; the same amplitude loss as hpcrec's.
    """
    torch = import_module("torch")
    n, n_slices = chain.spectrum.shape[-1], chain.obj.shape[1]

    def taken(a: Any, kind: Any) -> Any:
        return torch.as_tensor(a.get(), device=place, dtype=kind)

    obj = taken(chain.obj[0], torch.complex64).requires_grad_()
    probe = taken(chain.spectrum, torch.complex64).requires_grad_()
    factors, counts = taken(chain.propagators, torch.complex64), taken(patterns, torch.float32)
    corners = torch.as_tensor(chain.corners[: len(patterns), 0].astype(np.int64), device=place)
    along = torch.arange(n, device=place)
    rows, columns = corners[:, 0, None, None] + along[:, None], corners[:, 1, None, None] + along

    def loss() -> Any:
        wave = probe[None]
        for s in range(n_slices):
            wave = wave * obj[s][rows, columns][:, None]
            if s < n_slices - 1:
                wave = torch.fft.ifft2(torch.fft.fft2(wave) * factors[s])
        modelled = (torch.fft.fft2(wave, norm="ortho").abs() ** 2).sum(1)
        off = torch.sqrt(modelled + AMPLITUDE_FLOOR) - torch.sqrt(counts + AMPLITUDE_FLOOR)
        return (off**2).sum()

    run = torch.compile(loss) if compiled else loss

    def work() -> tuple[Any, Any]:
        obj.grad = probe.grad = None
        run().backward()
        if place == "cuda":
            torch.cuda.synchronize()
        # PyTorch's gradient by a complex number z is dL/d Re z + i dL/d Im z, twice that by conj z
        return obj.grad / 2, probe.grad / 2

    return work
