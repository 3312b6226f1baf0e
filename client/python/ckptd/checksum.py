"""CRC-32 as zip files have it: by ISA-L where that is installed, which takes a third of zlib's time."""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:  # a platform for which nobody builds it
    from zlib import crc32

__all__ = ["crc32"]
