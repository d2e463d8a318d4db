"""The sweep: tiles join without seams on every axis, sums hold one tile's depth, and too little memory ends in a notice, not a crash."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from VelvetMedLib.ct import Grid
from VelvetMedLib.errors import MemoryShortError
from VelvetMedLib.tasks import sweep as sweep_module
from VelvetMedLib.tasks.class_maps import ClassMaps
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.sweep import Swept, sweep, tile_starts
from VelvetMedLib.tasks.views import FineView, windowed

CLASSES, LESIONS, FEATURES = 33, 17, 8


def dense(maps: ClassMaps) -> np.ndarray:
    """All classes at once, [classes, X, Y, Z]."""
    whole = np.zeros((len(maps), *maps.shape), np.uint8)
    for label, (box, part) in enumerate(zip(maps.boxes, maps.parts, strict=True)):
        whole[label][box] = part
    return whole


@dataclass
class Pointwise(torch.nn.Module):
    """A network that sees only its own cell, and fails as a device without memory would. room: most cells of a tile, by device."""

    room: dict[str, int] = field(default_factory=dict)
    error: type[BaseException] = MemoryError
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.tiles: list[tuple[str, tuple[int, ...]]] = []
        self.at = "cuda"

    __hash__ = object.__hash__

    def to(self, device: str) -> Pointwise:  # type: ignore[override]
        self.at = device
        return self

    def forward(self, x: torch.Tensor) -> Any:
        self.tiles.append((self.at, tuple(x.shape[2:])))
        if x[0, 0].numel() > self.room.get(self.at, 10**9):
            raise self.error(self.words)
        turns = torch.arange(CLASSES).view(1, -1, 1, 1, 1) * 0.7
        logits = 6 * torch.cos(turns + 9 * x[:, :1] + 2 * x[:, 1:2])
        return SimpleNamespace(
            organ_logits=logits, lesion_logits=logits[:, :LESIONS], features=torch.nn.functional.avg_pool3d(logits[:, :FEATURES], 2)
        )


def a_view(shape: tuple[int, int, int]) -> FineView:
    x, y, z = np.ogrid[tuple(slice(0, 4, n * 1j) for n in shape)]
    hu = (400 * np.sin(x) * np.cos(2 * y) + 300 * np.sin(3 * z)).astype(np.float32)
    return FineView(hu, Grid(shape[::-1], np.diag([4.0, 4.0, 4.0, 1.0])), (np.zeros(3), np.ones(3)), np.ones([n + 2 for n in shape], bool))


def a_bundle(net: torch.nn.Module, tile: tuple[int, int, int], device: str = "cpu") -> Any:
    from VelvetMedLib.bundle.config import FineViewConfig

    config = SimpleNamespace(id="made up", views=SimpleNamespace(fine=FineViewConfig(tile_voxels=tile)))
    return SimpleNamespace(model=SimpleNamespace(fine=net), config=config, device=device)


def at_once(view: FineView) -> tuple[np.ndarray, np.ndarray]:
    """Organs and lesions of the whole scan in one piece, as probabilities times 255."""
    out = Pointwise()(torch.from_numpy(windowed(view.hu_xyz))[None])
    return (out.organ_logits[0].softmax(0) * 255).numpy(), (out.lesion_logits[0].sigmoid() * 255).numpy()


@pytest.mark.parametrize(("size", "tile", "overlap"), [(96, 96, 0.25), (40, 96, 0.25), (112, 96, 0.25), (320, 96, 0.5), (160, 64, 0.0)])
def test_tiles_are_even_cover_everything_and_overlap_enough(size: int, tile: int, overlap: float):
    starts = tile_starts(size, tile, overlap)
    assert starts[0] == 0 and all(s % 2 == 0 for s in starts)
    assert max(size, tile) == starts[-1] + tile
    assert all(b - a <= tile * (1 - overlap) + 2 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("shape", [(75, 40, 34), (34, 75, 40), (40, 33, 75), (30, 20, 17)])
@pytest.mark.parametrize("half", [False, True])
def test_through_tiles_a_network_without_context_gives_what_it_gives_at_once(
    shape: tuple[int, int, int], half: bool, monkeypatch: pytest.MonkeyPatch
):
    """Seams come from context; without it tiling must change nothing, whichever axis the sums run along."""
    if half:
        monkeypatch.setattr(sweep_module, "FULL_PRECISION_BYTES", 0)
    view = a_view(shape)
    organs, lesions, features = sweep(view, a_bundle(Pointwise(), (32, 32, 32)))
    truth, lesion_truth = at_once(view)
    found = dense(organs)
    # Beside a class's box nothing is kept, but there it could not have been the largest.
    kept = np.abs(found - truth) <= (1.5 if half else 0.51)
    assert (kept | ((found == 0) & (truth < 255 / CLASSES))).all()
    chosen = np.take_along_axis(truth, organs.labels_xyz()[None].astype(np.int64), 0)[0]
    assert (chosen >= truth.max(0) - (3.0 if half else 1.02)).all(), "the most probable, or as probable as bytes can tell"
    assert (np.abs(lesions - lesion_truth)[lesion_truth > 9] <= (1.5 if half else 0.51)).all()
    one_tile = sweep(view, a_bundle(Pointwise(), (80, 80, 80)))[2]
    assert features.shape == one_tile.shape == (FEATURES, *((n + 1) // 2 for n in shape))
    assert np.allclose(features, one_tile, atol=2e-2 if half else 1e-5)


def test_a_class_is_kept_only_where_it_can_win():
    bytes_cxyz = np.zeros((3, 20, 12, 9), np.uint8)
    bytes_cxyz[0] = 255
    bytes_cxyz[2, 5:9, 3, 4:6], bytes_cxyz[0, 5:9, 3, 4:6] = 200, 55
    maps = ClassMaps.of(bytes_cxyz)
    assert [part.shape for part in maps.parts] == [(20, 12, 9), (1, 1, 1), (6, 3, 4)], "a cell more on every side, so that it ends at 0"
    assert np.array_equal(dense(maps), bytes_cxyz)
    assert np.array_equal(maps.labels_xyz(), bytes_cxyz.argmax(0))


def test_the_sums_are_no_longer_than_a_tile(monkeypatch: pytest.MonkeyPatch):
    sizes = []
    plain = torch.zeros

    def zeros(shape: Any, **options: Any) -> torch.Tensor:
        sizes.append(int(np.prod(shape)))
        return plain(shape, **options)

    monkeypatch.setattr(torch, "zeros", zeros)
    for length in (64, 160):
        sweep(a_view((32, 32, length)), a_bundle(Pointwise(), (32, 32, 32)))
    half = len(sizes) // 2
    assert sizes[:half] == sizes[half:] and len(sizes) == 12, "two arrays for each of three outputs, whatever the scan's length"


def climbed(net: Pointwise, tile: tuple[int, int, int], device: str) -> tuple[Swept, list[str]]:
    run = Run()
    return sweep(a_view((70, 66, 40)), a_bundle(net, tile, device), run=run), run.warnings


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError, ""),
        (torch.cuda.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB."),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        (RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        (RuntimeError, "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_the_tiles_become_smaller_and_a_warning_says_so(error: type[BaseException], words: str):
    net = Pointwise({"cpu": 40**3}, error, words)
    net.at = "cpu"
    (organs, lesions, _), warnings = climbed(net, (64, 64, 48), "cpu")
    plain = sweep(a_view((70, 66, 40)), a_bundle(Pointwise(), (32, 32, 32)))
    assert np.array_equal(organs.labels_xyz(), plain[0].labels_xyz()) and np.array_equal(lesions, plain[1])
    assert net.tiles[0][1] == (64, 64, 48) and {size for _, size in net.tiles[1:]} == {(32, 32, 32)}
    assert len(warnings) == 1 and "Out of memory" in warnings[0] and "32 x 32 x 32" in warnings[0] and "can differ" in warnings[0]


def test_a_device_without_room_for_the_smallest_tile_hands_over_to_the_processor_and_gets_its_network_back():
    net = Pointwise({"meta": 0})
    net.at = "meta"
    (organs, _, _), warnings = climbed(net, (64, 64, 48), "meta")
    assert [tile for tile in net.tiles if tile[0] == "meta"] == [("meta", (64, 64, 48)), ("meta", (32, 32, 32))]
    assert {size for at, size in net.tiles if at == "cpu"} == {(64, 64, 48)} and net.at == "meta"
    assert organs.labels_xyz().any()
    assert len(warnings) == 2 and "processor" not in warnings[0] and "processor" in warnings[1]


def test_where_nothing_fits_the_error_says_what_to_do_and_other_errors_are_not_hidden():
    with pytest.raises(MemoryShortError) as caught:
        climbed(Pointwise({"cpu": 0, "cuda": 0}), (64, 64, 48), "cpu")
    assert "32 x 32 x 32" in caught.value.found and caught.value.next_step
    with pytest.raises(RuntimeError, match="sizes do not match"):
        climbed(Pointwise({"cuda": 0}, RuntimeError, "sizes do not match"), (64, 64, 48), "cpu")


def test_the_warning_reaches_the_case_and_stays_with_its_encoding(body: Any, random_bundle: Any, monkeypatch: pytest.MonkeyPatch):
    from VelvetMedLib import tasks

    tasks.forget_encodings()
    plain, failed = sweep_module._outputs, []

    def short(net: Any, hu: np.ndarray, *rest: Any) -> Any:
        if not failed:
            failed.append(hu.shape)
            raise MemoryError
        return plain(net, hu, *rest)

    monkeypatch.setattr(sweep_module, "_outputs", short)
    views = replace(random_bundle.config.views, fine=replace(random_bundle.config.views.fine, tile_voxels=(64, 64, 64)))
    bundle = replace(random_bundle, config=replace(random_bundle.config, views=views))
    first = tasks.run_analysis(body, bundle, parts=("findings",)).case
    again = tasks.run_analysis(body, bundle, parts=("findings",)).case
    assert first.warnings == again.warnings and "Out of memory" in first.warnings[-1]
    tasks.forget_encodings()
