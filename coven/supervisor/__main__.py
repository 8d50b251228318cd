"""`python -m coven.supervisor`: started by the keeper."""

import sys

from coven.supervisor.main import main

if __name__ == "__main__":
    sys.exit(main())
