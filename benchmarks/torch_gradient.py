"""The gradient of ``benchmarks.gpu`` written for PyTorch the usual way: indexed patches, FFTs, automatic derivative."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from hpcrec.models.chain import Chain
from hpcrec.objectives.losses import AMPLITUDE_FLOOR


def torch_gradient(chain: Chain, patterns: Any, *, compiled: bool) -> Callable[[], None] | None:
    """Return what computes the gradients of patterns on whole pixels once; None where PyTorch or its GPU is missing.

    ``chain`` and ``patterns`` are on the device; the same amplitude loss as hpcrec's.
    """
    if find_spec("torch") is None:
        return None
    torch = import_module("torch")
    if not torch.cuda.is_available():
        return None
    n, n_slices = chain.spectrum.shape[-1], chain.obj.shape[1]

    def taken(a: Any, kind: Any) -> Any:
        return torch.as_tensor(a.get(), device="cuda", dtype=kind)

    obj = taken(chain.obj[0], torch.complex64).requires_grad_()
    probe = taken(chain.spectrum, torch.complex64).requires_grad_()
    factors, counts = taken(chain.propagators, torch.complex64), taken(patterns, torch.float32)
    corners = torch.as_tensor(chain.corners[: len(patterns), 0].astype(np.int64), device="cuda")
    along = torch.arange(n, device="cuda")
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

    def work() -> None:
        obj.grad = probe.grad = None
        run().backward()
        torch.cuda.synchronize()

    return work
