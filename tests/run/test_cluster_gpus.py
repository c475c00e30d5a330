"""Dask workers with a pretended GPU each: which one they take, and that nothing else changes. No GPU has run this."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "backend"))

from emulated_projector import emulated
from pretended_gpus import forget, pretend, used

from hpcrec.backend.array import array_module
from hpcrec.engines.solvers import SlabState, solver_class, start_slab
from hpcrec.errors import DeviceError
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.models.tomography import TomographyModel
from hpcrec.run.cluster import DaskExecutor, cluster
from hpcrec.tomography.reconstruct import reconstruct
from hpcrec.tomography.slabs import SlabVolume

pytestmark = [pytest.mark.emulation, pytest.mark.timeout(240)]

SHAPE = (10, 12, 10)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(emulated(tmp_path_factory.mktemp("projector")).library._name)


@pytest.fixture(scope="module")
def workers() -> Iterator[DaskExecutor]:
    with cluster(3) as executor:
        yield executor


@pytest.fixture
def executor(workers: DaskExecutor, library: str) -> Iterator[DaskExecutor]:
    """Three workers that see the same two GPUs."""
    workers.client.run(pretend, library)
    yield DaskExecutor(workers.client, "gpu")
    workers.client.run(forget)


def model() -> TomographyModel:
    poses = tuple(
        Pose(rotation=rotation_from_angles(0.01, t, -0.02), shift=(0.2, -0.1)) for t in np.linspace(-1.2, 1.2, 7)
    )
    return TomographyModel(volume_shape=SHAPE, voxel_size=0.4, detector_shape=(14, 16), poses=poses, blur=0.2)


def library_of(state: SlabState) -> str:
    return array_module(state.volume).__name__


def row_of(state: SlabState) -> tuple[int, Any]:
    from distributed import get_worker

    return state.slab[0], get_worker().name


def test_workers_of_a_host_take_turns_and_share_a_gpu_s_memory(executor: DaskExecutor) -> None:
    assert executor.device == "gpu"
    kept = executor.keep(used, range(3))
    found = executor.map(lambda a: a, kept)
    assert sorted(numbers for numbers, *_ in found) == [[0], [0], [1]]
    for numbers, n_threads, limits, here in found:
        assert (n_threads, here) == (1, True), "a GPU is current for the thread that works, set once"
        assert limits == [int(0.9 * (40 << 30) / (1 if numbers == [1] else 2))]
    executor.map(used, range(6))
    assert all(len(numbers) == 1 for numbers, *_ in executor.map(lambda a: used(), kept))


def test_slabs_stay_on_their_worker_s_gpu(executor: DaskExecutor) -> None:
    volume = SlabVolume(model(), executor, 3)
    assert executor.map(library_of, volume.states) == ["cupy"] * 3
    places = executor.map(row_of, volume.states)
    assert len({name for _, name in places}) == 3
    residual = np.random.default_rng(0).normal(size=(7, 14, 16)).astype(np.float32)
    solver = solver_class("resire")(solver_class("resire").Options())
    for _ in range(3):
        volume.update(solver, model(), residual, solver.scalars(None, 1.0, 100.0, 0.0))
    assert executor.map(row_of, volume.states) == places
    assert isinstance(volume.project(model()), np.ndarray)
    assert isinstance(volume.gather(), np.ndarray)


@pytest.mark.parametrize("name", ["fista", "resire"])
def test_the_volume_is_the_host_s(executor: DaskExecutor, name: str) -> None:
    truth = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    data = model().smooth(model().projector((0, SHAPE[1])).forward(truth))
    solver = solver_class(name)(solver_class(name).Options(n_iterations=4))
    wanted = reconstruct(model(), data, np.ones_like(data), solver)
    found = reconstruct(model(), data, np.ones_like(data), solver, n_slabs=3, executor=executor)
    assert isinstance(found.volume, np.ndarray)
    np.testing.assert_allclose(found.volume, wanted.volume, atol=1e-5 * wanted.volume.max())
    np.testing.assert_allclose(found.r1, wanted.r1, rtol=1e-5)


def test_workers_without_gpus(workers: DaskExecutor) -> None:
    assert DaskExecutor(workers.client, "auto").device == "cpu"
    with pytest.raises(DeviceError, match=r"device 'gpu', Dask worker tls://.*hpcrec\[gpu\]; or choose 'cpu'"):
        DaskExecutor(workers.client, "gpu")


def test_a_worker_that_alone_has_no_gpu(executor: DaskExecutor) -> None:
    client = executor.client
    client.run(forget, workers=[sorted(client.scheduler_info(n_workers=-1)["workers"])[1]])
    assert DaskExecutor(client, "auto").device == "cpu"
    with pytest.raises(DeviceError, match="Dask worker"):
        DaskExecutor(client, "gpu")


def test_what_is_kept_on_processors_is_as_before(workers: DaskExecutor) -> None:
    assert workers.device == "cpu"
    states = workers.keep(start_slab, [model()] * 2, [(0, 5), (5, 12)])
    assert workers.map(library_of, states) == ["numpy"] * 2
