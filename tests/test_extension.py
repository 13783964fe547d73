"""A tokenizer with more tokens, a model with rows for them: old ids and rows unchanged."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from test_tokenizer import byte_level, save, word_piece
from tiny_run import make_corpus, make_tokenizer, settings, train, write_yaml

from tessera.checkpoints.checkpoint import DECODER, EMBEDDING, CheckpointError
from tessera.checkpoints.exporter import export
from tessera.checkpoints.extension import extend_vocabulary
from tessera.checkpoints.reader import read_checkpoint
from tessera.cli.main import main
from tessera.tokenizer import load_tokenizer
from tessera.tokenizer.extension import extended, not_an_extension, read_addition

WORDS = ["gluon", "quark-gluon", "\u96c5", "w3 w4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps of a tiny model, whose 256 rows just hold the tokenizer's 255 ids."""
    folder = tmp_path_factory.mktemp("trained")
    corpus = make_corpus(folder / "corpus", documents=60)
    plain = settings(corpus, folder / "run", duration="3ba", evaluation__at_end=False)
    assert train(plain) == 0
    return corpus, folder / "run"


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{word}\n" for word in [*WORDS, "w7", "", WORDS[0]]))
    return path


def test_one_command_extends_tokenizer_and_model(trained, words, tmp_path, capsys):
    out = tmp_path / "more.pt"
    command = ["import", str(trained[1]), "--out", str(out), "--extend-tokenizer", str(words)]
    assert main(command) == 0
    assert f"tokenizer: {tmp_path / 'more-tokenizer'}" in capsys.readouterr().out
    old, new = read_checkpoint(trained[1]), read_checkpoint(out)
    before, after = (load_tokenizer(trained[0] / "tokenizer"),
                     load_tokenizer(tmp_path / "more-tokenizer"))  # fmt: skip
    assert not_an_extension(before, after) is None
    assert after.size == before.size + len(WORDS), "w7 is there already"
    assert new.model_config.vocab_size == 320 and new.model_config.vocab_size % 64 == 0

    assert torch.equal(new.weights[EMBEDDING][: before.size], old.weights[EMBEDDING][: before.size])
    assert new.weights[DECODER] is new.weights[EMBEDDING]
    for name in (EMBEDDING, "decoder.bias"):
        for word in WORDS:
            (number,) = after.encode_batch([word])[0]
            pieces = before.encode_batch([word])[0].tolist()
            mean = old.weights[name][pieces].mean(dim=0)
            torch.testing.assert_close(new.weights[name][int(number)], mean, rtol=0, atol=1e-7)
    others = set(old.weights) - {EMBEDDING, DECODER, "decoder.bias"}
    assert others and all(torch.equal(old.weights[name], new.weights[name]) for name in others)

    moments = new.optimizer[EMBEDDING]["exp_avg"]
    assert moments.shape == (320, 32) and not moments[before.size :].any()
    assert torch.equal(moments[: before.size], old.optimizer[EMBEDDING]["exp_avg"][: before.size])
    assert old.optimizer[EMBEDDING]["exp_avg"].any(), "there was something to carry over"
    assert export(new, tmp_path / "hf", max_seq_len=64).is_dir(), "the logits are compared"


def test_a_run_goes_on_from_it(trained, words, tmp_path):
    out = tmp_path / "more.pt"
    assert (
        main(["import", str(trained[1]), "--out", str(out), "--extend-tokenizer", str(words)]) == 0
    )
    corpus = tmp_path / "corpus"
    shutil.copytree(trained[0], corpus)
    tokenizer = tmp_path / "more-tokenizer"
    fingerprint = load_tokenizer(tokenizer).fingerprint
    for path in corpus.rglob("tessera.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer": fingerprint}))
    plain = settings(
        corpus, tmp_path / "run", duration="2ba", start_from=str(out), model__vocab_size=320,
        tokenizer=str(tokenizer), evaluation__at_end=False,
    )  # fmt: skip
    assert train(plain) == 0


