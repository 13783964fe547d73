"""Filters, copies and evaluation texts: what is removed, what is kept, and that all is counted."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from preparing import SCRIPTS, call, contents, make_tokenizer, script, write_jsonl

from tessera.data.preparation.cleaning import stages
from tessera.data.preparation.cleaning.duplicates import Copies, cluster, matches, merged
from tessera.data.preparation.cleaning.words import SENTENCE_END, WORD
from tessera.data.preparation.cleaning.work_folder import WorkFolder
from tessera.data.preparation.places import Interrupted

VOCABULARY = [a + b + c for a in ("st", "gl", "go", "bl") for b in "aeiou" for c in "bdgklmnrt"]


def prose(seed, sentences=12):
    """Sentences of random words, different for every seed."""
    draw = random.Random(seed)
    lines = []
    for _ in range(sentences):
        words = draw.choices(VOCABULARY, k=draw.randint(6, 12))
        words[draw.randrange(6)] = draw.choice(["the", "of", "and", "that", "with"])
        lines.append(f"{' '.join(words)}.")
    return "\n".join(lines)


def without_a_line(text, line=4):
    lines = text.split("\n")
    return "\n".join(lines[:line] + lines[line + 1 :])


def write_yaml(folder, **content):
    path = folder / "clean.yaml"
    path.write_text(json.dumps({"out": str(folder / "out"), **content}))
    return path


def read(folder):
    """The documents of a cleaned folder, in order."""
    import pyarrow

    found = []
    for path in sorted(folder.rglob("*.jsonl.zst")):
        with pyarrow.CompressedInputStream(str(path), "zstd") as stream:
            found += [json.loads(line) for line in stream.read().splitlines()]
    return found


def ids(folder):
    return [document["id"] for document in read(folder)]


@pytest.fixture
def clean(monkeypatch, capsys):
    """Call clean.py in this process: (exit status, what it printed)."""
    pytest.importorskip("datatrove")
    module = script("clean")

    def call_it(*arguments):
        monkeypatch.setattr(sys, "argv", ["clean.py", *map(str, arguments)])
        status = module.main()
        said = capsys.readouterr()
        return status, said.out + said.err

    return call_it


@pytest.fixture
def corpora(tmp_path):
    """Two sources with copies planted: within one, across both, in validation."""
    texts = {i: prose(i) for i in range(60)}
    web = [{"id": f"w{i}", "text": texts[i]} for i in range(40)]
    web += [{"id": f"again{i}", "text": texts[i]} for i in range(5)]
    web += [{"id": f"near{i}", "text": without_a_line(texts[i])} for i in range(5, 10)]
    write_jsonl(tmp_path / "web" / "train.jsonl", web)
    held = [{"id": "held", "text": texts[20]}, {"id": "alone", "text": texts[59]}]
    write_jsonl(tmp_path / "web" / "validation.jsonl", held)
    books = [{"id": f"b{i}", "text": texts[i]} for i in range(38, 58)]
    write_jsonl(tmp_path / "books.jsonl", [*books, {"id": "void", "text": " \n"}])
    return tmp_path


# ---- copies


def test_the_first_copy_is_kept_validation_before_sources_and_every_other_is_listed(clean, corpora):
    out = corpora / "out"
    inputs = [f"web={corpora / 'web'}", f"books={corpora / 'books.jsonl'}"]
    status, said = clean(*inputs, "--out", out, "--part-size", "4kb", "--workers", 1)
    assert status == 0, said
    assert ids(out / "web/validation") == ["held", "alone"]
    assert ids(out / "web/train") == [f"w{i}" for i in range(40) if i != 20]
    assert ids(out / "books") == [f"b{i}" for i in range(40, 58)]
    removed = {
        line["id"]: line for folder in ("web", "books") for line in read(out / "removed" / folder)
    }
    why = {name: line["why"] for name, line in removed.items()}
    assert why == {
        "w20": "copy",
        **{f"again{i}": "copy" for i in range(5)},
        **{f"near{i}": "near copy" for i in range(5, 10)},
        **{"b38": "copy", "b39": "copy", "void": "empty"},
    }
    kept = {doc["cluster"]: doc["id"] for doc in read(out / "web") if "cluster" in doc}
    assert kept[removed["near7"]["cluster"]] == "w7" and kept[removed["b38"]["cluster"]] == "w38"
    assert kept[removed["w20"]["cluster"]] == "held"
    assert "books: 21 documents" in said and "18 kept (85.7%" in said and "1 removed, empty" in said
    counted = json.loads((out / "cleaning.json").read_text())["splits"]
    assert [(s["source"], s["split"], s["documents"], s["kept"]) for s in counted] == [
        ("web", "validation", 2, 2), ("web", "train", 50, 39), ("books", "", 21, 18),
    ]  # fmt: skip
    assert not list(out.rglob("_unfinished")) and not (out / "work").exists()


@pytest.mark.parametrize(
    ("method", "copies", "near"), [("exact", 8, 0), ("none", 0, 0), ("minhash", 8, 5)]
)
def test_what_counts_as_a_copy_can_be_chosen(clean, corpora, method, copies, near):
    out = corpora / "out"
    inputs = [f"web={corpora / 'web'}", f"books={corpora / 'books.jsonl'}"]
    status, said = clean(*inputs, "--out", out, "--duplicates", method, "--workers", 1)
    assert status == 0, said
    why = [line["why"] for line in read(out / "removed")]
    assert (why.count("copy"), why.count("near copy")) == (copies, near)


def brute(keys):
    """Clusters by comparing all pairs: {document: first of its cluster}."""
    first = {i: i for i in range(keys.shape[1])}
    changed = True
    while changed:
        changed = False
        for a, b in itertools.combinations(range(keys.shape[1]), 2):
            same = ((keys[:, a] == keys[:, b]) & (keys[:, a] != 0)).any()
            if same and first[a] != first[b]:
                first[a] = first[b] = min(first[a], first[b])
                changed = True
    return first


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_those_of_comparing_all_pairs(tmp_path, seed):
    pytest.importorskip("scipy")
    draw = np.random.default_rng(seed)
    spread = np.uint64(2**64 // 40)
    parts = [draw.integers(0, 40, (3, n)).astype(np.uint64) * spread for n in (9, 0, 14, 2)]
    offsets = [0, 9, 9, 23]
    files = [tmp_path / f"{i}.npy" for i in range(4)]
    for file, keys in zip(files, parts, strict=True):
        np.save(file, keys)
    found = []
    for band, piece in itertools.product(range(3), range(5)):
        file = tmp_path / f"matches-{band}-{piece}.npy"
        np.save(file, matches(files, offsets, band, piece, 5))
        found.append((band, file))
    cluster(found, tmp_path / "clusters")
    expected = brute(np.concatenate(parts, axis=1))
    exact = brute(np.concatenate(parts, axis=1)[:1])
    for offset, keys in zip(offsets, parts, strict=True):
        copies = Copies(tmp_path / "clusters", offset, keys.shape[1]).of
        for place in range(keys.shape[1]):
            number, copy = offset + place, copies.get(place)
            if expected[number] != number:
                assert (copy.cluster, copy.kept) == (expected[number], False)
                assert copy.exact == (exact[number] != number)
            elif copy is not None:
                assert copy.kept and number in [f for n, f in expected.items() if n != f]


def test_no_pairs_make_no_clusters():
    pytest.importorskip("scipy")
    nothing = np.empty((0, 2), np.uint64)
    assert merged(nothing, nothing).shape == (0, 2)


def test_near_copies_are_those_that_datatrove_finds(clean, tmp_path):
    """Its own four stages on the same documents, with the same words, give the same clusters."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.utils.binaryio import read_tuples_from_file

    from tessera.data.preparation.cleaning.datatrove_filters import WORDS

    draw = random.Random(5)
    texts = [prose(i, 14) for i in range(80)]
    for i in range(60):  # each with more of its lines taken away than the last
        lines = prose(i, 14).split("\n")
        texts.append("\n".join(line for line in lines if draw.random() > i / 120))
    corpus = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    write_jsonl(tmp_path / "c.jsonl", corpus)
    status, said = clean(f"c={tmp_path / 'c.jsonl'}", "--out", tmp_path / "out", "--workers", 1)
    assert status == 0, said
    removed = {int(line["id"]): line["cluster"] for line in read(tmp_path / "out/removed")}

    documents = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
    folders = [str(tmp_path / name) for name in ("sigs", "dups", "clusters")]
    MinhashDedupSignature(folders[0], language=WORDS).run(iter(documents), 0, 1)
    for bucket in range(14):
        MinhashDedupBuckets(folders[0], folders[1]).run(None, bucket, 14)
    MinhashDedupCluster(folders[1], folders[2], save_cluster_id=True).run(None, 0, 1)
    theirs = {}
    with open(tmp_path / "clusters" / "000000.clusters", "rb") as file:
        for document, number in read_tuples_from_file(file, "2I", lines_to_buffer=-1):
            theirs.setdefault(number, set()).add(document)
    ours = {}
    for document, number in removed.items():
        ours.setdefault(number, {number}).add(document)
    assert sorted(map(sorted, ours.values())) == sorted(map(sorted, theirs.values()))
    assert len(removed) > 20


