"""Answers to typed questions about a scan, a segment or a box, read from the same records as findings and report."""

from VelvetMedLib.tasks.vqa.answering import answer, combined, known_of, plan_answer
from VelvetMedLib.tasks.vqa.known import CANNOT, Known, Planned

__all__ = ["CANNOT", "Known", "Planned", "answer", "combined", "known_of", "plan_answer"]
