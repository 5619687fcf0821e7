"""Autobahn's test suite for WebSocket servers, against the server's two ways to move frames."""
