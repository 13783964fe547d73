"""What datatrove knows of bad documents, as one chain of rules; imported where cleaning is done."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FastTextClassifierFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.utils.stats import Stats
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger

from tessera.data.preparation.cleaning.words import SENTENCE_END, WORD

logger.disable("datatrove")  # what it has to say is counted, or raised

_RULES: dict[str, Any] = {
    "language": LanguageFilter,
    "gopher_repetition": GopherRepetitionFilter,
    "gopher_quality": GopherQualityFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
    "classifier": FastTextClassifierFilter,
}
_OURS = {
    *("self", "exclusion_writer", "language", "backend", "label_only", "filter_mode"),
    *("keep_top_pairs_threshold", "save_labels_in_metadata"),
}
"""Parameters that are not options here."""
_ADDED = {"language": ("model",)}


class RegexWords(WordTokenizer):
    """Words and sentences of any script by regular expressions: spaCy takes four times as long."""

    def word_tokenize(self, text: str) -> list[str]:
        """Words, ideographs and signs."""
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences, without the blanks around them."""
        return [text[start:end].strip() for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Where sentences begin and end; together they are the text."""
        ends = [match.end() for match in SENTENCE_END.finditer(text)]
        if not ends or ends[-1] < len(text):
            ends.append(len(text))
        return list(zip([0, *ends[:-1]], ends, strict=True))


WORDS = RegexWords()


def options_of(rule: str) -> list[str]:
    """The options of a rule, by the names that datatrove gives them."""
    names = inspect.signature(_RULES[rule].__init__).parameters
    return [name for name in names if name not in _OURS] + list(_ADDED.get(rule, ()))


def problems(filters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the rules of a source, one problem a line that names the key."""
    found = []
    for rule, options in filters.items():
        if rule not in _RULES:
            found.append(f"filters.{rule}: no such rule; there are {', '.join(_RULES)}")
            continue
        known = options_of(rule)
        found += [
            f"filters.{rule}.{name}: no such option; there are {', '.join(known)}"
            for name in options
            if name not in known
        ]
        found += _wrong_values(rule, options)
        model = options.get("model" if rule == "language" else "model_url")
        if model is not None and "://" not in str(model) and not os.path.isfile(model):
            found.append(f"filters.{rule}: there is no model {model}; name a fastText .bin")
        if rule == "classifier" and model is None:
            found.append("filters.classifier.model_url: missing; name a fastText .bin")
        if rule == "classifier" and not {"keep_labels", "remove_labels"} & set(options):
            found.append("filters.classifier: name keep_labels or remove_labels, as [label, score]")
    return found


def _wrong_values(rule: str, options: Mapping[str, Any]) -> list[str]:
    """Values that are of another kind than the rule's own."""
    found = []
    for name, parameter in inspect.signature(_RULES[rule].__init__).parameters.items():
        default, value = parameter.default, options.get(name)
        if value is None or default is None or default is inspect.Parameter.empty:
            continue
        if isinstance(default, bool):
            right, kind = isinstance(value, bool), "true or false"
        elif isinstance(default, int | float):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            off = rule == "c4" and value == -1  # its way to leave a check out
            right, kind = number and (value >= 0 or off), "a number from 0"
        else:
            continue
        if not right:
            found.append(f"filters.{rule}.{name}: expected {kind}, got {value!r}")
    return found


class Chain:
    """The rules of a source, in order."""

    def __init__(self, filters: Mapping[str, Mapping[str, Any]]) -> None:
        self._filters = [(rule, _filter(rule, options)) for rule, options in filters.items()]

    def judge(self, text: str) -> tuple[str, str | None]:
        """The text as the rules leave it, and why it is removed; None if it is kept."""
        document = Document(text=text, id="")
        for rule, one in self._filters:
            try:
                kept, why = get_filter_result(one.filter(document))
            except (ArithmeticError, LookupError, ValueError) as error:  # it counts what is none
                kept, why = False, f"cannot judge it ({type(error).__name__})"
            if not kept:
                return text, f"{rule}: {_spelled(why)}" if why else rule
        return document.text, None

    def cut(self) -> dict[str, int]:
        """Pieces of kept and removed documents that rules took out since the last call, by why."""
        found: dict[str, int] = {}
        for rule, one in self._filters:
            for label, stat in one.stats.stats.items():
                if label.startswith("line-filter-"):
                    found[f"lines by {rule}: {_spelled(label[12:])}"] = int(stat.total)
                elif label == "removed_span":
                    found[f"spans by {rule}"] = int(stat.total)
            one.stats = Stats(rule)
        return found


def _spelled(why: str) -> str:
    return why.replace("_", " ")


def _filter(rule: str, options: Mapping[str, Any]) -> BaseFilter:
    options = dict(options)
    model = options.pop("model", None)
    takes_words = "language" in inspect.signature(_RULES[rule].__init__).parameters
    made: BaseFilter = _RULES[rule](**options, **({"language": WORDS} if takes_words else {}))
    if rule == "language":
        _give_model(made, model)
    return made


def _give_model(made: Any, path: str | None) -> None:
    """Load the model of languages at once: from a file, or from where fastText publishes it."""
    from fasttext.FastText import _FastText

    try:
        if path is not None:
            made.model._model = _FastText(path)
        else:
            _ = made.model.model
    except Exception as error:  # fastText raises ValueError, the download whatever it likes
        raise ValueError(
            f"filters.language: its model cannot be had ({' '.join(str(error).split())[:200]}); "
            "name a local copy, such as fastText's lid.176.bin, as filters.language.model"
        ) from error
