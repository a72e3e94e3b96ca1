"""figures/README.md: every figure with its name, alt text and notebook, as the stored outputs tell.

python tools/gallery.py    renews it
"""

import re

from links import ROOT, notebooks, read, solutions, title


def figures(nb):
    """(name, alt text) of each figure that a notebook's stored outputs show, in order."""
    outputs = (output for cell in nb.cells for output in cell.get("outputs", []))
    shown = (output.metadata for output in outputs if "figure" in output.get("metadata", {}))
    return [(about["figure"], about.get("image/png", {}).get("alt", "")) for about in shown]


def cell_numbers(nb):
    """{name: execution count of the cell that made it}."""
    return {
        output.metadata["figure"]: cell.execution_count
        for cell in nb.cells
        for output in cell.get("outputs", [])
        if "figure" in output.get("metadata", {})
    }


def plain(text):
    """Text that Markdown shows as it is: on one line, every sign with a meaning escaped."""
    return re.sub(r"([\\`*_\[\]<>|$#~&!])", r"\\\1", " ".join(text.split()))


def render():
    lines = [
        "# Figures",
        "",
        "Made by `tools/gallery.py` from the notebooks' outputs; changes by hand are lost.",
        "Each figure is there as PNG and as SVG. `make figures THEME=dark` makes dark ones in",
        "`out/figures-dark/`, and `make slides` a deck. The latent explorer is a page that any browser",
        "opens: [latent_explorer.html](latent_explorer.html).",
        "",
    ]
    for path in notebooks() + solutions():
        nb = read(path)
        found, numbers = figures(nb), cell_numbers(nb)
        if found:
            where = path.relative_to(ROOT).as_posix()
            kind = "Solutions to " if path.parent.name == "solutions" else ""
            lines += [f"## {kind}[{plain(title(path))}](../{where})", ""]
        for name, alt in found:
            lines += [f"### {name}", "", f"![{plain(alt)}]({name}.png)", "", plain(alt), ""]
            made = f'`save_figure(fig, "{name}", alt=…)` in cell {numbers[name]}'
            lines += [f"{made} · [PNG]({name}.png) · [SVG]({name}.svg)", ""]
    return "\n".join(lines)


def main():
    folder = ROOT / "figures"
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(render(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
