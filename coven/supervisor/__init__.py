"""Supervisor: starts, watches and restarts workers and components, and owns their memory and descriptors.

Small, long-lived, privileged, without REST. The Management Agent sends it plans over a Unix socket
(docs/internals.md, section 7); the keeper holds copies of all descriptors and replaces it when it dies.
"""
