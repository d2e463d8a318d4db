"""From stored values to HU: bits, sign, padding, rescale, byte order and compression; the short way equals the long one."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.ct.dicom_files import read_slice
from VelvetMedLib.ct.dicom_pixels import gdcm_hu, slice_hu
from VelvetMedLib.ct.scaling import scaled
from VelvetMedLib.errors import ScanError


def bits_12(ds, k) -> None:
    values = np.frombuffer(ds.PixelData, "<u2")
    ds.BitsStored, ds.HighBit = 12, 11
    ds.PixelData = np.minimum(values, 4095).astype("<u2").tobytes()


def bits_12_signed(ds, k) -> None:
    values = np.frombuffer(ds.PixelData, "<i2")
    ds.BitsStored, ds.HighBit = 12, 11
    ds.PixelData = (np.clip(values, -2048, 2047).astype("<i2").view("<u2") & 0x0FFF).tobytes()


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
@pytest.mark.parametrize(("stored", "edit"), [("signed", None), ("unsigned", None), ("unsigned", bits_12), ("signed", bits_12_signed)])
def test_the_raw_way_equals_gdcm_for_every_byte_order_sign_and_depth(write_series, syntax, stored, edit) -> None:
    for path in write_series(n=4, stored=stored, edit=edit, syntax=syntax):
        one = read_slice(path)
        assert one is not None
        np.testing.assert_array_equal(slice_hu(one)[0], gdcm_hu(one))


def test_old_overlays_in_the_unused_bits_are_cleared(write_series, tmp_path) -> None:
    clean = ct.read(write_series(tmp_path / "clean", stored="unsigned", edit=bits_12)[0].parent)

    def overlay(ds, k) -> None:
        bits_12(ds, k)
        values = np.frombuffer(ds.PixelData, "<u2").copy()
        values[::7] |= 0x8000
        ds.PixelData = values.tobytes()

    dirty = ct.read(write_series(tmp_path / "dirty", stored="unsigned", edit=overlay)[0].parent)
    np.testing.assert_array_equal(clean.voxels_kji, dirty.voxels_kji)


def test_compressed_slices_give_the_same_volume(write_series, tmp_path) -> None:
    from pydicom.uid import RLELossless

    def packed(ds, k) -> None:
        ds.compress(RLELossless, generate_instance_uid=False)

    plain = ct.read(write_series(tmp_path / "a", n=12, stored="unsigned")[0].parent)
    rle = ct.read(write_series(tmp_path / "b", n=12, stored="unsigned", edit=packed)[0].parent)
    assert plain.sha256() == rle.sha256()


def test_a_damaged_compressed_slice_is_refused_by_place(write_series) -> None:
    from pydicom.uid import RLELossless

    def packed(ds, k) -> None:
        ds.compress(RLELossless, generate_instance_uid=False)

    files = write_series(n=12, edit=packed)
    files[3].write_bytes(files[3].read_bytes()[:-1500])
    with pytest.raises(ScanError) as caught:
        ct.read(files[0].parent)
    assert "RLE lossless" in caught.value.found or "missing" in caught.value.what


def test_an_unknown_compression_is_refused_by_name(write_series) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import HTJ2KLossless

    def high_throughput(ds, k) -> None:
        ds.file_meta.TransferSyntaxUID = HTJ2KLossless
        ds.PixelData = encapsulate([b"\0\1" * 50])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True

    with pytest.raises(ScanError, match="not supported") as caught:
        ct.read(write_series(n=12, edit=high_throughput)[0].parent)
    assert "High-Throughput JPEG 2000" in caught.value.found


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_padding_becomes_air_however_the_writer_spelled_it(write_series, padding) -> None:
    def padded(ds, k) -> None:
        values = np.frombuffer(ds.PixelData, "<i2").copy().reshape(ds.Rows, ds.Columns)
        values[:3], values[:, :3] = -2000, -2000
        ds.PixelData = values.tobytes()
        ds.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)

    volume = ct.read(write_series(edit=padded)[0].parent)
    assert (volume.voxels_kji[:, :3] == -1024).all()
    assert volume.voxels_kji.min() == -1024


def test_a_padding_value_around_the_circle_is_air_even_at_zero(write_series) -> None:
    def padded(ds, k) -> None:
        values = np.frombuffer(ds.PixelData, "<i2").copy().reshape(ds.Rows, ds.Columns)
        values[:3] = 0
        ds.PixelData = values.tobytes()
        ds.add_new("PixelPaddingValue", "SS", 0)

    assert (ct.read(write_series(edit=padded)[0].parent).voxels_kji[:, :3] == -1024).all()


def test_a_padding_value_that_only_occurs_in_tissue_is_left_alone_with_a_notice(write_series) -> None:
    def wrong(ds, k) -> None:
        ds.add_new("PixelPaddingValue", "SS", 40)

    volume = ct.read(write_series(edit=wrong)[0].parent)
    assert (volume.voxels_kji == 40).any()
    assert any("padding value" in w for w in volume.warnings)


def test_filling_below_air_is_clipped_and_noted_once(write_series) -> None:
    def filled(ds, k) -> None:
        values = np.frombuffer(ds.PixelData, "<i2").copy()
        values[:50] = -3024
        ds.PixelData = values.tobytes()

    volume = ct.read(write_series(edit=filled)[0].parent)
    assert volume.voxels_kji.min() == -1024
    assert sum("below -1024 HU" in w for w in volume.warnings) == 1


def drop_rescale(ds, k) -> None:
    del ds.RescaleSlope, ds.RescaleIntercept


def test_without_rescale_unsigned_values_are_refused(write_series) -> None:
    with pytest.raises(ScanError, match="lack the rescale slope and intercept"):
        ct.read(write_series(stored="unsigned", edit=drop_rescale)[0].parent)


def test_without_rescale_values_that_are_plainly_hu_are_read_with_a_notice(write_series) -> None:
    volume = ct.read(write_series(stored="signed", edit=drop_rescale)[0].parent)
    assert any("no rescale slope and intercept" in w for w in volume.warnings)


def test_rescale_missing_in_some_slices_is_refused_with_their_number(write_series) -> None:
    with pytest.raises(ScanError, match="Some slices lack") as caught:
        ct.read(write_series(edit=lambda ds, k: drop_rescale(ds, k) if k % 10 == 0 else None)[0].parent)
    assert "4 of 40" in caught.value.found


def test_a_zero_slope_is_refused(write_series) -> None:
    with pytest.raises(ScanError, match="slope of a slice is zero"):
        ct.read(write_series(edit=lambda ds, k: setattr(ds, "RescaleSlope", "0"))[0].parent)


def test_each_slice_is_scaled_by_its_own_rescale(write_series, tmp_path) -> None:
    def own(ds, k) -> None:
        ds.PixelData = (np.frombuffer(ds.PixelData, "<i2") + k).astype("<i2").tobytes()
        ds.RescaleIntercept = str(-k)

    volume = ct.read(write_series(tmp_path / "a", edit=own)[0].parent)
    np.testing.assert_array_equal(volume.voxels_kji, ct.read(write_series(tmp_path / "b")[0].parent).voxels_kji)
    assert any("differ between slices" in w for w in volume.warnings)


def test_a_fractional_slope_gives_decimals(write_series) -> None:
    volume = ct.read(write_series(edit=lambda ds, k: setattr(ds, "RescaleSlope", "0.99"))[0].parent)
    assert volume.voxels_kji.dtype == np.float32
    assert float(volume.voxels_kji.max()) == pytest.approx(594.0)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PhotometricInterpretation", "MONOCHROME1", "MONOCHROME1"),
        ("RescaleType", "US", "RescaleType"),
        ("LossyImageCompression", "01", "with loss"),
    ],
)
def test_oddities_that_leave_hu_intact_are_read_with_a_notice(write_series, name, value, sentence, tmp_path) -> None:
    volume = ct.read(write_series(tmp_path / "a", edit=lambda ds, k: setattr(ds, name, value))[0].parent)
    assert any(sentence in w for w in volume.warnings)
    assert volume.sha256() == ct.read(write_series(tmp_path / "b")[0].parent).sha256()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (1.0, -1024.0), (2.0, -1000.0), (0.5, 3.0), (-1.0, 0.0), (1.0, -40000.0)])
def test_scaling_equals_double_precision(dtype, slope, intercept) -> None:
    rng = np.random.default_rng(0)
    info = (0, 4000) if dtype in ("uint16", "int32", "float32") else (-100, 100) if dtype != "uint8" else (0, 255)
    array = rng.integers(*info, 500).astype(dtype)
    np.testing.assert_allclose(scaled(array, slope, intercept), array.astype(np.float64) * slope + intercept, atol=1e-2)


def test_scaling_of_the_full_unsigned_range_into_16_bits_is_exact() -> None:
    array = np.arange(0, 2**16, dtype=np.uint16)
    out = scaled(array, 1.0, -32768.0 + 1)
    np.testing.assert_array_equal(out, array.astype(np.int64) - 32767)
    assert scaled(array[:60000], 1.0, -32000.0).dtype == np.int16


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1e34), (1e30, 0.0), (1.0, 3e9)])
def test_scaling_by_a_number_that_no_integer_holds_gives_floats_and_no_crash(slope: float, intercept: float) -> None:
    out = scaled(np.array([[[-1000, 5]]], np.int16), slope, intercept)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, np.array([[[-1000.0, 5.0]]]) * slope + intercept, rtol=1e-6)
