"""examples/notebook.ipynb runs from its first cell to its last, and says what it says in the repository."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
nbformat = pytest.importorskip("nbformat", reason="pip install 'ms-omni[notebook]'")
nbclient = pytest.importorskip("nbclient", reason="pip install 'ms-omni[notebook]'")


def printed(notebook):
    """The text that each cell printed; sounds are not kept in the file."""
    return [
        "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_runs():
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    expected = printed(notebook)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    assert printed(notebook) == expected and sum(map(bool, expected)) >= 6


def test_it_is_small():
    assert (EXAMPLES / "notebook.ipynb").stat().st_size < 50_000
