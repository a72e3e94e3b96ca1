"""What a class may trust: nothing is unpickled or evaluated, JupyterLab keeps its door shut, and no
stored output holds what it should not.
"""

import json
import os
import re
import shutil
import signal
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
CODE = [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py"), *links.notebooks(), *links.solutions()]


# ------------------------------------------------------------------------------------------ the code

# What could run a stranger's code: unpickling, evaluating, a shell, no check of certificates.
DANGER = re.compile(
    r"\b(import|from) (c?[pP]ickle|dill|cloudpickle|joblib|shelve|marshal)\b"
    r"|(?<![.\w])(eval|exec|compile|__import__)\(|os\.(system|popen)\("
    r"|torch\.load\((?!.*weights_only=True)|torch\.save\(\s*\w+,"
    r"|allow_pickle=True|shell=True|_create_unverified_context|verify=False"
)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_outside_is_run(path):
    found = DANGER.search(path.read_text(encoding="utf-8"))
    assert not found, found[0]


def test_dangers_are_seen():
    seen = (
        "import pickle;from joblib import load;eval(text);torch.load(path);torch.save(model, path)"
    )
    seen += ";torch.load(path, weights_only=False);np.load(path, allow_pickle=True);os.system('ls')"
    seen += ";subprocess.run(line, shell=True);ssl._create_unverified_context()"
    assert [line for line in seen.split(";") if not DANGER.search(line)] == []
    assert not DANGER.search("model.eval()\nre.compile(x)\ntorch.load(p, weights_only=True)")


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
            known = {"text/plain", "image/png", "image/gif"}
            known |= {"application/vnd.jupyter.widget-view+json"}
            assert kinds <= known, f"{cell.id}: {kinds - known}"
    assert "signature" not in nb.metadata and "widgets" not in nb.metadata
    text = json.dumps({**nb, "cells": [{**c, "attachments": None} for c in nb.cells]})
    text = re.sub(r"[A-Za-z0-9+/]{1000,}", "", text)  # a picture has any four letters somewhere
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
    """The server that `make lab` starts, with options: what it says about itself."""
    if not shutil.which("make") or not hasattr(os, "killpg"):
        pytest.skip("no make")
    folder = tmp_path_factory.mktemp("lab")
    own = dict.fromkeys(["JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "HOME"], str(folder))
    kept = {k: x for k, x in os.environ.items() if k != "JUPYTER_TOKEN"}
    command = ["make", "-o", ".venv/.installed", "lab", f"PY='{sys.executable}'"]
    command += ["OPTIONS=--no-browser --port=0 --allow-root"]  # without the last, root is refused
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=kept | own, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := list(folder.glob("jpserver-*.json"))):
            assert time.monotonic() < deadline and process.poll() is None, open(log.name).read()
            time.sleep(0.2)
        yield json.loads(found[0].read_text(encoding="utf-8"))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def ask(lab, path, token=""):
    """The server's answer, or its refusal, which has a status too."""
    request = urllib.request.Request(f"http://127.0.0.1:{lab['port']}{path}")
    request.add_header("Authorization", f"token {token}")
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        return error


def test_jupyterlab_asks_for_its_token(lab):
    assert len(lab["token"]) >= 32 and not lab["password"]
    tokens = ("", "wrong", lab["token"])
    assert [ask(lab, "/api/kernels", token).status for token in tokens] == [403, 403, 200]


def test_jupyterlab_listens_on_the_loopback_address_only(lab):
    assert lab["hostname"] in ("localhost", "127.0.0.1", "::1")
    with pytest.raises(OSError):  # whoever listens to all addresses has this one too
        socket.create_connection(("127.0.0.2", lab["port"]), timeout=5).close()


def test_jupyterlab_opens_the_first_notebook_and_asks_nothing(lab):
    page = ask(lab, "/", lab["token"])
    first = min(path.name for path in links.notebooks())
    assert page.url.endswith(f"/lab/tree/notebooks/{first}") and page.status == 200
    config = re.search(r'id="jupyter-config-data".*?>(.+?)</script>', page.read().decode(), re.S)[1]
    assert (
        "@jupyterlab/apputils-extension:announcements" in json.loads(config)["disabledExtensions"]
    )
