"""Tests of the archive without a database."""
