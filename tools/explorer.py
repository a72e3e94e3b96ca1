"""The latent explorer: one page, without a network, in which notebook 06's models run.

python tools/explorer.py               make explorer: writes out/latent_explorer.html
python tools/explorer.py --in-place    for maintainers: writes figures/latent_explorer.html, on the
                                       full MNIST only

The models are the notebook's own: its cells are run as far as the codes, in about two minutes.
"""

import argparse
import base64
import importlib.util
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import torch
from matplotlib.figure import Figure

import links
import run_notebooks
import vae_classroom

ROOT = links.ROOT
NOTEBOOK = ROOT / "notebooks/06_two_latent_spaces.ipynb"
PARTS = ROOT / "tools/explorer_page"
SCRIPTS = ("networks.js", "pad.js", "planes.js", "modes.js")  # in one script, in this order
LAST_CELL = "codes = {name: encode("  # in the last of the notebook's cells that is needed
LARGEST = 4_000_000  # bytes
DATA = re.compile(r'(<script type="application/json" id="data">).*?(</script>)', re.DOTALL)

SAVE = """
import os

names, shown = ("AE", "VAE"), 2000  # the dots on a plane
labels = mnist.test_labels[:shown].cpu()
rows = torch.cat([(labels == digit).nonzero()[:10, 0] for digit in range(10)])  # ten of each class
torch.save(
    {
        "networks": {
            name: {
                part: {k: v.cpu() for k, v in getattr(models[2][name], part).state_dict().items()}
                for part in ("encoder", "decoder")
            }
            for name in names
        },
        "codes": {name: codes[name][:shown].cpu().clone() for name in names},
        "labels": labels,
        "digits": mnist.test[rows.to(device)].cpu(),
        "digit_labels": labels[rows],
        "steps": [step for step, _ in film["VAE"]],
        "film": {name: torch.stack([dots[:500] for _, dots in film[name]]) for name in names},
        "source": mnist.source,
    },
    os.environ["VAE_EXPLORER_TENSORS"],
)
"""

TITLES = {
    "AE": ("Autoencoder (AE)", " The AE has no prior."),
    "VAE": ("Variational autoencoder (VAE)", ""),
}


# ------------------------------------------------------------------------------------------ models


def shortened(nb):
    """The notebook's code as far as the codes, without figures, and a cell that saves what the page needs."""
    shows = re.compile(r"save_(figure|film)\(")
    cells = [c for c in nb.cells if c.cell_type == "code" and not shows.search(c.source)]
    ends = [i for i, cell in enumerate(cells) if LAST_CELL in cell.source]
    if not ends:
        raise ValueError(f"{NOTEBOOK.name} has no cell with {LAST_CELL!r}")
    nb.cells = cells[: ends[0] + 1] + [nbformat.v4.new_code_cell(SAVE)]
    return nb


def tensors_of_notebook():
    """What SAVE saved. Errors: RuntimeError if a cell fails, with its last line."""
    nb = shortened(links.read(NOTEBOOK))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensors.pt"
        with mock.patch.dict(os.environ, VAE_EXPLORER_TENSORS=str(path)):
            problem = run_notebooks.execute(nb, NOTEBOOK.parent)
        if problem:
            where, *_, what = problem.splitlines()
            raise RuntimeError(f"{NOTEBOOK.name} failed {where} {what}")
        return torch.load(path, weights_only=True)


# -------------------------------------------------------------------------------------------- page


def theme(name):
    """The theme's colours as CSS. The module has those of one theme: a second copy is asked."""
    with mock.patch.dict(os.environ, VAE_THEME=name), plt.rc_context():
        spec = importlib.util.find_spec("vae_classroom")
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
    colours = {"ink": copy.INK, "paper": copy.PAPER, "quiet": copy.QUIET}
    colours |= {model: copy.COLOURS[model] for model in TITLES}
    return " ".join(f"--{key}: {value};" for key, value in colours.items())


def page(data):
    """The template with styles, scripts, the two themes and the data, a string, in their places."""

    def read(name):
        return (PARTS / name).read_text(encoding="utf-8").rstrip()

    text, scripts = read("page.html") + "\n", "\n\n".join(read(name) for name in SCRIPTS)
    parts = {"STYLE": read("style.css"), "SCRIPT": scripts, "DATA": data}
    parts |= {"LIGHT": theme("light"), "DARK": theme("dark")}
    for key, value in parts.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def data_of(text):
    """The data of a page: (parsed, the page without them)."""
    found = DATA.search(text)
    inner = text[found.end(1) : found.start(2)]
    return json.loads(inner), DATA.sub(r"\1\2", text)


def packed(values, kind):
    """Numbers as base64; `kind` is numpy's, little-endian as in every browser."""
    return base64.b64encode(values.numpy().astype(kind).tobytes()).decode("ascii")


