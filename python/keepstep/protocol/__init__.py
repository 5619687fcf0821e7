"""The wire protocol, sans-I/O: no trio, no clock, no randomness; time and random bytes are arguments."""
