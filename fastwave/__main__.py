"""python -m fastwave: the command line."""

import sys

from fastwave.cli import main

if __name__ == "__main__":
    sys.exit(main())
