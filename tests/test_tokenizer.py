import json
import os
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import tokenizers
from preparing import call, write_jsonl
from reference import fake_hub
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from tessera.data.preparation.notes import UNKNOWN, VANISHED
from tessera.tokenizer import NEEDED_ROLES, files_for_transformers, load_tokenizer
from tessera.tokenizer.coverage import Vanishing, holds_every_byte, lost_characters


@pytest.fixture(autouse=True)
def nothing_was_said_before(monkeypatch):
    monkeypatch.setattr("tessera.tokenizer.loading._said", set())


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = (
    "The tiles of a mosaic, laid into rows: each row is full. " * 3
    + "def tile(row):\n    return row"
)


def byte_level(vocab_size=400, *, special=SPECIAL, text=TEXT):
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(t, lstrip=t == "[MASK]", special=True) for t in special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return backend


def word_piece():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    return backend


def save(backend, folder, **roles):
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL} | roles
    names = {role: token for role, token in names.items() if token}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_ids_are_the_tokenizers_own_and_never_assumed(tmp_path):
    order = ["[MASK]", "[SEP]", "[UNK]", "[PAD]", "[CLS]"]
    loaded = load_tokenizer(save(byte_level(special=order), tmp_path / "t"))
    assert (loaded.mask_id, loaded.sep_id, loaded.pad_id, loaded.cls_id) == (0, 1, 3, 4)
    assert loaded.special_ids.tolist() == [0, 1, 2, 3, 4]
    assert loaded.size == loaded.backend.get_vocab_size()


def test_size_counts_to_the_largest_id_even_with_gaps(tmp_path):
    vocabulary = {token: i for i, token in enumerate(SPECIAL)} | {"a": 70_000}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    backend.add_special_tokens(SPECIAL)
    loaded = load_tokenizer(save(backend, tmp_path / "t"))
    assert loaded.size == 70_001
    assert loaded.encode_batch(["a"])[0].tolist() == [70_000]
    assert loaded.encode_batch(["a"])[0].dtype == np.uint32


def test_encoding_adds_no_special_tokens_and_finds_none_in_the_text(tmp_path):
    loaded = load_tokenizer(save(byte_level(), tmp_path / "t"))
    texts = ["a tile", "", "the [MASK] and [SEP] of a paper", "cafe\u0301 \u96c5"]
    encoded = loaded.encode_batch(texts)
    assert [ids.dtype for ids in encoded] == [np.uint16] * 4
    assert len(encoded[1]) == 0
    for text, ids in zip(texts, encoded, strict=True):
        assert not np.isin(ids, loaded.special_ids).any()
        assert loaded.decode(ids) == text.replace("e\u0301", "\u00e9")


def test_truncation_and_padding_saved_with_a_tokenizer_are_ignored(tmp_path):
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    short, long = load_tokenizer(save(backend, tmp_path / "t")).encode_batch(["a", TEXT])
    assert len(short) == 1
    assert len(long) > 20


@pytest.mark.parametrize("role", NEEDED_ROLES)
def test_a_tokenizer_without_a_needed_token_is_refused_by_name(tmp_path, role):
    with pytest.raises(ValueError, match=f"has no {role}, which .*train_tokenizer.py"):
        load_tokenizer(save(byte_level(), tmp_path / "t", **{role: None}))
    with pytest.raises(ValueError, match=f"has no {role}"):
        load_tokenizer(save(byte_level(), tmp_path / "t", **{role: "[NOWHERE]"}))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "data/demo/none"])
def test_a_missing_folder_is_not_taken_for_a_name_on_the_hub(name):
    with pytest.raises(ValueError, match=f"tokenizer {name}.*no such folder"):
        load_tokenizer(name)


def test_an_empty_folder_is_reported(tmp_path):
    with pytest.raises(ValueError, match="the folder is empty"):
        load_tokenizer(tmp_path)


def test_a_damaged_file_is_reported(tmp_path):
    folder = save(byte_level(), tmp_path / "t")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer .*/t is damaged: EOF"):
        load_tokenizer(folder)


def test_transformers_saves_a_tokenizer_of_the_same_fingerprint(tmp_path):
    from transformers import AutoTokenizer

    folder = save(byte_level(), tmp_path / "t")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    loaded, again = load_tokenizer(folder), load_tokenizer(tmp_path / "again")
    assert loaded.fingerprint == again.fingerprint
    assert loaded.encode_batch([TEXT])[0].tolist() == again.encode_batch([TEXT])[0].tolist()
    expected = AutoTokenizer.from_pretrained(folder)(TEXT, add_special_tokens=False)["input_ids"]
    assert loaded.encode_batch([TEXT])[0].tolist() == expected


