"""The notebooks of docs/notebooks: executed in place, and made pages of the site.

    python docs/notebook_pages.py docs/notebooks/*.ipynb        # executes them; needs nbclient and ipykernel

A cell that is tagged "parameters" has the numbers that tests make smaller.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any


def execute(path: Path, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The notebook with the outputs of a run of all its cells; of an error in one, nbclient's exception.

    Args:
        values: in place of those in the cell of parameters, by name.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if values and "parameters" in cell.metadata.get("tags", ()):
            cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    NotebookClient(notebook, timeout=3600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the time of day
        if cell.cell_type == "code":
            cell.outputs = _tidy(cell.outputs)
    return notebook


def _tidy(outputs: list[Any]) -> list[Any]:
    """Without warnings, which belong to the machine, and with what was printed in one piece; each picture once."""
    kept: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
            continue
        output.get("data", {}).pop("image/jpeg", None)  # Pillow gives both
        kept.append(output)
    return kept


def as_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page, and its pictures by their file names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        shell = source.startswith(("%%sh", "!"))
        parts.append(f"```{'sh' if shell else 'python'}\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the cell above shows]({name})")
            else:
                text = "".join(output.get("text") or data["text/plain"]).rstrip("\n")
                parts.append(f"```text\n{text}\n```")
    parts.insert(1, f'<a href="{path.name}" download>The notebook itself</a>')
    return "\n\n".join(parts) + "\n", pictures


if __name__ == "__main__":
    import nbformat

    for argument in sys.argv[1:]:
        nbformat.write(execute(Path(argument)), argument)
