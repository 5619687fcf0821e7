"""``python -m keepstep.rest`` prints the OpenAPI document."""

from __future__ import annotations

import sys

from keepstep.rest.openapi import encode
from keepstep.rest.table import ENDPOINTS

sys.stdout.buffer.write(encode(ENDPOINTS))
