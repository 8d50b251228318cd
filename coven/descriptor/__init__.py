"""Descriptors: vnf.yaml of a function and component.yaml of its components, read and checked into model.py's types.

`vnf` and `component` read the two files; `yaml_source` parses and knows lines and columns, `schema_check` holds a
file against its JSON Schema in `schemas/`, `paths` joins hops to service paths, `parameters` and `option_schema`
deal with what the operator gives. Called by coven.package, the planner and the command line.
"""
