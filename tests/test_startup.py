"""What a command imports before it says what is wrong: seconds of a user's time at each mistake."""

import subprocess
import sys

import pytest
from tiny_run import REPOSITORY, environment, make_corpus, settings, write_yaml

HEAVY = {"torch", "composer", "streaming", "transformers", "datasets", "matplotlib"}
REPORT = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *sorted({HEAVY!r} & set(sys.modules))))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def yaml_path(corpus, tmp_path):
    return write_yaml(tmp_path / "phase.yaml", settings(corpus, tmp_path / "run"))


def run(code, *arguments, cwd):
    """Run code with arguments; returns its status, what it printed, and the heavy imports."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=cwd,
    )
    *printed, last = done.stdout.splitlines()
    assert last.startswith("imported:"), done
    return done.returncode, "\n".join(printed) + done.stderr, set(last.split()[1:])


def tessera(*arguments, cwd):
    return run("from tessera.cli.main import main; sys.exit(main())", *arguments, cwd=cwd)


def script(path, *arguments, cwd):
    code = f"import runpy; sys.argv[0] = {str(path)!r}\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return run(code, *arguments, cwd=cwd)


@pytest.mark.parametrize("command", [["check"], ["batches"], ["evaluate", "x", "--config"]])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("batch.row=4", "did you mean 'rows'?"),
        ("optimizer.lr=-1", "optimizer.lr: must be positive"),
        ("train_data.max_seq_len=1000", "larger than row_tokens"),
    ],
)
def test_a_wrong_key_or_value_is_said_before_anything_heavy(
    yaml_path, tmp_path, command, change, says
):
    status, printed, imported = tessera(*command, yaml_path, change, cwd=tmp_path)
    assert (status, imported) == (2, set())
    assert says in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("tokenizer=./nowhere", "no such folder"),
        ("train_data.sources.web.local=nowhere", "does not exist"),
        ("start_from=nowhere.pt", "start_from: 'nowhere.pt' does not exist"),
        ("batch.rows=5", "5 rows do not divide"),
    ],
)
@pytest.mark.parametrize("by", ["tessera check", "main.py"])
def test_a_wrong_path_is_said_before_anything_heavy(yaml_path, tmp_path, by, change, says):
    if by == "main.py":
        change = change.replace("batch.rows=5", "batch.microbatch_rows=0")
        says = says.replace("5 rows do not divide", "microbatch_rows: must be at least 1")
        main = REPOSITORY / "main.py"
        status, printed, imported = script(main, yaml_path, change, cwd=tmp_path)
    else:
        arguments = [yaml_path, change, "--world-size", "2"]
        status, printed, imported = tessera("check", *arguments, cwd=tmp_path)
    assert (status, imported) == (2, set())
    assert says in printed and "Traceback" not in printed


def test_a_good_yaml_is_checked_without_anything_heavy(yaml_path, tmp_path):
    status, printed, imported = tessera("check", yaml_path, cwd=tmp_path)
    assert (status, imported) == (0, set())
    assert "real tokens" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "nowhere.pt", "--out", "x"],
        ["merge", "a.pt", "b.pt", "--out", "x.pt"],
        ["release", "nowhere", "--out", "x"],
        ["report", "nowhere"],
        ["evaluate", "nowhere", "--fill", "a [MASK]"],
        ["evaluate", "nowhere", "--suite", "mlm"],
        ["finetune", "nowhere", "--task", "nowhere.yaml/task"],
        ["import", "nowhere.pt", "--out", "y.pt"],
        ["batches", "nowhere.yaml"],
        ["check", "nowhere.yaml"],
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_what_is_not_there_is_said_before_anything_heavy(tmp_path, arguments):
    status, printed, imported = tessera(*arguments, cwd=tmp_path)
    assert (status, imported) == (2, set())
    assert "nowhere" in printed or "a.pt" in printed


@pytest.mark.parametrize("name", ["tokenize.py", "train_tokenizer.py", "harvest.py"])
def test_preparation_explains_itself_without_anything_heavy(tmp_path, name):
    status, printed, imported = script(REPOSITORY / "data_prep" / name, "--help", cwd=tmp_path)
    assert (status, imported) == (0, set())
    assert "usage" in printed


def test_attention_is_chosen_and_a_model_built_without_torchs_compiler(tmp_path):
    code = """
from tessera.model.attention.backends import survey
from tessera.model.config import ModelConfig
from tessera.model.modernbert import ModernBertForMaskedLM
survey()
ModernBertForMaskedLM(ModelConfig(vocab_size=64, hidden_size=16, num_attention_heads=2))
print("compiler:", "torch._dynamo" in sys.modules, "torch._inductor" in sys.modules)
"""
    status, printed, _ = run(code, cwd=tmp_path)
    assert status == 0, printed
    assert "compiler: False False" in printed


@pytest.mark.slow
def test_threads_of_a_training_do_not_spin_while_they_wait(tmp_path):
    """As OpenMP's own library says when it is loaded; a user's choice stays. It calls the policy
    passive without being told so, and spins 300,000 times: the count is what tells."""
    corpus = make_corpus(tmp_path / "corpus", documents=20)
    path = write_yaml(tmp_path / "r.yaml", settings(corpus, tmp_path / "run", duration="1ba"))
    command = [sys.executable, str(REPOSITORY / "main.py"), str(path)]
    for chosen, spins in (({}, "0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000")):
        env = {**environment(), "OMP_DISPLAY_ENV": "verbose", **chosen}
        folder = f"run_folder={tmp_path / spins}"
        done = subprocess.run([*command, folder], capture_output=True, text=True, env=env)
        assert done.returncode == 0 and f"GOMP_SPINCOUNT = '{spins}'" in done.stderr, done.stderr


@pytest.mark.slow
def test_pieces_for_a_gpu_are_done_once_each(tmp_path):
    script = REPOSITORY / "benchmarks" / "gpu.py"
    command = [sys.executable, str(script), "--tiny", "--out", str(tmp_path), "--only", "machine"]
    for said in ("machine: ended well", "machine: done before"):
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, said in done.stdout) == (0, True), done.stdout + done.stderr
    assert "attention backends" in (tmp_path / "summary.md").read_text()
    unknown = subprocess.run([*command, "nothing"], capture_output=True, text=True)
    assert unknown.returncode == 2 and "no piece ['nothing']" in unknown.stderr
