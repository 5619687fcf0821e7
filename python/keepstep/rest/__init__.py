"""REST: health, metrics, what the server is, and registration. The only place that speaks Quart."""
