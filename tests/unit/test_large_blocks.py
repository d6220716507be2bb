"""What becomes of large blocks of memory, in processes of their own."""

import platform
import subprocess
import sys

import pytest

# A heap keeps what lies below a block that stays.
HELD = """
import ctypes, os, sys
from pathlib import Path
from serve.large_blocks import return_large_blocks
if sys.argv[1] == "True":
    return_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def block(size):
    address = libc.malloc(size)
    ctypes.memset(address, 1, size)
    return address
libc.free(block(20 * 2**20))
blocks = [block(15 * 2**20) for _ in range(10)]
stays = block(100_000)
for address in blocks:
    libc.free(address)
print(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


def resident_bytes(returned: bool) -> int:
    out = subprocess.run(
        [sys.executable, "-c", HELD, str(returned)], check=True, capture_output=True, text=True
    )
    return int(out.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps them")
def test_they_are_returned_though_a_later_one_stays() -> None:
    assert resident_bytes(False) - resident_bytes(True) > 100 * 2**20
