"""The log's decisions, apart from where it is kept: what is appended, what is answered, what is read.

``append`` decides and stores batches through the ``store`` interface, which PostgreSQL and memory implement; ``log``
is the Trio side of it.
"""