# ---- rules


def test_rules_are_datatroves_in_order_and_what_they_cut_is_counted(clean, tmp_path):
    good = prose(1)
    documents = {
        "good": good,
        "short": "Nine words that differ are still too few here.",
        "repeated": "The same line of it and that again.\n" * 30,
        "cut": good + "\nno full stop here\nuse of javascript is needed.",
        "braces": good + "\nint main() { return 0; }.",
    }
    rows = [{"id": name, "text": text} for name, text in documents.items()]
    write_jsonl(tmp_path / "c.jsonl", rows)
    status, said = clean(
        f"c={tmp_path / 'c.jsonl'}", "--out", tmp_path / "out", "--duplicates", "none",
        "--filters", "gopher_quality,gopher_repetition,c4",
    )  # fmt: skip
    assert status == 0, said
    kept = {doc["id"]: doc["text"] for doc in read(tmp_path / "out/c")}
    assert kept == {"good": good, "cut": good}
    why = {line["id"]: line["why"] for line in read(tmp_path / "out/removed")}
    assert why == {
        "short": "gopher_quality: gopher short doc",
        "repeated": "gopher_repetition: dup line frac",
        "braces": "c4: curly bracket",
    }
    assert "1 lines by c4: no terminal punc" in said and "1 lines by c4: javascript" in said


