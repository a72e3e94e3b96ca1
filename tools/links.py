"""What is generated in the notebooks and in the README, so that no link goes stale.

In a notebook: the navigation lines with the minutes that it takes, and, where pyproject.toml
says where the repository is, links to Colab and Binder and the cell that fetches the project there.

python tools/links.py            renews them
python tools/links.py --check    names the files that are stale, and exits with 1
"""

import hashlib
import math
import re
import sys
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
if hasattr(sys.stdout, "reconfigure"):  # every tool imports this file, and prints ✓ or an umlaut
    sys.stdout.reconfigure(errors="replace")  # to a pipe, perhaps, that has no code for it
NAV = re.compile(r"\n*<!-- nav -->.*?<!-- /nav -->\n*", re.DOTALL)
GITHUB = "https://github.com/"
SECOND_READING = re.compile(r"^## Second reading\b", re.MULTILINE)
COLAB_CELL = """\
# On Colab, or wherever this series is not installed, fetch it. Elsewhere nothing happens.
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("vae_classroom") is None:
    above = [folder for folder in Path.cwd().parents if (folder / "vae_classroom.py").exists()]
    folder = str(above[0] if above else Path.cwd() / "learn-vae")
    address = "ADDRESS"
    if not Path(folder).exists():
        subprocess.run(["git", "clone", "--depth", "1", address, folder], check=True)
    sys.path.insert(0, folder)
    for package in ["ipycanvas", "mlxtend"]:
        if importlib.util.find_spec(package) is None:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", package]
            subprocess.run(pip, check=True)
if "google.colab" in sys.modules:
    importlib.import_module("google.colab.output").enable_custom_widget_manager()"""


