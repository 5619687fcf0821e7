"""keepstep keeps one person's devices in step without being able to read what they say."""

from importlib.metadata import version

__version__ = version("keepstep")
