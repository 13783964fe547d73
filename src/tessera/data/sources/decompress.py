"""Decompressing a shard into a file, no further than the size that its index promises."""

import os
from collections.abc import Iterator
from pathlib import Path

_CODECS = {"zstd": "zstd", "gz": "gzip", "bz2": "bz2", "br": "brotli"}
_CHUNK_BYTES = 1 << 22


def decompress_file(compressed: Path, raw: Path, compression: str, raw_bytes: int) -> None:
    """Write `raw`, whole or not at all.

    Args:
        compressed: the file to read.
        raw: the file to write.
        compression: what Streaming calls it, such as 'zstd:7'.
        raw_bytes: how large the index says that the result is.

    Raises:
        ValueError: it is damaged, or becomes larger than that: what is small on disk can fill it.
    """
    unfinished = raw.with_name(f"{raw.name}.tmp")
    algorithm = compression.partition(":")[0]
    written = 0
    with unfinished.open("wb") as out:
        for chunk in _chunks(compressed, algorithm, compression, raw_bytes):
            written += len(chunk)
            if written > raw_bytes:
                raise _too_large(compressed, raw_bytes)
            out.write(chunk)
    os.replace(unfinished, raw)


def _too_large(compressed: Path, raw_bytes: int) -> ValueError:
    return ValueError(
        f"{compressed.name} decompresses to more than the {raw_bytes} bytes that the index promises"
    )


def _chunks(compressed: Path, algorithm: str, compression: str, raw_bytes: int) -> Iterator[bytes]:
    import pyarrow

    if algorithm not in _CODECS:  # snappy, which is decompressed in one go
        from streaming.base.compression import decompress

        content = compressed.read_bytes()
        if _snappy_bytes(content) > raw_bytes:
            raise _too_large(compressed, raw_bytes)
        yield decompress(compression, content)
        return
    try:
        with (
            pyarrow.OSFile(str(compressed), "rb") as file,
            pyarrow.CompressedInputStream(file, _CODECS[algorithm]) as stream,
        ):
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise ValueError(f"{compressed.name} is no {algorithm} file, or is damaged: {error}") from (
            error
        )


def _snappy_bytes(content: bytes) -> int:
    """How large a snappy block says it is: seven bits a byte, the lowest first.

    https://github.com/google/snappy/blob/main/format_description.txt
    """
    size = 0
    for number, byte in enumerate(content[:5]):
        size |= (byte & 127) << 7 * number
        if byte < 128:
            break
    return size
