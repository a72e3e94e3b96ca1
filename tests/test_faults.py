"""Faults that happen in class, produced for real: sockets, signals, full disks, interrupted kernels.

The servers listen on the loopback address only; the files are the tiny ones of test_helpers.py.
"""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from jupyter_client.manager import start_new_kernel
from test_helpers import CHECKSUMS, FILE, FLIPPED, TINY, leftovers, put

import vae_helpers as v

PACKED = {f"{name}.gz": gzip.compress(content) for name, content in TINY.items()}
MD5 = [(name, hashlib.md5(content).hexdigest()) for name, content in PACKED.items()]
HTML = b"<html><title>Welcome to the hotel</title>please log in</html>"

# What a class runs, with the tiny files in place of MNIST and the given mirrors in place of its own.
LOAD = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import vae_helpers as v
from torchvision import datasets
checksums, resources, mirrors, folder = map(json.loads, sys.argv[1:])
v._CHECKSUMS["MNIST"] = checksums
datasets.MNIST.resources, datasets.MNIST.mirrors = resources, mirrors
print("ready", flush=True)
print(v.load_mnist(root=folder, device="cpu").source)
"""


def start(folder, *mirrors, before=()):
    """load_mnist in a fresh Python, started."""
    arguments = [json.dumps(part) for part in (CHECKSUMS, MD5, mirrors, str(folder))]
    kept = {key: value for key, value in os.environ.items() if key[:4] != "VAE_"}
    settings = {"PYTHONPATH": str(v.ROOT), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*before, sys.executable, "-c", LOAD, *arguments],
        env=kept | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def load(folder, *mirrors, **kwargs):
    """What load_mnist printed, its error's last line, and the seconds after the imports."""
    process = start(folder, *mirrors, **kwargs)
    process.stdout.readline()
    begun = time.monotonic()
    out, err = process.communicate(timeout=60)
    error = err.strip().splitlines()[-1] if process.returncode else ""
    return out, error, time.monotonic() - begun


@pytest.fixture
def mirror():
    """mirror(answer) starts a server; answer(handler, packed file) answers each request."""
    servers = []

    def serve(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self, PACKED[self.path[1:]])

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def whole(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def sound(folder):
    """The folder holds the whole data set and nothing else."""
    raw = folder / "MNIST" / "raw"
    return {path.name: path.read_bytes() for path in raw.iterdir()} == TINY and (
        [path.name for path in folder.iterdir()] == ["MNIST"]
    )


def is_sample(out):
    return "OFFLINE SAMPLE" in out and out.splitlines()[-1] == "sample"


REFUSED = "http://127.0.0.1:9/"  # nobody listens there, and that is told at once


# ---------------------------------------------------------------------------------------- the data


def test_absent_and_no_network(tmp_path):
    out, _, seconds = load(tmp_path / "data", REFUSED)
    assert is_sample(out) and "could not be downloaded" in out and seconds < 10
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    "content",
    [TINY[FILE][:5000], FLIPPED, HTML, bytes(len(TINY[FILE]))],
    ids=["truncated", "one bit flipped", "an HTML page", "right size, wrong content"],
)
def test_a_broken_file(tmp_path, mirror, content):
    """Without a network it is named; with one it is replaced."""
    raw = put(tmp_path, **{FILE: content})
    out, error, _ = load(tmp_path, REFUSED)
    assert out == "" and error.startswith("OSError: ") and str(raw / FILE) in error
    assert "delete it, or put a good copy there" in error
    assert (raw / FILE).read_bytes() == content  # it is the user's: not ours to throw away
    out, _, _ = load(tmp_path, mirror(whole))
    assert out == "MNIST\n" or out.endswith("\nMNIST\n")
    assert sound(tmp_path)


def test_a_mirror_that_sends_its_log_in_page(tmp_path, mirror):
    out, _, _ = load(tmp_path / "data", mirror(lambda handler, _: whole(handler, HTML)))
    assert is_sample(out) and not leftovers(tmp_path)
    assert not list((tmp_path / "data").rglob("*-ubyte*"))


@pytest.mark.parametrize("after", [0, 100])
def test_a_mirror_that_hangs(tmp_path, mirror, after):
    """Connects and never answers, or stops in the middle: ten seconds of silence, then the sample."""
    stop = threading.Event()

    def hang(handler, content):
        if after:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[:after])
            handler.wfile.flush()
        stop.wait(40)

    out, _, seconds = load(tmp_path / "data", mirror(hang))
    stop.set()
    assert is_sample(out) and 9 < seconds < 25
    assert not list((tmp_path / "data").rglob("*-ubyte*")) and not leftovers(tmp_path)


@pytest.mark.parametrize("fault", ["hangs", "sends its log-in page", "refuses"])
def test_the_next_mirror_is_asked(tmp_path, mirror, fault):
    """Whatever is wrong with the first one; torchvision alone would give up when it hangs."""
    stop = threading.Event()
    first = REFUSED
    if fault == "hangs":
        first = mirror(lambda handler, _: stop.wait(40))
    elif fault != "refuses":
        first = mirror(lambda handler, _: whole(handler, HTML))
    out, error, seconds = load(tmp_path / "data", first, mirror(whole))
    stop.set()
    assert out.splitlines()[-1] == "MNIST" and sound(tmp_path / "data"), error
    assert seconds < 20


