"""Tests of the benchmarks and the checker."""
