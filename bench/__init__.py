"""Benchmarks: what the engine and its peers do with the same workload; see README.md."""
