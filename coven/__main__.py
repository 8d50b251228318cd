"""`python -m coven`: the same as the command `coven`."""

import sys

from coven.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
