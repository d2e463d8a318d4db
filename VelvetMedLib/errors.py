"""Errors that a user can cause: one class tree, four parts each (what happened, found, expected, next step)."""

from __future__ import annotations


class VelvetMedError(Exception):
    """A user-facing error.

    what: what happened, one sentence. found: what was met. expected: what would have been right.
    next_step: what the user can do now. No part may carry a patient's identity or a file path.
    """

    code = "error"

    def __init__(self, what: str, *, found: str, expected: str, next_step: str) -> None:
        super().__init__(what)
        self.what = what
        self.found = found
        self.expected = expected
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.what}\n  Found:    {self.found}\n  Expected: {self.expected}\n  Next:     {self.next_step}"

    def as_dict(self) -> dict[str, str]:
        """The four parts and the error code, as they travel over the worker's pipe and in `--json`."""
        return {
            "code": self.code,
            "what": self.what,
            "found": self.found,
            "expected": self.expected,
            "next_step": self.next_step,
        }


class ScanError(VelvetMedError):
    """The scan cannot be read or is not a CT volume this library can handle."""

    code = "scan"


class BundleError(VelvetMedError):
    """A model bundle is damaged, incomplete, of an unknown version, or lacks what a task needs."""

    code = "bundle"


class CaseError(VelvetMedError):
    """A Case folder is missing, damaged or does not belong to the given volume."""

    code = "case"


class CohortError(VelvetMedError):
    """A cohort folder or its options are wrong."""

    code = "cohort"


class IndexMismatchError(VelvetMedError):
    """A retrieval index is damaged or was made by another model or preprocessing."""

    code = "index"


class TrainingError(VelvetMedError):
    """A training cannot start, go on or be taken up again: its data, its run folder or its losses are not what they must be."""

    code = "training"


class UsageError(VelvetMedError):
    """Command-line words or options that cannot be carried out."""

    code = "usage"


class DownloadError(VelvetMedError):
    """The sample scan or a model could not be fetched or failed its checksum."""

    code = "download"


class MemoryShortError(VelvetMedError):
    """Memory does not suffice, even for the least that the work can be cut into."""

    code = "memory"


class WorkerError(VelvetMedError):
    """The worker process died, was killed or answered with an error."""

    code = "worker"


class Cancelled(VelvetMedError):
    """The user cancelled; nothing was kept."""

    code = "cancelled"

    def __init__(self) -> None:
        super().__init__(
            "The run was cancelled.",
            found="a cancel request",
            expected="the run to finish",
            next_step="Start it again when you are ready; nothing half-made was kept.",
        )
