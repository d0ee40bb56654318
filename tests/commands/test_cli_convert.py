"""``dqconvert convert``: from every input to a file that loads, and every mistake to one line and no file."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GIN
from typer.testing import CliRunner

import dqconvert
from dqconvert import CommandError
from dqconvert.cli import app

KWARGS = {"in_channels": 6, "hidden_channels": 8, "num_layers": 2, "out_channels": 4}
FACTORY = ["--model", "torch_geometric.nn:GIN", "--kwargs", json.dumps(KWARGS)]


def gin():
    return GIN(**KWARGS)


def graph(nodes=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes, (2, 3 * nodes), generator=generator)
    return torch.randn(nodes, 6, generator=generator), edge_index


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of one's own, with the checkpoint of a GIN in it."""
    monkeypatch.chdir(tmp_path)
    torch.save(gin().state_dict(), "gin.pt")
    return tmp_path


def dq(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="dqconvert")


def converted(*args, checkpoint="gin.pt", factory=FACTORY):
    """Runs convert, which must succeed, and loads what it wrote."""
    result = dq("convert", checkpoint, *factory, "-o", "out.dq", *args)
    assert result.exit_code == 0, result.output
    return dqconvert.load("out.dq", model=gin())


def refused(*args, checkpoint="gin.pt", factory=FACTORY, out="out.dq", code=1):
    """Runs convert, which must fail in one line and change no file; returns the line."""
    before = {path: os.path.getmtime(path) for path in os.listdir()}
    result = dq("convert", checkpoint, *factory, "-o", out, *args)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert {path: os.path.getmtime(path) for path in os.listdir() if path != "__pycache__"} == before
    [line] = result.stderr.splitlines()
    return line


# -- what it makes -------------------------------------------------------------------------------------------------


def test_the_result_trains_and_keeps_the_weights():
    module = converted()
    state = torch.load("gin.pt")
    assert all(torch.equal(module.state_dict()[name], value) for name, value in state.items())
    module.train()(*graph()).sum().backward()
    assert module.eval()(*graph()).shape == (9, 4)


def test_it_says_what_it_did():
    result = dq("convert", "gin.pt", *FACTORY, "-o", "out.dq")
    assert result.stdout.splitlines()[0] == "gin.pt: the weights of a GIN"
    assert "int8-dq: 18 quantizers (4 weight, 4 input, 4 feature, 2 message, 2 aggregate, 2 update)" in result.stdout
    assert "not calibrated: train it before evaluating it, or pass --calibrate" in result.stdout
    assert dq("convert", "gin.pt", *FACTORY, "-o", "out.dq", "--force", "--quiet").output == ""


def test_json_is_the_same_for_scripts():
    result = dq("convert", "gin.pt", *FACTORY, "-o", "out.dq", "--json")
    found = json.loads(result.stdout)
    assert found["quantizers"] == 18
    assert found["bytes"] == os.path.getsize("out.dq")
    assert list(found) == [
        *("checkpoint", "found", "model", "qconfig", "rules", "quantizers", "totals", "left_float", "remarks"),
        *("calibrated", "unobserved", "out", "bytes", "description_bytes", "float_bytes", "agreement", "advice"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.safetensors", None, []),
        ("a.ckpt", lambda: {"state_dict": {f"net.{k}": v for k, v in gin().state_dict().items()}, "epoch": 1}, []),
        ("a.pt", lambda: {"ema": {f"module.{k}": v for k, v in gin().state_dict().items()}}, ["--key", "ema"]),
    ],
)
def test_other_forms_of_checkpoints(name, content, options):
    if content is None:
        safetensors.torch.save_file(gin().state_dict(), name)
    else:
        torch.save(content(), name)
    converted(*options, checkpoint=name)


def test_a_pickled_module_needs_no_factory():
    torch.save(gin(), "module.pt")
    converted("--trust-pickle", checkpoint="module.pt", factory=[])


def test_the_factory_may_be_in_the_working_directory():
    with open("my_gnn.py", "w") as file:
        file.write("from torch_geometric.nn import GIN\nclass Zoo:\n    @staticmethod\n    def small(width):\n")
        file.write("        return GIN(6, width, 2, 4)\n")
    converted(factory=["--model", "my_gnn:Zoo.small", "--kwargs", '{"width": 8}'])


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "content",
    [
        graph(),
        [graph(), graph(7, 1)],
        {"x": graph()[0], "edge_index": graph()[1]},
        Data(x=graph()[0], edge_index=graph()[1]),
        [Data(x=x, edge_index=edge_index) for x, edge_index in (graph(), graph(5, 1))],
    ],
    ids=["tuple", "list of tuples", "dict", "Data", "list of Data"],
)
def test_calibrated_it_evaluates_at_once(content):
    torch.save(content, "data.pt")
    module = converted("--calibrate", "data.pt")
    assert all(quantizer.is_observed() for _, quantizer in module.quantizers())
    assert module.eval()(*graph()).shape == (9, 4)


