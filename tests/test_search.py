"""Searching by a vector a text and by one a token: own files, mteb's sets, training, mistakes."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from judging import (
    call,
    entries,
    gains_of,
    job,
    make_encoder,
    make_search,
    ndcg_at_10,
    put_on_hub,
    read_rows,
    use_hub,
    vectors,
    write_rows,
    write_suite,
)

from tessera.cli.main import main
from tessera.config import ConfigError, decode
from tessera.evaluation.jobs.records import task_key
from tessera.evaluation.suites import SuiteConfig, load_suite
from tessera.evaluation.tasks.inputs import tables

SCIFACT = "d56462d0e63a25450459c4f213e49ffdb866f7f9"
NFCORPUS = "ec0fa4fe99da2ff19ca1214b7966684033a58814"
POINT = {"lr": 1e-3, "weight_decay": 0.0, "epochs": 2}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture
def search(tmp_path):
    return make_search(tmp_path / "search")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return use_hub(tmp_path / "hub", monkeypatch)


def asked(search, **changes):
    own = {key: search[key] for key in ("queries", "documents", "relevance")}
    return {"name": "retrieval", **own, "training": {"batch": 20, "lr": [1e-3]}, **changes}


def on_mteb(search, prefix="", split="test"):
    """The tables of a search, as mteb's data sets have them."""
    queries, documents, relevance = (
        read_rows(search[key]) for key in ("queries", "documents", "relevance")
    )
    return {
        f"{prefix}corpus": {"corpus": [{"_id": d["id"], "title": "", **d} for d in documents]},
        f"{prefix}queries": {"queries": [{"_id": q["id"], "text": q["text"]} for q in queries]},
        f"{prefix}qrels" if prefix else "default": {
            split: [
                {"query-id": r["query"], "corpus-id": r["document"], "score": r["score"]}
                for r in relevance[:-1]
            ]
        },
    }


def without_id(tables_):
    return {
        subset: {
            split: [{k: v for k, v in row.items() if k != "id"} for row in rows]
            for split, rows in splits.items()
        }
        for subset, splits in tables_.items()
    }


def dense_ndcg(folder, search):
    queries, documents = (
        vectors(folder, [row["text"] for row in read_rows(search[key])])
        for key in ("queries", "documents")
    )
    return ndcg_at_10(queries @ documents.T, gains_of(read_rows(search["relevance"])))


# ---- one vector a token


