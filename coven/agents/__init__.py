"""Extended Agents (EA): what one component can be asked, and how. See docs/extended_agent.md.

`protocol` is the form of messages and is imported by the components' runtime as well, so it stays small;
`schema` and `client` are the asking side, used by the supervisor.
"""
