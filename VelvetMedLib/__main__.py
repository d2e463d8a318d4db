"""`python -m VelvetMedLib`: the same as the `velvetmed` command."""

import sys

from VelvetMedLib.cli import main

if __name__ == "__main__":
    sys.exit(main())