def packed_layer(weights, bias, bits):
    """A layer as text: whole numbers of 16 or 18 bits, a scale for each row, and the bias in float32.

    With 16 bits a decoded pixel would err by up to 0.001, because the AE's codes reach far out and
    its logits with them; the encoders' codes need no more.
    """
    scale = (weights.abs().amax(1) / (2 ** (bits - 1) - 1)).clamp(min=1e-30)  # (outputs,)
    whole = (weights.double() / scale.double()[:, None]).round().long().flatten()  # signed
    layer = {"scale": packed(scale, "<f4"), "b": packed(bias, "<f4")}
    if bits == 18:
        quarters = (whole & 3).reshape(-1, 4)  # four to a byte, the first one low
        layer["low"] = packed((quarters << torch.tensor([0, 2, 4, 6])).sum(1), "u1")
        whole = whole >> 2
    return layer | {"w": packed(whole, "<i2")}


def packed_network(name, part, state):
    """Two layers of an encoder or a decoder. Errors: ValueError for what the page cannot run."""
    w0, b0, w1, b1 = (state[key] for key in ("0.weight", "0.bias", "2.weight", "2.bias"))
    hidden, outputs = len(b0), {"AE": 2, "VAE": 4}[name]
    sizes = {"encoder": (784, outputs), "decoder": (2, 784)}[part]
    wanted = [(hidden, sizes[0]), (hidden,), (sizes[1], hidden), (sizes[1],)]
    shapes = [tuple(tensor.shape) for tensor in (w0, b0, w1, b1)]
    if shapes != wanted or hidden % 4:
        raise ValueError(
            f"{name}: not a {part} {sizes[0]}-hidden-{sizes[1]}, hidden a multiple of 4; "
            f"its shapes: {shapes}"
        )
    if not all(torch.isfinite(tensor).all() for tensor in (w0, b0, w1, b1)):
        raise ValueError(f"{name}: the {part} has weights that are not finite")
    bits = 18 if part == "decoder" else 16
    return [packed_layer(w0, b0, bits), packed_layer(w1, b1, bits)]


def packed_film(film):
    """Places (frames, dots, 2) as 16-bit numbers and their scale."""
    scale = film.abs().max().item() / 32767
    return {"places": packed((film / scale).round(), "<i2"), "scale": scale}


def square_around(z, margin=1.08):
    """Limits of a square that holds all codes shown, and the prior's rings (notebook 06)."""
    low, high = z.amin(0).clamp(max=-3.2), z.amax(0).clamp(min=3.2)
    centre, half = (low + high) / 2, margin * (high - low).max().item() / 2
    return [[round(c - half, 4), round(c + half, 4)] for c in centre.tolist()]


def marks(z, labels):
    """[digit, z1, z2] of each class, where the notebooks' figures write it."""
    texts = vae_classroom.plot_latent_space(z, labels, Figure().add_subplot()).texts
    return [[text.get_text(), *(round(c, 4) for c in text.get_position())] for text in texts]


def render(tensors):
    """The page as text, of what SAVE saves.

    Errors: ValueError for networks that the page cannot run, and for a page that is too large.
    """
    labels = tensors["labels"]
    models = {}
    for name, (title, remark) in TITLES.items():
        z = tensors["codes"][name]
        models[name] = {
            "title": title,
            "legend": f"Rings: the prior’s 1, 2 and 3 standard deviations.{remark}",
            "limits": square_around(z),
            "marks": marks(z, labels),
            "codes": packed(z, "<f4"),
            "film": packed_film(tensors["film"][name]),
        }
        models[name] |= {
            part: packed_network(name, part, state)
            for part, state in tensors["networks"][name].items()
        }
    data = {
        "source": tensors["source"],
        "labels": "".join(str(label) for label in labels.tolist()),
        "digits": packed((tensors["digits"] * 255).round(), "u1"),
        "digitLabels": "".join(str(label) for label in tensors["digit_labels"].tolist()),
        "steps": tensors["steps"],
        "colours": vae_classroom.DIGIT_COLOURS,
        "models": models,
    }
    text = page(json.dumps(data).replace("<", "\\u003c"))  # or "</script>" would end the data
    size = len(text.encode("utf-8"))
    if size > LARGEST:
        raise ValueError(f"the page has {size} bytes, and may have {LARGEST}")
    return text


def write(text, path):
    """All or nothing: a page that is half written never has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    half.write_text(text, encoding="utf-8", newline="\n")
    os.replace(half, path)


def make(in_place):
    path = ROOT / ("figures" if in_place else "out") / "latent_explorer.html"
    if in_place:  # everybody gets the same page, whatever the maintainer has set
        for name in ("VAE_SEED", "VAE_THEME"):
            os.environ.pop(name, None)
        problem = run_notebooks.full_mnist()  # ask before two minutes of training, not after
        if problem:
            raise ValueError(f"--in-place needs the full MNIST, and {problem}")
    tensors = tensors_of_notebook()
    if in_place and tensors["source"] != "MNIST":
        raise ValueError(f"--in-place needs the full MNIST, got {tensors['source']!r}")
    text = render(tensors)
    write(text, path)
    print(f"{path.relative_to(ROOT).as_posix()}: {len(text.encode('utf-8')) / 1e6:.2f} MB")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in-place", action="store_true", help="for maintainers: into figures/")
    arguments = parser.parse_args()
    try:
        make(arguments.in_place)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"{error}: nothing was written", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
