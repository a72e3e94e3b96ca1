"""The generated parts of the README; `python tools/links.py` renews them."""

import re

import links

# What each notebook is about; the rest of its row is made from the notebook.
ABOUT = {
    "00": "both models, whole, trained in seconds; type a code, see the digit; a film",
    "01": "ten digits through twenty numbers; the training loop, written out; nats; PCA as the yardstick; "
    "does it memorise?",
    "02": "choose a code yourself; why random codes fail, rung by rung; a judge that is judged first",
    "03": "probability, counted; prior, evidence, posterior; the bound and exactly what it misses, on a model "
    "so small that everything is known",
    "04": "where a gradient stops and how to get it through; how noisy each way is; "
    "why one draw a picture is enough",
    "05": "samples first; Algorithm 1 in plain PyTorch, the two terms in nats, the map of codes; "
    "the loss that draws nothing",
    "06": "the same network as an autoencoder, without the KL, and as a VAE: codes, samples, interpolation",
    "07": "one dial, from a code that says all to one that says nothing; which bound your own loss is; collapse, "
    "computed; nats that cannot be compared",
    "08": "your own handwriting; half pictures and noisy ones repaired by a plain VAE; digits on request; why the "
    "empty page is the most normal digit",
}
BADGES = {
    "Colab": "https://colab.research.google.com/assets/colab-badge.svg",
    "Binder": "https://mybinder.org/badge_logo.svg",
}
NEEDS = "With Python 3.11 or newer and make, on Linux or a Mac with an Apple chip"
FOLDER = """from the folder of the project (a
clone of this repository with `--depth 1`, or its ZIP file unpacked)"""
COMMANDS = "make notebooks\nmake lab\n```"
COLAB_AND_BINDER = """\
**Colab.** The badge at the top opens notebook 0, the link below a notebook's title that one. The first code cell
fetches the project, and the packages that Colab lacks; elsewhere it does nothing.

**Binder.** Its badge, and the links beside those to Colab, start the series in the browser, from environment.yml.
It has little memory and no GPU: expect to wait."""
NOT_YET = """\
**Colab and Binder** open a repository that is on GitHub. Badges at the top of this page, and links below the title of
each notebook, appear once the address stands in pyproject.toml (it says where) and `.venv/bin/python tools/links.py`
has run; a first code cell in each notebook then fetches the project where it is missing. Binder builds from
environment.yml, and has little memory and no GPU: expect to wait."""


def table():
    lines = ["| notebook | minutes | what it is about |", "|---|---|---|"]
    for path in links.notebooks():
        link = f"[{links.title(path)}](notebooks/{path.name})"
        lines.append(
            f"| {link} | {links.minutes(links.main_line(links.read(path)))} | {ABOUT[path.name[:2]]} |"
        )
    return "\n".join(lines)


def blocks():
    """{name of its markers: what stands between them}"""
    address = links.address()
    if address is None:
        return {
            "badges": "",
            "commands": f"{NEEDS}, {FOLDER}:\n\n```\n{COMMANDS}",
            "notebooks": table(),
            "colab": NOT_YET,
        }
    opens = links.opens_in(links.notebooks()[0])
    clone = f"git clone --depth 1 {address} learn-vae\ncd learn-vae"
    return {
        "badges": "\n".join(
            f"[![Open in {service}]({BADGES[service]})]({url})" for service, url in opens.items()
        ),
        "commands": f"{NEEDS}:\n\n```\n{clone}\n{COMMANDS}",
        "notebooks": table(),
        "colab": COLAB_AND_BINDER,
    }


def renewed(text):
    """The README's text with every part renewed whose markers it has."""
    for name, content in blocks().items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        block = f"{start}\n\n{content}\n\n{end}" if content else f"{start}{end}"
        text = re.sub(f"{start}.*?{end}", lambda _, block=block: block, text, flags=re.DOTALL)
    return text
