"""Whether what is stored is what was signed: every signature, number, chain, head and count (docs/how-to/verify.md).

- ``faults``: what can be found, by code, and the report.
- ``walk``: rows of one stream from anywhere, in order: seqs, chain, signatures, authors, payloads.
- ``contents``: what the events of a stream say about it: policy, erasures, snapshots, winners of keys.
- ``stored``: a stream of a database: the walk, and every column and table that follows from it.
- ``account``: ``$devices`` against the table of devices.
- ``database``: all users of a database.
"""

from keepstep.verification.database import Source, verify
from keepstep.verification.faults import FAULT_CODES, Fault, Faults, Found, Progress, Report
from keepstep.verification.walk import RowWalk, SignedRow, Start

__all__ = [
    "FAULT_CODES",
    "Fault",
    "Faults",
    "Found",
    "Progress",
    "Report",
    "RowWalk",
    "SignedRow",
    "Source",
    "Start",
    "verify",
]