def test_calibration_with_a_folder_is_calibration_with_its_files():
    os.mkdir("data")
    batches = [graph(seed=seed) for seed in range(3)]
    for index, batch in enumerate(batches):
        torch.save(batch, f"data/{index}.pt")
    torch.save(batches, "all.pt")
    expected = converted("--calibrate", "all.pt").state_dict()
    found = converted("--calibrate", "data", "--force").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_example_settles_which_arguments_there_are():
    x, edge_index = graph()
    torch.save({"x": x, "edge_index": edge_index, "batch": torch.zeros(9, dtype=torch.long)}, "example.pt")
    assert converted("--example", "example.pt")(*graph(), batch=torch.zeros(9, dtype=torch.long)).shape == (9, 4)


def test_set_and_rule_override_the_preset():
    rules = ["--rule", r"convs\.0.*=float", "--rule", r"convs\.1@message=bits=5,symmetric=true"]
    module = converted("--qconfig", "int8-qat", "--set", "activation.bits=4", "--set", "aggregate=float", *rules)
    bits = {entry.path: entry.bits for entry in module.report.entries}
    assert not any(path.startswith("convs.0") for path in bits)
    assert bits["convs.1.quant.message"] == 5
    assert bits["convs.1.nn.lins.0.quant.input"] == 4
    assert bits["convs.1.nn.lins.0.quant.weight"] == 8
    assert "convs.1.quant.aggregate" not in bits


def test_a_config_file_with_overrides():
    with open("my.toml", "w") as file:
        file.write('preset = "int4-dq"\nmessage = "float"\n[protect]\np_max = 0.3\n')
    module = converted("--qconfig", "my.toml", "--set", "protect.p_min=0.1")
    assert module.qconfig.weight.bits == 4
    assert module.qconfig.message is None
    assert (module.qconfig.protect.p_min, module.qconfig.protect.p_max) == (0.1, 0.3)


def test_force_replaces_and_the_old_file_survives_a_failure(monkeypatch):
    converted()
    before = Path("out.dq").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        line = refused("--force", "--qconfig", "int4-dq")
    assert line == (
        "dqconvert: out.dq: cannot be written: No space left on device; the file that was there is as before."
    )
    converted("--force", "--qconfig", "int4-dq")
    assert Path("out.dq").read_bytes() != before


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_out_exists_or_cannot_be(folder):
    (folder / "old.dq").write_text("old")
    assert refused(out="old.dq") == "dqconvert: old.dq: exists already: pass --force to replace it."
    assert "the folder" in refused(out="missing/out.dq")
    assert "is a folder" in refused(out=".")


def test_out_in_a_folder_that_cannot_be_written_to(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode, **options: not mode & os.W_OK)
    assert "cannot be written to" in refused()


def test_checkpoint_mistakes():
    assert "gone.pt: there is no such file" in refused(checkpoint="gone.pt")
    torch.save(gin(), "module.pt")
    assert "holds pickled Python objects" in refused(checkpoint="module.pt")
    with open("text.pt", "w") as file:
        file.write("not a checkpoint")
    assert "is not a checkpoint" in refused(checkpoint="text.pt")
    data = Path("gin.pt").read_bytes()
    with open("half.pt", "wb") as file:
        file.write(data[: len(data) // 2])
    assert "is truncated or damaged" in refused(checkpoint="half.pt")
    torch.save({**gin().state_dict(), "convs.0.nn.lins.0.bias": torch.full((8,), torch.nan)}, "nan.pt")
    assert "not finite in 'convs.0.nn.lins.0.bias' (NaN)" in refused(checkpoint="nan.pt")
    converted()
    assert "is a prepared file already" in refused(checkpoint="out.dq", out="b.dq")
    assert "holds weights without their model" in refused(factory=[], out="b.dq", code=2)


def test_weights_that_do_not_fit():
    other = json.dumps({**KWARGS, "hidden_channels": 16})
    line = refused(factory=["--model", "torch_geometric.nn:GIN", "--kwargs", other])
    assert "'convs.0.nn.lins.0.weight' is [8, 6] in the file and [16, 6] in the model" in line
    assert "other arguments (widths, heads)" in line
    line = refused(factory=["--model", "torch_geometric.nn:GCN", "--kwargs", json.dumps(KWARGS)])
    assert "does not fit GCN" in line


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (["--model", "no_such_module_:make"], "no_such_module_ cannot be imported: ModuleNotFoundError"),
        (["--model", "torch_geometric.nn:GIM"], "torch_geometric.nn has no 'GIM'; did you mean 'GIN'?"),
        (["--model", "torch_geometric.nn"], "must be written as pkg.mod:name"),
        (["--model", "math:pi"], "is a float, not a class or a function"),
        (["--model", "builtins:dict"], "returned a dict, not a torch.nn.Module"),
        (
            ["--model", "torch_geometric.nn:GIN"],
            "cannot be called with no arguments (pass them with --kwargs): missing a required argument: 'in_channels'",
        ),
        ([*FACTORY[:3], "{in_channels: 3}"], "is not JSON"),
        ([*FACTORY[:3], "[3]"], "must be a JSON object of arguments by name"),
    ],
)
def test_factory_mistakes(factory, message):
    assert message in refused(factory=factory, code=2)


