"""The benchmark's report, from results that are made up; nothing here is timed."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests/benchmarks"))

import bench  # noqa: E402


@pytest.fixture
def results():
    return {
        "machine": "an abacus, 2 threads",
        "epoch": {
            "250": [[[1.0, 1.2, 1.0], [1.0, 1.4, 1.0], [2.0, 3.2, 4.0]]],
            "500": [[[1.0, 1.3, 1.3]]],
        },
        "busy": {
            "idle, short spin": [1.0, 1.0, 1.0],
            "busy, short spin": [2.0, 2.5, 9.0],
            "idle, long spin": [0.5, 1.0, 1.0],
            "busy, long spin": [10.0, 20.0, 30.0],
        },
        "usual": {"epochs": [3.0] * 10, "bound": -105.5},
        "ours": [{"seconds": 5.0, "bound": -105.0}, {"seconds": 6.0, "bound": -105.4}],
        "import": {"ours": [1.1, 1.3], "torch": [1.0, 1.0]},
        "notebooks": {
            "00_a.ipynb": {"seconds": 10, "memory": 1.4, "floor": 0.5},
            "01_b.ipynb": {"seconds": 50, "memory": 1.5, "floor": 0.5},
            "02_c.ipynb": {"seconds": 40, "memory": None, "floor": 0.4},
        },
        "first": [
            {"source": "MNIST", "drawn": 8.0, "whole": 16.0, "floor": 0.5},
            {"source": "sample", "drawn": 6.0, "whole": 12.0, "floor": 0.6},
        ],
        "growth": {"an epoch by images": {"10": 0.5, "20": 1.0}},
        "log_likelihood": {"seconds": 33.0, "memory": 0.2},
    }


def row(text, what):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {what}")]
    return line


def test_ratios_are_medians_of_ratios(results):
    text = bench.report(results)
    assert "| 1.40 (1.20 to 1.60) | |" in row(text, "`fit` over the floor, batches of 250")
    loop = "`fit` over its loop by hand, batches of"
    assert "| 1.20 (0.80 to 1.40) | at most 1.1: **missed** |" in row(text, f"{loop} 250")
    assert "at most 1.1: met" in row(text, f"{loop} 500")
    assert "| 2.5 (2.0 to 9.0) | at most 2.5: met |" in row(text, "a step beside a busy process")
    assert "| 20.0 (20.0 to 30.0) | |" in row(text, "the same with threads that spin long")
    assert "| 1.00 (1.00 to 2.00) | at most 1.15: met |" in row(text, "what an idle machine pays")
    assert "| 5.5 |" in row(text, "the usual way over ours")
    assert "1.20 (1.10 to 1.30) | at most 1.15: **missed**" in row(text, "import of vae_helpers")
    assert "| 3.0 |" in row(text, "the notebooks from 01 on over")
    assert "| 32.0 (32.0 to 32.0), at most 25: **missed** |" in row(text, "MNIST")
    assert "| 20.0 (20.0 to 20.0), at most 25: met |" in row(text, "sample")
    assert "| 1.50 GB | at most 2: met |" in row(text, "largest peak memory")
    assert row(text, "01_b.ipynb") == "| 01_b.ipynb | 50 | 100 | 1.50 GB |"
    assert "| 100 | 220 (at most 200: **missed**) | 1.50 GB |" in row(text, "00 to 06")


def test_a_bound_that_was_not_reached_is_told(results):
    assert "met" in row(bench.report(results), "test bound after ours")
    results["ours"][1]["bound"] = -105.6
    assert "**missed**" in row(bench.report(results), "test bound after ours")


def test_the_published_results_are_of_this_benchmark(results):
    """The rows of RESULTS.md are those that the code makes now, and the README leads to them."""

    def names(text):
        rows = re.findall(r"^\| ([^|]+?) \|", text.split("## Each notebook")[0], re.M)
        return [re.sub(r"\d+", "N", name) for name in rows]

    published = (ROOT / "tests/benchmarks/RESULTS.md").read_text(encoding="utf-8")
    assert names(published) == names(bench.report(results))
    assert "## A busy laptop" in published and "## The first digit" in published
    assert "nan" not in published and bench.settings() in published
    assert "(tests/benchmarks/RESULTS.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_floor_has_the_products_of_a_step(monkeypatch):
    """Shapes counted by autograd: the products of a real step are those of the floor, no fewer."""

    def products(task):
        with torch.profiler.profile(record_shapes=True) as profile:
            task()
        found = []
        for event in profile.events():
            if event.name in ("aten::mm", "aten::addmm"):
                a, b = [shape for shape in event.input_shapes if len(shape) == 2][-2:]
                found.append(tuple(sorted((a[0], a[1], b[1]))))
        return sorted(found)

    x, vae = torch.rand(16, 784), bench.new_vae().to("cpu")

    def step():
        mu, log_var = vae.encoder(x).chunk(2, dim=-1)
        logits = vae.decoder(mu + log_var.exp())
        F.binary_cross_entropy_with_logits(logits, x).backward()

    assert products(bench.floor(x)) == products(step)


def test_a_section_is_renewed_alone(tmp_path, monkeypatch):
    """Put in where it is missing, replaced where it is there, and nothing else is touched."""
    path = tmp_path / "tests/benchmarks/RESULTS.md"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    path.write_text("# Head\n\n## To repeat it\n\nmake\n", encoding="utf-8")
    for number in (1, 2):
        bench.renew_section(f"## A busy laptop\n\n{number}\n", in_place=True)
        bench.renew_section("## The first digit\n\n5\n", in_place=True)
        expected = f"# Head\n\n## A busy laptop\n\n{number}\n\n## The first digit\n\n5\n"
        assert path.read_text(encoding="utf-8") == f"{expected}\n## To repeat it\n\nmake\n"
    bench.renew_section("## A busy laptop\n\n3\n", in_place=False)
    assert path.read_text(encoding="utf-8") == f"{expected}\n## To repeat it\n\nmake\n"
