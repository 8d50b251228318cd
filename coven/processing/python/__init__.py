"""Framework `python`: components as a class in a file, each in a process of its own.

`framework` checks and launches them; `runtime` is what runs in their process and imports as little as possible.
"""
