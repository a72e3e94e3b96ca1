"""Faults that happen in class, produced for real: sockets, signals, full disks, interrupted kernels.

The servers listen on the loopback address only; the files are the tiny ones of test_classroom.py.
"""

import ast
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbformat.v4 import new_code_cell, new_notebook
from test_classroom import CHECKSUMS, FILE, FLIPPED, TINY, leftovers, put
from torchvision import datasets

import run_notebooks
import vae_classroom as c

PACKED = {f"{name}.gz": gzip.compress(content) for name, content in TINY.items()}
MD5 = [(name, hashlib.md5(content).hexdigest()) for name, content in PACKED.items()]
HTML = b"<html><title>Welcome to the hotel</title>please log in</html>"
REFUSED = "http://127.0.0.1:9/"  # nobody listens there, and that is told at once


@pytest.fixture
def load(monkeypatch, capsys):
    """load(folder, *mirrors, **settings): what load_mnist returns or raises, and what it prints.

    With the tiny files in place of MNIST's, and the given mirrors in place of its own.
    """
    monkeypatch.setitem(c._CHECKSUMS, "MNIST", CHECKSUMS)
    monkeypatch.setattr(datasets.MNIST, "resources", MD5)
    monkeypatch.setattr(c, "_sample_digits", lambda: [c.torch.zeros(1)] * 4)
    for name in [
        name for name in os.environ if re.match("VAE_|(http|https|all)_proxy", name, re.I)
    ]:
        monkeypatch.delenv(name)

    def run(folder, *mirrors, **settings):
        monkeypatch.setattr(datasets.MNIST, "mirrors", mirrors)
        monkeypatch.setattr(
            urllib.request, "_opener", None
        )  # it keeps the proxies of its first use
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))
        try:
            told = c.load_mnist(root=folder, device="cpu").source
        except OSError as error:
            told = f"{type(error).__name__}: {error}"
        return told, " ".join(capsys.readouterr().out.split())

    return run


# The same in a Python of its own, to be stopped or shut out; from the second folder on without rights.
LOAD = """
import json, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import vae_classroom as c
from torchvision import datasets
c._CHECKSUMS["MNIST"], datasets.MNIST.resources, datasets.MNIST.mirrors, folders = map(
    json.loads, sys.argv[1:])
for folder in folders:
    begun = time.monotonic()
    try:
        print(c.load_mnist(root=folder, device="cpu").source, round(time.monotonic() - begun))
    except OSError as error:
        print(f"{type(error).__name__}: {error}")
    if folders[1:] and os.geteuid() == 0:
        os.seteuid(65534)  # because root may read and write anywhere
"""
# Old versions warn of themselves on today's Python packages.
STRICT = ["-W", "error"] if tuple(map(int, c.torch.__version__.split(".")[:2])) >= (2, 15) else []


