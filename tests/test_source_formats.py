"""Another format of a source is one file and one line: everything opens sources in one place."""

import sys
from types import ModuleType

import numpy as np
import pytest
import tiny_run
from reference.data_fake_source import FakeSource

from tessera.config import ConfigError, decode
from tessera.data import config as data_config
from tessera.data.config import SourceConfig
from tessera.data.sources.source import open_source
from tessera.training.config import RunConfig


class Numbers(FakeSource):
    """Documents of a format that only this test knows; every opening is noted."""

    opened: list[tuple[str, str]] = []
    gone: str | None = None

    def document(self, shard, sample):
        return np.arange(5, 45, dtype=np.uint16)

    def lacking(self):
        return self.gone


@pytest.fixture
def numbers(monkeypatch):
    def open_documents(name, source, split, vocab_size):
        Numbers.opened.append((name, split))
        return Numbers(name, ((40,) * 30, (40,) * 30), tokenizer_fingerprint=None)

    module = ModuleType("numbers_format")
    module.open_documents = open_documents
    monkeypatch.setitem(sys.modules, "numbers_format", module)
    monkeypatch.setitem(data_config.FORMATS, "numbers", "numbers_format")
    monkeypatch.setattr(Numbers, "opened", [])


@pytest.fixture
def plain(tmp_path):
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=10)
    sources = {"web": {"local": "anywhere", "format": "numbers"}}
    return tiny_run.settings(corpus, tmp_path / "run", duration="2ba", train_data__sources=sources)


def test_a_format_of_one_file_and_one_line_is_checked_trained_on_and_evaluated(numbers, plain):
    from tessera.training.preflight import examine

    assert examine(decode(RunConfig, plain, "test"), 1, resuming=False).problems == []
    assert Numbers.opened == [("web", "train"), ("web", "validation")]
    assert tiny_run.train(plain) == 0
    assert set(Numbers.opened[2:]) == {("web", "train"), ("web", "validation")}


def test_what_such_a_source_lacks_is_said_before_training(numbers, plain, monkeypatch):
    monkeypatch.setattr(Numbers, "gone", "two of its files")
    with pytest.raises(ConfigError, match=r"train_data.sources.web: two of its files; copy them"):
        tiny_run.train(plain)


def test_an_unknown_format_is_refused_by_key(plain):
    plain["train_data"]["sources"]["web"]["format"] = "mdss"
    with pytest.raises(ConfigError, match=r"train_data.sources.web.format: unknown 'mdss'.*mds"):
        decode(RunConfig, plain, "test")


def test_the_usual_format_needs_no_name(tmp_path):
    corpus = tiny_run.make_corpus(tmp_path, documents=10)
    documents = open_source("web", SourceConfig(local=str(corpus / "web")), "train", None)
    assert documents.samples.sum() == 10
