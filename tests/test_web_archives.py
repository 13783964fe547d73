"""Web archives as crawls publish them: WARC with pages, WET with text."""

import io

import pytest
from preparing import call, make_tokenizer

from tessera.data.preparation.formats.records import Reading, records
from tessera.data.preparation.notes import NO_PAGES, TEXTLESS_PAGES, Notes

PARAGRAPH = "The mosaic was laid in small tiles of glass and stone, row after row, by many hands. "


def page(number, charset="utf-8"):
    text = f"<p>{PARAGRAPH * 3}</p><p>Caf\u00e9 number {number} closes the page, as it should.</p>"
    head = f"<head><meta charset={charset}><title>Tiles</title></head>"
    menu = "<nav><a href=/>Home</a> <a href=/buy>Buy now</a></nav>"
    return f"<html>{head}<body>{menu}<main>{text}</main></body></html>".encode(charset)


def archive(path, entries, *, compressed=True):
    """Write records of (type, content type, content), with a warcinfo before them."""
    pytest.importorskip("warcio")
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=compressed)
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "a test"}))
        for number, (kind, content_type, content) in enumerate(entries):
            headers = None
            if kind == "response":
                fields = [("Content-Type", content_type)]
                headers = StatusAndHeaders("200 OK", fields, protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"http://tiles.org/{number}",
                kind,
                payload=io.BytesIO(content),
                http_headers=headers,
                warc_content_type=content_type if headers is None else "application/http",
            )
            writer.write_record(record)
    return path


def read(path):
    notes = Notes()
    return [value for _, value in records(str(path), Reading(), notes)], notes.found


def test_text_of_pages_is_read_from_warc_and_what_is_no_page_is_counted(tmp_path):
    entries = [
        ("response", "text/html; charset=utf-8", page(1)),
        ("response", "image/png", b"\x89PNG"),
        ("request", "application/http; msgtype=request", b"GET / HTTP/1.1\r\n\r\n"),
        ("response", "text/html", page(2, "latin-1")),
        ("response", "text/html", b"<html><body></body></html>"),
    ]
    found, noted = read(archive(tmp_path / "c.warc.gz", entries))
    assert [value["url"] for value in found] == ["http://tiles.org/0", "http://tiles.org/3"]
    for number, value in enumerate(found, start=1):
        assert value["text"].endswith(f"Caf\u00e9 number {number} closes the page, as it should.")
        assert "Buy now" not in value["text"]
    assert noted[NO_PAGES][0] == 2 and noted[TEXTLESS_PAGES][0] == 1


@pytest.mark.parametrize("compressed", [True, False])
def test_text_is_read_from_wet_and_tokenised(tmp_path, compressed):
    entries = [("conversion", "text/plain", f"tile row {n} caf\u00e9".encode()) for n in range(9)]
    (tmp_path / "crawl").mkdir()
    name = "crawl/a.warc.wet.gz" if compressed else "crawl/a.warc.wet"
    path = archive(tmp_path / name, entries, compressed=compressed)
    found, noted = read(path)
    assert [value["text"] for value in found] == [f"tile row {n} caf\u00e9" for n in range(9)]
    assert len({value["id"] for value in found}) == 9 and not noted
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    options = ["--tokenizer", tokenizer, "--out", tmp_path / "out", "--validation-share", "0.6"]
    done = call("tokenize", path.parent, *options)
    assert done.returncode == 0, done.stderr
    assert "crawl/train" in done.stdout and "0 empty left out" in done.stdout


def test_an_archive_that_was_cut_short_and_what_is_none_are_refused(tmp_path):
    whole = archive(
        tmp_path / "a.wet", [("conversion", "text/plain", b"tile " * 99)], compressed=False
    )
    (tmp_path / "b.wet").write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ValueError, match="record 1 does not end where it says"):
        read(tmp_path / "b.wet")
    (tmp_path / "c.warc").write_text("this is a letter")
    with pytest.raises(ValueError, match="is no web archive"):
        read(tmp_path / "c.warc")
    (tmp_path / "d.warc.gz").write_bytes(
        archive(tmp_path / "e.warc.gz", [("response", "text/html", page(1))]).read_bytes()[:-90]
    )
    with pytest.raises(OSError, match="Truncated"):  # as of every file with gzip
        read(tmp_path / "d.warc.gz")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda whole: whole[:-230], "record 1 is cut off"),  # in the fields of the last record
        (lambda whole: whole[:-2], "record 1 does not end where it says"),
        (lambda whole: whole.replace(b"tile tile", b"tile more tile", 1), "record 1 does not end"),
        (lambda whole: whole.replace(b"Content-Length: 40", b"Content-Size: 40"), "has no length"),
    ],
)
def test_a_record_that_is_not_as_long_as_it_says_is_no_text(tmp_path, edit, message):
    entries = [("conversion", "text/plain", b"tile " * 8)]
    whole = archive(tmp_path / "a.wet", entries, compressed=False).read_bytes()
    assert [value["text"] for value in read(tmp_path / "a.wet")[0]] == ["tile " * 8]
    (tmp_path / "b.wet").write_bytes(edit(whole))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "b.wet")


def test_an_answer_without_an_address_and_one_that_is_not_http_are_no_pages(tmp_path):
    entries = [("response", "text/html", page(1)), ("response", "text/html", page(2))]
    path = archive(tmp_path / "a.warc", entries, compressed=False)
    whole = path.read_bytes()
    path.write_bytes(
        whole.replace(b"WARC-Target-URI: http://tiles.org/0", b"WARC-Target-XYZ: x" + b"y" * 17)
    )
    found, noted = read(path)
    assert len(found) == 1 and noted[NO_PAGES][0] == 1
    path.write_bytes(whole.replace(b"HTTP/1.1 200", b"FTTP/1.1 200"))
    found, noted = read(path)
    assert len(found) == 0 and noted[NO_PAGES][0] == 2
