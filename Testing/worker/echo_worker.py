"""A worker for tests, run as a child process: the real server with small handlers of its own instead of the models."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from VelvetMedLib.errors import ScanError
from VelvetMedLib.worker.handlers import read_volume
from VelvetMedLib.worker.server import end_process_tree, protocol_streams, serve


def hello(params, context):
    return {"pid": os.getpid(), "params": params}


def noisy(params, context):
    print("a library prints this")
    sys.stdout.write('{"kind":"result","id":1,"data":{}}\n')
    sys.stdout.flush()
    os.write(1, b"and C code writes this straight to file descriptor 1\n")
    ctypes.CDLL(None).puts(b"and so does puts")
    ctypes.CDLL(None).fflush(None)
    return {"said": "ü → 肝臓"}


def slow(params, context):
    """Stops within a moment of being asked to."""
    steps = int(params.get("steps", 200))
    for step in range(steps):
        context.progress(step / steps, "counting")
        time.sleep(0.02)
    Path(params["out"]).write_text("done", encoding="utf-8")
    return {"out": "done"}


def deaf(params, context):
    """Never listens, and has a child of its own that would outlive it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    context.progress(0.0, str(child.pid))
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.05)
    Path(params["out"]).write_text("done", encoding="utf-8")
    return {}


def volume(params, context):
    voxels, ijk_to_ras = read_volume(params["volume"])
    left = Path(params["volume"]["npy"]).exists()
    return {
        "shape": voxels.shape,
        "sum": int(voxels.sum(dtype="int64")),
        "dtype": str(voxels.dtype),
        "still_on_disk": left,
        "k": ijk_to_ras[2, 2],
    }


def fail(params, context):
    kind = params["kind"]
    if kind == "scan":
        raise ScanError("The scan is not CT.", found="MR", expected="CT", next_step="Choose a CT.")
    if kind == "memory":
        raise MemoryError
    if kind == "import":
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    if kind == "nan":
        return {"value": float("nan")}
    if kind == "exit":
        sys.exit(7)
    raise ValueError(f"cannot read '{params['path']}' at all")


def die(params, context):
    print(f"cannot open {params.get('path', 'the file')} now", file=sys.stderr, flush=True)
    os._exit(int(params.get("code", 9)))


if __name__ == "__main__":
    stdin, stdout = protocol_streams()
    handlers = {"hello": hello, "load": noisy, "analyze": slow, "segment": deaf, "encode": volume, "report": fail, "findings": die}
    serve(handlers, stdin, stdout, on_parent_gone=end_process_tree)
