"""The tutorial as a notebook: text cells and code cells of its ```bash blocks, written from README.md.

python experiments/tutorial/notebook.py
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def notebook(text: str) -> dict[str, Any]:
    """Return a notebook of a Markdown text; its code blocks of the language bash become code cells."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(re.split(r"^```bash\n(.*?)^```\n", text, flags=re.DOTALL | re.MULTILINE)):
        if not part.strip():
            continue
        code = number % 2 == 1
        source = f"%%bash\n{part.rstrip()}" if code else part.strip()
        cell: dict[str, Any] = {"id": f"cell-{len(cells):02d}", "cell_type": "code" if code else "markdown"}
        cell |= {"metadata": {}, "source": source.splitlines(keepends=True)}
        cells.append(cell | ({"execution_count": None, "outputs": []} if code else {}))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    """Write the notebook beside the text."""
    made = notebook((HERE / "README.md").read_text(encoding="utf-8"))
    (HERE / "tutorial.ipynb").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