def test_options_of_rules_are_theirs_and_of_one_source(clean, corpora):
    strict = {"gopher_quality": {"min_doc_words": 9999}}
    recipe = write_yaml(
        corpora,
        duplicates={"method": "none"},
        sources={
            "web": {"path": str(corpora / "web"), "filters": strict},
            "books": {"path": str(corpora / "books.jsonl")},
        },
    )
    status, said = clean("--config", recipe)
    assert status == 0, said
    assert ids(corpora / "out/web") == [] and len(ids(corpora / "out/books")) == 20


def test_languages_are_told_by_the_model_that_is_named(clean, tmp_path):
    pytest.importorskip("fasttext")
    # A model kept as a file: 60 sentences of each language, four dimensions. Its trainer finds NaN
    # on some processors, run after run, where its reader does not.
    model = Path(__file__).parent / "reference/english_or_german.bin"
    rows = [{"id": "en", "text": prose(900)}, {"id": "de", "text": "der Hund und die Frau ist"}]
    write_jsonl(tmp_path / "c.jsonl", rows)
    filters = {"language": {"languages": ["en"], "model": str(model)}}
    source = {"path": str(tmp_path / "c.jsonl"), "filters": filters}
    status, said = clean("--config", write_yaml(tmp_path, sources={"c": source}))
    assert status == 0, said
    assert ids(tmp_path / "out/c") == ["en"]
    assert "1 removed, language" in said


