import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from support.tools import (
    MEAN_COLOR,
    ROOT,
    clean_environment,
    leftovers,
    make_image,
    make_shard,
    make_tar,
    run_cli,
    start_python,
)  # fmt: skip

from embedders.cli import main
from embedders.output.footers import describe_file
from embedders.output.parquet import read_ledger


@pytest.fixture
def shard(tmp_path):
    return make_shard(tmp_path / "s.tar", 3)


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    # A run on the CPU hides the GPUs from its own process, which here is pytest's.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))


def embed(shard, output, *options, embedder=MEAN_COLOR):
    arguments = ["embed", str(shard), str(output), "--embedder", embedder, "--device", "cpu", *map(str, options)]
    return CliRunner().invoke(main, arguments)


def test_a_shard_is_embedded_by_a_process_and_the_log_says_on_what(tmp_path, shard):
    options = {
        **{"--embedder": MEAN_COLOR, "--ledger": tmp_path / "l.parquet", "--id-col": "id", "--threads": 1},
        **{"--metadata-columns": '{"number": "int64"}', "--embedding-dtype": "float16", "--device": "cpu"},
    }
    job = run_cli("embed", shard, tmp_path / "o.parquet", *(part for pair in options.items() for part in pair))
    assert job.returncode == 0, job.stderr
    assert job.stdout == ""
    assert "computing on the CPU (as asked)" in job.stderr
    assert "3 samples, 3 embedded, 0 failed" in job.stderr
    table = pq.read_table(tmp_path / "o.parquet")
    assert table.column_names == ["shard", "key", "id", "number", "image_embedding"]
    assert read_ledger(str(tmp_path / "l.parquet")) == []


def test_the_options_reach_the_job(tmp_path, shard):
    result = embed(shard, tmp_path / "o.parquet", "--metadata-columns", '"all"', "--threads", 2)
    assert result.exit_code == 0, result.output
    assert pq.read_schema(tmp_path / "o.parquet").names == ["shard", "key", "metadata", "image_embedding"]
    broken = make_tar(tmp_path / "b.tar", {"1.jpg": make_image(), "2.jpg": b"broken"})
    assert embed(broken, tmp_path / "b.parquet").exit_code == 1
    assert embed(broken, tmp_path / "b.parquet", "--max-failed-fraction", 0.5).exit_code == 0
    made_with = describe_file(str(tmp_path / "b.parquet")).provenance.embedder
    assert (made_with.class_path, made_with.args) == (MEAN_COLOR, {})


# Bad input: one clear line, exit code 1 (2 for the command line itself), and nothing left behind.

