"""A pre-training that can be killed where a test wants it: `python pretrain_driver.py WHERE [pretrain.py's words]`.

WHERE: `step:N` (SIGKILL after step N, before it is saved), `write:N` (in the N-th checkpoint, after its weights),
`rename:N` (in the N-th checkpoint, when `last` has stepped aside), `term:N` (SIGTERM after step N), or `none`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "training"), str(ROOT)]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str) -> None:
    """Set the trap."""
    kind, _, number = where.partition(":")
    if kind in ("step", "term"):
        import pretraining.run as run

        plain = run.Trainer

        def after(step: int) -> None:
            if step == int(number):
                if kind == "step":
                    kill()
                os.kill(os.getpid(), signal.SIGTERM)

        run.Trainer = lambda *args, **kwargs: plain(*args, **{**kwargs, "after_step": after})
    elif kind in ("write", "rename"):
        from VelvetMedLib.engine import checkpoints, files

        left = [int(number)]
        write, put = checkpoints.flush_file, files.os.replace

        def flushed(path: Path) -> None:
            write(path)
            if path.name == "weights.safetensors" and path.parent.name.startswith(".new-last"):
                left[0] -= 1
                if not left[0]:
                    kill()

        def replaced(source: Any, target: Any) -> None:
            put(source, target)
            if Path(source).name == "last":
                left[0] -= 1
                if not left[0]:
                    kill()

        if kind == "write":
            checkpoints.flush_file = flushed
        else:
            files.os.replace = replaced


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    arm(sys.argv[1])
    import pretrain

    sys.exit(pretrain.main(sys.argv[2:]))
