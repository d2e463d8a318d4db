"""The command `velvetmed`: few verbs, each one thing. Help is instant: torch and the like load only when a verb computes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from VelvetMedLib.cli import show
from VelvetMedLib.cli.parser import build_parser
from VelvetMedLib.errors import VelvetMedError

__all__ = ["build_parser", "main"]

OK, INTERNAL, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 2 an error the user can mend, 130 interrupted, 1 a fault of ours."""
    words = list(sys.argv[1:] if argv is None else argv)
    show.make_streams_forgiving()
    as_json, debug = "--json" in words, "--debug" in words
    try:
        options = build_parser().parse_args(words)
        from VelvetMedLib.cli import verbs

        verbs.run(options)
    except VelvetMedError as error:
        if debug:
            show.traceback_of(error)
        show.error(error, as_json=as_json)
        return INTERRUPTED if error.code == "cancelled" else USER_ERROR
    except KeyboardInterrupt:
        from VelvetMedLib.errors import Cancelled

        show.error(Cancelled(), as_json=as_json)
        return INTERRUPTED
    except BrokenPipeError:
        show.silence_stdout()
        return OK
    except (OSError, MemoryError) as error:
        if debug:
            show.traceback_of(error)
        show.error(show.system_error(error), as_json=as_json)
        return USER_ERROR
    except Exception as error:
        # Anything else is a fault of ours; its text may hold a path or a name, so only its kind is shown unless asked.
        if debug:
            show.traceback_of(error)
        show.error(show.own_fault(error), as_json=as_json)
        return INTERNAL
    return OK