TIMM = "embedders:TimmImageEmbedder"
BAD = {
    "missing shard": (["none.tar"], "'none.tar': no such shard; expected a .tar file; check the path"),
    "no class path": (["--embedder", "Mine"], "embedder class 'Mine': expected \"package.module:Class\""),
    "missing file": (["--embedder", "none.py:Mine"], "there is no file 'none.py'"),
    "missing module": (["--embedder", "none:Mine"], "ModuleNotFoundError: No module named 'none'"),
    "no embedder": (["--embedder", "json:JSONDecoder"], "is not an ImageEmbedder"),
    "wrong args": (["--embedder-args", '{"sise": 1}'], "unexpected keyword argument 'sise'"),
    "args that are no object": (["--embedder-args", "[1]"], "embedder args [1]: expected an object"),
    "unknown model": (["--embedder", TIMM, "--embedder-args", '{"model_name": "resnet81"}'], "near names: resnet18"),
    "missing weights": (
        ["--embedder", TIMM, "--embedder-args", '{"model_name": "resnet18", "checkpoint_path": "none.pt"}'],
        "checkpoint_path 'none.pt': there is no such file",
    ),
    "missing id": (["--id-col", "url"], "as '00000': has no 'url' (id_col)"),
    "wrong columns": (["--metadata-columns", "5"], "metadata_columns: 5; expected a list"),
    "wrong type of a value": (["--metadata-columns", '{"id": "int64"}'], "id is 'img-0'; expected int64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_exit_code_1(tmp_path, shard, case):
    options, reason = BAD[case]
    if not options[0].startswith("-"):
        shard, options = options[0], options[1:]
    result = embed(shard, tmp_path / "out" / "o.parquet", *options)
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert reason in errors[0]
    assert result.stderr.endswith(errors[0] + "\n")
    assert leftovers(tmp_path) == ["s.tar"]


@pytest.mark.parametrize("code", ["0", "'no licence'"])
@pytest.mark.parametrize("place", ["__init__", "preprocess", "load_embedding_model"])
def test_a_class_that_ends_the_process_is_an_error_with_the_line(tmp_path, shard, place, code):
    (tmp_path / "ends.py").write_text(
        "import sys\nfrom mean_color import MeanColor\nclass Ends(MeanColor):\n"
        f"    def {place}(self, *arguments):\n        sys.exit({code})\n"
    )
    result = embed(shard, tmp_path / "o.parquet", embedder=f"{tmp_path}/ends.py:Ends")
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith(
        f"error: SystemExit: {code.strip(chr(39))} (ends.py, line 5): the code of the class ended"
    )
    assert leftovers(tmp_path) == ["ends.py", "s.tar"]


@pytest.mark.parametrize("place", ["__init__", "load_embedding_model"])
def test_a_class_that_changes_the_working_folder_is_refused(tmp_path, shard, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moves.py").write_text(
        "import os\nfrom mean_color import MeanColor\nclass Moves(MeanColor):\n"
        f"    def {place}(self, *arguments):\n        os.chdir('/')\n        return super().{place}(*arguments)\n"
    )
    for options in (["embed", shard, "o.parquet", "--embedder", "moves.py:Moves"],
                    ["check", "moves.py:Moves", "--shard", "s.tar"]):  # fmt: skip
        result = CliRunner().invoke(main, [*options, "--device", "cpu"])
        assert result.exit_code == 1
        assert "changes the working folder to '/'; expected" in result.output
        assert os.getcwd() == str(tmp_path)
    assert leftovers(tmp_path) == ["moves.py", "s.tar"]


def test_the_workers_of_a_class_end_without_a_word(tmp_path, shard):
    (tmp_path / "forks.py").write_text(
        "import multiprocessing\nfrom mean_color import MeanColor\nclass Forks(MeanColor):\n"
        "    def load_embedding_model(self, device):\n"
        "        with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "            pool.map(abs, [1, 2])\n"
        "        return super().load_embedding_model(device)\n"
    )
    options = ("--embedder", f"{tmp_path}/forks.py:Forks", "--device", "cpu")
    job = run_cli("embed", shard, tmp_path / "o.parquet", *options)
    assert job.returncode == 0, job.stderr
    assert "KeyboardInterrupt" not in job.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--embedder-args", "{model"], "'{model' is not JSON"),
        (["--metadata-columns", "all"], "'all' is not JSON"),
        (["--device", "cuda"], "'cuda' is not one of"),
        (["--embedding-dtype", "float64"], "'float64' is not one of"),
        (["--max-failed-fraction", "2"], "not in the range 0<=x<=1"),
        (["--threads", "0"], "not in the range x>=1"),
        (["--typo", "1"], "No such option '--typo'"),
    ],
)
def test_a_bad_option_is_named_with_exit_code_2(tmp_path, shard, options, reason):
    result = embed(shard, tmp_path / "o.parquet", *options)
    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.split())


def test_a_pattern_that_the_shell_has_expanded_is_told_to_be_quoted(tmp_path, shard):
    others = [make_tar(tmp_path / name, {"1.jpg": make_image()}) for name in ("t.tar", "u.tar")]
    result = CliRunner().invoke(main, ["check", MEAN_COLOR, "--shard", str(shard), *others])
    assert result.exit_code == 1
    assert "but 2 more words follow, such as '" in result.stderr
    assert "quote a pattern, so that the shell does not expand it: --shard 'data/*.tar'" in result.stderr


def test_an_output_folder_that_cannot_be_written_is_one_line(tmp_path, shard):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "o.parquet", "/proc/o.parquet"):
        result = embed(shard, place)
        assert result.exit_code == 1
        assert "cannot be written" in result.stderr.splitlines()[-1]


