"""Both kernels at small sizes: ``compute-sanitizer python -m benchmarks.gpu.sanitized``.

Each array has memory of its own, outside of CuPy's pool, so that a step beyond its end is seen.
"""

from __future__ import annotations

from benchmarks.gpu.bench import Case
from benchmarks.gpu.chains import counts_for, in_double, make_chain, on_device, runners, sums_for
from hpcrec.backend.device import use_device

CASES = (Case(64, 3, 1, False), Case(128, 3, 1, False), Case(128, 2, 2, True))


def losses() -> list[dict[str, object]]:
    """Run both kernels; return the loss of each case."""
    cupy, found = use_device("gpu").module, []
    cupy.cuda.set_allocator(None)
    for case in CASES:
        chain = make_chain(case, 2)
        counts = cupy.asarray(counts_for(in_double(chain), 1))
        there = on_device(cupy, chain)
        for name, run in runners(there, counts, sums_for(cupy, there, slopes=True)).items():
            if name != "array":
                sums = sums_for(cupy, there, slopes=True)
                run(there, counts, None, sums)
                cupy.cuda.Device().synchronize()
                found.append({**case._asdict(), "kernel": name, "loss": float(sums.totals[0])})
    return found


if __name__ == "__main__":
    print(losses())