def start(folders, *mirrors, before=()):
    given = [json.dumps(part) for part in (CHECKSUMS, MD5, mirrors, list(map(str, folders)))]
    env = {key: value for key, value in os.environ.items() if key[:4] != "VAE_"}
    env |= {"PYTHONPATH": str(c.ROOT), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    return begin([*before, sys.executable, *STRICT, "-c", LOAD, *given], env=env)


def begin(command, **how):
    how |= dict.fromkeys(["stdout", "stderr"], subprocess.PIPE)
    return subprocess.Popen(command, encoding="utf-8", start_new_session=True, **how)


def said(process):
    """What it has printed in the end, line by line, and its errors."""
    out, err = process.communicate(timeout=120)
    return out.splitlines() or [""], err


@pytest.fixture
def mirror():
    """mirror(answer) starts a server; answer(handler, packed file) answers each request."""
    servers = []

    def serve(answer, context=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self, PACKED.get(self.path[1:]))

            do_CONNECT = do_GET  # what a proxy is asked for https

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def whole(handler, content, share=1):
    """Answer with the content, or with a share of it, as if the rest were to follow."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: int(share * len(content))])
    handler.wfile.flush()


def sound(folder):
    """The folder holds the whole data set and nothing else."""
    files = {path.name: path.read_bytes() for path in (folder / "MNIST/raw").iterdir()}
    return files == TINY and [*folder.iterdir()] == [folder / "MNIST"]


def refusal(call=lambda: socket.create_connection(("127.0.0.1", 9), timeout=10)):
    """What this system says when that fails: each has words of its own."""
    with pytest.raises(OSError) as error:
        call()
    return error.value.strerror


TABLE = (c.ROOT / "tests/README.md").read_text(encoding="utf-8").replace("\\|", "|")


def is_in_the_table(text):
    """Whether tests/README.md says that the user sees this; numbers may differ."""
    text = text.replace(refusal(), "Connection refused")
    return re.sub(r"\d+", "0", text) in re.sub(r"\d+", "0", TABLE)


# ---------------------------------------------------------------------------------------- the data


HAND = ["elsewhere/train-images-idx3-ubyte", "data/MNIST/raw/train-images.idx3-ubyte"]
HAND += ["data/MNIST/MNIST/raw/train-images-idx3-ubyte"]


@pytest.mark.parametrize("file", HAND, ids=["nothing there", "Kaggle's name", "a folder too deep"])
def test_absent_and_no_network(tmp_path, load, monkeypatch, file):
    """Said is which file was expected, and where, and why it could not be downloaded."""
    monkeypatch.setattr(c, "ROOT", tmp_path)  # where data/ is, or will be
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_bytes(TINY["train-images-idx3-ubyte"])
    before = {*tmp_path.rglob("*"), tmp_path / "data"}
    told, out = load(None, REFUSED)
    box = re.search(r"=+ (.+?) Everything runs.+?=+$", out)[1]
    assert told == "sample" and is_in_the_table(box), box
    assert {*tmp_path.rglob("*")} == before


def untrusted(folder):
    """What a server needs to speak https, with a certificate that nobody vouches for."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl, to make a certificate with")
    files = folder / "certificate", folder / "key"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -out".split()
    subprocess.run([*command, files[0], "-keyout", files[1]], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


@pytest.mark.parametrize("fault", ["certificate", "password", "tunnel", "dead", "no name"])
def test_why_a_download_failed_is_told(tmp_path, load, mirror, fault):
    """An untrusted certificate; a proxy that asks for a password, or is dead; an unknown host."""
    url, settings, reason = "http://host.invalid/", {}, "Error 407: Proxy Authentication Required"
    if fault == "certificate":
        url, reason = mirror(whole, untrusted(tmp_path)), "certificate verify failed"
    elif fault == "dead":
        settings, reason = {"http_proxy": REFUSED}, refusal()
    elif fault == "no name":
        reason = refusal(lambda: socket.getaddrinfo("host.invalid", 80))
    else:
        proxy = mirror(lambda handler, _: handler.send_error(407))
        settings = {"http_proxy": proxy, "https_proxy": proxy}
    if fault == "tunnel":  # which a proxy makes for https
        url, reason = "https://host.invalid/", "Tunnel connection failed: 407 Proxy Authentication"
    told, out = load(tmp_path, url, **settings)
    assert told == "sample" and reason in out and "could not be downloaded (" in out, out
    assert fault == "no name" or is_in_the_table(reason)


def test_a_proxy_does_not_stand_before_our_own_servers(tmp_path, load, mirror):
    """Whatever the user has set: conftest.py sees to it."""
    assert load(tmp_path, mirror(whole), http_proxy=REFUSED)[0] == "MNIST"


BROKEN = [TINY[FILE][:5000], FLIPPED, HTML, bytes(len(TINY[FILE]))]


@pytest.mark.parametrize("content", BROKEN, ids=["truncated", "bit flipped", "HTML page", "zeros"])
def test_a_broken_file(tmp_path, load, mirror, content):
    """Without a network it is named; with one it is replaced."""
    raw = put(tmp_path, **{FILE: content})
    told, _ = load(tmp_path, REFUSED)
    assert is_in_the_table(told.replace(str(tmp_path), "…")), told
    assert (raw / FILE).read_bytes() == content  # it is the user's: not ours to throw away
    assert load(tmp_path, mirror(whole))[0] == "MNIST" and sound(tmp_path)


def test_a_mirror_that_sends_its_log_in_page(tmp_path, load, mirror):
    page = mirror(lambda handler, _: whole(handler, HTML))
    told, out = load(tmp_path, page)
    assert told == "sample" and is_in_the_table(re.search(r"\(File.+?\)", out)[0])
    assert not [*tmp_path.iterdir()]
    assert load(tmp_path, REFUSED, page, mirror(whole))[0] == "MNIST" and sound(tmp_path)


def test_a_mirror_that_hangs(tmp_path, mirror):
    """Connects and never answers, or stops in the middle: ten seconds of silence, then the next mirror,
    which torchvision alone would not ask, or the sample.
    """

    def silent(*_):
        time.sleep(100)

    def stops(handler, content):
        whole(handler, content, 0.1)
        time.sleep(100)

    processes = {}
    for answers in ((silent,), (stops,), (silent, whole)):  # side by side, each for ten seconds
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        processes[folder] = start([folder], *map(mirror, answers)), whole in answers
    for folder, (process, second) in processes.items():
        lines, err = said(process)
        source, seconds = lines[-1].split()
        assert source == ("MNIST" if second else "sample") and 9 < int(seconds) < 50, err
        missed = "timed out)" in " ".join(lines) and not [*folder.iterdir()]
        assert sound(folder) if second else missed, lines


def test_what_a_killed_kernel_left_behind_goes_after_a_day(tmp_path, load, mirror):
    for name, age in ((".download-old", 2 * 86400), (".download-of-a-neighbour", 60)):
        (tmp_path / name / "MNIST").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    load(tmp_path, mirror(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".download-of-a-neighbour", "MNIST"]


def test_two_kernels_download_at_the_same_time(tmp_path, mirror):
    def slowly(handler, content):
        time.sleep(0.3)
        whole(handler, content)

    url = mirror(slowly)
    both = [start([tmp_path], url) for _ in range(2)]
    assert all(said(process)[0][-1].startswith("MNIST") for process in both) and sound(tmp_path)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has other signals")
@pytest.mark.parametrize("number", [signal.SIGINT, getattr(signal, "SIGKILL", None)])
def test_stopped_in_the_middle_of_a_download(tmp_path, load, mirror, number):
    begun = threading.Event()

    def half(handler, content):
        whole(handler, content, 0.5)
        begun.set()
        time.sleep(100)

    process = start([tmp_path], mirror(half))
    assert begun.wait(100)
    time.sleep(0.2)
    os.killpg(process.pid, number)
    _, err = said(process)
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in err and not leftovers(tmp_path)
    assert process.returncode != 0
    assert not (tmp_path / "MNIST").exists()  # no half file under a file's name
    assert load(tmp_path, mirror(whole))[0] == "MNIST"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_what_others_may_not_read_or_write():
    """Read-only data are well, packed or not; a file, or a folder, for the teacher only is told."""
    words = {"full": "^MNIST", "packed": "^MNIST", "file": "cannot be read", "folder": "be read"}
    words |= {"closed/inside": "closed", "empty": "written"}
    with tempfile.TemporaryDirectory() as folder:  # tmp_path's parents are closed to others
        folder = Path(folder).resolve()
        files = {"packed": dict.fromkeys(TINY) | PACKED, "empty": dict.fromkeys(TINY)}
        for fault in words:
            put(folder / fault, **files.get(fault, {}))
        shut = folder / "file/MNIST/raw" / FILE, folder / "folder/MNIST/raw", folder / "closed"
        for path in [folder, *folder.rglob("*")][::-1]:
            path.chmod(0 if path in shut else 0o555)
        lines, err = said(start([folder / fault for fault in words]))
        for line, (fault, word) in zip(lines, words.items(), strict=True):
            line = line.replace(str(folder / fault), "…").replace("train", "t10k")
            assert re.search(word, line) and (word == "^MNIST" or is_in_the_table(line)), line + err


DISKS = {
    "full": "mount -t tmpfs -o size=32k tmpfs",  # the four files have 39 kB
    "read-only": 'mount --bind "$0" "$0" && mount -o remount,bind,ro',
}


@pytest.mark.skipif(not shutil.which("unshare"), reason="only Linux mounts for one process")
@pytest.mark.parametrize("disk", DISKS)
def test_a_full_and_a_read_only_disk(tmp_path, mirror, disk):
    before = ["unshare", "-m", "sh", "-c", DISKS[disk] + ' "$0" && exec "$@"', str(tmp_path)]
    process = start([tmp_path], mirror(whole), before=before)
    lines, err = said(process)
    if process.returncode:
        missing = pytest.fail if os.environ.get("VAE_FAULTS") else pytest.skip
        missing(f"it needs the right to mount: {err}")
    told = re.search(r"could not be d.+?\)|OSError.+", " ".join(" ".join(lines).split()))[0]
    assert is_in_the_table(told.replace(str(tmp_path), "…")), told


# ------------------------------------------------------------------------------------ the training


@pytest.fixture
def kernel():
    """run(code, stop) in a real kernel: its status, and what it printed.

    stop = (sign, seconds): the stop button is pressed so long after the sign is first seen.
    """
    manager, client = start_new_kernel(env=os.environ | {"PYTHONPATH": str(c.ROOT)})

    def run(code, stop=None):
        printed, pressed = [], []

        def see(message):
            content = message["content"]
            text = "\n".join(content.get("traceback", [content.get("text", "")]))
            if stop and not pressed and stop[0] in message["msg_type"] + text:
                time.sleep(stop[1])
                pressed.append(manager.interrupt_kernel())
            printed.append(text)

        reply = client.execute_interactive(code, output_hook=see, timeout=120)
        assert pressed or not stop, "the moment to press stop never came"
        return reply["content"]["status"], "".join(printed)

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    "stops",
    # PyTorch loads libraries for its first optimiser, a second long. Half loaded they stay broken.
    [[("input", 0.05)], [("input", 0.2)], [("input", 0.6), ("?it/s", 0), ("loss", 0)]],
    ids=["loading", "loading sympy", "loading torch, the bar appears, later"],
)
def test_the_kernels_stop_button_keeps_what_was_learnt(kernel, stops):
    """A real kernel, really interrupted: no error, the history so far, and the next cells run."""
    code = "import numpy as np, torch, vae_helpers as v\n"
    assert kernel(code + "vae, x = v.VAE(2, 50), torch.rand(500, 784)")[0] == "ok"
    code = "before = vae.encoder[0].weight.detach().clone()\n"
    fit = "history = v.fit(vae, v.negative_elbo, x, steps={})\nn = len(history)"
    look = "moved = (vae.encoder[0].weight != before).any().item()\n"
    look += "print(n < 10**6, np.isfinite(history).all(), moved == (n > 0))"
    for stop in stops:
        status, printed = kernel(code + fit.format(10**6), stop)
        stopped = re.search("stopped after .+|$", printed)[0]
        assert status == "ok" and stopped and is_in_the_table(stopped), printed
        assert kernel(look) == ("ok", "True True True\n")
    status, printed = kernel(fit.format(3) + "\nprint(n)")
    assert status == "ok" and printed.endswith("3\n"), printed


# ----------------------------------------------------------------------------------- the notebooks


def test_a_kernel_that_dies(tmp_path):
    """As when memory runs out: the run says so, and goes on to the next notebook."""
    nb = new_notebook(cells=[new_code_cell("1"), new_code_cell("import os; os._exit(137)")])
    told = run_notebooks.execute(nb, tmp_path)
    assert told.startswith("in cell [") and is_in_the_table(told.splitlines()[-1]), told
    assert run_notebooks.execute(new_notebook(cells=[new_code_cell("2")]), tmp_path) is None


def test_nbconvert_can_keep_only_the_last_state_of_a_bar(tmp_path):
    """By its own preprocessor, which the README names; without it there is a line for each state."""
    readme = (c.ROOT / "README.md").read_text(encoding="utf-8")
    (option,) = re.findall(r"`(--HTMLExporter\S+)`", readme)
    bar = "for _ in tqdm(range(30), file=sys.stdout, mininterval=0): time.sleep(0.01)"
    cell = new_code_cell(f"import sys, time\nfrom tqdm import tqdm\n{bar}")
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "bar.ipynb")
    states = {}
    for more in ([], [option]):
        command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", "--execute", *more]
        subprocess.run([*command, tmp_path / "bar.ipynb"], check=True, capture_output=True)
        page = (tmp_path / "bar.html").read_text(encoding="utf-8")
        states[len(more)] = len(re.findall(r"\d/30", page))
    assert states[0] > 5 and states[1] == 1, states


