"""Internal Traffic Forwarder (ITF): which packet goes to which component next.

`plan.py` computes a plan from a descriptor, without input or output; the worker follows it. Called by the
Management Agent (to plan) and the supervisor (to apply).
"""
