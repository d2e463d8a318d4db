"""The real worker with one stage that goes wrong: `staged_worker.py ROOT STAGE DEED`, started by the tests in place of the server.

STAGE: starting, loading the model, or a stage of the analysis. DEED: hang (never ends, hears nothing), memory (raises
MemoryError), allocation (ends as a process does whose allocation failed), abort (dies by its own signal).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def misbehave(deed: str) -> None:
    if deed == "hang":
        time.sleep(600)
    elif deed == "memory":
        raise MemoryError
    elif deed == "allocation":
        print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
        os._exit(1)
    elif deed == "abort":
        os.abort()


def main(root: str, stage: str, deed: str) -> None:
    sys.path[0] = root
    from VelvetMedLib.tasks import progress
    from VelvetMedLib.worker import handlers, server

    if stage == "starting":
        misbehave(deed)
    stdin, stdout = server.protocol_streams()
    plain_stage, plain_bundle = progress.Run.stage, handlers.Session.bundle

    @contextmanager
    def stage_that_goes_wrong(self: Any, name: str) -> Iterator[None]:
        with plain_stage(self, name):
            if name == stage:
                misbehave(deed)
            yield

    def bundle_that_goes_wrong(self: Any, *arguments: Any) -> Any:
        if stage == "loading the model":
            misbehave(deed)
        return plain_bundle(self, *arguments)

    progress.Run.stage = stage_that_goes_wrong  # type: ignore[method-assign, assignment]
    handlers.Session.bundle = bundle_that_goes_wrong  # type: ignore[method-assign]
    server.serve(handlers.make_handlers(), stdin, stdout, on_parent_gone=server.end_process_tree)


if __name__ == "__main__":
    main(*sys.argv[1:])
