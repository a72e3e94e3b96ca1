"""Every notebook as classes run them: twice in one kernel, in a read-only folder with a space and an
umlaut in its name, from another working folder, on one thread, with warnings as errors.

It takes about ten minutes, and is run only with VAE_FAULTS=all.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell

import links

ROOT = links.ROOT
RUNNER = """
import sys
sys.path[:0] = sys.argv[3:]
import links, run_notebooks
nb = links.read(sys.argv[1])
problem = run_notebooks.execute(nb, sys.argv[2])
sys.exit(problem)
"""

pytestmark = pytest.mark.skipif(
    os.environ.get("VAE_FAULTS") != "all", reason="slow: only with VAE_FAULTS=all"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the project that cannot be written to, not even by root where mounts are allowed."""
    folder = tmp_path_factory.mktemp("Übung 1") / "learn vae für alle"
    (folder / "notebooks").mkdir(parents=True)
    for path in [ROOT / "vae_helpers.py", *links.notebooks()]:
        shutil.copyfile(path, folder / path.relative_to(ROOT))
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)


def locked(folder, command):
    """The command, started so that it sees the folder mounted read-only; as it is for mere users."""
    if os.geteuid() != 0:
        return command
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, str(folder), *command]


def run(nb, checkout, tmp_path, **environment):
    copy = tmp_path / "changed.ipynb"
    links.write(nb, copy)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-c", RUNNER, str(copy), str(elsewhere), str(ROOT / "tools")]
    environment = {"VAE_DATA": "sample", "PYTHONPATH": str(checkout), **environment}
    kept = {k: v for k, v in os.environ.items() if k not in ("VAE_FIGURES_DIR", "MPLBACKEND")}
    result = subprocess.run(
        locked(checkout, command),
        env=kept | {"PYTHONUTF8": "1"} | environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return list(elsewhere.iterdir())


@pytest.mark.parametrize("path", links.notebooks(), ids=lambda path: path.stem)
def test_twice_in_one_kernel_under_harsh_conditions(path, checkout, tmp_path):
    nb = links.read(path)
    strict = new_code_cell(
        "import vae_helpers, warnings\n"
        f"assert vae_helpers.__file__.startswith({str(checkout)!r}), vae_helpers.__file__\n"
        "warnings.simplefilter('error')\n"
        # Of PyTorch's and NumPy's making, whenever a tensor is drawn.
        "warnings.filterwarnings('ignore', '__array__ implementation', DeprecationWarning)"
    )
    once = [cell for cell in nb.cells if cell.cell_type == "code"]
    nb.cells = [strict, *once, *(new_code_cell(cell.source) for cell in once)]
    claims = tmp_path / "claims.jsonl"
    left = run(nb, checkout, tmp_path, VAE_CLAIMS=str(claims), OMP_NUM_THREADS="1")
    assert left == []  # nothing is strewn over the folder that one happens to work in
    lines = [json.loads(line) for line in claims.read_text(encoding="utf-8").splitlines()]
    first, second = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert len(first) == len(second) >= 3
    for one, two in zip(first, second, strict=True):
        assert one["claim"] == two["claim"]
        if "times as long" not in one["claim"]:  # that one is about seconds
            assert one["value"] == two["value"], one["claim"]


def test_a_kernel_restarted_in_the_middle_needs_only_run_all(checkout, tmp_path):
    """What the first half leaves behind on disk does not matter to a fresh kernel."""
    nb = links.read(next(path for path in links.notebooks() if path.name.startswith("03")))
    half = [cell for cell in nb.cells if cell.cell_type == "code"][:12]
    for number in range(2):
        nb.cells = [new_code_cell(cell.source) for cell in half]
        (tmp_path / str(number)).mkdir()
        run(nb, checkout, tmp_path / str(number))


def test_the_copy_is_really_locked(checkout):
    code = "from pathlib import Path; Path(__import__('sys').argv[1], 'x').write_text('x')"
    command = [sys.executable, "-c", code, str(checkout)]
    result = subprocess.run(locked(checkout, command), capture_output=True, encoding="utf-8")
    assert result.returncode != 0 and "rror" in result.stderr
    assert not Path(checkout, "x").exists()
