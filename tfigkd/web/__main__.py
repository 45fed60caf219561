"""`python -m tfigkd.web FILE.tflite… --output FOLDER`: a page that classifies pictures in the browser, offline.

python -m tfigkd.web student.float32.tflite student.int8.tflite --output site --examples RUN
python -m http.server --directory site --bind 127.0.0.1     # then open http://127.0.0.1:8000
"""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from tfigkd.config.data_fields import rgb
from tfigkd.data.spaces import Range
from tfigkd.edge.classifier_files import background_of, fit_of, infer_spaces, probe
from tfigkd.edge.contract import contract_path, is_foreign, verified_contract
from tfigkd.edge.input_range import assumption
from tfigkd.edge.litert import class_count, input_details, open_classifier, output_details
from tfigkd.edge.options import add_background_option, add_space_options, given_spaces, names_apart
from tfigkd.measure.gallery import Gallery
from tfigkd.predict import class_names
from tfigkd.runtime.command import Parser, command
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, copy_file, make_folder, write_bytes, write_text
from tfigkd.runtime.text import counted
from tfigkd.web.examples import FOLDER as EXAMPLES
from tfigkd.web.examples import list_examples, read_examples
from tfigkd.web.litert_js import VERSION, read_litert_js

ASSETS = Path(__file__).parent / "site"
LIST = "models.json"
MADE_BY = "tfigkd.web"


def describe(
    path: Path,
    *,
    labels: Path | None = None,
    input_range: Range | None = None,
    outputs: Any = None,
    background: str | None = None,
) -> dict[str, Any]:
    """Return what the page has to know of a file: shape, values of pixels, kind of outputs, class names, contract.

    Args:
        path: A .tflite file with float32 input and output.
        labels: Text file with one class name a line.
        input_range: As in `tfigkd.edge.classifier_files.infer_spaces`.
        outputs: As in `tfigkd.edge.classifier_files.infer_spaces`.
        background: Color behind transparent pixels; by default that of the contract.

    Raises:
        UserError: the file is no classifier, its contract does not fit, or its input or output is not float32.
    """
    contract = verified_contract(path)
    interpreter = open_classifier(path)
    source, sink = input_details(interpreter), output_details(interpreter)
    kinds = sorted({np.dtype(tensor["dtype"]).name for tensor in (source, sink)} - {"float32"})
    if kinds:
        raise UserError(
            f"{path} has {' and '.join(kinds)} at its input or output, LiteRT.js {VERSION} needs float32 there; export "
            "it with --io float32, or the run with --export.io float32: the inside stays integer"
        )
    taken, given = infer_spaces(interpreter, contract, input_range, outputs)
    probe(interpreter, taken)
    if note := assumption(interpreter, contract, input_range):
        print(f"{path}: {note}", file=sys.stderr)
    about = contract or {}
    parity = about.get("parity") or {}
    return {
        "name": path.stem,
        "bytes": path.stat().st_size,
        "sha256": checksum(path),
        "format": about.get("format"),
        "shape": [int(size) for size in source["shape"][1:]],
        "range": list(taken),
        "outputs": given,
        "count": int(sink["shape"][-1]),
        "classes": class_names(path, class_count(sink), contract, labels),
        "named": labels is not None or about.get("class_names") is not None,
        "background": list(rgb(background_of(contract, background))),
        "fit": fit_of(contract),
        "parity": {name: parity[name] for name in ("agreement", "accuracy", "examples", "on") if name in parity},
    }


def write_site(
    folder: Path,
    models: Sequence[dict[str, Any]],
    paths: Sequence[Path],
    litert: dict[str, bytes],
    examples: Gallery | None = None,
    classes: Sequence[str] = (),
) -> int:
    """Write the folder of the page, and return its size in bytes.

    Args:
        folder: It is made, or holds an earlier page.
        models: From `describe`.
        paths: Their files.
        litert: From `read_litert_js`.
        examples: Pictures that the page offers, with their stored maps.
        classes: Names of their labels.

    Raises:
        UserError: the folder holds another web page, or cannot be made.
    """
    if (folder / "index.html").exists() and not _is_ours(folder):
        raise UserError(f"{folder} has an index.html of another page; choose another --output")
    again = _is_ours(folder)
    if again:
        shutil.rmtree(folder / EXAMPLES, ignore_errors=True)  # those of an earlier page
    shown, pictures = ([], {}) if examples is None else list_examples(examples, classes)
    contents = {f"litert/{name}": content for name, content in litert.items()} | pictures
    for name, content in contents.items():
        make_folder((folder / name).parent, "--output")
        write_bytes(folder / name, content)
    listed = []
    for index, (model, path) in enumerate(zip(models, paths, strict=True)):
        place = make_folder(folder / "models" / str(index), "--output")
        copy_file(path, place / path.name)
        about: dict[str, Any] = {"file": f"models/{index}/{quote(path.name)}"}
        if contract_path(path).is_file() and not is_foreign(path):
            copy_file(contract_path(path), contract_path(place / path.name))
            about["contract"] = f"models/{index}/{quote(contract_path(path).name)}"
        listed.append(model | about)
    kept = {folder / unquote(one[key]) for one in listed for key in ("file", "contract") if key in one}
    for old in (folder / "models").glob("[0-9]*/*") if again else ():  # of an earlier page
        if old.is_file() and old not in kept and not any(old.samefile(path) for path in paths):
            old.unlink()
    about_page = {"made_by": MADE_BY, "litert": VERSION, "models": listed, "examples": shown}
    write_text(folder / LIST, json.dumps(about_page, indent=1) + "\n")
    for asset in sorted(ASSETS.iterdir()):  # index.html is among them: it is opened once all else is there
        copy_file(asset, folder / asset.name)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _is_ours(folder: Path) -> bool:
    try:
        content = json.loads((folder / LIST).read_text(encoding="utf-8"))
        return isinstance(content, dict) and content.get("made_by") == MADE_BY
    except (OSError, ValueError):
        return False


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.web`; like predict it needs neither TensorFlow nor tyro."""
    parser = Parser(
        prog="python -m tfigkd.web",
        description="A page that classifies pictures in the browser with LiteRT files; it works offline from any "
        "static server, and no picture leaves the browser.",
    )
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help=".tflite classifiers with float32 input and output"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that is written")
    parser.add_argument("--labels", type=Path, help="text file with one class name a line")
    add_space_options(parser)
    add_background_option(parser)
    parser.add_argument(
        "--litert",
        type=Path,
        metavar="FOLDER",
        help=f"folder with the npm packages of LiteRT.js {VERSION} (default: fetched by npm)",
    )
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="RUN",
        help="folder of a finished run: the page offers its example pictures, with their Integrated Gradients maps; "
        "the folder then holds pictures of the data set",
    )
    options = parser.parse_args(arguments)
    about = {"labels": options.labels, "background": options.background, **given_spaces(options)}
    models = [describe(path, **about) for path in options.files]
    for model, name in zip(models, names_apart(options.files), strict=True):
        model["name"] = name
    examples = () if options.examples is None else read_examples(options.examples)
    litert = read_litert_js(options.litert)
    size = write_site(options.output, models, options.files, litert, *examples)
    print(
        f"{options.output}: {counted(len(models), 'model')}, {size / 1e6:.1f} MB; python -m http.server "
        f"--bind 127.0.0.1 --directory {shlex.quote(str(options.output))}, then open http://127.0.0.1:8000"
    )


if __name__ == "__main__":
    sys.exit(main())
