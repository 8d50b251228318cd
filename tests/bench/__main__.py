"""`python -m tests.bench FILE...`: write docs/benchmarks.md anew from the JSON of `coven bench`, and its plots.

The first file is of a run of all scenarios; the results of further ones (a soak) are added.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.bench import page, plots


def main() -> int:
    """Write page and plots."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="what `coven bench --json` wrote")
    document, *more = (json.loads(path.read_text(encoding="utf-8")) for path in parser.parse_args().files)
    if not document["complete"]:
        print("not a run of everything: the page stays as it is")
        return 0
    for other in more:
        document["results"] += other["results"]
    drawn = plots.draw(document)
    page.write(document, drawn)
    print(f"written: {page.PAGE.relative_to(page.ROOT)}, {len(drawn)} plots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
