"""Web archives: the text of pages in WARC files, or the text that WET files hold already."""

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from tessera.data.preparation.notes import NO_PAGES, TEXTLESS_PAGES, Notes

_TEXT, _ANSWER, _ABOUT = b"conversion", b"response", b"warcinfo"
_LONGEST_LINE = 1 << 20
_BYTES_AT_ONCE = 1 << 22


def warc_records(stream: BinaryIO, notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pages of an archive with text, each with its record's id, its `url` and `date`.

    The text of HTML is what trafilatura takes for the main one, favouring precision as FineWeb did
    (Penedo et al. 2024). Its removal of repeated text remembers the pages before, and is left out:
    the result must not depend on what a process read earlier. Records that are no pages, and pages
    without text, are counted.

    Raises:
        ValueError: it is no archive, or a record of it does not end where it says.
    """
    try:
        from warcio.exceptions import ArchiveLoadFailed
        from warcio.recordloader import ArcWarcRecordLoader
        from warcio.statusandheaders import StatusAndHeadersParserException
    except ImportError as error:
        raise ValueError("web archives need warcio: pip install 'tessera[data]'") from error
    loader = ArcWarcRecordLoader()
    for number, (kind, framed) in enumerate(_framed(stream)):
        place = f"record {number}"
        text = None
        if framed is not None:
            try:
                record = loader.parse_record_stream(io.BytesIO(framed))
            except (ArchiveLoadFailed, StatusAndHeadersParserException, EOFError):
                record = None  # what was answered is no HTTP
            if record is not None and kind == _TEXT:
                text = record.content_stream().read().decode("utf-8", errors="replace")
            elif record is not None and _is_html(record):
                text = _main_text(record.content_stream().read())
        if text is None:
            if kind != _ABOUT:
                notes.add(NO_PAGES, place)
            continue
        if not text.strip():
            notes.add(TEXTLESS_PAGES, place)
            continue
        header = record.rec_headers.get_header
        name = str(header("WARC-Record-ID") or f"#{number}").strip("<>")
        about = {"url": header("WARC-Target-URI"), "date": header("WARC-Date")}
        yield f"#{number}", {"id": name.removeprefix("urn:uuid:"), "text": text, **about}


def _framed(stream: BinaryIO) -> Iterator[tuple[bytes, bytes | None]]:
    """The records of an archive: their type, and all their bytes if they may hold text.

    As ISO 28500 has them: a version, fields, an empty line, a block of `Content-Length` bytes, two
    empty lines. warcio's own iterator passes over what does not keep to this, and over a last
    record that was cut off.
    """
    number = 0
    while line := stream.readline(_LONGEST_LINE):
        if not line.startswith(b"WARC/"):
            raise ValueError(
                f"is no web archive after {number} records (not WARC/1: {line[:20]!r})"
            )
        head, fields = [line], {}
        while (line := stream.readline(_LONGEST_LINE)).strip():
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip()
            head.append(line)
        length = fields.get(b"content-length", b"")
        if not length.isdigit():
            what = "has no length" if line.endswith(b"\n") else "is cut off"
            raise ValueError(f"record {number} {what}; replace the file")
        kind = fields.get(b"warc-type", b"")
        wanted = kind == _TEXT or (kind == _ANSWER and b"warc-target-uri" in fields)
        block = _block(stream, int(length), keep=wanted)
        if block is None or stream.read(4) != b"\r\n\r\n":
            raise ValueError(f"record {number} does not end where it says; replace the file")
        yield kind, b"".join([*head, b"\r\n", block]) if wanted else None
        number += 1


def _block(stream: BinaryIO, length: int, *, keep: bool) -> bytes | None:
    """So many bytes, or none of them if not to be kept; None if the stream ends before."""
    kept = io.BytesIO()
    while length > 0:
        piece = stream.read(min(length, _BYTES_AT_ONCE))
        if not piece:
            return None
        length -= len(piece)
        if keep:
            kept.write(piece)
    return kept.getvalue()


def _is_html(record: Any) -> bool:
    kind = record.http_headers.get_header("Content-Type") if record.http_headers else None
    return kind is not None and "html" in kind.lower()


def _main_text(html: bytes) -> str:
    try:
        import trafilatura
    except ImportError as error:
        raise ValueError("web pages need trafilatura: pip install 'tessera[data]'") from error
    options = {"favor_precision": True, "include_comments": False, "deduplicate": False}
    return trafilatura.extract(html, **options) or ""
