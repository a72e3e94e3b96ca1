"""The navigation lines of the notebooks, generated so that no link goes stale.

python tools/links.py            renews them
python tools/links.py --check    names the notebooks whose lines are stale, and exits with 1
"""

import hashlib
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
if hasattr(sys.stdout, "reconfigure"):  # every tool imports this file, and prints ✓ or an umlaut
    sys.stdout.reconfigure(errors="replace")  # to a pipe, perhaps, that has no code for it
NAV = re.compile(r"\n*<!-- nav -->.*?<!-- /nav -->\n*", re.DOTALL)


def notebooks():
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def solutions():
    return sorted((ROOT / "notebooks/solutions").glob("[0-9][0-9]_*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def write(nb, path):
    # The same bytes on every system: nbformat alone would write the system's line ends.
    path.write_text(nbformat.writes(nb) + "\n", encoding="utf-8", newline="\n")


def code_cells(nb):
    return [cell.source for cell in nb.cells if cell.cell_type == "code"]


def code_digest(nb):
    """Changes with the code of a notebook, and not with its prose."""
    return hashlib.sha256("\0".join(code_cells(nb)).encode()).hexdigest()[:12]


def title(path):
    """The first line of a notebook, such as "1 · Squeeze and rebuild: the autoencoder"."""
    return read(path).cells[0].source.split("\n")[0].removeprefix("# ").strip()


def nav_line(path):
    if path.parent.name == "solutions":
        notebook = ROOT / "notebooks" / path.name
        return f"← [{title(notebook)}](../{path.name}) · [All notebooks](../../README.md)"
    series = notebooks()
    here = series.index(path)
    parts = ["[All notebooks](../README.md)"]
    if here > 0:
        before = series[here - 1]
        parts.insert(0, f"← [{title(before)}]({before.name})")
    if here + 1 < len(series):
        after = series[here + 1]
        parts.append(f"[{title(after)}]({after.name}) →")
    return " · ".join(parts)


def set_nav(nb, line):
    """Put the line below the title and at the end of the last cell; lines that are there go."""
    nav = f"<!-- nav -->\n{line}\n<!-- /nav -->"
    if nb.cells[-1].cell_type != "markdown":  # a link is no code
        nb.cells.append(nbformat.v4.new_markdown_cell(id="nav"))
    first, last = nb.cells[0], nb.cells[-1]
    head, _, rest = NAV.sub("\n\n", first.source).partition("\n")
    first.source = f"{head}\n\n{nav}\n\n{rest.strip()}".strip()
    if last is not first:
        last.source = f"{NAV.sub('', last.source).rstrip()}\n\n{nav}".strip()


def main():
    stale = []
    for path in notebooks() + solutions():
        nb = read(path)
        before = [cell.source for cell in nb.cells]
        set_nav(nb, nav_line(path))
        if [cell.source for cell in nb.cells] != before:
            stale.append(path.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                write(nb, path)
    print("\n".join(stale) or "all navigation lines are up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