def token_vectors(folder, texts, *, query):
    """ColBERT's vectors by transformers and torch alone: a list of (T, D), one text at a time."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    projection = Path(folder) / "1_Dense" / "model.safetensors"
    found = []
    with torch.inference_mode():
        for text in texts:
            mark = tokenizer.convert_tokens_to_ids("[Q] " if query else "[D] ")
            words = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = [tokenizer.cls_token_id, mark, *words, tokenizer.sep_token_id]
            attended = [1] * len(ids)
            if query:
                ids += [tokenizer.mask_token_id] * (32 - len(ids))
                attended += [0] * (32 - len(attended))
            hidden = model(
                input_ids=torch.tensor([ids]), attention_mask=torch.tensor([attended])
            ).last_hidden_state[0]
            if projection.is_file():
                (weight,) = load_file(projection).values()
                hidden = hidden @ weight.T
            found.append(torch.nn.functional.normalize(hidden, dim=-1).double().numpy())
    return found


def late_ndcg(folder, search):
    queries, documents = (
        token_vectors(folder, [row["text"] for row in read_rows(search[key])], query=is_query)
        for key, is_query in (("queries", True), ("documents", False))
    )
    similar = np.array([[(q @ d.T).max(1).sum() for d in documents] for q in queries])
    return ndcg_at_10(similar, gains_of(read_rows(search["relevance"])))


@pytest.mark.slow
@pytest.mark.parametrize("taught", ["nothing", "pairs", "scores of texts", "scores of ids"])
def test_late_interaction_is_the_sum_of_best_matches(encoder, tmp_path, search, taught):
    pytest.importorskip("mteb")
    from tessera.evaluation.tasks import late_interaction

    plain = asked(search, name="late_interaction", max_tokens=32, dimensions=16, candidates=4)
    queries, documents = (read_rows(search[key]) for key in ("queries", "documents"))
    draw = random.Random(3)
    if taught == "pairs":
        plain["train"] = search["train"]
    elif taught != "nothing":
        plain["training"]["batch"] = 8
        plain["minibatch"] = 12  # its divisor of a batch is what is done at a time
        rows = []
        for number, query in enumerate(queries):
            others = draw.sample([d for d in documents if d["id"] != f"d{number}"], 4)
            near = [documents[number], *others]
            of_ids = taught == "scores of ids"
            listed = {
                "document_ids" if of_ids else "documents": [
                    d["id" if of_ids else "text"] for d in near
                ],
                "scores": [0.9, 0.1, 0.0, 0.2, 0.1],
            }
            key = "query_id" if of_ids else "query"
            rows.append({key: query["id" if of_ids else "text"], **listed})
        plain["train"] = str(write_rows(tmp_path / "taught.jsonl", rows))
        if taught == "scores of ids":
            plain |= {"train_queries": search["queries"], "train_documents": search["documents"]}
    point = {"lr": 3e-3, "weight_decay": 0.0, "epochs": 1}
    outcome = late_interaction.run(
        job(encoder, plain, point=point), "cpu", tmp_path, tmp_path / "kept"
    )
    expected = late_ndcg(tmp_path / "kept", search)
    assert outcome.scores["ndcg_at_10"] == pytest.approx(expected, abs=2e-4)
    untrained = any("the tokens' vectors are the model's own" in note for note in outcome.notes)
    assert untrained == (taught == "nothing")
    assert 0.2 < expected < 1
    if taught != "nothing":
        weights = tmp_path / "kept" / "model.safetensors"
        assert weights.read_bytes() != (encoder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_teachers_scores_are_learned_as_pylate_does():
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    from tessera.evaluation.tasks.late_interaction import scaled_scores

    torch.manual_seed(0)
    queries, documents = torch.randn(2, 5, 4), torch.randn(2, 3, 6, 4)
    counts = torch.arange(6)[None, None] < torch.tensor([[6, 2, 4], [1, 6, 3]])[:, :, None]
    found = scaled_scores(queries, documents, documents_mask=counts)
    for q in range(2):
        raw = []
        for n in range(3):
            kept = documents[q, n][counts[q, n]]
            raw.append(sum(max(float(a @ b) for b in kept) for a in queries[q]))
        low, high = min(raw), max(raw)
        for n in range(3):
            assert float(found[q, n]) == pytest.approx((raw[n] - low) / (high - low), abs=1e-5)


# ---- mteb's sets


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retrieval", "late_interaction"])
def test_sets_of_mteb_are_read_out_of_the_hubs_cache(encoder, tmp_path, hub, kind):
    pytest.importorskip("mteb")
    from tessera.evaluation.tasks import benchmarks, late_interaction, retrieval

    runner = {"retrieval": retrieval, "late_interaction": late_interaction}[kind]
    judge_by = {"retrieval": dense_ndcg, "late_interaction": late_ndcg}[kind]
    sets = [make_search(tmp_path / str(seed), seed=seed) for seed in (4, 5)]
    put_on_hub(hub, "mteb/scifact", without_id(on_mteb(sets[0])), SCIFACT)
    put_on_hub(hub, "mteb/nfcorpus", without_id(on_mteb(sets[1])), NFCORPUS)
    assert benchmarks.look_at("SciFact") == SCIFACT
    asks = {"name": kind, "mteb": ["SciFact", "NFCorpus"], "validation_mteb": ["NFCorpus"]}
    outcome = runner.run(job(encoder, asks, point={}), "cpu", tmp_path, tmp_path / "kept")
    expected = [judge_by(tmp_path / "kept", one) for one in sets]
    assert expected[0] != expected[1]
    assert outcome.scores["ndcg_at_10"] == pytest.approx(np.mean(expected), abs=2e-4)
    assert outcome.validation["ndcg_at_10"] == pytest.approx(expected[1], abs=2e-4)
    (table,) = outcome.tables
    assert table.columns[:2] == ["set", "nDCG@10"]
    assert {row[0]: row[1] for row in table.rows} == pytest.approx(
        {"SciFact": expected[0], "NFCorpus": expected[1]}, abs=2e-4
    )


@pytest.mark.slow
def test_subsets_splits_and_training_by_ids(encoder, tmp_path, hub):
    """CodeSearchNet of CoIR as the suite asks it, and one language and split of MLDR."""
    pytest.importorskip("mteb")
    from tessera.evaluation.tasks import retrieval

    suite = load_suite("code")
    task = suite.tasks["codesearchnet"]
    languages = ("python", "javascript", "go", "ruby", "java", "php")
    content, sets = {}, {}
    for number, language in enumerate(languages):
        sets[language] = make_search(tmp_path / language, seed=number, count=12)
        made = without_id(on_mteb(sets[language], f"{language}-"))
        for subset in made.values():
            for rows in subset.values():
                for row in rows:
                    for key in {"_id", "query-id", "corpus-id"} & set(row):
                        row[key] = f"{language}-{row[key]}"
        for row in made[f"{language}-queries"]["queries"]:
            row["partition"] = "test"
        made[f"{language}-qrels"]["train"] = made[f"{language}-qrels"]["test"][:8]
        content |= made
    (revision,) = {part.split("@")[1].split("/")[0] for part in task.train.split("hf://")[1:]}
    put_on_hub(hub, "CoIR-Retrieval/CodeSearchNet", content, revision)
    asks = {
        "name": "retrieval",
        **{key: getattr(task, key) for key in ("train", "train_queries", "train_documents")},
        "mteb": task.mteb,
        "training": {"batch": 16, "lr": [1e-3]},
    }
    outcome = retrieval.run(job(encoder, asks, point=POINT), "cpu", tmp_path, tmp_path / "kept")
    kept = tmp_path / "kept"
    each = []
    for one in sets.values():
        queries, documents = (
            vectors(kept, [row["text"] for row in read_rows(one[key])])
            for key in ("queries", "documents")
        )
        gains = gains_of(read_rows(one["relevance"]), 12)
        each.append(ndcg_at_10(queries @ documents.T, gains))
    assert outcome.scores["ndcg_at_10"] == pytest.approx(np.mean(each), abs=1e-3)
    pairs = retrieval.open_pairs(job(encoder, asks).task, [])
    assert len(pairs) == 6 * 8 and set(pairs.column_names) == {"anchor", "positive"}
    first = (
        read_rows(sets["python"]["queries"])[0]["text"],
        read_rows(sets["python"]["documents"])[0],
    )
    assert pairs[0] == {"anchor": first[0], "positive": first[1]["text"]}
    long = make_search(tmp_path / "long", seed=9)
    made = without_id(on_mteb(long, "en-", "dev"))
    put_on_hub(hub, "mteb/MultiLongDocRetrieval", made, "837028901907a7d419b4ab906f28e011ce1cc824")
    asks = {"name": "retrieval", "mteb": ["MultiLongDocRetrieval/en:dev"], "max_tokens": 8192}
    outcome = retrieval.run(job(encoder, asks, point={}), "cpu", tmp_path, None)
    assert outcome.scores["ndcg_at_10"] == pytest.approx(dense_ndcg(encoder, long), abs=2e-4)
    assert any("texts are cut at 128 tokens, where the model ends" in n for n in outcome.notes)


@pytest.mark.slow
def test_what_mteb_has_not_and_what_is_not_here_is_said(hub, tmp_path):
    pytest.importorskip("mteb")
    from tessera.evaluation.tasks import benchmarks

    says = {
        "SciFac": "there is no such task: 'SciFac' not found. Did you mean: 'SciFact'?",
        "SciFact": f"hf download mteb/scifact --repo-type dataset --revision {SCIFACT}",
        "CQADupstackRetrieval": "hf download mteb/CQADupstackAndroidRetrieval --repo-type dataset",
        "STS12": "'STS12' is no retrieval, but STS",
        "SciFact:dev": "has no split 'dev'; it has test",
        "MultiLongDocRetrieval/eng": "its subsets are ar, de, en",
        "a/b/c": "is written NAME, NAME/SUBSET",
    }
    for named, said in says.items():
        with pytest.raises(ValueError) as raised:
            benchmarks.look_at(named)
        assert said in str(raised.value)
    half = without_id(on_mteb(make_search(tmp_path / "half")))
    snapshot = put_on_hub(hub, "mteb/scifact", half, SCIFACT)
    shutil.rmtree(snapshot / "corpus")
    with pytest.raises(ValueError, match="mteb SciFact: .* cannot be read"):
        benchmarks._loaded(benchmarks._mteb("SciFact"))


# ---- what is trained on


def test_negatives_and_rows_of_a_hubs_table(hub, tmp_path):
    from tessera.evaluation.tasks import retrieval

    rows = [{"anchor": f"a{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(50)]
    put_on_hub(hub, "some/pairs", {"triplet": {"train": rows}}, "r1")
    where = "hf://datasets/some/pairs/triplet/train"
    plain = {"name": "retrieval", "train": where, "train_rows": 20, "mteb": ["SciFact"]}
    plain["training"] = {"lr": [1e-3]}
    task = job("m", plain).task
    pairs = retrieval.open_pairs(task, [])
    assert pairs.column_names == ["anchor", "positive", "negative"] and len(pairs) == 20
    drawn = pairs["anchor"]
    assert len(set(drawn)) == 20 and list(drawn) != [f"a{i}" for i in range(20)]
    assert list(retrieval.open_pairs(task, [])["anchor"]) == list(drawn)
    file = write_rows(tmp_path / "some.jsonl", [*rows, {"anchor": "a", "positive": "p"}])
    notes = []
    pairs = retrieval.open_pairs(job("m", {**plain, "train": str(file)}).task, notes)
    assert pairs.column_names == ["anchor", "positive"]
    assert notes == [f"{file}: column 'negative' is not used, 1 of its rows are empty"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"query": "a", "text": "b"}], "has neither 'scores' of documents nor 'positive'"),
        ([{"query": "a", "documents": ["b"], "scores": [1, 2]}], "1 documents, but 2 scores"),
        ([{"query": "a", "documents": ["b"], "scores": [1]}], "fewer than candidates (4)"),
        ([{"query": "a", "documents": ["b"]}], "has no column 'scores'"),
        ([{"query": "a", "documents": 3, "scores": 1}], "column 'documents' holds no lists"),
    ],
)
def test_scores_that_cannot_be_learned_are_named(tmp_path, rows, says):
    from tessera.evaluation.tasks import late_interaction

    file = str(write_rows(tmp_path / "t.jsonl", rows))
    plain = {"name": "late_interaction", "mteb": ["SciFact"], "train": file, "candidates": 4}
    task = job("m", {**plain, "training": {"lr": [1e-3]}}).task
    with pytest.raises(ValueError) as raised:
        late_interaction._is_taught(task)
        late_interaction._taught(task)
    assert says in str(raised.value) and file in str(raised.value)


@pytest.mark.slow
def test_ids_that_training_names_must_be_there_once(tmp_path):
    pytest.importorskip("sentence_transformers")
    from tessera.evaluation.tasks import late_interaction, retrieval

    made = make_search(tmp_path)
    texts = {"train_queries": made["queries"], "train_documents": made["documents"]}
    plain = {"name": "retrieval", "mteb": ["SciFact"], "training": {"lr": [1e-3]}, **texts}
    with pytest.raises(ValueError, match="'nobody'.* was not found"):
        retrieval.open_pairs(job("m", {**plain, "train": made["relevance"]}).task, [])
    taught = [{"query_id": "q0", "document_ids": ["d0", "nothing"], "scores": [1, 0]}]
    file = str(write_rows(tmp_path / "taught.jsonl", taught))
    late = {**plain, "name": "late_interaction", "train": file, "candidates": 2}
    with pytest.raises(ValueError, match="'nothing'.* was not found"):
        late_interaction._taught(job("m", late).task)
    twice = write_rows(tmp_path / "twice.jsonl", [{"id": "q0", "text": "a"}] * 2)
    plain["train_queries"] = str(twice)
    with pytest.raises(ValueError, match="2 rows, but only 1 different ids"):
        retrieval.open_pairs(job("m", {**plain, "train": made["relevance"]}).task, [])


# ---- one's own files


def test_columns_go_by_the_names_that_others_give_them(tmp_path):
    from tessera.evaluation.tasks import benchmarks

    write_rows(tmp_path / "queries.jsonl", [{"_id": "1", "text": "q"}])
    write_rows(tmp_path / "corpus.jsonl", [{"_id": "a", "title": "t", "text": "x"}])
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n1\ta2\t0\n")
    where = {"queries": "queries.jsonl", "documents": "corpus.jsonl", "relevance": "qrels.tsv"}
    notes = []
    found = benchmarks._read({key: str(tmp_path / name) for key, name in where.items()}, notes)
    assert found == (
        [{"id": "1", "text": "q"}],
        [{"id": "a", "title": "t", "text": "x"}],
        {"1": {"a": 1}},
    )
    assert len(notes) == 1 and "1 lines name queries or documents that are not there" in notes[0]
    assert "the first 'a2'" in notes[0]


@pytest.mark.parametrize(
    ("file", "rows", "says"),
    [
        ("relevance", [{"query": "q0", "document": "d0", "score": 0.5}], "has the score 0.5"),
        ("relevance", [{"query": "q0", "document": "d0", "score": "high"}], "has the score 'high'"),
        ("relevance", [{"query": "q", "document": "d"}], "names no query and document that are"),
        ("relevance", [{"query": "q0", "doc": "d0"}], "has no column 'document'; row 0 has query"),
        ("documents", [{"id": "d0", "text": "a"}] * 3, "3 rows have the id 'd0'"),
        ("queries", [{"text": "a"}], "has no column 'id'"),
    ],
)
def test_own_files_that_cannot_be_searched_are_named(search, file, rows, says):
    from tessera.evaluation.tasks import benchmarks

    write_rows(Path(search[file]), rows)
    with pytest.raises(ValueError) as raised:
        benchmarks._read(search, [])
    assert says in str(raised.value) and search[file] in str(raised.value)


# ---- suites


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"queries": "a"}, "tasks.t.documents: missing, and required beside the others"),
        ({}, "tasks.t.queries: missing; name queries, documents and relevance, or mteb"),
        ({"mteb": ["A"], "train": "x"}, "tasks.t.validation: missing, and required to choose"),
        ({"mteb": ["A"], "train_queries": "x"}, "tasks.t.train: needs both"),
        ({"mteb": ["A"], "start": "u"}, "tasks.t.start: there is no task 'u'"),
        ({"mteb": ["A"], "start": "other"}, "'other' trains no model for retrieval"),
        ({"mteb": ["A"], "train_rows": 0}, "tasks.t.train_rows: must be at least 1"),
        ({"mteb": ["A"], "name": "late_interaction", "candidates": 1}, "candidates: must be at"),
        ({"mteb": ["A"], "dimensions": 8}, "unknown 'dimensions'"),
    ],
)
def test_a_wrong_key_of_a_search_is_named(tmp_path, task, says):
    other = {"name": "retrieval", "mteb": ["A"]}
    with pytest.raises(ConfigError) as raised:
        decode(SuiteConfig, {"tasks": {"t": {"name": "retrieval", **task}, "other": other}}, "x")
    assert says in str(raised.value)


def test_records_of_before_the_keys_of_mteb_stay_valid():
    plain = {"name": "retrieval", "queries": "q", "documents": "d", "relevance": "r", "train": "t"}
    plain["training"] = {"lr": [1e-3]}
    before = "f155c184e99f"  # what the version before computed
    assert task_key(job("m", plain).task, "in") == before
    assert task_key(job("m", {**plain, "train_rows": 3}).task, "in") != before


def test_retrieval_is_asked_as_published():
    suites = {name: load_suite(name) for name in ("retrieval", "late-interaction", "mldr")}
    for name in ("retrieval", "late-interaction"):
        tasks = dict(suites[name].tasks)
        trained = tasks.pop("msmarco")
        assert trained.validation_mteb == ["SciFact", "NFCorpus", "FiQA2018", "TRECCOVID"]
        assert 8e-5 in trained.training.lr and trained.training.epochs == [1]
        assert trained.training.warmup == 0.05
        assert len(tasks) == 15 and {task.start for task in tasks.values()} == {"msmarco"}
        assert all(task.train is None for task in tasks.values())
    dense, late = (suites[n].tasks["msmarco"] for n in ("retrieval", "late-interaction"))
    assert (dense.training.batch, dense.train_rows) == (512, 1_250_000)
    assert (late.training.batch, late.candidates, late.query_tokens) == (16, 32, 32)
    assert suites["mldr"].tasks["msmarco"] == dense, "trained once for both"
    assert suites["mldr"].tasks["msmarco-multi"] == late
    assert all(task.max_tokens == 8192 for n, task in suites["mldr"].tasks.items() if "mldr" in n)


@pytest.mark.slow
def test_sets_of_retrieval_are_beirs():
    mteb = pytest.importorskip("mteb")
    published = {task.metadata.name for task in mteb.get_benchmark("BEIR").tasks}
    for name in ("retrieval", "late-interaction"):
        asked_ = [named for task in load_suite(name).tasks.values() for named in task.mteb]
        assert set(asked_) == published and len(asked_) == 15


def test_superglue_reads_what_the_hub_converts(hub):
    revision = "refs/convert/parquet"
    rows = [
        {"paragraph": "p", "question": "q?", "answer": f"a{i}", "label": i % 2} for i in range(4)
    ]
    snapshot = put_on_hub(
        hub, "aps/super_glue", {"multirc": {"train": rows, "validation": rows}}, "c0ffee", revision
    )
    (snapshot / "README.md").unlink()
    for split in ("train", "validation"):
        (file,) = (snapshot / "multirc").glob(f"{split}-*")
        (snapshot / "multirc" / split).mkdir()
        file.rename(snapshot / "multirc" / split / "0000.parquet")
        (snapshot / "multirc" / split / "index.duckdb").write_bytes(b"no rows")
    task = load_suite("superglue").tasks["multirc"]
    from tessera.evaluation.tasks.config import texts_of

    assert texts_of(task) == ["paragraph", "question", "answer", "label"]
    assert tables.look_at(task.train, texts_of(task)) == "c0ffee"
    read = tables.read_split(task.train, texts_of(task))
    assert [row["answer"] for row in read] == ["a0", "a1", "a2", "a3"]
    with pytest.raises(ValueError, match=f"--repo-type dataset --revision {revision}"):
        tables.look_at(task.train.replace("aps/", "nobody/"), [])


@pytest.mark.slow
def test_a_suite_trains_once_and_says_of_each_set_what_is_missing(encoder, tmp_path):
    """The suites' way in small: MS MARCO-like training, a rate chosen on a set, others from it."""
    pytest.importorskip("mteb")
    hub = tmp_path / "hub"
    own = make_search(tmp_path / "own")
    chooses = make_search(tmp_path / "chooses", seed=7)
    put_on_hub(hub, "mteb/scifact", without_id(on_mteb(chooses)), SCIFACT)
    pairs = [{**row, "negative": "w1 w2"} for row in read_rows(own["train"])]
    put_on_hub(hub, "some/pairs", {"triplet": {"train": pairs}}, "r1")
    where = "hf://datasets/some/pairs/triplet/train"
    base = {"name": "retrieval", "train": where, "validation_mteb": ["SciFact"], "max_tokens": 32}
    base["training"] = {"lr": [1e-7, 1e-3], "epochs": [2], "batch": 20}
    three = {key: own[key] for key in ("queries", "documents", "relevance")}
    tasks = {
        "trained": base,
        "own": {"name": "retrieval", "start": "trained", **three, "max_tokens": 32},
        "absent": {"name": "retrieval", "start": "trained", "mteb": ["NFCorpus"]},
        "late": {**base, "name": "late_interaction", "dimensions": 16},
        "own-late": {"name": "late_interaction", "start": "late", **three, "max_tokens": 32},
        "column": {**base, "train": own["queries"]},
    }
    bare = shutil.copytree(encoder, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    write_suite(tmp_path / "s.yaml", tasks, [1])
    status, said = call(
        *("evaluate", f"m={encoder}", "bare", "--suite", "s.yaml", "--device", "cpu"),
        cwd=tmp_path,
        HF_HUB_CACHE=str(hub),
        HF_DATASETS_CACHE=str(tmp_path / "datasets"),
    )
    assert status == 2 and "Traceback" not in said, said
    found = entries(tmp_path / "results")
    assert (
        f"hf download mteb/nfcorpus --repo-type dataset --revision {NFCORPUS}"
        in (found["m", "absent"]["message"])
    )
    assert "has no column 'query'" in found["m", "column"]["message"]
    assert all("holds no tokenizer" in found["bare", n]["message"] for n in ("trained", "late"))
    for trained, asks, judge_by in (
        ("trained", "own", dense_ndcg),
        ("late", "own-late", late_ndcg),
    ):
        entry = found["m", trained]
        assert entry["state"] == "done" and entry["split"] == "validation", entry
        assert entry["points_tried"] == 2
        record = json.loads(
            (tmp_path / "results" / found["m", asks]["runs"][0]["record"]).read_text()
        )
        kept = tmp_path / "results" / "trained" / record["start"]
        assert found["m", asks]["mean"] == pytest.approx(judge_by(kept, own), abs=1e-3)
    page = (tmp_path / "results" / "index.html").read_text()
    assert "ndcg at 10" in page and "hf download mteb/nfcorpus" in page


def test_the_suites_there_are_are_named(encoder, capsys):
    assert main(["evaluate", str(encoder), "--suite", "retrievals"]) == 2
    said = capsys.readouterr().err
    assert "there is no such suite" in said
    for name in ("retrieval", "late-interaction", "mldr", "code", "superglue"):
        assert name in said
