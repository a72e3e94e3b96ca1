"""Faults that happen in class, produced for real: sockets, signals, full disks, interrupted kernels.

The servers listen on the loopback address only; the files are the tiny ones of test_helpers.py.
"""

import gzip
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from nbformat.v4 import new_code_cell, new_notebook
from test_helpers import CHECKSUMS, FILE, FLIPPED, TINY, leftovers, put

import run_notebooks
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

TABLE = (v.ROOT / "tests/README.md").read_text(encoding="utf-8").replace("\\|", "|")


def is_in_the_table(text):
    """Whether tests/README.md says that the user sees this; numbers may differ."""
    return re.sub(r"\d+", "0", text) in re.sub(r"\d+", "0", TABLE)


# ---------------------------------------------------------------------------------------- the data


def test_absent_and_no_network(tmp_path):
    out, _, seconds = load(tmp_path / "data", REFUSED)
    assert is_sample(out) and seconds < 10
    assert is_in_the_table(out.splitlines()[1].strip().replace("…/", "")), out
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
    assert out == "" and str(raw / FILE) in error
    assert is_in_the_table(error.replace(str(tmp_path), "…")), error
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
    assert seed != "one" or is_in_the_table(last)


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
    assert is_sample(out), error
    assert is_in_the_table("could not" + out.splitlines()[1].split("could not")[1]), out


@pytest.mark.skipif(
    not hasattr(os, "geteuid"), reason="folders have no such permissions on Windows"
)
def test_a_data_folder_on_a_read_only_disk(tmp_path):
    privileged("a read-only disk")
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    before = ["unshare", "-m", "sh", "-c", script, str(tmp_path)]
    out, error, _ = load(tmp_path, REFUSED, before=before)
    assert out == "" and str(tmp_path) in error
    assert is_in_the_table(error.replace(str(tmp_path), "…/data")), error


# ------------------------------------------------------------------------------------ the training


@pytest.fixture
def kernel():
    """run(code) in a real kernel gives the status and what was printed; stop_at: pressing stop.

    stop_at(message) says whether it is pressed now: it is asked once for each of the kernel's messages.
    """
    manager, client = start_new_kernel(env=os.environ | {"PYTHONPATH": str(v.ROOT)})

    def run(code, stop_at=None):
        printed, deadline = [], time.monotonic() + 120
        request = client.execute(code)
        while True:
            assert time.monotonic() < deadline, "the cell runs on: " + "".join(printed)[-500:]
            message = client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request:
                continue
            if stop_at and stop_at(message):
                manager.interrupt_kernel()
                stop_at = None
            if message["msg_type"] == "error":
                printed.append("\n".join(message["content"]["traceback"]))
            printed.append(message["content"].get("text", ""))
            if message["content"].get("execution_state") == "idle":
                assert stop_at is None, "the moment to press stop never came"
                return client.get_shell_msg(timeout=60)["content"]["status"], "".join(printed)

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def after(seconds):
    """So long after the cell began, whatever it shows."""

    def now(message):
        if message["msg_type"] == "execute_input":
            time.sleep(seconds)
            return True

    return now


def shows(sign):
    return lambda message: sign in message["content"].get("text", "")


@pytest.mark.parametrize(
    "moment",
    # PyTorch loads libraries for its first optimiser, a second long. Half loaded they stay broken.
    [after(0.05), after(0.2), after(0.6), shows("?it/s"), shows("loss")],
    ids=["loading", "loading sympy", "loading torch", "the bar appears", "later"],
)
def test_the_kernels_stop_button_keeps_what_was_learnt(kernel, moment):
    """A real kernel, really interrupted: no error, the history so far, and the next cells run."""
    code = "import numpy as np, torch, vae_helpers as v\nvae = v.VAE(2, 50)\n"
    code += "x, before = torch.rand(500, 784), vae.encoder[0].weight.detach().clone()"
    assert kernel(code)[0] == "ok"
    fit = "history = v.fit(vae, lambda m, x: -v.elbo(m, x), x, steps={})"
    status, printed = kernel(fit.format(10**6), stop_at=moment)
    assert status == "ok", printed
    assert is_in_the_table(printed.splitlines()[-1]), printed
    code = "moved = (vae.encoder[0].weight - before).abs().max().item()\n"
    code += (
        "print(len(history) < 10**6, np.isfinite(history).all(), (moved > 0) == (len(history) > 0))"
    )
    status, printed = kernel(code)
    assert status == "ok" and printed.strip() == "True True True", printed
    status, printed = kernel(fit.format(3) + "\nprint(len(history))")
    assert status == "ok" and printed.endswith("3\n"), printed


def nan_at_step_3(model, x):
    nan_at_step_3.steps = getattr(nan_at_step_3, "steps", 0) + 1
    return v.reconstruction_loss(model, x) * (math.nan if nan_at_step_3.steps == 4 else 1)


