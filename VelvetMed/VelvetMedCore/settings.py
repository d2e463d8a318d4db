"""What is remembered between sessions on this computer: the acknowledgement, the Python, the device, and paths. No token, no PHI.

A path may hold the user's name, so it stays here: a scene goes to other people."""

from __future__ import annotations

import slicer

GROUP = "VelvetMed/"


class Settings:
    """Strings in the application's settings."""

    def _get(self, name: str) -> str:
        value = slicer.app.settings().value(GROUP + name)
        return "" if value is None else str(value)

    def _set(self, name: str, value: str) -> None:
        slicer.app.settings().setValue(GROUP + name, value)

    @property
    def acknowledged_version(self) -> str:
        """Version whose research-use statement the user has acknowledged; empty at first start."""
        return self._get("AcknowledgedVersion")

    @acknowledged_version.setter
    def acknowledged_version(self, value: str) -> None:
        self._set("AcknowledgedVersion", value)

    @property
    def own_python(self) -> str:
        """The user's own interpreter for the worker; empty: Slicer's."""
        return self._get("Python")

    @own_python.setter
    def own_python(self, value: str) -> None:
        self._set("Python", value)

    @property
    def device(self) -> str:
        """Where the model computes: "cpu" or "cuda"."""
        return "cuda" if self._get("Device") == "cuda" else "cpu"

    @device.setter
    def device(self, value: str) -> None:
        self._set("Device", value)

    @property
    def phrases_file(self) -> str:
        """The file of the user's own phrases for draft reports."""
        return self._get("PhrasesFile")

    @phrases_file.setter
    def phrases_file(self, value: str) -> None:
        self._set("PhrasesFile", value)

    @property
    def language_folder(self) -> str:
        """The folder of the trained language model that words draft reports."""
        return self._get("LanguageFolder")

    @language_folder.setter
    def language_folder(self, value: str) -> None:
        self._set("LanguageFolder", value)

    @property
    def index_folder(self) -> str:
        """The index of similar scans that was used last."""
        return self._get("IndexFolder")

    @index_folder.setter
    def index_folder(self, value: str) -> None:
        self._set("IndexFolder", value)