def test_fingerprint_is_the_same_for_older_ways_to_write_the_same(tmp_path):
    folder = save(byte_level(), tmp_path / "t")
    fingerprint = load_tokenizer(folder).fingerprint
    parts = json.loads((folder / "tokenizer.json").read_text())
    parts["model"]["merges"] = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in parts["model"]["merges"]
    ]
    del parts["model"]["ignore_merges"], parts["model"]["byte_fallback"]
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    assert load_tokenizer(folder).fingerprint == fingerprint


def test_fingerprint_is_pinned(tmp_path):
    """Shards of years ago must be recognised: a change of this value is a change of the format."""
    backend = Tokenizer(
        models.BPE(
            {"a": 5, "b": 6, "ab": 7} | dict(zip(SPECIAL, range(5), strict=True)), [("a", "b")]
        )
    )
    backend.add_special_tokens(SPECIAL)
    assert (
        load_tokenizer(save(backend, tmp_path / "t")).fingerprint
        == "ae92ae0dbda5bee9a4a5918922b9f32a"
    )


def test_fingerprint_changes_with_whatever_changes_the_ids(tmp_path):
    def fingerprint(name, change=lambda backend: None, **roles):
        backend = byte_level()
        change(backend)
        return load_tokenizer(save(backend, tmp_path / name, **roles)).fingerprint

    def lower(backend):
        backend.normalizer = normalizers.Lowercase()

    def split_digits(backend):
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(), backend.pre_tokenizer]
        )

    def no_template(backend):
        backend.post_processor = tokenizers.processors.ByteLevel()

    plain = fingerprint("plain")
    different = {
        fingerprint("lower", lower),
        fingerprint("digits", split_digits),
        fingerprint("more", lambda backend: backend.add_tokens(["tessera"])),
        fingerprint("roles", mask_token="[UNK]"),  # noqa: S106
        fingerprint("merged", lambda backend: backend.train_from_iterator(["xyxyxyxy"])),
    }
    assert len(different | {plain}) == 6
    assert fingerprint("template", no_template) == plain


def words_from_starts(loaded, text):
    """Group the tokens of a text into words by `word_starts` alone."""
    words = []
    for token in loaded.encode_batch([text])[0]:
        if loaded.word_starts[token] or not words:
            words.append([])
        words[-1].append(token)
    return [loaded.decode(word).strip() for word in words]


def test_words_of_a_byte_level_tokenizer_begin_at_spaces_and_punctuation(tmp_path):
    loaded = load_tokenizer(save(byte_level(), tmp_path / "t"))
    text = "Some unseen words, na\u00efve snake_case too.\nNext"
    expected = ["Some", "unseen", "words", ",", "na\u00efve", "snake_case", "too", ".", "", "Next"]
    found = [word for word in words_from_starts(loaded, text)]
    assert found[:8] == expected[:8]
    assert any(len(loaded.encode_batch([word])[0]) > 1 for word in expected)


def test_words_of_word_piece_begin_where_there_is_no_prefix(tmp_path):
    loaded = load_tokenizer(save(word_piece(), tmp_path / "t"))
    tokens = {number: token for token, number in loaded.backend.get_vocab().items()}
    assert loaded.word_starts.tolist() == [
        not tokens[i].startswith("##") for i in range(loaded.size)
    ]
    assert not loaded.word_starts.all()


def test_a_tokenizer_that_does_not_show_words_says_so(tmp_path):
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, "a", "b"])}, []))
    backend.add_special_tokens(SPECIAL)
    assert load_tokenizer(save(backend, tmp_path / "t")).word_starts is None


def test_files_restore_the_tokenizer(tmp_path):
    loaded = load_tokenizer(save(byte_level(), tmp_path / "t"))
    (tmp_path / "copy").mkdir()
    for name, text in loaded.files.items():
        (tmp_path / "copy" / name).write_text(text)
    assert load_tokenizer(tmp_path / "copy").fingerprint == loaded.fingerprint


def test_roles_that_only_transformers_class_knows_are_found(tmp_path):
    """BERT's own folders leave them to the class."""
    folder = save(word_piece(), tmp_path / "t")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert load_tokenizer(folder).mask_id == SPECIAL.index("[MASK]")


