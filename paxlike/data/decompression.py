"""Compressed files as byte streams: .gz, .bz2, .xz and .zst, without holding a file in memory."""

import bz2
import gzip
import io
import lzma
import zlib

import zstandard

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
DAMAGED = (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, gzip.BadGzipFile)
"""Raised while reading a damaged file; so is an OSError without `errno`, by bz2."""
_BUFFER = 1 << 18
_MAX_WINDOW = 1 << 31
"""Bytes. `zstd --long=31`, the largest window that the zstd program writes."""


def decompressed(disk: io.BufferedReader, suffix: str) -> io.BufferedIOBase:
    """The content of an open file whose name ends in `suffix` (lower case; "": not compressed)."""
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=disk)
    if suffix == ".bz2":
        return bz2.BZ2File(disk)
    if suffix == ".xz":
        return lzma.LZMAFile(disk)
    return io.BufferedReader(_ZstdReader(disk), _BUFFER) if suffix == ".zst" else disk


class _ZstdReader(io.RawIOBase):
    """Decompressed .zst. Unlike the library's reader it raises EOFError if the file is
    truncated.
    """

    def __init__(self, disk: io.BufferedReader):
        self._disk, self._left, self._ready = disk, b"", b""
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        while not self._ready:
            data = self._left or self._disk.read(1 << 16)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0
            if self._frame is None:
                decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
                self._frame = decompressor.decompressobj()
            self._ready = self._frame.decompress(data)
            self._left = b""
            if self._frame.eof:
                self._left, self._frame = self._frame.unused_data, None
        count = min(len(target), len(self._ready))
        target[:count], self._ready = self._ready[:count], self._ready[count:]
        return count
