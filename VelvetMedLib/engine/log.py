"""What a person sees of a training: a progress line, log.jsonl, TensorBoard where it is installed, and the curves as a picture."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from VelvetMedLib.files import write_text

LOG_FILE = "log.jsonl"
CURVES_FILE = "training_curves.png"
MOST_CURVES = 10
"""Of a validation with many figures the first so many are drawn."""


class RunLog:
    """Writes records of steps and events. A run that is taken up again forgets what it logged after its checkpoint."""

    def __init__(self, folder: Path, *, first_step: int, stream: TextIO | None = None, writes: bool = True) -> None:
        """first_step: steps done before this start. writes: False in every process but the first."""
        self.folder, self.writes = folder, writes
        self.stream = stream if stream is not None else sys.stderr
        self._live = False
        self._board: Any = None
        if not writes:
            return
        kept = [record for record in read_log(folder) if int(record["step"]) <= first_step]
        write_text(folder / LOG_FILE, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = (folder / LOG_FILE).open("a", encoding="utf-8", newline="\n")
        self._board = _tensorboard(folder / "tensorboard", first_step)

    def record(self, record: Mapping[str, Any]) -> None:
        """One line of log.jsonl; its numbers also go to TensorBoard."""
        if not self.writes:
            return
        self._file.write(json.dumps({key: _plain(value) for key, value in record.items()}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in _numbers(record):
                self._board.add_scalar(name, value, int(record["step"]))

    def progress(self, line: str) -> None:
        """One living line on a terminal, lines elsewhere."""
        if not self.writes:
            return
        if self.stream.isatty():
            self.stream.write("\r" + line[:160].ljust(160))
            self._live = True
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def say(self, line: str) -> None:
        """A sentence that stays."""
        if not self.writes:
            return
        if self._live:
            self.stream.write("\n")
            self._live = False
        self.stream.write(line + "\n")
        self.stream.flush()

    def close(self) -> None:
        if self.writes:
            if self._live:
                self.stream.write("\n")
            self._file.close()
            if self._board is not None:
                self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of log.jsonl in order; a last line that a kill has torn is left out."""
    try:
        lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def progress_line(
    step: int, steps: int, losses: Mapping[str, float], total: float, *, volumes: float, waiting: float, left: float, memory_mib: float
) -> str:
    """volumes: per second; waiting: share of time; left: seconds."""
    parts = "  ".join(f"{name.removesuffix('_loss')} {value:.3f}" for name, value in losses.items())
    return (
        f"step {step}/{steps}  loss {total:.3f}  {parts}  {volumes:.1f} volumes/s  waiting {waiting:.0%}  "
        f"left {clock(left)}  {memory_mib:.0f} MiB"
    )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def draw_curves(folder: Path) -> bool:
    """training_curves.png from log.jsonl: losses by objective, and validation. False without matplotlib or without records."""
    try:
        import matplotlib
    except ImportError:
        return False
    records = read_log(folder)
    steps = [record for record in records if "losses" in record]
    checks = [record for record in records if record.get("event") == "validation"]
    if not steps:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = sorted({name for record in steps for name in record["losses"]})
    for name in names:
        points = [(record["step"], record["losses"][name]) for record in steps if _finite(record["losses"].get(name))]
        if points:
            at, values = zip(*points, strict=True)
            left.plot(at, _smooth(values), label=name.removesuffix("_loss").replace("_", " "), linewidth=1.4)
    left.set(xlabel="step", ylabel="loss (mean of the last 10 records)", title="Losses by objective")
    left.set_ylim(bottom=0)
    left.legend(fontsize=7)
    checked = sorted({name for record in checks for name in record["metrics"]})
    retrieval = [name for name in checked if "R@" in name]
    metrics = retrieval or checked[:MOST_CURVES]
    for name in metrics:
        right.plot([r["step"] for r in checks], [r["metrics"].get(name, math.nan) for r in checks], marker="o", markersize=3, label=name)
    if retrieval:
        right.set(xlabel="step", ylabel="share of queries", title="Retrieval on held-out pairs", ylim=(0, 1))
    else:
        right.set(xlabel="step", title="Validation")
    if metrics:
        right.legend(fontsize=7)
    figure.text(0.995, 0.005, "Research use only. Not for clinical use.", ha="right", fontsize=6)
    temporary = folder / f".{CURVES_FILE}.part.png"
    figure.savefig(temporary, dpi=110)
    temporary.replace(folder / CURVES_FILE)
    return True


def _smooth(values: Sequence[float], width: int = 10) -> list[float]:
    return [sum(values[max(0, n - width + 1) : n + 1]) / (n + 1 - max(0, n - width + 1)) for n in range(len(values))]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """JSON knows no infinity: it becomes a word."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return value


def _numbers(record: Mapping[str, Any], before: str = "") -> list[tuple[str, float]]:
    out: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            out += _numbers(value, f"{before}{key}/")
        elif _finite(value) and not isinstance(value, bool) and key != "step":
            out.append((before + key, float(value)))
    return out


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step)