def test_a_gpu_that_is_not_there_is_an_error_and_never_the_cpu(tmp_path, shard):
    job = run_cli("embed", shard, tmp_path / "o.parquet", "--embedder", MEAN_COLOR, "--device", "gpu")
    if job.returncode == 0:
        pytest.skip("there is a GPU here")
    assert job.returncode == 1
    assert job.stderr.splitlines()[-1].startswith("error: ")
    assert leftovers(tmp_path) == ["s.tar"]


# A person at a terminal.


def test_the_near_name_is_suggested():
    for arguments, near in ((["chek"], "'check'"), (["check", "a:B", "--shrad", "s.tar"], "'--shard'")):
        job = run_cli(*arguments)
        assert job.returncode == 2
        assert f"Did you mean {near}?" in job.stderr


@pytest.mark.parametrize("command", sorted(main.commands))
def test_the_help_of_every_command_has_an_example_that_its_options_accept(command):
    text = " ".join(CliRunner().invoke(main, [command, "--help"], terminal_width=400).stdout.split())
    example = re.search(rf"Example: tarquet ({command} .*?) Options:", text).group(1)
    main.commands[command].make_context(command, shlex.split(example)[1:])
    assert "\\b" not in text  # click's mark for a paragraph, which a raw docstring would show


def test_bash_completes_commands_options_and_files(tmp_path):
    (tmp_path / "tarquet").write_text(f"#!{sys.executable}\nfrom embedders.cli import main\nmain()\n")
    (tmp_path / "tarquet").chmod(0o755)
    script = """
    eval "$(_TARQUET_COMPLETE=bash_source tarquet)"
    for words in "tarquet ver" "tarquet check --sha" "tarquet check a:B --device g"; do
        COMP_WORDS=($words) COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
        _tarquet_completion tarquet
        echo "${COMPREPLY[@]}"
    done
    complete -p tarquet
    """
    environment = clean_environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[:3] == ["verify", "--shard", "gpu"], done
    assert "complete" in done.stdout.splitlines()[3]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"tarquet": "embedders.cli:main"}


# Light to start.

WITHOUT_TORCH = """
import sys
from embedders.cli import main
try:
    main(sys.argv[1:], standalone_mode=True)
finally:
    heavy = {"torch", "torchvision", "timm", "pyarrow", "numpy", "PIL"} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["embed", "--help"],
        ["embed", "none.tar", "o.parquet", "--embedder", "a:B"],
        ["embed", "README.md", "o.parquet", "--embedder", "B"],
        ["embed", "README.md", "o.parquet", "--embedder", "none.py:B"],
        ["embed", "README.md", "o.parquet", "--embedder", "a:B", "--embedder-args", "[]"],
        ["embed", "README.md", "o.parquet", "--embedder", "a:B", "--embedder-args", "{"],
        ["embed", "README.md", "/proc/o.parquet", "--embedder", "a:B"],
    ],
)
def test_help_and_bad_arguments_answer_without_loading_torch(arguments):
    _, errors = start_python(WITHOUT_TORCH, *arguments).communicate(timeout=30)
    assert "heavy: []" in errors
    assert "Traceback" not in errors


def test_the_module_can_be_run_and_knows_its_version():
    job = run_cli("--version")
    assert (job.returncode, job.stdout.strip().split()[0]) == (0, "tarquet,")
    assert "[OPTIONS]" in run_cli("embed", "-h").stdout


@pytest.mark.slow
def test_the_package_offers_its_names_without_loading_torch():
    code = (
        "import sys, embedders; assert 'torch' not in sys.modules;"
        "from embedders import ImageEmbedder, TimmImageEmbedder, embed_shard; print(sorted(embedders.__all__))"
    )
    output, errors = start_python(code).communicate(timeout=30)
    assert json.loads(output.replace("'", '"')) == [
        *("AestheticClassifier", "HuggingFaceImageEmbedder", "ImageClassifier", "ImageEmbedder", "NsfwClassifier"),
        *("OpenClipImageEmbedder", "SeveralEmbedders", "TarSamples", "TimmImageEmbedder", "embed_shard"),
    ], errors
