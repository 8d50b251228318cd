"""The least a component in Python can do with a whole burst."""

from coven.component import Burst, Component


class PassBurst(Component):
    """Untouched packets are forwarded to output 0."""

    def process_burst(self, burst: Burst) -> None:
        """Do nothing."""