AE, X = v.Autoencoder(2, 8), torch.rand(5, 784)
WRONG = {
    "images in 0 to 255": lambda: AE.encode(torch.linspace(0, 255, 784)[None]),
    "labels": lambda: AE.encode(torch.arange(10)),
    "uint8": lambda: AE.encode(torch.zeros(3, 784, dtype=torch.uint8)),
    "float64": lambda: AE.encode(X.double()),
    "another device": lambda: v.Autoencoder(2, 8).to("meta").encode(X),
    "a list": lambda: AE.encode([0.0]),
    "a model": lambda: v.plot_manifold(AE),
    "grey images": lambda: v.log_likelihood(v.VAE(2, 8), X),
    "no model in the loss": lambda: v.fit(AE, lambda ae, x: x.sum(-1), X, steps=1),
    "a loss with a mean": lambda: v.fit(
        AE, lambda ae, x: ae.decode(ae.encode(x)).mean(), X, steps=1
    ),
    "no images": lambda: v.fit(AE, v.reconstruction_loss, X[:0], steps=1),
    "a negative number of steps": lambda: v.fit(AE, v.reconstruction_loss, X, steps=-1),
    "NaN": lambda: v.fit(AE, nan_at_step_3, X, steps=9),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_told_as_the_table_says(fault):
    with pytest.raises((ValueError, TypeError, FloatingPointError)) as error:
        WRONG[fault]()
    told = f"{error.type.__name__}: {error.value}".replace("on meta", "on cuda:0")
    assert is_in_the_table(f"`{told}`"), told


@pytest.mark.parametrize(
    "images, batch_size",
    [(5, 1), (1, 250), (5, 2), (5, 99)],
    ids=["one", "one image", "rest", "all"],
)
def test_odd_batches(images, batch_size):
    """A batch of one, a single image, a last incomplete batch, a batch larger than the data."""
    for model, loss in ((AE, v.reconstruction_loss), (v.VAE(2, 8), lambda m, x: -v.elbo(m, x))):
        history = v.fit(model, loss, X[:images], steps=7, batch_size=batch_size)
        assert history.shape == (7,) and np.isfinite(history).all()


def test_a_kernel_that_dies(tmp_path):
    """As when memory runs out: the run says so, and goes on to the next notebook."""
    nb = new_notebook(cells=[new_code_cell("1"), new_code_cell("import os, signal")])
    nb.cells.append(new_code_cell("os.kill(os.getpid(), signal.SIGKILL)"))
    told = run_notebooks.execute(nb, tmp_path)
    assert told.startswith("in cell [") and is_in_the_table(told.splitlines()[-1]), told
    assert run_notebooks.execute(new_notebook(cells=[new_code_cell("2")]), tmp_path) is None


SLEEPER = """
import sys
sys.path.insert(0, sys.argv[1])
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
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(v.ROOT / "tools")],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "went on" not in out
    last = err.strip().splitlines()[-1]  # above it the kernel complains
    assert is_in_the_table(f"`{last}`"), err
    kernel = int((tmp_path / "begun").read_text())  # it has a process group of its own
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(kernel, 0)
            time.sleep(0.1)


STRICT = """
import vae_helpers as v
mnist = v.load_mnist(sample=True, device="cpu")
x, labels = mnist.train[:500], mnist.train_labels[:500]
vae, ae = v.VAE(2, 20), v.Autoencoder(2, 20)
history = v.fit(vae, lambda vae, x: -v.elbo(vae, x), x, steps=5)
v.fit(ae, v.reconstruction_loss, x, steps=5)
v.log_likelihood(vae, x[:10].round(), 10)
judge = v.train_judge(x, labels, steps=5)
v.hole_rate(judge, x, x), v.frechet_distance(judge.features(x), judge.features(x))
fig, axes = v.plt.subplots(2, 2)
v.show_images(x[:20], axes[0, 0])
v.plot_latent_space(ae.encode(x), labels, axes[0, 1])
v.plot_manifold(ae.decode, axes[1, 0])
v.plot_history({"VAE": history}, axes[1, 1])
v.save_figure(fig, "00-strict", alt="all of them")
v.claim("it ran", 1, low=1)
"""


@pytest.mark.skipif(
    tuple(map(int, v.torch.__version__.split(".")[:2])) < (2, 15),
    reason="old versions warn of themselves on today's Python packages",
)
def test_python_that_takes_warnings_for_errors(tmp_path):
    """All of the module, by `python -W error`."""
    settings = {"PYTHONPATH": str(v.ROOT), "PYTHONUTF8": "1", "MPLBACKEND": "Agg"}
    settings |= {"VAE_FIGURES_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", STRICT]
    result = subprocess.run(
        command, env=os.environ | settings, capture_output=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "it ran" in result.stdout and not result.stderr


def test_the_table_names_tests_that_are_there():
    files = [*v.ROOT.glob("tests/test_*.py")]
    there = set(re.findall(r"^def (test_\w+)", "".join(f.read_text("utf-8") for f in files), re.M))
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    assert len(named) > 15 and named <= there, named - there
    assert not is_in_the_table("ValueError: images must be in [0, 1]")  # it can say no
