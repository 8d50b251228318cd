"""COVEN: the software inside a VM, container or host that turns it into a network function."""

__version__ = "0.1.0"
