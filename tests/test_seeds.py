"""The table of claims over seeds, from records that are made up; no notebook is run here."""

import json
import statistics
import sys

import nbformat
import pytest

import seeds


def record(folder, name, values, **limits):
    """A file for each seed, as `claim` writes it."""
    files = {}
    for seed, value in enumerate(values):
        claim = {"claim": name, "value": value, "low": None, "high": None} | limits
        path = folder / f"{name}-{seed}.jsonl"
        path.write_text(json.dumps(claim | {"source": "MNIST"}) + "\n", encoding="utf-8")
        files[name[:2], "MNIST", seed] = path
    return files


def test_the_table_is_of_what_was_recorded(tmp_path):
    values = [10.0, 11.0, 12.0]
    files = record(tmp_path, "03 nats", values, low=8.0, high=20.0)
    row = seeds.table(files).splitlines()[2]
    assert row == "| 03 | 03 nats | MNIST | 3 | 11 | 1 | 10 | 12 | ≥ 8 and ≤ 20 | 3.0 |"
    assert statistics.stdev(values) == 1


def test_equal_values_have_no_margin(tmp_path):
    files = record(tmp_path, "03 count", [5.0, 5.0], high=6.0)
    assert seeds.table(files).splitlines()[2].endswith("| ≤ 6 | – |")


@pytest.fixture
def series(tmp_path, monkeypatch):
    """One notebook with one claim, whose values over the seeds are given; runs are counted."""
    path = tmp_path / "03_one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
    runs = []

    def prepare(values):
        def execute(path_, source, seed, file):
            runs.append((source, seed))
            claim = {"claim": "a", "value": values[seed], "low": 0.0, "high": None}
            file.write_text(json.dumps(claim | {"source": source}) + "\n", encoding="utf-8")

        monkeypatch.setattr(seeds, "record", execute)

    monkeypatch.setattr(seeds, "OUT", tmp_path / "out")
    monkeypatch.setattr(seeds.links, "ROOT", tmp_path)
    monkeypatch.setattr(seeds.links, "notebooks", lambda: [path])
    (tmp_path / "vae_helpers.py").write_text("", encoding="utf-8")
    (tmp_path / "tests/benchmarks").mkdir(parents=True)
    full = type("Data", (), {"source": "MNIST"})
    monkeypatch.setattr(seeds.vae_helpers, "load_mnist", lambda: full)
    monkeypatch.setattr(sys, "argv", ["seeds.py", "--in-place"])
    return prepare, runs, tmp_path


def test_a_thin_margin_is_a_failure(series, capsys):
    prepare, _, folder = series
    prepare([1.0, 2.0] * 5)
    assert seeds.main() == 1 and "too thin" in capsys.readouterr().out
    assert "| 03 | a | MNIST | 10 |" in (folder / "tests/benchmarks/SEEDS.md").read_text("utf-8")


def test_a_wide_margin_is_none_and_what_is_done_is_not_done_again(series):
    prepare, runs, _ = series
    prepare([10.0, 10.5] * 5)
    assert seeds.main() == 0 and len(runs) == 13
    assert seeds.main() == 0 and len(runs) == 13


def test_a_failed_run_is_not_published(series, monkeypatch):
    prepare, _, folder = series
    prepare([10.0] * 10)
    monkeypatch.setattr(seeds, "record", lambda *_: "AssertionError: a claim")
    assert seeds.main() == 1
    assert not (folder / "tests/benchmarks/SEEDS.md").exists()
