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
        for chunk in _chunks(compressed, algorithm, compression):
            written += len(chunk)
            if written > raw_bytes:
                raise ValueError(
                    f"{compressed.name} decompresses to more than the {raw_bytes} bytes that the "
                    "index promises"
                )
            out.write(chunk)
    os.replace(unfinished, raw)


def _chunks(compressed: Path, algorithm: str, compression: str) -> Iterator[bytes]:
    import pyarrow

    if algorithm not in _CODECS:  # snappy's whole size is in its first bytes, and is small
        from streaming.base.compression import decompress

        yield decompress(compression, compressed.read_bytes())
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