def test_what_a_factory_raises_is_one_line_with_its_place():
    with open("broken_gnn.py", "w") as file:
        file.write("def make():\n    raise RuntimeError('out of\\nideas')\n")
    line = refused(factory=["--model", "broken_gnn:make"])
    assert line.endswith("RuntimeError: out of ideas (broken_gnn.py:2)")
    with open("broken_import.py", "w") as file:
        file.write("import no_such_thing_\n")
    line = refused(factory=["--model", "broken_import:make"])
    assert line.endswith("ModuleNotFoundError: No module named 'no_such_thing_' (broken_import.py:1)")
    with open("broken_syntax.py", "w") as file:
        file.write("x = 1\ndef make(:\n")
    assert refused(factory=["--model", "broken_syntax:make"]).endswith("(broken_syntax.py:2)")
    assert isinstance(
        dq("--debug", "convert", "gin.pt", "--model", "broken_gnn:make", "-o", "out.dq").exception, CommandError
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--qconfig", "int8-dp"], "unknown preset 'int8-dp'; did you mean 'int8-dq'?"),
        (["--qconfig", "missing.toml"], "missing.toml: there is no such file"),
        (["--set", "activation.bit=4"], "activation.bit: unknown field; did you mean 'bits'?"),
        (["--set", "activation.bits=40"], "bits=40: must be an integer from 2 to 8"),
        (["--set", "bits"], "must be written as FIELD=VALUE"),
        (["--rule", "conv.0.*=float"], "matches no value"),
        (["--rule", "convs.0"], "must be written as MODULE[@ROLE]=SPEC"),
        (["--rule", "convs.0@messages=float"], "unknown role 'messages'"),
        (["--rule", "convs.0(=float"], "must be a regular expression"),
    ],
)
def test_config_mistakes(options, message):
    assert message in refused(*options, code=2)


def test_input_mistakes():
    assert "no such file or folder" in refused("--calibrate", "gone.pt")
    os.mkdir("empty")
    assert "the folder has no file that ends in .pt" in refused("--calibrate", "empty")
    torch.save((torch.randn(9, 5), graph()[1]), "narrow.pt")
    assert "--calibrate narrow.pt: does not fit the model: x has 5 columns" in refused("--calibrate", "narrow.pt")
    torch.save([graph(), (torch.randn(9, 5), graph()[1])], "second.pt")
    assert "--calibrate second.pt, number 1: does not fit the model" in refused("--calibrate", "second.pt")
    torch.save(3, "three.pt")
    assert "holds an int, not" in refused("--calibrate", "three.pt")
    assert "--example three.pt: holds an int" in refused("--example", "three.pt")
    assert "rejects the example_inputs" in refused("--example", "narrow.pt")
    torch.save([gin()], "module.pt")
    assert "save a Data, a Batch, a list of them, or" in refused("--example", "module.pt")


def test_debug_shows_the_traceback():
    result = dq("--debug", "convert", "gone.pt", *FACTORY, "-o", "out.dq")
    assert isinstance(result.exception, dqconvert.CheckpointError)


def test_usage_mistakes_exit_with_2():
    assert dq("convert", "gin.pt").exit_code == 2
    assert dq("convert", "gin.pt", "-o", "out.dq", "--no-such-option").exit_code == 2


def test_interrupted_it_leaves_no_file(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    before = sorted(os.listdir())
    assert dq("convert", "gin.pt", *FACTORY, "-o", "out.dq").exit_code != 0
    assert sorted(os.listdir()) == before


# -- the command as a process --------------------------------------------------------------------------------------


def test_help_does_not_import_torch():
    script = """
        import sys
        from dqconvert.cli import app
        try:
            app(["convert", "--help"])
        except SystemExit:
            print("torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "Example: dqconvert convert" in done.stdout


def test_as_a_process_it_works(spare, folder):
    done = spare.run_module("dqconvert", "convert", "gin.pt", *FACTORY, "-o", "out.dq", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.path.exists("out.dq")


def test_the_shell_completes_presets():
    words = {"_TYPER_COMPLETE": "1", "_DQCONVERT_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    environment = {**os.environ, **words, "COMP_WORDS": "dqconvert convert --qconfig int4"}
    command = [sys.executable, "-m", "dqconvert"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == [name for name in dqconvert.presets if name.startswith("int4")]
