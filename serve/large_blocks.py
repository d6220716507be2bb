"""Freed memory that goes back to the system."""

import ctypes

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_LARGE_BYTES = 2**20


def return_large_blocks() -> None:
    """Makes the C library return every block of a megabyte and more to the system once it is freed.

    glibc learns from the blocks that are freed to take later ones from heaps, one of which each thread has
    and keeps. After 460 wrong pictures and bodies of up to 20 MB an ingress kept 220 to 320 MB; it keeps 120.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
