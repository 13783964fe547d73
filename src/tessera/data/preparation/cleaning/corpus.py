"""What there is to clean: parts of sources, what decides the result, and whether it is there."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.config import to_plain
from tessera.data.preparation import places
from tessera.data.preparation.cleaning.stages import PartTask
from tessera.data.preparation.config import CleanConfig, EvaluationTextConfig, SourceConfig
from tessera.data.preparation.formats.discovery import UNFINISHED
from tessera.data.preparation.inputs import Input, input_of, refuse_output_inside
from tessera.data.preparation.text_files import cut_into_parts
from tessera.paths import absolute, is_remote, join

SUMMARY = "cleaning.json"
"""Written last, in `out`: what was done, and to how many documents."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All parts of all sources, in the order that decides which copy is kept."""

    inputs: dict[str, Input]
    tasks: tuple[PartTask, ...]
    splits: tuple[tuple[str, str, tuple[int, ...]], ...]
    """(source, split or '', numbers of its parts), in the order of the parts."""


# ---- what there is to do


def corpus_of(config: CleanConfig) -> Corpus:
    """The parts of all sources: validation splits first, so that training loses the copies."""
    if os.path.isfile(config.out):
        raise ValueError(f"--out {config.out}: is a file; name a folder")
    if not config.sources:
        raise ValueError("no input: name sources, such as web=crawl/")
    inputs = {
        name: input_of(
            name,
            about,
            ignore_split_names=config.ignore_split_names,
            columns=_columns(config, name),
        )
        for name, about in config.sources.items()
    }
    for name, source in inputs.items():
        refuse_output_inside(source.path, config.out)
        if _is_inside(source.path, text_folder(config, name)):
            raise ValueError(f"{source.path}: is where the text of '{name}' goes; choose another")
    found = [
        (name, split, files)
        for name, source in inputs.items()
        for split, files in source.found.splits.items()
    ]
    tasks: list[PartTask] = []
    splits = []
    for name, split, files in sorted(found, key=lambda each: each[1] != "validation"):
        source = inputs[name]
        parts = cut_into_parts(files, source.root, config.part_size.value, source.reading)
        below = f"{split}/" if split else ""
        splits.append((name, split, tuple(range(len(tasks), len(tasks) + len(parts)))))
        tasks += [
            PartTask(
                part=dataclasses.replace(part, root=absolute(part.root or ".")),
                number=len(tasks) + place,
                source=name,
                reading=source.reading,
                text=join(text_folder(config, name), f"{below}{place:06}.jsonl.zst"),
                removed=join(config.out, f"removed/{name}/{below}{place:06}.jsonl.zst"),
            )
            for place, part in enumerate(parts)
        ]
    return Corpus(inputs=inputs, tasks=tuple(tasks), splits=tuple(splits))


def _columns(config: CleanConfig, name: str) -> tuple[str, ...]:
    about = config.sources[name]
    joined = [] if about.join is None else [about.join.by, about.join.order]
    return tuple(dict.fromkeys([*about.columns, *filter(None, joined)]))


def text_folder(config: CleanConfig, name: str) -> str:
    """Where the text of a source goes."""
    return join(config.out, name)


def _is_inside(address: str, folder: str) -> bool:
    return f"{absolute(address)}/".startswith(f"{folder}/")


def plan_of(corpus: Corpus, config: CleanConfig) -> dict[str, Any]:
    """What decides the result."""
    import datatrove

    plain = to_plain(config)
    against = {name: evaluation_inputs(about) for name, about in config.against.items()}
    return {
        "files": {name: _files(source) for name, source in corpus.inputs.items()},
        "against_files": {name: _files(inputs[0]) for name, inputs in against.items()},
        "models": {
            str(path): [(stat := Path(path).stat()).st_size, stat.st_mtime_ns]
            for about in config.sources.values()
            for options in about.filters.values()
            for path in (options.get("model"), options.get("model_url"))
            if path is not None and not is_remote(str(path))
        },
        **{
            key: plain[key]
            for key in ("sources", "against", "against_words", "duplicates", "part_size")
        },
        "ignore_split_names": config.ignore_split_names,
        "datatrove": datatrove.__version__ if hasattr(datatrove, "__version__") else "",
    }


