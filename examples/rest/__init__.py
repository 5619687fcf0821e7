"""A device over REST, from Python and from the shell: see docs/how-to/use-the-rest-api.md."""
