"""What tools/links.py and tools/claims.py generate, in a copy of the project, with an address and without."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from torch.distributions import Bernoulli, Normal

import claims
import links
import readme
import run_notebooks
from vae_helpers import VAE

ROOT = links.ROOT
ADDRESS = "https://github.com/ada/some-vae"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path):
    """A copy of what the tools read and write."""
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "classroom-*")
    for name in ("tools", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unwanted)
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    set_address(tmp_path, None)
    return tmp_path


def set_address(project, url):
    """As pyproject.toml tells people to; None: as long as it is not known."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = f'[project.urls]\nRepository = "{url}"' if url else ""
    place = r"^(# )?\[project\.urls\]\n(# )?Repository = .*$"
    text, found = re.subn(place, lines, text, flags=re.MULTILINE)
    assert found == 1
    (project / "pyproject.toml").write_text(text, encoding="utf-8")


def run_links(project, *options):
    command = [sys.executable, "tools/links.py", *options]
    return subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8")


def contents(project):
    return {path: path.read_bytes() for path in [project / "README.md", *project.rglob("*.ipynb")]}


def test_what_is_generated_is_up_to_date():
    assert readme.renewed(README) == README, "run python tools/links.py"
    for name in readme.blocks():
        assert README.count(f"<!-- {name} -->") == README.count(f"<!-- /{name} -->") == 1
    assert not re.search(r"<(owner|repository|address)", README, re.IGNORECASE)


def test_an_address_is_a_badge_a_link_and_a_cell_and_goes_without_a_trace(project):
    assert run_links(project).returncode == 0  # stale or not: from here on it is up to date
    before = contents(project)
    assert run_links(project, "--check").returncode == 0
    set_address(project, f"{ADDRESS}.git/")
    stale = run_links(project, "--check")
    assert (stale.returncode, len(stale.stdout.split())) == (1, len(before)), "all of them"
    assert contents(project) == before

    assert run_links(project).returncode == 0
    text = (project / "README.md").read_text(encoding="utf-8")
    assert f"\ngit clone --depth 1 {ADDRESS} learn-vae\ncd learn-vae\nmake notebooks\n" in text
    first = links.notebooks()[0].name
    assert re.search(rf"\[!\[.+\]\(https://colab.+svg\)\]\(.+/main/notebooks/{first}\)", text)
    for path in sorted(project.rglob("0*.ipynb")):
        nb, name = links.read(path), path.relative_to(project).as_posix()
        for url in (
            f"https://colab.research.google.com/github/ada/some-vae/blob/main/{name}",
            f"https://mybinder.org/v2/gh/ada/some-vae/main?urlpath=lab/tree/{name}",
        ):
            assert f"]({url})" in nb.cells[0].source
        cell = next(cell for cell in nb.cells if cell.cell_type == "code")
        assert (cell.id, cell.metadata.tags, cell.execution_count) == ("colab", ["colab"], None)
        assert f'"{ADDRESS}"' in cell.source and len(cell.source.splitlines()) <= 20
        assert links.code_digest(nb) == links.code_digest(links.read(ROOT / name))
    for command in ("check", "format --check"):
        ruff = [sys.executable, "-m", "ruff", *command.split(), "notebooks"]
        subprocess.run(ruff, cwd=project, check=True)
    assert run_links(project, "--check").returncode == 0, "once is enough"

    set_address(project, None)
    assert run_links(project).returncode == 0 and contents(project) == before


def test_an_address_elsewhere_is_told(project):
    set_address(project, "https://example.org/ada/some-vae")
    told = "must be of the form https://github.com/OWNER/NAME, got 'https://example.org/ada/some"
    assert told in run_links(project).stderr


def test_minutes_are_of_what_is_read():
    def nb(words, lines, **metadata):
        code = new_code_cell("a = 1\n\n" * lines, metadata=metadata)
        return new_notebook(cells=[new_markdown_cell("word " * words), code])

    def of(nb):
        return links.minutes(links.main_line(nb))

    assert [of(nb(750, n)) for n in (0, 1, 75, 76)] == [5, 10, 10, 15]
    assert of(nb(0, 0)) == 5
    for hidden in (dict(tags=["hide-input"]), dict(jupyter={"source_hidden": True})):
        assert of(nb(750, 500, **hidden)) == 5
    unread = nb(750, 0)
    unread.cells[0].source += "\n\n```\n" + "code " * 900 + "\n```"
    links.set_nav(unread, "word " * 900)
    links.set_colab(unread, ADDRESS)
    assert of(unread) == 5
    longer = nb(750, 0)
    longer.cells[1] = new_markdown_cell("## Second reading\n\n" + "word " * 747)
    longer.cells.append(new_code_cell("answer_1 = None"))
    assert of(longer) == 5 and len(links.main_line(longer)) == 2


# ------------------------------------------------------------------------------- the cell for Colab


WIDGETS = "enable_custom_widget_manager = lambda: print('widgets')"


