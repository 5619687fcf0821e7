"""Test vectors of the protocol, for this project's tests and for other implementations."""
