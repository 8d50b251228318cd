"""Packet Processing Subsystem (PPS): runs the components of a function, each in its own language.

One subpackage for each framework, found by scanning; `framework` says what a framework must give.
The supervisor builds and launches components with what the frameworks tell it, the descriptor checks
`build` with their schemas.
"""
