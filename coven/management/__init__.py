"""Management Agent (the paper's MA): REST under /v1, packages, lifecycle, monitoring, questions to components.

Started by the supervisor as `python -m coven.management`, unprivileged. It decides what shall be and keeps
that in SQLite; the supervisor does it and keeps on doing it while no agent is there.
"""