def test_a_folder_that_holds_no_tokenizer_is_called_that_without_transformers(tmp_path):
    (tmp_path / "notes.txt").write_text("not a tokenizer")
    with pytest.raises(ValueError, match=r"no tokenizer.json there; name the folder") as said:
        load_tokenizer(tmp_path)
    assert "\n" not in str(said.value)


def test_an_id_while_offline_is_asked_for_once_and_answered_at_once(monkeypatch, capfd, caplog):
    from huggingface_hub import constants

    asked, ask = [], urllib.request.urlopen

    def counted(request, timeout):
        asked.append(timeout)
        return ask(request, timeout=timeout)

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", counted)
    with pytest.raises(ValueError, match="no folder here.*Hub did not answer.*hf download") as said:
        load_tokenizer("nobody/nothing")
    assert "\n" not in str(said.value)
    assert len(asked) == 1 and asked[0] <= 5
    assert "Retry" not in caplog.text + "".join(capfd.readouterr())


def test_an_id_is_read_from_the_hub_and_afterwards_from_the_cache_of_this_machine(tmp_path):
    folder = save(byte_level(), tmp_path / "t")
    code = (
        "import sys; from tessera.tokenizer import load_tokenizer; "
        "print(load_tokenizer('org/words').fingerprint, 'transformers' in sys.modules)"
    )
    expected = f"{load_tokenizer(folder).fingerprint} False"

    def told(url):
        about = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **about})
        return done.stdout.strip() or done.stderr

    with fake_hub.running() as hub:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.branches["org/words"] = {"main": {**files, "model.safetensors": b"not asked for"}}
        assert told(hub.url) == expected
    assert told("http://127.0.0.1:9") == expected
    assert not list((tmp_path / "home").rglob("*.safetensors"))


# ---- what a tokenizer loses, and how it frames text


def without_unknown(kind):
    """A tokenizer that raises at a character it does not know."""
    special = ["<oov>", *(token for token in SPECIAL if token != "[UNK]")]
    if kind == "WordPiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
        trainer = trainers.WordPieceTrainer(
            vocab_size=500, special_tokens=special, show_progress=False
        )
    else:
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=special, show_progress=False
        )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(["the quick fox jumps over it"] * 50, trainer)
    return backend


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_characters_that_raise_are_named_with_the_cure(tmp_path, caplog, kind):
    folder = save(without_unknown(kind), tmp_path / kind, unk_token="<oov>")  # noqa: S106
    loaded = load_tokenizer(folder)
    assert "cannot encode" in caplog.text and "all of Latin with accents" in caplog.text
    assert "'<oov>'" in caplog.text and "unk_token" in caplog.text or "unk_id" in caplog.text
    assert len(loaded.encode_batch(["the fox"])[0]) > 0
    with pytest.raises(ValueError, match="cannot encode '\u96c5' in the text that begins 'the"):
        loaded.encode_batch(["the fox", "the \u96c5 fox"])


def test_following_the_advice_on_unknown_tokens_helps(tmp_path):
    folder = save(without_unknown("WordPiece"), tmp_path / "t", unk_token="<oov>")  # noqa: S106
    parts = json.loads((folder / "tokenizer.json").read_text())
    parts["model"]["unk_token"] = "<oov>"
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    loaded = load_tokenizer(folder)
    assert loaded.coverage.problem is None
    assert loaded.role_ids["unk"] in loaded.encode_batch(["the \u96c5 fox"])[0]
    assert lost_characters(loaded.backend, loaded.role_ids["unk"], ["the \u96c5 fox"]) == (1, 7)


def test_characters_that_vanish_are_said_and_counted(tmp_path, caplog):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator([TEXT] * 5, trainer)
    loaded = load_tokenizer(save(backend, tmp_path / "t"))
    assert loaded.encode_batch(["\u96c5"])[0].tolist() == []
    assert "drops, leaving no trace," in caplog.text and "Han" in caplog.text
    assert lost_characters(loaded.backend, None, ["row \u96c5\u7684 row"]) == (2, 8)


