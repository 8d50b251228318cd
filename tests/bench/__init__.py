"""The page docs/benchmarks.md: tables and plots from what `coven bench --json` wrote."""
