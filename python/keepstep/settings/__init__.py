"""How settings are described, read, checked and explained; which there are is ``keepstep.config``."""
