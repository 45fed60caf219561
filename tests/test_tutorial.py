"""The tutorial: its notebook is its text, and runs from a folder of pictures to a file that knows the digits."""

import importlib.util
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tfigkd.config.experiment import read_experiment

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "tutorial"
SMOKE = "--teacher.drop_blocks 0 --smoke --stages data,teacher,overlays,distill,export"
LESS = """[attribution]
n_steps = 8

[tensorboard]
pictures = 0

[evaluation]
attribution_examples = 0
gallery_examples = 0

[export]
formats = ["int8"]
min_int8_agreement = 0.5

"""
# the cell that writes mine.toml is the notebook's parameter cell: the same job, with smaller networks on fewer pictures
SHORTER = {
    "image_size = 16 ": "limit = 400\nimage_size = 16 ",
    'width = 0.5\nnormalization = "none"': 'width = 0.5\ndrop_blocks = 14\nnormalization = "none"',
    "epochs = 15": "epochs = 8",
    "drop_blocks = 9": "drop_blocks = 16",
    "[overlay] ": f"{LESS}[overlay] ",
    # the teacher in plain Keras, and the second run
    "epochs=8": "epochs=2",
    "--teacher.model my_teacher.keras": f"--teacher.model my_teacher.keras {SMOKE}",
}


def module():
    spec = importlib.util.spec_from_file_location("tutorial_notebook", FOLDER / "notebook.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_notebook_is_the_text():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    committed = json.loads((FOLDER / "tutorial.ipynb").read_text(encoding="utf-8"))
    assert committed == module().notebook(text), "python experiments/tutorial/notebook.py"
    commands = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    cells = ["".join(cell["source"]) for cell in committed["cells"] if cell["cell_type"] == "code"]
    assert cells == [f"%%bash\n{command.rstrip()}" for command in commands]
    assert len(cells) > 5


def test_every_field_and_flag_that_the_text_names_exists(tmp_path):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"cat > mine.toml <<'END'\n(.*?)END\n", text, flags=re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(written)
    _, config = read_experiment(str(path))
    for dotted in re.findall(r"--((?:\w+\.)+\w+)", text.replace("--traning.epochs", "").replace(".no_", ".")):
        value = config
        for name in dotted.split("."):
            value = getattr(value, name)
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (FOLDER / link).exists(), link


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A folder in which the notebook was run, and the output of its cells."""
    reason = "NEEDS A NOTEBOOK RUNNER: pip install nbclient ipykernel"
    nbclient, nbformat = (pytest.importorskip(name, reason=reason) for name in ("nbclient", "nbformat"))
    folder = tmp_path_factory.mktemp("tutorial")
    notebook = nbformat.read(FOLDER / "tutorial.ipynb", as_version=4)
    for old, new in SHORTER.items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        cell.source = cell.source.replace(old, new)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "JUPYTER_RUNTIME_DIR": str(folder / ".jupyter")}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        client = nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(folder)}})
        client.execute()
    said = ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    return folder, "\n".join(said)


@pytest.mark.timeout(1800)  # two minutes on two free cores
# Jupyter's own warnings, of its paths and of its event loop
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_ends_with_a_file_that_knows_the_digits(executed):
    folder, said = executed
    assert {path.name for path in (folder / "phone").iterdir()} == {"student.int8.tflite", "student.int8.json"}
    assert '"digit_9"' in (folder / "phone/student.int8.json").read_text()
    accuracy = float(re.findall(r"student\.int8\.tflite: test accuracy (\d+\.\d+) %", said)[0])
    assert accuracy > 25  # ten classes: chance is 10
    command = shlex.split(re.search(r"^next: (python -m tfigkd.predict .*)$", said, re.MULTILINE)[1])
    assert (folder / command[3]).is_file()
    assert re.search(r"pictures/test/digit_0/\d+0\.png +\(.* ms\)\n  digit_\d +\d+\.\d\d %", said)
    assert (folder / "runs/own_teacher/export/student.int8.tflite").is_file()
    assert "takes" in said and "[1, 16, 16, 3]" in said
