"""``python -m keepstep``."""

from keepstep.cli import main

main()
