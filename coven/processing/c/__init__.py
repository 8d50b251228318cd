"""Framework for components in C: compiled from the package's source, or a prebuilt object."""