@pytest.fixture
def colab(tmp_path):
    """Runs the cell in a Python without our modules; ADDRESS leads to a repository on this machine."""
    source, place = tmp_path / "source", tmp_path / "place/notebooks"
    files = {
        source / "vae_classroom.py": "print('fetched')",
        place / "packages/pip.py": "import sys\nprint('pip', *sys.argv[1:])",
        place / "packages/mlxtend.py": "",  # this one is there, ipycanvas is not
        place / "packages/google/colab/output.py": WIDGETS,
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b.c commit -qm a"):
        subprocess.run(["git", *command.split()], cwd=source, check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTHON"))}
    environment |= {
        "PYTHONPATH": str(place / "packages"),
        # git goes to the source whenever it is sent to the address: nothing reaches the network.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{source.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
    }

    def run(before=""):
        code = "\n".join(
            [before, links.COLAB_CELL.replace("ADDRESS", ADDRESS), "import vae_classroom"]
        )
        command = [sys.executable, "-S", "-c", code]
        return subprocess.check_output(command, cwd=place, env=environment, text=True).splitlines()

    return place, run


def test_the_cell_fetches_what_is_missing_and_only_that(colab):
    place, run = colab
    pip = "pip install --quiet ipycanvas"
    assert run("import google.colab") == [pip, "widgets", "fetched"]
    assert (place / "learn-vae/.git/shallow").exists(), "a shallow clone"
    (place / "learn-vae/vae_classroom.py").write_text("print('still there')")
    assert run() == [pip, "still there"], "not fetched again"

    (place.parent / "vae_classroom.py").write_text("print('the folder above')")
    assert run() == [pip, "the folder above"], "somebody's checkout, with another kernel"

    (place / "packages/vae_classroom.py").write_text("print('installed')")
    shutil.rmtree(place / "learn-vae")
    assert run() == ["installed"], "neither fetched nor installed"
    assert not (place / "learn-vae").exists()


def test_the_cell_is_not_run_when_outputs_are_renewed(tmp_path):
    nb = new_notebook(cells=[new_code_cell("a = 1")])
    links.set_colab(nb, ADDRESS)
    nb.cells[0].source = "1 / 0"
    assert run_notebooks.execute(nb, tmp_path) is None
    assert [cell.execution_count for cell in nb.cells] == [None, 1]


# ------------------------------------------------------------------------------------------- claims


def test_the_tables_of_claims_are_up_to_date():
    pages = claims.renewed(claims.measured())
    assert list(pages) == [ROOT / "README.md", ROOT / "notebooks/CLAIMS.md"]
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, "run python tools/claims.py"
    rows = re.findall(r"^\| “.*", README, re.MULTILINE)
    assert len(rows) == 5 and not re.search(r"\d\.\d{6}|e-\d|at (least|most)", " ".join(rows))


def test_a_claim_that_is_gone_is_missed_and_one_that_changed_is_shown():
    found = claims.measured()
    beginning = claims.STATEMENTS[0][2][0]
    (mine,) = (claim for claim in found if claim[0].startswith(beginning))
    others = [claim for claim in found if claim is not mine]
    with pytest.raises(ValueError, match="0 claims, not 1, begin with"):
        claims.render(others)
    for value, brief, full in [("7.2512", "7.25", "7.25"), ("-0.00012345", "under", "-0.000123")]:
        changed = [*others, (mine[0], value, *mine[2:])]
        assert f"**{full}** ({mine[2]})" in claims.render(changed)
        assert f"**{brief}" in claims.render(changed, brief=True)


def written_loss(pixels, kl, weight, x, y, kls):
    """As the README's table has it: terms of each pixel (B, 784) and each entry of the code (B, d)."""
    kind, over = pixels.split(", ")
    bce = torch.nn.functional.binary_cross_entropy
    terms = bce(y, x, reduction="none") if kind == "cross-entropy" else (x - y) ** 2
    sides = {"sum": lambda part: part.sum(1).mean(), "mean": lambda part: part.mean()}
    return sides[over](terms) + weight * sides[kl](kls)


def bound(kind, number, x, y, kls):
    """Minus the bound, by torch.distributions: Bernoulli pixels and beta, or Gaussian ones of variance s²."""
    if kind == "β":
        log_p = Bernoulli(y, validate_args=False).log_prob(x).sum(1)
        return (number * kls.sum(1) - log_p).mean()
    return (kls.sum(1) - Normal(y, number**0.5).log_prob(x).sum(1)).mean()


def table_of_betas():
    """[(pixels, KL, "β" or "s²", the formula in w and d)]"""
    part = re.search("<!-- beta -->(.*)<!-- /beta -->", README, re.DOTALL)[1]
    rows = re.findall(
        r"^\| (c.+|s.+) \| (sum|mean) \| .*?(β|s²) = ([^:|]+?)(?: on .*|:.*)? \|$", part, re.M
    )
    assert len(rows) == 6
    return rows


@pytest.mark.parametrize(("pixels", "kl", "kind", "formula"), table_of_betas())
def test_the_betas_of_the_readme_are_those_of_the_losses(pixels, kl, kind, formula):
    torch.manual_seed(0)
    vae, x = VAE(latent_dim=6, hidden=20).double(), torch.rand(5, 784, dtype=torch.float64)
    weight, eps = 0.3, torch.randn(5, 6, dtype=torch.float64)
    number = eval(re.sub(r"(\d) ([wd])", r"\1 * \2", formula), {"w": weight, "d": 6})

    def direction(loss):
        mu, log_var = vae.encoder(x).chunk(2, dim=-1)
        y = torch.sigmoid(vae.decoder(mu + torch.exp(0.5 * log_var) * eps))
        kls = 0.5 * (mu**2 + log_var.exp() - 1 - log_var)  # (5, 6)
        gradient = torch.autograd.grad(loss(x, y, kls), list(vae.parameters()))
        gradient = torch.cat([part.flatten() for part in gradient])
        return gradient / gradient.norm()

    def apart(number):
        written = direction(lambda *given: written_loss(pixels, kl, weight, *given))
        return (written - direction(lambda *given: bound(kind, number, *given))).norm()

    assert apart(number) < 1e-10
    assert apart(1.1 * number) > 1e-6  # a wrong one is seen
