"""What is remembered between sessions on this computer: the acknowledgement, the Python and the model folder. No token, no PHI."""

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
    def model_folder(self) -> str:
        """A bundle folder of the user's, beside the shipped and added models."""
        return self._get("ModelFolder")

    @model_folder.setter
    def model_folder(self, value: str) -> None:
        self._set("ModelFolder", value)
