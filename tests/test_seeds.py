"""The table of claims over seeds, from records that are made up; no notebook is run here."""

import json
import sys

import nbformat
import pytest

import seeds


def write(file, name, value, **limits):
    """A record as `claim` writes it."""
    record = {"claim": name, "value": value, "low": None, "high": None} | limits
    file.write_text(json.dumps(record) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "values, limits, row",
    [
        ([10, 11, 12], {"low": 8, "high": 20}, "3 | 11 | 1 | 10 | 12 | ≥ 8 and ≤ 20 | 3.0 |"),
        ([5, 5], {"high": 6}, "2 | 5 | 0 | 5 | 5 | ≤ 6 | – |"),  # equal values have no margin
        ([5], {"low": 4}, "1 | 5 | 0 | 5 | 5 | ≥ 4 | – |"),
    ],
)
def test_the_table_is_of_what_was_recorded(tmp_path, values, limits, row):
    files = {("03", "MNIST", seed): tmp_path / str(seed) for seed in range(len(values))}
    for file, value in zip(files.values(), values, strict=True):
        write(file, "nats", value, **limits)
    assert seeds.table(files).splitlines()[2] == f"| 03 | nats | MNIST | {row}"


@pytest.fixture
def series(tmp_path, monkeypatch):
    """One notebook with one claim, whose values over the seeds are given; runs are counted."""
    path = tmp_path / "03_one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
    for name in ("vae_helpers.py", "vae_classroom.py"):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "tests/benchmarks").mkdir(parents=True)
    monkeypatch.setattr(seeds, "OUT", tmp_path / "out")
    monkeypatch.setattr(seeds.links, "ROOT", tmp_path)
    monkeypatch.setattr(seeds.links, "notebooks", lambda: [path])
    monkeypatch.setattr(
        seeds.vae_classroom, "load_mnist", lambda: type("", (), {"source": "MNIST"})
    )
    monkeypatch.setattr(sys, "argv", ["seeds.py", "--in-place"])
    runs = []

    def prepare(values):
        def execute(path, source, seed, file):
            runs.append((source, seed))
            write(file, "a", values[seed], low=0.0)

        monkeypatch.setattr(seeds, "record", execute)

    return prepare, runs, tmp_path / "tests/benchmarks/SEEDS.md"


def test_a_thin_margin_is_a_failure(series, capsys):
    prepare, _, published = series
    prepare([1.0, 2.0] * 5)
    assert seeds.main() == 1 and "too thin" in capsys.readouterr().out
    assert "| 03 | a | MNIST | 10 |" in published.read_text("utf-8")


def test_what_is_done_is_not_done_again_until_the_code_changes(series):
    prepare, runs, published = series
    prepare([10.0, 10.5] * 5)
    for name, count in ((None, 13), (None, 13), ("vae_helpers.py", 26), ("vae_classroom.py", 39)):
        if name:
            (published.parents[2] / name).write_text("1", encoding="utf-8")
        assert seeds.main() == 0 and len(runs) == count


def test_a_failed_run_is_not_published(series, monkeypatch):
    _, _, published = series
    monkeypatch.setattr(seeds, "record", lambda *_: "AssertionError: a claim")
    assert seeds.main() == 1 and not published.exists()
