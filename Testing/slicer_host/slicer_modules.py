"""Recording stand-ins for `slicer.packaging`, `slicer.i18n`, SampleData and PyTorchUtils: they remember what was asked."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .application import add_slicer_module
from .scripted_module import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
    run_unit_test,
)


@dataclass
class PackagingRecorder:
    """`slicer.packaging` without an installer. pip_check answers `satisfied`; a package in `missing` is never satisfied."""

    satisfied: bool = True
    missing: set[str] = field(default_factory=set)
    requested: list[dict[str, Any]] = field(default_factory=list)

    def pip_ensure(self, requirements: list[str], **options: Any) -> None:
        self.requested.append({"requirements": [str(r) for r in requirements], **options})
        self.satisfied = True
        self.missing.clear()

    def pip_check(self, requirements: str | list[str]) -> bool:
        lines = [requirements] if isinstance(requirements, str) else list(map(str, requirements))
        return self.satisfied and not any(line.startswith(name) for line in lines for name in self.missing)

    def load_requirements(self, path: str | Path) -> list[str]:
        lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]


@dataclass
class TorchRecorder:
    """PyTorchUtils without a download."""

    requested: list[dict[str, Any]] = field(default_factory=list)

    def installTorch(self, **options: Any) -> object:
        self.requested.append(options)
        return object()


@dataclass
class SampleDataRecorder:
    """The registration side of SampleData; like the real one it refuses None where a string is needed."""

    sources: list[dict[str, Any]] = field(default_factory=list)

    def register(self, **source: Any) -> None:
        for key in ("uris", "fileNames", "nodeNames"):
            value = source.get(key)
            if not isinstance(value, (str, list)):
                raise TypeError(f"{key} must be a string or a list of strings, not {value!r}")
        self.sources.append(source)

    def press(self, sample_name: str) -> Any:
        """What the button in the SampleData module does: the custom downloader, and nothing else."""
        for source in self.sources:
            if source["sampleName"] == sample_name:
                return source["customDownloader"](types.SimpleNamespace(**source))
        raise LookupError(sample_name)


@dataclass(frozen=True)
class Recorders:
    packaging: PackagingRecorder
    torch: TorchRecorder
    sample_data: SampleDataRecorder


def translate_nothing(text: str) -> str:
    """`slicer.i18n.tr`; strict, since an f-string or None would slip through the real one unnoticed."""
    if not isinstance(text, str):
        raise TypeError("only a string can be translated")
    return text


def publish() -> Recorders:
    """Makes the Python modules of Slicer importable and returns their memories."""
    recorders = Recorders(PackagingRecorder(), TorchRecorder(), SampleDataRecorder())
    add_slicer_module(
        "ScriptedLoadableModule",
        ScriptedLoadableModule=ScriptedLoadableModule,
        ScriptedLoadableModuleWidget=ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic=ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest=ScriptedLoadableModuleTest,
    )
    add_slicer_module("i18n", tr=translate_nothing, translate=lambda context, text: translate_nothing(text))
    packaging = recorders.packaging
    add_slicer_module(
        "packaging",
        pip_ensure=packaging.pip_ensure,
        pip_check=packaging.pip_check,
        load_requirements=packaging.load_requirements,
    )
    add_slicer_module("testing", runUnitTest=run_unit_test)
    _publish_top_level("SampleData", SampleDataLogic=_with_static(recorders.sample_data.register))
    _publish_top_level("PyTorchUtils", PyTorchUtilsLogic=lambda: recorders.torch)
    return recorders


def _with_static(register: Callable[..., None]) -> types.SimpleNamespace:
    return types.SimpleNamespace(registerCustomSampleDataSource=register)


def _publish_top_level(name: str, **contents: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module
