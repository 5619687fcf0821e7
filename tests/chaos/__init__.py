"""kill -9 of server and database under load, as often as asked: ``python -m tests.chaos`` (``make chaos``)."""