def test_a_run_with_the_extended_tokenizer_alone_names_the_way_out(
    trained, words, tmp_path, capsys
):
    made, tokenizer = extend_vocabulary(read_checkpoint(trained[1]), read_addition(words))
    folder = tmp_path / "extended"
    folder.mkdir()
    for name, text in tokenizer.files.items():
        (folder / name).write_text(text)
    plain = settings(
        trained[0], tmp_path / "run", start_from=str(trained[1]), tokenizer=str(folder),
        model__vocab_size=320,
    )  # fmt: skip
    assert main(["check", str(write_yaml(tmp_path / "a.yaml", plain))]) == 2
    printed = capsys.readouterr().err
    assert "adds 4 tokens" in printed and f"--extend-tokenizer {folder}" in printed


def test_a_folder_is_an_extended_tokenizer_or_is_refused(trained, words, tmp_path):
    checkpoint = read_checkpoint(trained[1])
    base = load_tokenizer(trained[0] / "tokenizer")
    more = extended(base, read_addition(words))
    made, tokenizer = extend_vocabulary(checkpoint, more)
    assert tokenizer is more and made.model_config.vocab_size == 320
    make_tokenizer(tmp_path / "other", words=40)
    with pytest.raises(CheckpointError, match="does not extend .* id 45 is 'w40' in one and None"):
        extend_vocabulary(checkpoint, load_tokenizer(tmp_path / "other"))
    with pytest.raises(CheckpointError, match="it has no more tokens"):
        extend_vocabulary(checkpoint, base)


def test_a_model_with_room_to_spare_keeps_its_size(trained, tmp_path):
    checkpoint = read_checkpoint(trained[1])
    words = tmp_path / "one.txt"
    words.write_text("gluon\n")
    made, tokenizer = extend_vocabulary(checkpoint, read_addition(words))
    assert tokenizer.size == 256 and made.model_config.vocab_size == 256
    pieces = load_tokenizer(trained[0] / "tokenizer").encode_batch(["gluon"])[0].tolist()
    mean = checkpoint.weights[EMBEDDING][pieces].mean(dim=0)
    torch.testing.assert_close(made.weights[EMBEDDING][255], mean)
    assert not made.optimizer[EMBEDDING]["exp_avg"][255].any()


def test_words_are_found_as_words_only(trained, words):
    base = load_tokenizer(trained[0] / "tokenizer")
    more = extended(base, ("art", "\u96c5\u9f8d"))
    ids = [[more.backend.token_to_id("art")], [more.backend.token_to_id("\u96c5\u9f8d")]]
    assert more.encode_batch(["art"])[0].tolist() == ids[0]
    assert ids[0][0] not in more.encode_batch(["party"])[0]
    assert ids[1][0] in more.encode_batch(["\u7684\u96c5\u9f8d\u7684"])[0]


def test_a_tokenizer_that_drops_case_finds_its_new_tokens_in_any(tmp_path):
    base = load_tokenizer(save(word_piece(), tmp_path / "t"), quiet=True)
    more = extended(base, ("IL-6",))
    number = more.backend.token_to_id("IL-6")
    assert number == base.size
    for text in ("the IL-6 tile", "the il-6 tile"):
        assert number in more.encode_batch([text])[0]


def test_a_byte_level_tokenizer_loses_no_blank_to_its_new_tokens(tmp_path):
    base = load_tokenizer(save(byte_level(), tmp_path / "t"), quiet=True)
    more = extended(base, ("gluon",))
    text = "a gluon, gluons and  gluon\n"
    assert more.decode(more.encode_batch([text])[0]) == text
    assert more.encode_batch([text])[0].tolist().count(base.size) == 2, "not in 'gluons'"


def test_what_cannot_be_extended_is_said(trained, words, tmp_path, capsys):
    bare = replace(read_checkpoint(trained[1]), tokenizer_files=None)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        extend_vocabulary(bare, read_addition(words))
    base = ["import", str(trained[1]), "--out", str(tmp_path / "x.pt"), "--extend-tokenizer"]
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "known.txt").write_text("w1\nw2\n")
    for path, message in (
        (tmp_path / "none.txt", "no such file or folder"),
        (tmp_path / "empty.txt", "holds no token"),
        (tmp_path / "known.txt", "has all of the 2 tokens already"),
    ):
        assert main([*base, str(path)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()