SLEEPER = """
import run_notebooks
from nbformat.v4 import new_code_cell, new_notebook
code = "import os, time; open('begun', 'w').write(str(os.getpid())); time.sleep(60)"
run_notebooks.execute(new_notebook(cells=[new_code_cell(code)]), ".")
print("went on")
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has other signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_of_notebooks_that_is_stopped(tmp_path, number):
    """Ends at once, in one line; no kernel works on in the background."""
    env = os.environ | {"PYTHONPATH": str(c.ROOT / "tools")}
    process = begin([sys.executable, "-c", SLEEPER], cwd=tmp_path, env=env)
    begun, deadline = tmp_path / "begun", time.monotonic() + 100
    while not (begun.exists() and begun.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    lines, err = said(process)
    assert process.returncode == 1 and "went on" not in lines
    last = err.strip().splitlines()[-1]  # above it the kernel complains
    assert is_in_the_table(f"`{last}`"), err
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(begun.read_text()), 0)  # the kernel has a process group of its own
            time.sleep(0.1)


# ------------------------------------------------------------------------------------ the machine

BACKEND = r"""
import zipfile
def build_editable(folder, *_):
    with zipfile.ZipFile(f"{folder}/none-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("none-0.dist-info/METADATA", "Metadata-Version: 2.1\nName: none\nVersion: 0")
        wheel.writestr("none-0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        wheel.writestr("none-0.dist-info/RECORD", "")
    return "none-0-py3-none-any.whl"
"""


def install(folder, python, **settings):
    """The Makefile's installation of a project that needs nothing from the network."""
    if not shutil.which("make") or os.name == "nt":
        pytest.skip("no make")
    shutil.copy(c.ROOT / "Makefile", folder)
    (folder / "requirements.txt").touch()
    (folder / "none.py").write_text(BACKEND)
    text = '[build-system]\nrequires = []\nbuild-backend = "none"\nbackend-path = ["."]\n'
    (folder / "pyproject.toml").write_text(text)
    command, env = ["make", ".venv/.installed", f"PYTHON={python}"], os.environ | settings
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8")


def test_a_pip_that_is_told_to_install_for_the_user(tmp_path):
    (tmp_path / "pip.conf").write_text("[global]\nuser = true\n")
    settings = {"PIP_USER": "1", "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    result = install(tmp_path, sys.executable, PIP_NO_INDEX="1", **settings)
    assert result.returncode == 0, result.stderr
    assert [*tmp_path.glob(".venv/lib/*/site-packages/none-0.dist-info")]


MAC = "platform.system, platform.machine = lambda: 'Darwin', lambda: 'x86_64'"


@pytest.mark.parametrize("lie", ["sys.version_info = (3, 10)", MAC], ids=["an old Python", "Intel"])
def test_a_machine_on_which_it_cannot_run(tmp_path, lie):
    """Is told in one line, before anything is downloaded or made."""
    run = f'"{sys.executable}" -c "import platform, sys; {lie}; exec(sys.argv[2])"'
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {run} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    result = install(tmp_path, "./python")
    line, made = result.stderr.splitlines()
    assert is_in_the_table(f"`{line}`") and made.startswith("make:"), result.stderr
    assert not result.stdout and not (tmp_path / ".venv").exists()


@pytest.mark.skipif(os.name == "nt", reason="on Windows links are for administrators")
def test_git_ignores_what_is_made_where_it_is_a_link_too(tmp_path):
    """.venv, data and out may lie on another disk."""
    shutil.copy(c.ROOT / ".gitignore", tmp_path)
    for name in (".venv", "data", "out"):
        (tmp_path / name).symlink_to(tmp_path.parent, target_is_directory=True)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    status = ["git", "-C", tmp_path, "status", "--porcelain"]
    assert subprocess.run(status, check=True, capture_output=True).stdout == b"?? .gitignore\n"


# -------------------------------------------------------------------------------------- the table


def test_the_table_quotes_what_is_said():
    """Each error that tests/README.md quotes is one that a module raises, its gaps filled in."""
    said = []
    for path in c.ROOT.glob("vae_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [p.value if isinstance(p, ast.Constant) else None for p in parts]
            if len("".join(text for text in texts if isinstance(text, str))) > 15:
                said.append("".join(".+" if text is None else re.escape(text) for text in texts))
    quoted = re.findall(r"`\w+Error: (.+?)`", TABLE)
    unknown = [text for text in quoted if not any(re.fullmatch(it, text) for it in said)]
    assert len(quoted) > 15 and not unknown
    assert not any(re.fullmatch(it, "images must be in [0, 1]") for it in said)  # it can say no


def test_the_table_names_tests_that_are_there():
    files = [*c.ROOT.glob("tests/test_*.py")]
    there = set(re.findall(r"^def (test_\w+)", "".join(f.read_text("utf-8") for f in files), re.M))
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    assert len(named) > 15 and named <= there, named - there