def test_words_and_sentences_of_many_scripts():
    hindi = "\u0939\u093f\u0928\u094d\u0926\u0940"
    found = WORD.findall(f"Don't go to a/path: {hindi} 3.14 \u96c5\u306a (x)")
    assert found == ["Don't", "go", "to", "a/path", ":", hindi, "3.14", *"\u96c5\u306a(x)"]
    text = "One. Two? \u96c5\u3002\u306a\uff01 end"
    assert len(SENTENCE_END.findall(text)) == 4


# ---- evaluation texts


def test_documents_that_share_words_with_evaluation_texts_are_removed_and_the_words_shown(
    clean, tmp_path
):
    rows = [{"id": str(i), "text": prose(i)} for i in range(20)]
    write_jsonl(tmp_path / "c.jsonl", rows)
    thirteen = rows[3]["text"].split()[20:33]
    twelve = rows[4]["text"].split()[20:32]
    other = rows[5]["text"].upper().replace(" ", "  ").split("\n")[2:4]
    tests = [
        {"q": " ".join(thirteen), "a": "yes"},
        {"q": "and now " + " ".join(twelve) + " something", "a": "no"},
        {"q": " -- ".join(other), "a": "no"},
    ]
    write_jsonl(tmp_path / "glue" / "test.jsonl", tests)
    status, said = clean(
        f"c={tmp_path / 'c.jsonl'}", "--out", tmp_path / "out", "--duplicates", "none",
        "--against", f"glue={tmp_path / 'glue'}", "--against-column", "glue=q,a",
    )  # fmt: skip
    assert status == 0, said
    removed = {line["id"]: line for line in read(tmp_path / "out/removed")}
    assert {name: line["why"] for name, line in removed.items()} == {
        "3": "words of glue", "5": "words of glue",
    }  # fmt: skip
    assert len(removed["3"]["words"].split()) == 13
    assert "against glue: 6 texts" in said and "3 of them are shorter" in said


def test_words_are_found_where_a_long_document_is_cut_to_be_judged(tmp_path):
    pytest.importorskip("datatrove")
    from tessera.data.preparation.cleaning import datatrove_shingles as shingles

    text = prose(7, 9000).replace("\n", " ")
    cut = shingles._PIECE_CHARACTERS
    assert len(text) > 1.2 * cut
    for start in range(cut - 120, cut + 60, 19):
        begin = text.index(" ", start) + 1
        words = " ".join(text[begin : begin + 300].split()[:13])
        folder = tmp_path / str(start)
        shingles.index_runs(folder, "e", [words], 13)
        assert shingles.Contamination(folder, 13).of(text), words
        assert shingles.Contamination(folder, 13).of(text.replace(words, words[:-3])) is None


def test_numbers_and_marks_are_told_apart_case_and_punctuation_are_not(tmp_path):
    pytest.importorskip("datatrove")
    from tessera.data.preparation.cleaning.datatrove_shingles import Contamination, Keys, index_runs
    from tessera.data.preparation.config import DuplicatesConfig

    rows = [f"station {i} measured {7 * i} degrees at {i}:{3 * i} and {5 * i} more" for i in (2, 9)]
    keys = [Keys(DuplicatesConfig()).of(row) for row in rows]
    assert not (keys[0] == keys[1]).any()
    index_runs(tmp_path, "e", ["A man has 12 apples and sold 7"], 5)
    found = Contamination(tmp_path, 5)
    assert found.of("the man has 99 apples and sold 31") is None
    assert found.of("-- A MAN, has 12 APPLES!") == ("e", "a man has 12 apples")
    thai = "\u0e01\u0e34 \u0e01\u0e35 \u0e01\u0e36 \u0e01\u0e37 \u0e01\u0e38"
    index_runs(tmp_path / "thai", "t", [thai], 5)
    assert Contamination(tmp_path / "thai", 5).of(thai)
    assert Contamination(tmp_path / "thai", 5).of("\u0e01 " * 9) is None


