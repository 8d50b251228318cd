"""The `coven` command. Everything but `agent`, `validate`, `package` and `demo` goes over the REST interface."""
