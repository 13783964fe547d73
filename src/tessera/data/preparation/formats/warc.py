"""Web archives: the text of pages in WARC files, or the text that WET files hold already."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from tessera.data.preparation.notes import NO_PAGES, TEXTLESS_PAGES, Notes


def warc_records(stream: BinaryIO, notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pages of an archive with text, each with its record's id, its `url` and `date`.

    The text of HTML is what trafilatura takes for the main one, favouring precision as FineWeb did
    (Penedo et al. 2024). Its removal of repeated text remembers the pages before, and is left out:
    the result must not depend on what a process read earlier. Records that are no pages, and pages
    without text, are counted.

    Raises:
        ValueError: it is no archive, or its end is missing.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise ValueError("web archives need warcio: pip install 'tessera[data]'") from error
    archive = ArchiveIterator(stream)
    number = 0
    try:
        for record in archive:
            place = f"record {number}"
            number += 1
            if record.rec_type == "conversion":
                text = _content(record).decode("utf-8", errors="replace")
            elif record.rec_type == "response" and _is_html(record):
                text = _main_text(_content(record))
            else:
                if record.rec_type != "warcinfo":
                    notes.add(NO_PAGES, place)
                continue
            if not text.strip():
                notes.add(TEXTLESS_PAGES, place)
                continue
            header = record.rec_headers.get_header
            name = str(header("WARC-Record-ID") or f"#{number - 1}").strip("<>")
            about = {"url": header("WARC-Target-URI"), "date": header("WARC-Date")}
            yield f"#{number - 1}", {"id": name.removeprefix("urn:uuid:"), "text": text, **about}
    except ArchiveLoadFailed as error:
        raise ValueError(f"is no web archive after {number} records ({error})") from error


def _content(record: Any) -> bytes:
    content = record.content_stream().read()
    if getattr(record.raw_stream, "limit", 0) > 0:
        raise ValueError("ends in the middle of a record; replace it")
    return bytes(content)


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
