"""How many pools of memory malloc has."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from keepstep.allocator import POOLS_MAX, bound_pools

THREADS: Final = 6
PROGRAM: Final = f"""
import ctypes, sys, threading
from keepstep.allocator import bound_pools

if sys.argv[1] == "bounded":
    assert bound_pools()
started = threading.Barrier({THREADS})
threads = [threading.Thread(target=lambda: (bytearray(4096), started.wait())) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def pools(how: str, tmp_path: Path) -> int:
    """How many a process with so many threads has."""
    report = tmp_path / "malloc.xml"
    subprocess.run([sys.executable, "-c", PROGRAM, how, str(report)], check=True)
    return len(re.findall("<heap nr=", report.read_text()))


def test_threads_share_the_pools(tmp_path: Path) -> None:
    """However many there are; without the bound each has one of its own. Other C libraries know of no such bound."""
    if platform.libc_ver()[0] != "glibc":
        assert not bound_pools()
        return
    assert pools("free", tmp_path) > POOLS_MAX
    assert pools("bounded", tmp_path) == POOLS_MAX
