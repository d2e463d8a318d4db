"""A trained model on disk: what it must be, how it is checked, loaded, added and removed. Importing this pulls no torch."""

from VelvetMedLib.bundle.catalogue import DEFAULT_BUNDLE, Entry, add_bundle, catalogue, locate, model_card, remove_bundle, unpack
from VelvetMedLib.bundle.config import (
    BundleConfig,
    Calibration,
    CropViewConfig,
    FileEntry,
    FindingEntry,
    FineViewConfig,
    GlobalViewConfig,
    LesionEntry,
    ViewsConfig,
    ZeroShotConfig,
)
from VelvetMedLib.bundle.store import Bundle, load_bundle, read_config, save_bundle, verify_bundle

__all__ = [
    "DEFAULT_BUNDLE",
    "Bundle",
    "BundleConfig",
    "Calibration",
    "CropViewConfig",
    "Entry",
    "FileEntry",
    "FindingEntry",
    "FineViewConfig",
    "GlobalViewConfig",
    "LesionEntry",
    "ViewsConfig",
    "ZeroShotConfig",
    "add_bundle",
    "catalogue",
    "load_bundle",
    "locate",
    "model_card",
    "read_config",
    "remove_bundle",
    "save_bundle",
    "unpack",
    "verify_bundle",
]