def _files(source: Input) -> list[list[Any]]:
    found = source.found.splits
    return [
        [split, file.name, file.bytes, file.changed] for split in found for file in found[split]
    ]


def evaluation_inputs(about: EvaluationTextConfig) -> list[Input]:
    """Evaluation texts, once for each of their columns; most are in files called test."""
    return [
        input_of(
            "",
            SourceConfig(path=about.path, text_column=column, encoding=about.encoding),
            ignore_split_names=True,
        )
        for column in about.columns
    ]


def check_filters(config: CleanConfig) -> None:
    """Refuse rules and options that there are not, and models that are not there.

    Raises:
        ValueError: naming every one by its key.
    """
    try:
        from tessera.data.preparation.cleaning.datatrove_filters import problems
    except ImportError as error:
        raise ValueError(
            f"cleaning needs datatrove ({error}): pip install 'tessera[data]'"
        ) from error
    found = [
        f"sources.{name}.{problem}"
        for name, about in config.sources.items()
        for problem in problems(about.filters)
    ]
    if found:
        raise ValueError("\n".join(found))


def is_done(config: CleanConfig, plan: dict[str, Any], fingerprint: str) -> bool:
    """Whether all of it was done; refuses a folder that holds something else. Begins nothing."""
    content = places.read_bytes(join(config.out, SUMMARY))
    plan = json.loads(json.dumps(plan))
    if content is not None:
        previous = json.loads(content)["prepared_from"]
        if previous == plan:
            return True
        differing = [key for key in plan if previous.get(key) != plan[key]]
        if not config.overwrite:
            raise ValueError(
                f"{config.out} was cleaned from other {', '.join(differing)}; choose another "
                "--out, or replace it with --overwrite"
            )
    for name in config.sources if content is None and not config.overwrite else ():
        folder = text_folder(config, name)
        begun = places.read_bytes(join(folder, UNFINISHED))
        if begun is None and _holds_something(folder):
            raise ValueError(
                f"{folder} holds files that this script did not write; choose another --out, or "
                "replace them with --overwrite"
            )
        if begun is not None and begun.decode() != fingerprint:
            raise ValueError(
                f"{folder} is being cleaned from other input or options; choose another --out, or "
                "replace it with --overwrite"
            )
    return False


def _holds_something(folder: str) -> bool:
    if is_remote(folder):
        return bool(places.names_below(folder))
    return Path(folder).is_dir() and any(Path(folder).iterdir())


def tidy(config: CleanConfig) -> None:
    """Take away the marks of what is finished; a run that was killed just then left them."""
    for name in config.sources:
        places.remove(join(text_folder(config, name), UNFINISHED))


def begin(config: CleanConfig, corpus: Corpus, fingerprint: str) -> None:
    """Mark the folders as unfinished; what another plan left there goes."""
    content = places.read_bytes(join(config.out, SUMMARY))
    before = json.loads(content)["prepared_from"]["sources"] if content is not None else {}
    for name in before.keys() - corpus.inputs.keys():
        places.remove(text_folder(config, name), recursive=True)
        places.remove(join(config.out, f"removed/{name}"), recursive=True)
    for name in corpus.inputs:
        folder = text_folder(config, name)
        begun = places.read_bytes(join(folder, UNFINISHED))
        if begun is None or begun.decode() != fingerprint:
            places.remove(join(config.out, SUMMARY))
            places.remove(folder, recursive=True)
            places.remove(join(config.out, f"removed/{name}"), recursive=True)
            places.write(join(folder, UNFINISHED), fingerprint.encode())
