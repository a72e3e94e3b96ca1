"""What a class may trust: nothing is unpickled or evaluated, JupyterLab keeps its door shut, and no
stored output holds what it should not.
"""

import ast
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import links

ROOT = links.ROOT
CODE = {path: path.read_text(encoding="utf-8") for path in [ROOT / "vae_helpers.py"]}
CODE |= {path: path.read_text(encoding="utf-8") for path in (ROOT / "tools").glob("*.py")}
CODE |= {
    path: "\n".join(cell.source for cell in links.read(path).cells if cell.cell_type == "code")
    for path in [*links.notebooks(), *links.solutions()]
}


# ------------------------------------------------------------------------------------------ the code

UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dangers(source):
    """What could run a stranger's code: unpickling, evaluating, a shell, no check of certificates."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in UNPICKLING]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
            found.append(called)
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if called == "torch.save" and "state_dict" not in ast.unparse(node.args[0]):
            found.append("torch.save of more than a state dict")
        if given.get("allow_pickle") == "True" or given.get("shell") == "True":
            found.append(ast.unparse(node))
        if "_create_unverified_context" in called or given.get("verify") == "False":
            found.append("no check of certificates")
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_outside_is_run(path):
    assert dangers(CODE[path]) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(model, path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "import os\nos.system('ls')",
        "ssl._create_unverified_context()",
    ],
)
def test_dangers_are_seen(source):
    assert dangers(source)
    assert dangers("model.eval()\ntorch.load(p, weights_only=True)") == []


# --------------------------------------------------------------------------------- the stored outputs

SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|ghp_\w{20}|hf_\w{20}|xox[bap]-\w+|-----BEGIN|\btoken=\w+|://[^/\s:@]+:[^/\s@]+@"
)


@pytest.mark.parametrize(
    "path", [*links.notebooks(), *links.solutions()], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_notebook_needs_no_trust_beyond_being_run(path):
    """Outputs of text and pictures only: what Jupyter shows without "trusting" the notebook."""
    nb = links.read(path)
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            kinds = set(output.get("data", {"text/plain": ""}))
            known = {"text/plain", "image/png", "application/vnd.jupyter.widget-view+json"}
            assert kinds <= known, f"{cell.id}: {kinds - known}"
    assert "signature" not in nb.metadata and "widgets" not in nb.metadata
    text = json.dumps({**nb, "cells": [{**c, "attachments": None} for c in nb.cells]})
    assert not SECRET.search(text)


def test_the_figures_hold_nothing_of_the_machine_they_were_made_on():
    home = str(Path.home())
    marks = [mark for mark in (str(ROOT), socket.gethostname(), home) if len(mark) > 5]
    for path in [*(ROOT / "figures").iterdir(), ROOT / "README.md"]:
        content = path.read_bytes()
        assert not any(mark.encode() in content for mark in marks), path.name
        if path.suffix == ".svg":
            assert b"<script" not in content and b"onload=" not in content, path.name


def test_secrets_are_seen():
    assert SECRET.search("http://127.0.0.1:8888/lab?token=12ab") and SECRET.search("https://a:b@c/")
    assert not SECRET.search("https://arxiv.org/abs/1312.6114 at 12:30, me@example.org")


# ------------------------------------------------------------------------------------------ the server


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The server that `make lab` starts: its process, and what it says about itself."""
    line = re.search(r"^lab:.*\n\t.* (-m jupyterlab.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    folder = tmp_path_factory.mktemp("lab")
    settings = {"JUPYTER_RUNTIME_DIR": str(folder), "JUPYTER_CONFIG_PATH": str(ROOT / "tools")}
    settings |= {"JUPYTER_CONFIG_DIR": str(folder), "HOME": str(folder)}
    command = [sys.executable, *line.split(), "--no-browser", "--port=0"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    kept = {k: x for k, x in os.environ.items() if k != "JUPYTER_TOKEN"}
    process = subprocess.Popen(
        command,
        env=kept | settings,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (found := list(folder.glob("jpserver-*.json"))):
            assert time.monotonic() < deadline and process.poll() is None, "no server"
            time.sleep(0.2)
        time.sleep(1)
        yield json.loads(found[0].read_text(encoding="utf-8"))
    finally:
        process.terminate()
        process.wait(timeout=30)


def answer(lab, token=""):
    """The status of a question about the kernels, which only somebody with the token may ask."""
    request = urllib.request.Request(f"http://127.0.0.1:{lab['port']}/api/kernels")
    if token:
        request.add_header("Authorization", f"token {token}")
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


def test_jupyterlab_asks_for_its_token(lab):
    assert len(lab["token"]) >= 32 and not lab["password"]
    assert answer(lab) == 403 and answer(lab, "wrong") == 403 and answer(lab, lab["token"]) == 200


def test_jupyterlab_listens_on_the_loopback_address_only(lab):
    assert lab["hostname"] in ("localhost", "127.0.0.1", "::1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but tells our address in the network
            address = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no other address")
    if address.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((address, lab["port"]), timeout=5).close()