def test_evaluation_texts_that_are_all_too_short_are_refused(clean, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", [{"id": "1", "text": prose(1)}])
    write_jsonl(tmp_path / "t.jsonl", [{"text": "yes"}, {"text": "no"}])
    arguments = [f"c={tmp_path / 'c.jsonl'}", "--against", f"t={tmp_path / 't.jsonl'}"]
    status, said = clean(*arguments, "--out", tmp_path / "out")
    assert status == 2
    assert "against.t: none of its 2 texts has 13 words" in said


# ---- documents that belong together


def test_files_of_a_repository_become_one_document_in_the_order_of_their_paths(clean, tmp_path):
    rows = [
        {"id": f"{repo}-{path}", "text": f"{path} of {repo}", "repo": repo, "path": path}
        for path in ("c.py", "a.py", "b.py")
        for repo in ("tiles", "walls", None)
    ]
    write_jsonl(tmp_path / "c.jsonl", rows)
    join = {"by": "repo", "order": "path", "separator": "|", "max_characters": 33}
    source = {"path": str(tmp_path / "c.jsonl"), "join": join}
    status, said = clean("--config", write_yaml(tmp_path, sources={"c": source}))
    assert status == 0, said
    found = {doc["id"]: doc["text"] for doc in read(tmp_path / "out/c")}
    expected = {"tiles": "a.py of tiles|b.py of tiles", "tiles#1": "c.py of tiles"}
    expected |= {"walls": "a.py of walls|b.py of walls", "walls#1": "c.py of walls"}
    expected |= {f"None-{path}": f"{path} of None" for path in ("a.py", "b.py", "c.py")}
    assert found == expected
    assert "9 joined to 7" in said


def test_repositories_are_joined_over_parts_of_the_input(clean, tmp_path):
    rows = [
        {"id": i, "text": prose(i, 3), "repo": f"r{i % 7}", "path": f"{i:03}"} for i in range(60)
    ]
    random.Random(1).shuffle(rows)
    write_jsonl(tmp_path / "c.jsonl", rows)
    source = {"path": str(tmp_path / "c.jsonl"), "join": {"by": "repo", "order": "path"}}
    recipe = write_yaml(tmp_path, part_size="2kb", sources={"c": source})
    status, said = clean("--config", recipe)
    assert status == 0, said
    found = {doc["id"]: doc["text"] for doc in read(tmp_path / "out/c")}
    in_order = sorted(rows, key=lambda row: row["path"])
    for repo in range(7):
        texts = [row["text"] for row in in_order if row["repo"] == f"r{repo}"]
        assert found[f"r{repo}"] == "\n\n".join(texts)


def test_numbers_put_documents_in_order_by_their_size_and_a_mixture_is_said(clean, tmp_path):
    orders = {"a": [10, 9, 2, 100], "b": [3, "x", None, 1]}
    rows = [
        {"id": f"{repo}{n}", "text": f"{repo}-{n}", "repo": repo, "n": n}
        for repo, numbers in orders.items()
        for n in numbers
    ]
    write_jsonl(tmp_path / "c.jsonl", rows)
    join = {"by": "repo", "order": "n", "separator": " "}
    source = {"path": str(tmp_path / "c.jsonl"), "join": join}
    status, said = clean("--config", write_yaml(tmp_path, sources={"c": source}))
    assert status == 0, said
    texts = [document["text"] for document in read(tmp_path / "out/c")]
    assert texts == ["a-2 a-9 a-10 a-100", "b-1 b-3 b-x b-None"]
    assert "of 1 of these the order mixes numbers, text and nothing" in said


# ---- the same whatever happens


@pytest.mark.slow
def test_workers_and_kills_change_nothing(clean, tmp_path):
    rows = [{"id": str(i), "text": prose(i % 300, 120)} for i in range(400)]
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)
    assert corpus.stat().st_size > 2_100_000  # enough for a second process
    options = [f"c={corpus}", "--part-size", "200kb"]
    status, said = clean(*options, "--out", tmp_path / "whole", "--workers", 1)
    assert status == 0, said
    assert "100 removed, copy" in said
    out = tmp_path / "killed"
    command = [sys.executable, SCRIPTS / "clean.py", *options, "--out", out, "--workers", "2"]
    first = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while len(list(out.glob("work/*/filtered/*.json"))) < 3:
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    same = {name: c for name, c in contents(out).items() if name != "cleaning.json"}
    whole = contents(tmp_path / "whole")
    assert same == {name: c for name, c in whole.items() if name != "cleaning.json"}


