"""The data plane's C core and its binding to Python. No policy here."""
