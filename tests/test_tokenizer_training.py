"""Tokenizers for any script, like another one, and in the face of text that teaches nothing."""

import json
import random
import sys
import time
import unicodedata

import pytest
from test_data_prep import load, write_jsonl
from test_tokenizer import byte_level, save, without_unknown, word_piece

from tessera.data.pipeline.masking import mask, vocabulary
from tessera.data.preparation.tokenizers.training import (
    LONGEST_WORD,
    LeftOut,
    Survey,
    without_endless_words,
)
from tessera.data.preparation.tokenizers.training import train_bpe as learn_bpe
from tessera.data.randomness import Draws
from tessera.tokenizer import load_tokenizer

HINDI = ["हिन्दी", "दुनिया", "बहुत", "लोग", "भाषा", "विश्वविद्यालय"]
POINTED = ["اللُّغَةُ", "هي", "שָׁלוֹם", "עולם", "می\u200cخواهم"]
CHINESE = "\u4eca\u5929\u6c14\u5f88\u597d\u6211\u4eec\u53bb\u516c\u56ed\u6563\u6b65\u7136\u540e"
BOILERPLATE = "".join(map(chr, range(0x4E00, 0x4E00 + 36)))
THAI = "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22\u0e40\u0e1b\u0e47\u0e19\u0e17\u0e35\u0e48"
EMOJI = "\U0001f389 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f 3\ufe0f\u20e3"


@pytest.fixture
def train(monkeypatch, capsys, tmp_path):
    """Train on texts with the script: (status, the tokenizer, what was printed)."""

    def call(texts, *arguments, size=512):
        corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": text} for text in texts])
        out = tmp_path / "made"
        options = [str(corpus), "--out", str(out), "--vocab-size", str(size), *map(str, arguments)]
        module = load("train_tokenizer")
        monkeypatch.setattr(sys, "argv", [module.__file__, *options])
        status = module.main()
        captured = capsys.readouterr()
        made = load_tokenizer(out, quiet=True) if (out / "tokenizer.json").exists() else None
        return status, made, captured.out + captured.err

    return call


def sentences(words, count=400, between=" "):
    draws = random.Random(0)
    return [between.join(draws.choices(words, k=30)) for _ in range(count)]


@pytest.mark.parametrize("words", [HINDI, POINTED], ids=["Devanagari", "Arabic and Hebrew"])
def test_combining_marks_stay_with_their_letters(train, words):
    status, made, printed = train(sentences(words))
    assert status == 0
    assert "combining marks  stay with their letters" in printed
    assert [len(ids) for ids in made.encode_batch([f" {word}" for word in words])] == [1] * len(
        words
    )
    without = learn_bpe(sentences(words), 512, keep_marks=False, max_token_bytes=None)
    assert len(without.encode(f" {words[0]}").ids) > 1, "the case this is about"