def test_a_part_that_is_done_is_not_done_again_and_one_that_failed_is(tmp_path):
    folder = WorkFolder(tmp_path)
    for _ in range(2):
        folder.once("filtered", 3, lambda: {"passed": 7})
    folder.once("filtered", 3, lambda: pytest.fail("it was done"))
    with pytest.raises(KeyError):
        folder.once("filtered", 4, lambda: {}["x"])
    assert folder.finished("filtered") == {3} and folder.record("filtered", 3) == {"passed": 7}


def test_a_part_read_again_after_its_store_failed_counts_nothing_twice(
    clean, tmp_path, monkeypatch
):
    text = prose(1) + "\nno full stop here"
    write_jsonl(tmp_path / "c.jsonl", [{"id": str(i), "text": f"{text}\n{i}."} for i in range(6)])
    real, failures = stages.read_rows, [3, 5]

    def failing(*arguments):
        at = failures.pop() if failures else None
        for number, row in enumerate(real(*arguments)):
            if number == at:
                raise Interrupted("s3://b/c.jsonl: cannot be reached")
            yield row

    monkeypatch.setattr(stages, "read_rows", failing)
    arguments = [f"c={tmp_path / 'c.jsonl'}", "--filters", "c4", "--duplicates", "none"]
    status, said = clean(*arguments, "--out", tmp_path / "out", "--workers", 1)
    assert status == 0 and not failures, said
    assert "c: 6 documents" in said and "6 kept" in said
    assert "6 lines by c4: no terminal punc" in said and "6 lines by c4: too few words" in said


def test_text_that_is_not_finished_is_not_tokenised(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "c" / "000000.jsonl", [{"id": "1", "text": "tile"}])
    (tmp_path / "c" / "_unfinished").write_text("x")
    for named in (tmp_path / "c", f"c={tmp_path / 'c'}/*.jsonl"):
        done = call("tokenize", named, "--tokenizer", tokenizer, "--out", tmp_path / "out")
        assert (done.returncode, "is not finished" in done.stderr) == (2, True), done.stderr


def test_killed_between_the_last_two_steps_it_tidies_up(clean, corpora):
    arguments = [f"web={corpora / 'web'}", "--out", corpora / "out", "--workers", 1]
    assert clean(*arguments)[0] == 0
    (corpora / "out" / "web" / "_unfinished").write_text("its fingerprint")
    status, said = clean(*arguments)
    assert status == 0 and "is up to date" in said
    assert not list((corpora / "out").rglob("_unfinished"))


def test_a_document_that_a_rule_cannot_judge_is_listed_and_the_others_go_on(
    clean, tmp_path, monkeypatch
):
    from datatrove.pipeline.filters import FineWebQualityFilter

    real = FineWebQualityFilter.filter
    monkeypatch.setattr(
        FineWebQualityFilter, "filter", lambda self, d: 1 / ("odd" not in d.text) and real(self, d)
    )
    rows = [{"id": "1", "text": prose(1)}, {"id": "2", "text": "odd " + prose(2)}]
    write_jsonl(tmp_path / "c.jsonl", rows)
    arguments = [f"c={tmp_path / 'c.jsonl'}", "--filters", "fineweb", "--workers", 1]
    status, said = clean(*arguments, "--out", tmp_path / "out")
    assert status == 0, said
    assert ids(tmp_path / "out/c") == ["1"]
    assert "1 removed, fineweb: cannot judge it (ZeroDivisionError)" in said


# ---- mistakes


