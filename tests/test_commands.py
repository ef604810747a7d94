"""`make alone` and `make growth` find what they are there to find."""

from planted import NAME, example


def with_packages(notebook, packages):
    """Give a notebook's table of facts a `pip install` of these packages."""
    cell = notebook.cells[0]
    old = "| **Install** | something |"
    assert old in cell.source
    cell.source = cell.source.replace(
        old, f"| **Install** | `pip install {packages}` |"
    )
    return notebook


def test_alone_finds_a_package_that_the_facts_do_not_name(clone):
    clone.add(with_packages(example("import markupsafe"), "ipython"))
    code, output, _ = clone.make("alone", f"NOTEBOOKS={NAME}.ipynb")
    assert code != 0
    assert "No module named 'markupsafe'" in output
    clone.add(with_packages(example("import markupsafe"), "ipython markupsafe"))
    code, output, _ = clone.make("alone", f"NOTEBOOKS={NAME}.ipynb")
    assert code == 0, output
    assert f"alone    {NAME}" in output


def test_growth_names_the_size_at_which_a_notebook_fails(clone):
    count = "with open('../data/flights.csv') as file:\n    assert len(list(file)) == rows + 1"
    clone.add(example(count, "assert rows < 100_000, 'too many'"))
    code, output, _ = clone.make("growth", f"NOTEBOOKS={NAME}.ipynb")
    assert code != 0
    assert "FAILED at 327,346: cell 5: assert rows < 100_000" in output
    assert "FAILED at 20,000" not in output
