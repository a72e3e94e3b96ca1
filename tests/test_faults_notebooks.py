"""Every notebook as classes run them: twice in one kernel, each cell twice in a row, in a read-only
folder with a space and an umlaut in its name, from another working folder, on one thread, with warnings
as errors; and one in a kernel that is restarted while it trains.

It takes half an hour, and is run only with VAE_FAULTS=all, as in the third leg of .ci/run.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel
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


def code_cells(path):
    return [cell.source for cell in links.read(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", links.notebooks(), ids=lambda path: path.stem)
def test_twice_in_one_kernel_under_harsh_conditions(path, checkout, tmp_path):
    """The second time each cell is run twice in a row. Whatever is measured stays the same."""
    strict = (
        "import vae_helpers, warnings\n"
        f"assert vae_helpers.__file__.startswith({str(checkout)!r}), vae_helpers.__file__\n"
        "warnings.simplefilter('error')\n"
        # Of PyTorch's and NumPy's making, whenever a tensor is drawn.
        "warnings.filterwarnings('ignore', '__array__ implementation', DeprecationWarning)"
    )
    once = code_cells(path)
    twice = [source for cell in once for source in [cell, cell]]  # those that train too
    nb = links.read(path)
    nb.cells = [new_code_cell(source) for source in [strict, *once, *twice]]
    copy, claims, elsewhere = (tmp_path / name for name in ("nb.ipynb", "claims", "elsewhere"))
    links.write(nb, copy)
    elsewhere.mkdir()
    settings = {"VAE_DATA": "sample", "VAE_CLAIMS": str(claims), "OMP_NUM_THREADS": "1"}
    settings |= {"PYTHONPATH": str(checkout), "PYTHONUTF8": "1"}
    kept = {k: v for k, v in os.environ.items() if k not in ("VAE_FIGURES_DIR", "MPLBACKEND")}
    command = [sys.executable, "-c", RUNNER, str(copy), str(elsewhere), str(ROOT / "tools")]
    result = subprocess.run(
        locked(checkout, command), env=kept | settings, capture_output=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # Nothing is strewn over the folder that one happens to work in.
    assert list(elsewhere.iterdir()) == []
    measured = {}
    for line in claims.read_text(encoding="utf-8").splitlines():
        claim = json.loads(line)
        measured.setdefault(claim["claim"], []).append(claim["value"])
    assert len(measured) >= 3
    for text, values in measured.items():
        assert len(values) == 3, text
        if not text.startswith("seconds"):  # these differ each time
            assert len(set(values)) == 1, f"{text}: {values}"


def test_a_kernel_restarted_in_the_middle_needs_only_run_all(tmp_path):
    """Restarted while it trains. What it leaves on disk does not matter to the fresh kernel."""
    path = next(path for path in links.notebooks() if path.name.startswith("03"))
    cells = code_cells(path)
    middle = next(k for k, source in enumerate(cells) if "fit(" in source)
    assert middle > 5
    settings = {"VAE_DATA": "sample", "VAE_FIGURES_DIR": str(tmp_path)}
    manager, client = start_new_kernel(env=os.environ | settings, cwd=str(path.parent))

    def run(source):
        reply = client.execute_interactive(source, timeout=300, output_hook=lambda _: None)
        assert reply["content"]["status"] == "ok", reply["content"]

    try:
        for source in cells[:middle]:
            run(source)
        client.execute(cells[middle])
        while "it/s" not in client.get_iopub_msg(timeout=60)["content"].get("text", ""):
            pass
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        for source in cells:
            run(source)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_the_copy_is_really_locked(checkout):
    code = "from pathlib import Path; Path(__import__('sys').argv[1], 'x').write_text('x')"
    command = [sys.executable, "-c", code, str(checkout)]
    result = subprocess.run(locked(checkout, command), capture_output=True, encoding="utf-8")
    assert result.returncode != 0 and "rror" in result.stderr
    assert not Path(checkout, "x").exists()