def notebooks():
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def solutions():
    return sorted((ROOT / "notebooks/solutions").glob("[0-9][0-9]_*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def write(nb, path):
    # The same bytes on every system: nbformat alone would write the system's line ends.
    path.write_text(nbformat.writes(nb) + "\n", encoding="utf-8", newline="\n")


def tags(cell):
    return cell.metadata.get("tags", [])


def code_cells(nb):
    """The code of the notebook; the cell for Colab is no part of it."""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    return [cell.source for cell in code if "colab" not in tags(cell)]


def code_digest(nb):
    """Changes with the code of a notebook, and not with its prose."""
    return hashlib.sha256("\0".join(code_cells(nb)).encode()).hexdigest()[:12]


def title(path):
    """The first line of a notebook, such as "1 · Squeeze and rebuild: the autoencoder"."""
    return read(path).cells[0].source.split("\n")[0].removeprefix("# ").strip()


def address():
    """Where on GitHub the repository is, as pyproject.toml says; None if it does not."""
    path = ROOT / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"] if path.exists() else {}
    url = project.get("urls", {}).get("Repository")
    if url is None:
        return None
    match = re.fullmatch(rf"({GITHUB}[\w-]+/[\w.-]+?)(?:\.git)?/?", str(url))
    if match is None:
        raise ValueError(
            "[project.urls] Repository in pyproject.toml must be of the form "
            f"{GITHUB}OWNER/NAME, got {url!r}"
        )
    return match[1]


def opens_in(path):
    """{service: address} that opens the notebook in a browser; empty where nothing is on GitHub."""
    if address() is None:
        return {}
    name, file = address().removeprefix(GITHUB), path.relative_to(ROOT).as_posix()
    return {
        "Colab": f"https://colab.research.google.com/github/{name}/blob/main/{file}",
        "Binder": f"https://mybinder.org/v2/gh/{name}/main?urlpath=lab/tree/{file}",
    }


def main_line(nb):
    """[(cell, its source without the navigation)] as far as the second reading."""
    found = []
    for cell in nb.cells:
        text = NAV.sub("\n", cell.source)
        start = SECOND_READING.search(text) if cell.cell_type == "markdown" else None
        found.append((cell, text[: start.start()] if start else text))
        if start:
            break
    return found


def is_visible(cell):
    """Is it code that a reader sees? What only draws or checks is folded."""
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden")
    return cell.cell_type == "code" and not hidden and not {"colab", "hide-input"} & set(tags(cell))


def minutes(read):
    """Of [(cell, source)]: 150 words or 15 visible lines of code a minute, and one for each turn; in
    steps of five.
    """
    prose = "\n".join(text for cell, text in read if cell.cell_type == "markdown")
    words = re.sub(r"```.*?```", "", prose, flags=re.DOTALL).split()
    code = [line for cell, text in read if is_visible(cell) for line in text.splitlines()]
    lines = [line for line in code if line.strip()]
    turns = sum(line.startswith("answer_") for line in lines)
    return max(5, 5 * math.ceil((len(words) / 150 + len(lines) / 15 + turns) / 5))


def nav_line(path):
    """The links to the neighbours; in a paragraph of its own, how long it takes and where it opens."""
    more = [f"[Open in {service}]({url})" for service, url in opens_in(path).items()]
    if path.parent.name == "solutions":
        notebook = ROOT / "notebooks" / path.name
        parts = [f"← [{title(notebook)}](../{path.name})", "[All notebooks](../../README.md)"]
    else:
        series = notebooks()
        here = series.index(path)
        parts = ["[All notebooks](../README.md)"]
        if here > 0:
            before = series[here - 1]
            parts.insert(0, f"← [{title(before)}]({before.name})")
        if here + 1 < len(series):
            after = series[here + 1]
            parts.append(f"[{title(after)}]({after.name}) →")
        nb = read(path)
        main = minutes(main_line(nb))
        whole = minutes([(cell, NAV.sub("\n", cell.source)) for cell in nb.cells])
        rest = f", and {whole - main} for the second reading" if whole > main else ""
        more.insert(0, f"About {main} minutes{rest}")
    return " · ".join(parts) + ("\n\n" + " · ".join(more) if more else "")


def set_nav(nb, line):
    """Put the line below the title, and its first paragraph at the end; lines that are there go."""
    nav = "<!-- nav -->\n{}\n<!-- /nav -->"
    if nb.cells[-1].cell_type != "markdown":  # a link is no code
        nb.cells.append(nbformat.v4.new_markdown_cell(id="nav"))
    first, last = nb.cells[0], nb.cells[-1]
    head, _, rest = NAV.sub("\n\n", first.source).partition("\n")
    first.source = f"{head}\n\n{nav.format(line)}\n\n{rest.strip()}".strip()
    if last is not first:
        foot = nav.format(line.partition("\n")[0])
        last.source = f"{NAV.sub('', last.source).rstrip()}\n\n{foot}".strip()


def set_colab(nb, url):
    """Put the cell that fetches the project before all other code; without an address it goes."""
    nb.cells = [cell for cell in nb.cells if "colab" not in tags(cell)]
    if url is not None:
        kinds = [cell.cell_type for cell in nb.cells]
        cell = nbformat.v4.new_code_cell(COLAB_CELL.replace("ADDRESS", url), id="colab")
        cell.metadata = nbformat.from_dict({"tags": ["colab"], "slideshow": {"slide_type": "skip"}})
        nb.cells.insert(kinds.index("code") if "code" in kinds else len(kinds), cell)


def renew(nb, path):
    """Everything that is generated in a notebook."""
    set_nav(nb, nav_line(path))
    set_colab(nb, address())


def main():
    import readme  # it imports this file

    stale = {}  # path: what it should hold
    for path in notebooks() + solutions():
        nb = read(path)
        before = nbformat.writes(nb)
        renew(nb, path)
        if nbformat.writes(nb) != before:
            stale[path] = nbformat.writes(nb) + "\n"
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    if readme.renewed(text) != text:
        stale[page] = readme.renewed(text)
    if "--check" not in sys.argv:
        for path, text in stale.items():
            path.write_text(text, encoding="utf-8", newline="\n")
    names = [path.relative_to(ROOT).as_posix() for path in stale]
    print("\n".join(names) or "everything that is generated is up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
