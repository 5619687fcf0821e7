"""Tests of ``keepstep.backup``."""