def test_mistakes_are_one_message_that_names_them(clean, corpora, tmp_path):
    source = f"web={corpora / 'web'}"
    out = ["--out", tmp_path / "out"]

    def refused(expected, *arguments):
        status, said = clean(*arguments)
        assert status == 2 and expected in said and "Traceback" not in said, said

    refused("no input", *out)
    refused(
        "filters.gopher: no such rule; there are language, gopher_rep",
        source,
        "--filters",
        "gopher",
        *out,
    )
    refused("no input is named 'books'", source, "--filters", "books=c4", *out)
    refused("does not exist", "x=nowhere", *out)
    refused("no column 'url'", source, "--columns", "url", *out)
    refused("is where the text of 'web' goes", source, "--out", corpora)
    (tmp_path / "out" / "web").mkdir(parents=True)
    (tmp_path / "out" / "web" / "mine.txt").write_text("mine")
    refused("did not write", source, *out)
    assert (tmp_path / "out" / "web" / "mine.txt").exists()
    filters = {"c4": {"lines": 3}, "language": {"model": "nowhere.bin"}}
    web = {"path": str(corpora / "web"), "filters": filters}
    recipe = write_yaml(tmp_path, sources={"web": web})
    status, said = clean("--config", recipe)
    assert status == 2
    assert "sources.web.filters.c4.lines: no such option; there are split_paragraph" in said
    assert "sources.web.filters.language: there is no model nowhere.bin" in said
    refused("--filters is of one source", "--config", recipe, "--filters", "c4")


def test_what_would_be_ignored_or_read_again_is_refused(clean, corpora, tmp_path):
    source = f"web={corpora / 'web'}"
    out = ["--out", tmp_path / "elsewhere"]
    write_jsonl(tmp_path / "a" / "eval.jsonl", [{"text": prose(1)}])
    write_jsonl(tmp_path / "b" / "eval.jsonl", [{"text": prose(2)}])
    both = ["--against", tmp_path / "a" / "eval.jsonl", "--against", tmp_path / "b" / "eval.jsonl"]
    for expected, arguments in {
        "'eval' names both": [source, *out, *both],
        "--against-words counts for --against": [source, *out, "--against-words", 5],
        "must be from 1 to 200": [source, *out, *both[:2], "--against-words", 10**13],
        "c4 is named twice": [source, *out, "--filters", "c4,c4"],
        "given twice for 'web': c4 and fineweb": [
            *(source, *out, "--filters", "web=c4", "--filters", "web=fineweb"),
        ],
        "none is named at all": [source, *out, "--against-column", "zz=text"],
        "lies in": [source, "--out", corpora / "web"],
        "cannot name a source": [f"cleaning.json={corpora / 'web'}", *out],
        "is a file; name a folder": [source, "--out", corpora / "books.jsonl"],
    }.items():
        status, said = clean(*arguments)
        assert status == 2 and expected in said, (expected, said)
    wrong = {"gopher_quality": {"min_doc_words": "abc", "max_doc_words": -5}}
    wrong["c4"] = {"filter_policy": "maybe", "min_num_sentences": -1}
    web = {"path": str(corpora / "web"), "filters": wrong}
    many = {"words": 10**8, "hashes": 0}
    status, said = clean("--config", write_yaml(tmp_path, sources={"web": web}))
    assert status == 2
    assert "gopher_quality.min_doc_words: expected a number from 0, got 'abc'" in said
    assert "gopher_quality.max_doc_words: expected a number from 0, got -5" in said
    assert "c4.filter_policy: expected true or false, got 'maybe'" in said
    assert "min_num_sentences" not in said
    status, said = clean("--config", write_yaml(tmp_path, sources={}, duplicates=many))
    assert status == 2 and "duplicates.words: must be from 1 to 200; got 100000000" in said
    assert "duplicates.hashes: must be from 1 to 200; got 0" in said


def test_other_options_do_not_replace_what_is_there_unasked(clean, corpora):
    arguments = [f"web={corpora / 'web'}", "--out", corpora / "out", "--workers", 1]
    assert clean(*arguments)[0] == 0
    assert "is up to date" in clean(*arguments)[1]
    status, said = clean(*arguments, "--duplicates", "exact")
    assert status == 2 and "was cleaned from other duplicates" in said
    assert clean(*arguments, "--duplicates", "exact", "--overwrite")[0] == 0
    assert "near5" in ids(corpora / "out/web")
    books = [f"books={corpora / 'books.jsonl'}", *arguments[1:], "--overwrite"]
    assert clean(*books)[0] == 0
    assert not (corpora / "out/web").exists() and not (corpora / "out/removed/web").exists()