def test_characters_that_vanish_from_a_corpus_are_counted_beside_its_shards(tmp_path):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator([TEXT] * 5, trainer)
    folder = save(backend, tmp_path / "t")
    texts = ["the row", "\u96c5 the \u96c5 row \U0001f600", "row \u96c5"]
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts * 20)]
    corpus = write_jsonl(tmp_path / "c" / "train.jsonl", rows)
    done = call("tokenize", corpus.parent, "--tokenizer", folder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "80 are characters that the tokenizer drops, leaving no trace; the first is d1" in (
        done.stdout
    )
    noted = json.loads((tmp_path / "out/c/train/tessera.json").read_text())["noted"]
    assert noted[VANISHED] == [80, "d1"] and UNKNOWN not in noted


def test_unknown_tokens_of_a_corpus_are_counted(tmp_path):
    folder = save(without_unknown("WordPiece"), tmp_path / "t", unk_token="<oov>")  # noqa: S106
    parts = json.loads((folder / "tokenizer.json").read_text())
    parts["model"]["unk_token"] = "<oov>"
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    rows = [{"id": f"d{i}", "text": "the \u96c5 fox" if i % 2 else "the fox"} for i in range(10)]
    corpus = write_jsonl(tmp_path / "c" / "train.jsonl", rows)
    done = call("tokenize", corpus.parent, "--tokenizer", folder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    noted = json.loads((tmp_path / "out/c/train/tessera.json").read_text())["noted"]
    assert noted == {UNKNOWN: [5, "d1"]}


def test_bytes_never_vanish_unless_one_of_them_is_missing():
    text = "the \u96c5 fox \U0001f600\x07"
    assert Vanishing(byte_level()).of(text) == 0
    parts = json.loads(byte_level().to_str())
    assert holds_every_byte(parts)
    del parts["model"]["vocab"][next(iter(pre_tokenizers.ByteLevel.alphabet()))]
    assert not holds_every_byte(parts)


def test_a_tokenizer_of_bytes_loses_nothing_and_is_not_complained_of(tmp_path, caplog):
    backend = byte_level()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    loaded = load_tokenizer(save(backend, tmp_path / "t"))
    assert loaded.coverage.problem is None and loaded.coverage.unknown == {}
    assert loaded.doubts == [] and caplog.text == ""
    assert loaded.framed_files() is loaded.files


def llama_style():
    backend = byte_level(special=["<s>", *SPECIAL])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return backend


@pytest.mark.parametrize(
    ("make", "shown"), [(byte_level, "'x'"), (llama_style, "'<s> x'"), (word_piece, "'x'")]
)
def test_a_template_that_is_not_trainings_is_said_and_can_be_written(tmp_path, caplog, make, shown):
    from transformers import AutoTokenizer

    loaded = load_tokenizer(save(make(), tmp_path / "t"))
    assert f"frames a text x as {shown}, training as '[CLS] x [SEP]'" in caplog.text
    for name, text in files_for_transformers(loaded.framed_files(), 64).items():
        (tmp_path / "t" / name).write_text(text)
    framed = load_tokenizer(tmp_path / "t")
    assert framed.template_problem is None
    assert framed.fingerprint == loaded.fingerprint
    content = loaded.encode_batch([TEXT])[0].tolist()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert theirs(TEXT)["input_ids"] == [loaded.cls_id, *content, loaded.sep_id]
    pair = theirs("tile", "row")["input_ids"]
    assert (pair[0], pair[-1], pair.count(loaded.sep_id)) == (loaded.cls_id, loaded.sep_id, 2)


# ---- words in scripts without blanks

CHINESE = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u6211\u4eec\u53bb\u516c\u56ed"


@pytest.mark.parametrize("merges", [0, 60])
def test_ideographs_are_words_of_a_byte_level_tokenizer(tmp_path, merges):
    backend = byte_level(261 + merges, text=" ".join(CHINESE) * 20 + " plain words")
    loaded = load_tokenizer(save(backend, tmp_path / "t"))
    ids = loaded.encode_batch([CHINESE])[0]
    assert (len(ids) < 3 * len(CHINESE)) == bool(merges)
    assert loaded.word_starts[ids].sum() == len(CHINESE)


def test_ideographs_are_words_where_tokens_are_characters(tmp_path):
    backend = Tokenizer(models.Unigram([("[UNK]", 0.0), ("\u2581", -1.0), ("\u96c5", -2.0)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(SPECIAL)
    loaded = load_tokenizer(save(backend, tmp_path / "t"))
    ids = loaded.encode_batch(["\u96c5\u96c5\u96c5"])[0]
    assert loaded.word_starts[ids].tolist() == [True] * 4
