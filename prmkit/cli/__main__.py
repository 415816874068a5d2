"""`python -m prmkit.cli`: the same as `prm`, for where the command is not on the path."""

import sys

from prmkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
