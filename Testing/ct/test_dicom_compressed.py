"""Compressed series as archives send them: every lossless syntax gives the very voxels, every lossy one close ones with a notice."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.ct.dicom_files import PACKED_SYNTAXES
from VelvetMedLib.errors import ScanError

JPEG_BASELINE, JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS, JPEG_LOSSLESS_FIRST_ORDER = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_LS_NEAR = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
RLE, DEFLATED = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99"

Edit = Callable[[Any, int], None]


def _stored(ds: Any) -> np.ndarray:
    kind = "<i2" if ds.PixelRepresentation else "<u2"
    return np.frombuffer(ds.PixelData, kind).reshape(ds.Rows, ds.Columns)


def by_simpleitk(compressor: str, syntax: str, folder: Path) -> Edit:
    """The slice's picture as SimpleITK's own GDCM writes it; a first-order JPEG lossless stream is valid as the general process too."""
    import pydicom
    import SimpleITK as sitk

    def edit(ds: Any, k: int) -> None:
        path = folder / f"packed-{k}.dcm"
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(sitk.GetImageFromArray(_stored(ds)[None]))
        packed = pydicom.dcmread(path)
        path.unlink()
        _put(ds, packed.PixelData, syntax)

    return edit


def by_pydicom(syntax: str, **options: Any) -> Edit:
    def edit(ds: Any, k: int) -> None:
        ds.compress(syntax, generate_instance_uid=False, **options)

    return edit


def deflated(ds: Any, k: int) -> None:
    ds.file_meta.TransferSyntaxUID = DEFLATED


def by_pillow(syntax: str) -> Edit:
    """Eight-bit JPEG with loss, the only JPEG that Pillow writes: HU in steps of eight."""
    from PIL import Image
    from pydicom.encaps import encapsulate

    def edit(ds: Any, k: int) -> None:
        eighths = np.clip((_stored(ds).astype(int) + 1024) // 8, 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(eighths).save(stream, "JPEG", quality=98)
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.LossyImageCompression = "8", "-1024", "01"
        _put(ds, encapsulate([stream.getvalue()]), syntax)

    return edit


def _put(ds: Any, data: bytes, syntax: str) -> None:
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = data
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def edit_for(syntax: str, folder: Path) -> Edit:
    if syntax == JPEG_2000_LOSSLESS:
        return by_simpleitk("JPEG2000", syntax, folder)
    if syntax in (JPEG_LOSSLESS, JPEG_LOSSLESS_FIRST_ORDER):
        return by_simpleitk("JPEG", syntax, folder)
    if syntax == DEFLATED:
        return deflated
    return by_pydicom(syntax)


LOSSLESS = (JPEG_LOSSLESS, JPEG_LOSSLESS_FIRST_ORDER, JPEG_LS, JPEG_2000_LOSSLESS, RLE, DEFLATED)


@pytest.fixture
def noisy() -> Edit:
    """Noise in every slice, so that no codec has it easy, and the full range of CT with its ends."""

    def edit(ds: Any, k: int) -> None:
        stored = _stored(ds).astype(int) + np.random.default_rng(k).integers(-60, 60, (ds.Rows, ds.Columns))
        base = 0 if ds.PixelRepresentation else 1024
        stored[0, :2] = base - 1024, base + 3071
        ds.PixelData = np.clip(stored, base - 1024, base + 3071).astype(np.int16).tobytes()

    return edit


@pytest.mark.parametrize("stored", ["signed", "unsigned"])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda s: PACKED_SYNTAXES[s])
def test_a_lossless_series_is_the_uncompressed_one(write_series: Any, tmp_path: Path, noisy: Edit, syntax: str, stored: str) -> None:
    pack = edit_for(syntax, tmp_path)

    def both(ds: Any, k: int) -> None:
        noisy(ds, k)
        pack(ds, k)

    plain = ct.read(write_series(tmp_path / "plain", n=12, stored=stored, edit=noisy)[0].parent)
    files = write_series(tmp_path / "packed", n=12, stored=stored, edit=both)
    packed = ct.read(files[0].parent)
    assert packed.sha256() == plain.sha256() and packed.warnings == plain.warnings
    assert plain.voxels_kji.min() == -1024 and plain.voxels_kji.max() == 3071


def test_the_test_files_really_are_compressed(write_series: Any, tmp_path: Path) -> None:
    import pydicom

    for syntax in LOSSLESS:
        files = write_series(tmp_path / syntax, n=3, edit=edit_for(syntax, tmp_path))
        header = pydicom.dcmread(files[0], stop_before_pixels=True)
        assert header.file_meta.TransferSyntaxUID == syntax
        assert files[0].stat().st_size < 32 * 48 * 2


@pytest.mark.parametrize("syntax", [JPEG_BASELINE, JPEG_EXTENDED], ids=lambda s: PACKED_SYNTAXES[s])
def test_a_lossy_series_is_close_and_says_so(write_series: Any, tmp_path: Path, syntax: str) -> None:
    plain = ct.read(write_series(tmp_path / "plain", n=12)[0].parent)
    lossy = ct.read(write_series(tmp_path / "lossy", n=12, edit=by_pillow(syntax))[0].parent)
    assert lossy.shape_kji == plain.shape_kji and np.allclose(lossy.ijk_to_ras, plain.ijk_to_ras)
    assert float(np.abs(lossy.voxels_kji.astype(int) - plain.voxels_kji).mean()) < 20
    assert any("with loss" in warning for warning in lossy.warnings)


def test_near_lossless_jpeg_ls_keeps_to_its_bound(write_series: Any, tmp_path: Path, noisy: Edit) -> None:
    def both(ds: Any, k: int) -> None:
        noisy(ds, k)
        by_pydicom(JPEG_LS_NEAR, jls_error=3)(ds, k)

    plain = ct.read(write_series(tmp_path / "plain", n=12, stored="unsigned", edit=noisy)[0].parent)
    near = ct.read(write_series(tmp_path / "near", n=12, stored="unsigned", edit=both)[0].parent)
    difference = np.abs(near.voxels_kji.astype(int) - plain.voxels_kji)
    assert 0 < difference.max() <= 3


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS_FIRST_ORDER, JPEG_LS, JPEG_2000_LOSSLESS], ids=lambda s: PACKED_SYNTAXES[s])
@pytest.mark.parametrize("damage", ["cut short", "not a picture"])
def test_a_damaged_picture_is_refused_and_its_compression_named(write_series: Any, tmp_path: Path, syntax: str, damage: str) -> None:
    from pydicom.encaps import encapsulate, generate_frames

    pack = edit_for(syntax, tmp_path)

    def edit(ds: Any, k: int) -> None:
        pack(ds, k)
        if k == 5:
            frame = next(generate_frames(ds.PixelData, number_of_frames=1))
            ds.PixelData = encapsulate([frame[: len(frame) // 4] if damage == "cut short" else bytes(len(frame))])
            ds["PixelData"].is_undefined_length = True

    with pytest.raises(ScanError) as caught:
        ct.read(write_series(tmp_path / "series", n=12, edit=edit)[0].parent)
    assert PACKED_SYNTAXES[syntax] in caught.value.found and "complete" in caught.value.expected
