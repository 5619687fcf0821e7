"""Measurement: the observation log, the checker that judges it, and the benchmarks that use both."""
