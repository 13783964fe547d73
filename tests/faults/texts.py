"""Texts of every format that preparation reads, and their documents counted by other readers."""

import bz2
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from preparing import words

ROWS = [{"id": f"r{i}", "text": f"{words(3 + i % 20, seed=i)} {i}"} for i in range(40)]


def write_all(folder: Path) -> None:
    """A file of each kind."""
    folder.mkdir()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    table = pyarrow.Table.from_pylist(ROWS)
    rows = io.StringIO()
    writer = csv.DictWriter(rows, ["id", "text"])
    writer.writeheader()
    writer.writerows(ROWS)
    comma = rows.getvalue().encode()
    tab = "id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in ROWS)
    for name, content in {
        "lines.jsonl": lines,
        "array.json": json.dumps(ROWS, indent=1).encode(),
        "spread.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
        "gzip.jsonl.gz": gzip.compress(lines),
        "zstd.jsonl.zst": pyarrow.compress(lines, codec="zstd", asbytes=True),
        "bzip.jsonl.bz2": bz2.compress(lines),
        "table.csv": comma,
        "table.tsv": tab.encode(),
        "packed.csv.gz": gzip.compress(comma),
        "crawl.wet": b"".join(_web_records()),
        "crawl.wet.gz": b"".join(gzip.compress(record) for record in _web_records()),
    }.items():
        (folder / name).write_bytes(content)
    pyarrow.parquet.write_table(table, folder / "rows.parquet", row_group_size=13)
    for name, make in (("file", pyarrow.ipc.new_file), ("stream", pyarrow.ipc.new_stream)):
        sink = pyarrow.OSFile(str(folder / f"{name}.arrow"), "wb")
        with sink, make(sink, table.schema) as batches:
            batches.write_table(table, max_chunksize=7)
    (folder / "books").mkdir()
    for number, row in enumerate(ROWS[:12]):
        (folder / "books" / f"book{number}.{'md' if number % 2 else 'txt'}").write_text(row["text"])


def _web_records() -> list[bytes]:
    """Records of a WET file (ISO 28500): the text of a page each, after one about the file."""
    kinds = [("warcinfo", "software: none"), *(("conversion", row["text"]) for row in ROWS)]
    return [
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number:032}>\r\n"
        "WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(text.encode())}\r\n\r\n{text}\r\n\r\n".encode()
        for number, (kind, text) in enumerate(kinds)
    ]


def input_of(path: Path) -> Path:
    """What to name on a command line to have a file read."""
    return path.parent if path.parent.name == "books" else path


def disagreement(read: Path, out: Path, output: str) -> Any:
    """How the shards differ from what another reader finds in an input; None if they do not.

    Counts are compared, since few formats have checksums: no record may be left out in silence.
    """
    manifests = [json.loads(path.read_text()) for path in out.glob("*/tessera.json")]
    if not manifests:
        return None if "nothing to do" in output else "no shards were made"
    ours = sum(m["documents"] + m["empty_documents"] for m in manifests)
    for manifest in manifests:
        count = sum(manifest["documents"] for manifest in [manifest])
        index = json.loads((out / _split(manifest, out) / "index.json").read_text())
        if sum(shard["samples"] for shard in index["shards"]) != count:
            return "the index counts other documents than the manifest"
    return difference(ours, read)


def difference(ours: int, read: Path) -> str | None:
    """How many documents another reader finds in an input, if others than `ours`."""
    try:
        theirs = _count(read)
    except Exception as error:
        return (
            f"{ours} documents made of what another reader refuses: {type(error).__name__}: {error}"
        )
    return None if ours == theirs else f"{ours} documents, another reader finds {theirs}"


def _split(manifest: dict, out: Path) -> str:
    return next(
        p.parent.name for p in out.glob("*/tessera.json") if json.loads(p.read_text()) == manifest
    )


def _count(path: Path) -> int:
    name = path.name
    if path.is_dir():
        return len(list(path.iterdir()))
    if name.endswith(".parquet"):
        return len(pyarrow.parquet.read_table(path))
    if name.endswith(".arrow"):
        source = pyarrow.memory_map(str(path))
        file = name.startswith("file")
        whole = (pyarrow.ipc.open_file if file else pyarrow.ipc.open_stream)(source).read_all()
        whole.validate(full=True)
        return len(whole)
    content = path.read_bytes()
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    elif name.endswith(".bz2"):
        content = bz2.decompress(content)
    elif name.endswith(".zst"):
        import zstandard

        content = (
            zstandard.ZstdDecompressor()
            .stream_reader(io.BytesIO(content), read_across_frames=True)
            .read()
        )
    if ".wet" in name:
        return _count_pages(content)
    text = content.decode("utf-8-sig")
    if ".jsonl" in name:
        return sum(1 for line in text.split("\n") if line.strip() and json.loads(line))
    if name == "array.json":
        return len(json.loads(text))
    if name == "spread.json":
        decoder, at, count = json.JSONDecoder(), 0, 0
        while text[at:].strip():
            at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
            _, at = decoder.raw_decode(text, at)
            count += 1
        return count
    if ".csv" in name:
        return sum(1 for _ in csv.DictReader(io.StringIO(text, newline=""), strict=True))
    return max(0, sum(1 for line in text.split("\n") if line.strip("\r")) - 1)


def _count_pages(content: bytes) -> int:
    """Texts of a WET file; raises where a record does not end where it says."""
    count, at = 0, 0
    while at < len(content):
        head, _, rest = content[at:].partition(b"\r\n\r\n")
        version, *lines = head.split(b"\r\n")
        assert version in (b"WARC/1.0", b"WARC/1.1"), version
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (x.partition(b":") for x in lines)
        }
        length = int(fields[b"content-length"])
        assert rest[length : length + 4] == b"\r\n\r\n", "no end of a record"
        is_text = fields[b"warc-type"] == b"conversion"
        count += is_text and bool(rest[:length].decode(errors="replace").strip())
        at += len(head) + 4 + length + 4
    return count