def test_what_a_killed_kernel_left_behind_goes_after_a_day(tmp_path, mirror):
    for name, age in ((".download-old", 2 * 86400), (".download-of-a-neighbour", 60)):
        (tmp_path / name / "MNIST").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    load(tmp_path, mirror(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".download-of-a-neighbour", "MNIST"]


@pytest.mark.parametrize("seed", ["one", "-1", "2.5", str(2**64)])
def test_a_seed_that_is_none(seed):
    command = [sys.executable, "-c", "import vae_helpers"]
    settings = {"VAE_SEED": seed, "PYTHONPATH": str(v.ROOT)}
    result = subprocess.run(
        command, env=os.environ | settings, capture_output=True, encoding="utf-8"
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"ValueError: VAE_SEED must be a whole number from 0, got {seed!r}"


def test_two_kernels_download_at_the_same_time(tmp_path, mirror):
    def slowly(handler, content):
        time.sleep(0.5)
        whole(handler, content)

    url = mirror(slowly)
    both = [start(tmp_path / "data", url) for _ in range(2)]
    outs = [process.communicate(timeout=60)[0] for process in both]
    assert all(out.splitlines()[-1] == "MNIST" for out in outs)
    assert sound(tmp_path / "data")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has other signals")
@pytest.mark.parametrize("number", [signal.SIGINT, getattr(signal, "SIGKILL", None)])
def test_stopped_in_the_middle_of_a_download(tmp_path, mirror, number):
    begun, stop = threading.Event(), threading.Event()

    def half(handler, content):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        begun.set()
        stop.wait(40)

    process = start(tmp_path / "data", mirror(half))
    assert begun.wait(60)
    time.sleep(0.2)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    stop.set()
    assert process.returncode != 0
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in err and not leftovers(tmp_path)
    assert not (tmp_path / "data" / "MNIST").exists()  # no half file under a file's name
    out, _, _ = load(tmp_path / "data", mirror(whole))
    assert out.splitlines()[-1] == "MNIST"


def privileged(what):
    """Skips where this user may not do that, and fails where CI says that it must be possible."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0:
        return
    if os.environ.get("VAE_FAULTS"):
        pytest.fail(f"{what} needs the right to mount, and here it must be there")
    pytest.skip(f"{what} needs the right to mount")


def test_a_full_disk(tmp_path, mirror):
    """A disk of 32 kB, on which the four files (39 kB) have no room."""
    privileged("a full disk")
    script = 'mount -t tmpfs -o size=32k tmpfs "$0" && exec "$@"'
    before = ["unshare", "-m", "sh", "-c", script, str(tmp_path)]
    out, error, _ = load(tmp_path, mirror(whole), before=before)
    assert is_sample(out) and "No space left on device" in out, error


@pytest.mark.skipif(
    not hasattr(os, "geteuid"), reason="folders have no such permissions on Windows"
)
def test_a_data_folder_on_a_read_only_disk(tmp_path):
    privileged("a read-only disk")
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    before = ["unshare", "-m", "sh", "-c", script, str(tmp_path)]
    out, error, _ = load(tmp_path, REFUSED, before=before)
    assert (
        out == ""
        and f"OSError: the data folder must hold MNIST or be writable; {tmp_path}" in error
    )
    assert "Read-only file system" in error and "VAE_DATA=sample" in error


# ------------------------------------------------------------------------------------ the training


@pytest.mark.parametrize("sign", ["?it/s", "loss"], ids=["at once", "later"])
def test_the_kernels_stop_button_keeps_what_was_learnt(sign):
    """A real kernel, really interrupted: no error, the history so far, and the next cell runs."""
    manager, client = start_new_kernel(env=os.environ | {"PYTHONPATH": str(v.ROOT)})

    def run(code, interrupt=False):
        printed = []
        request = client.execute(code)
        if interrupt:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:  # until the bar says so
                message = client.get_iopub_msg(timeout=60)
                if sign in message["content"].get("text", ""):
                    break
            manager.interrupt_kernel()
        while True:
            message = client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "error":
                printed.append("\n".join(message["content"]["traceback"]))
            printed.append(message["content"].get("text", ""))
            if message["content"].get("execution_state") == "idle":
                return client.get_shell_msg(timeout=60)["content"]["status"], "".join(printed)

    try:
        run("import torch, vae_helpers as v")
        code = "vae = v.VAE(2, 50)\nbefore = vae.encoder[0].weight.detach().clone()\n"
        assert run(code)[0] == "ok"
        code = "history = v.fit(vae, lambda m, x: -v.elbo(m, x), torch.rand(500, 784), steps=10**6)"
        status, printed = run(code, interrupt=True)
        assert status == "ok", printed
        assert "stopped: learning is kept" in printed
        code = "import numpy as np\nmoved = (vae.encoder[0].weight - before).abs().max().item()\n"
        code += "print(len(history) < 10**6, np.isfinite(history).all(), (moved > 0) == (len(history) > 0))"
        status, printed = run(code)
        assert status == "ok" and printed.strip() == "True True True"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
