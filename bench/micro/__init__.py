"""Python's hot spots, one by one: ``python -m pytest -n0 --benchmark-enable bench/micro`` (``make bench-micro``)."""