@pytest.mark.parametrize("text", [*HINDI, *POINTED, CHINESE, THAI, EMOJI, "na\u00efve cafe\u0301"])
@pytest.mark.parametrize("keep_marks", [True, False])
def test_nothing_is_lost_in_any_script(text, keep_marks):
    made = learn_bpe([text] * 5, 320, keep_marks=keep_marks, max_token_bytes=None)
    assert made.decode(made.encode(text).ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("script", [CHINESE, THAI], ids=["Chinese", "Thai"])
def test_whole_words_are_masked_at_the_rate_in_every_document_without_blanks(train, script):
    draws = random.Random(2)
    texts = ["".join(draws.choices(script, k=1000)) for _ in range(50)]
    _, made, _ = train(texts, size=512)
    words = vocabulary(made, whole_words=True)
    shares = []
    for number, ids in enumerate(made.encode_batch(texts)):
        _, positions, _ = mask(ids, words, 0.3, Draws("masks", number))
        shares.append(len(positions) / len(ids))
    assert min(shares) > 0.05 and max(shares) < 0.65
    assert abs(sum(shares) / len(shares) - 0.3) < 0.05


def test_latin_text_is_split_as_modernbert_splits_it(train):
    text = (
        "It's 12 o'clock, isn't it? def f(x):\n    return  x_1  # caf\u00e9 \u2014 \u2764\ufe0f\n"
    )
    status, made, _ = train([text] * 50)
    parts = json.loads(made.files["tokenizer.json"])
    assert status == 0
    assert parts["pre_tokenizer"]["type"] == "ByteLevel" and parts["pre_tokenizer"]["use_regex"]
    marked = learn_bpe([text] * 50, 512, keep_marks=True, max_token_bytes=None)
    assert (
        marked.encode(text, add_special_tokens=False).ids == made.encode_batch([text])[0].tolist()
    )


def test_a_sentence_without_blanks_does_not_become_a_token(train):
    draws = random.Random(1)
    texts = ["".join(draws.choices(CHINESE, k=60)) + BOILERPLATE for _ in range(300)]
    status, made, printed = train(texts, size=1024)
    assert status == 0 and "tokens       of up to 24 bytes" in printed
    whole = [made.decode([number]).strip("\ufffd") for number in made.ordinary_ids]
    assert 2 <= max(map(len, whole)) <= 8
    _, made, _ = train(texts, "--max-token-bytes", 200, "--overwrite", size=1024)
    longest = max(len(made.decode([number])) for number in made.ordinary_ids)
    assert longest > 16, "the case this is about"


@pytest.mark.parametrize(
    "word",
    ["x" * 400_000, "-" * 400_000, "7" * 400_000, " " * 400_000, HINDI[0] * 80_000],
    ids=["letters", "dashes", "digits", "blanks", "letters with marks"],
)
def test_a_word_without_end_is_left_out_and_counted(train, word):
    texts = [f"short document {i} of plain words" for i in range(300)]
    begin = time.monotonic()
    status, made, printed = train([*texts, f"before {word} after"])
    assert time.monotonic() - begin < 30
    assert status == 0
    assert f"left out     1 words of more than {LONGEST_WORD} characters" in printed
    assert "learning merges" in printed, "progress after reading"
    assert len(made.encode_batch([" document"])[0]) == 1


def test_what_surrounds_an_endless_word_is_kept_and_chinese_is_only_cut():
    left_out = LeftOut()
    letters = "".join(CHINESE[i % len(CHINESE)] for i in range(5000))
    texts = [f"ab {'x' * 1001} cd", "plain", letters, "y" * LONGEST_WORD]
    kept = list(without_endless_words(texts, left_out))
    assert kept[:3] == ["ab ", " cd", "plain"]
    assert "".join(kept[3:-1]) == letters and max(map(len, kept[3:-1])) == 100
    assert kept[-1] == "y" * LONGEST_WORD
    assert (left_out.words, left_out.characters) == (1, 1001)


def test_a_survey_counts_marks_of_letters_and_not_of_emoji():
    survey = Survey()
    survey.add("a text with \u2764\ufe0f and 3\ufe0f\u20e3 and cafe\u0301")
    assert not survey.has_marks and survey.max_token_bytes is None
    survey.add(" ".join(HINDI))
    assert survey.has_marks
    survey.add(THAI * 100)
    assert survey.max_token_bytes == 24


def test_ids_that_the_text_does_not_fill_are_said(train):
    _, _, printed = train(["abab " * 50], size=1024)
    assert "the text gave only" in printed and "[unused..]" in printed
    assert "ordinary ids do not occur in the sample" in printed


@pytest.mark.parametrize("kind", ["byte_level", "word_piece"])
def test_a_tokenizer_like_another_has_its_algorithm_and_its_special_tokens(train, tmp_path, kind):
    from transformers import AutoTokenizer

    backend = {"byte_level": byte_level, "word_piece": word_piece}[kind]()
    backend.add_tokens(["TESSERA"])
    old = load_tokenizer(save(backend, tmp_path / "old"), quiet=True)
    text = "other words about quarks and gluons, and nothing that was there before"
    status, made, printed = train([text] * 20, "--from", tmp_path / "old", size=384)
    assert status == 0, printed
    before, after = (json.loads(one.files["tokenizer.json"]) for one in (old, made))
    assert before["model"]["type"] == after["model"]["type"]
    assert before["normalizer"] == after["normalizer"]
    assert before["pre_tokenizer"] == after["pre_tokenizer"]
    assert made.size == 384 and made.template_problem is None
    names = [old.backend.id_to_token(int(n)) for n in old.special_ids]
    assert [made.backend.id_to_token(int(n)) for n in made.special_ids] == names
    assert len(made.encode_batch(["TESSERA"])[0]) == 1, "added tokens are kept"
    assert len(made.encode_batch([" quarks"])[0]) == 1
    before = old.encode_batch([" quarks"])[0]
    assert len(before) > 1 or before == [old.role_ids["unk"]], "the case"
    loaded = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert loaded("quarks")["input_ids"][0] == made.cls_id == loaded.cls_token_id


def test_checking_a_tokenizer_that_cannot_encode_everything_says_how_much(
    monkeypatch, capsys, tmp_path
):
    folder = save(without_unknown("WordPiece"), tmp_path / "t", unk_token="<oov>")  # noqa: S106
    texts = ["the quick fox", "the \u96c5 fox", "it jumps"]
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": text} for text in texts])
    module = load("train_tokenizer")
    monkeypatch.setattr(sys, "argv", ["", "--check", str(folder), str(corpus)])
    assert module.main() == 2
    printed = capsys.readouterr().out
    assert "round trip fails for" in printed
    assert "1 of which cannot be encoded at all, 7 of 25 characters lost" in printed
    assert "WARNING" in printed and "frames a text x as 'x'" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "/no/such"], "no such folder"),
        (["--max-token-bytes", "2"], "--max-token-bytes 2"),
    ],
)
def test_mistakes_are_one_message(train, arguments, message):
    status, made, printed = train(["some text"] * 9, *arguments)
    assert (status, made) == (2, None) and message in printed and "Traceback" not in printed
