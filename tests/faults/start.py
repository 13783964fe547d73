"""The folder that all cases of the fuzz start from, and the commands that read it."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import preparing
import tiny_run
from reference import flexbert

from faults import texts


def tessera(*arguments: str) -> int:
    from tessera.cli.main import main

    return main(arguments)


def train(*arguments: str) -> int:
    """main.py, in this process."""
    import main

    sys.argv = ["main.py", *arguments]
    main.leave_after(lambda: main.main(*arguments))


def tokenize(*arguments: str) -> int:
    sys.argv = ["tokenize.py", *arguments]
    return preparing.script("tokenize").main()


def clean(*arguments: str) -> int:
    sys.argv = ["clean.py", *arguments]
    return preparing.script("clean").main()


def prepare(folder: Path) -> None:
    """Make everything, in the current folder, with relative paths."""
    from tessera.config import decode, to_yaml
    from tessera.data.preparation.mds_writer import write_shards
    from tessera.training.config import RunConfig

    corpus = tiny_run.make_corpus(Path("corpus"), documents=50)
    fingerprint = json.loads(Path("corpus/web/train/tessera.json").read_text())["tokenizer"]
    rng = np.random.default_rng(0)
    documents = [
        (f"d{i}", rng.integers(5, 255, int(rng.integers(3, 90))).astype(np.uint16))
        for i in range(60)
    ]
    about = {"vocab_size": 255, "tokenizer_fingerprint": fingerprint, "shard_bytes": 4096}
    for place in ("corpus/packed", "store/far"):
        for split, some in (("train", documents), ("validation", documents[:12])):
            write_shards(f"{place}/{split}", some, compression="zstd:3", **about)
    plain = tiny_run.settings(
        corpus,
        Path("run"),
        duration="2_500tok",
        evaluation={"max_tokens": 600},
        checkpoints__interval="2ba",
        checkpoints__keep=2,
    )
    plain["train_data"]["sources"] |= {
        "packed": {"local": "corpus/packed", "weight": 0.2},
        "far": {"local": "cache", "remote": "store/far", "weight": 0.2},
    }
    tiny_run.write_yaml(Path("short.yaml"), plain)
    Path("phase.yaml").write_text(to_yaml(decode(RunConfig, plain, "phase.yaml")))
    other = plain | {"run_folder": "fresh"}
    tiny_run.write_yaml(Path("fresh.yaml"), other)
    tiny_run.write_yaml(
        Path("next.yaml"),
        other | {"start_from": "run/checkpoints/latest", "schedule": {"name": "constant"}},
    )
    assert tiny_run.train(plain | {"duration": "2_500tok"}) == 0
    shutil.copytree("run", "half", symlinks=True)
    _take_back("half")
    assert tessera("export", "run", "--out", "model") == 0
    shutil.rmtree("cache")
    flexbert.save(Path("flexbert.pt"))
    preparing.make_tokenizer(Path("words/tokenizer"))
    texts.write_all(Path("texts"))
    _shipped_yamls()


def _take_back(folder: str) -> None:
    """Make of a finished run one that was killed some steps after a checkpoint."""
    checkpoints = sorted(Path(folder, "checkpoints").glob("step*.pt"))
    checkpoints[-1].unlink()
    Path(folder, "checkpoints/complete.yaml").unlink()
    Path(folder, "ended.json").unlink()
    latest = Path(folder, "checkpoints/latest")
    latest.unlink()
    latest.symlink_to(checkpoints[-2].name)


def _shipped_yamls() -> None:
    """The YAMLs as shipped, and corpora of a few documents under the names they use."""
    shutil.copytree(tiny_run.REPOSITORY / "yamls", "shipped/yamls")
    shutil.copytree(tiny_run.REPOSITORY / "data_prep" / "recipes", "shipped/recipes")
    for of, names in (
        ("pretrain", ("web", "code", "science")),
        ("demo", ("web", "code", "science")),
        ("domain", ("",)),
    ):
        for name in names:
            place = Path("shipped/data", of, name)
            shutil.copytree("corpus/web", place)
    for place in ("data/demo/tokenizer", "tokenizer"):
        shutil.copytree("corpus/tokenizer", Path("shipped", place))
