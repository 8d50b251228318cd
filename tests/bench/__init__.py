"""`make bench`: throughput, CPU time of a packet, start-up, memory. Results go to docs/benchmarks.md and build/bench.json."""
