"""Backups: whole copies and the write-ahead log between them, verified by restoring them, restored to any second."""
