"""figures/README.md: every figure with its name, alt text and notebook, as the stored outputs tell.

python tools/gallery.py    renews it
"""

import re

from links import ROOT, notebooks, read, solutions, title


def kind(output):
    """What a stored figure is: "image/png", or "image/gif" for a film."""
    return next((kind for kind in output.get("data", {}) if kind.startswith("image/")), None)


def alt(output):
    return output.metadata.get(kind(output), {}).get("alt", "")


def stored(nb):
    """[(cell, output)] of each figure that a notebook's stored outputs show, in order."""
    outputs = ((cell, output) for cell in nb.cells for output in cell.get("outputs", []))
    return [pair for pair in outputs if "figure" in pair[1].get("metadata", {})]


def figures(nb):
    """[(name, alt text)]"""
    return [(output.metadata["figure"], alt(output)) for _, output in stored(nb)]


def plain(text):
    """Text that Markdown shows as it is: on one line, every sign with a meaning escaped."""
    return re.sub(r"([\\`*_\[\]<>|$#~&!])", r"\\\1", " ".join(text.split()))


def render():
    lines = [
        "# Figures",
        "",
        "Made by `tools/gallery.py` from the notebooks' outputs; changes by hand are lost.",
        "Each figure is there as PNG and as SVG, a film as GIF and, its last picture, as PNG.",
        "`make figures THEME=dark` makes dark ones in `out/figures-dark/`, and `make slides` a deck.",
        "The latent explorer is a page that any browser opens, to move, draw, watch and walk:",
        "[latent_explorer.html](latent_explorer.html).",
        "",
    ]
    for path in notebooks() + solutions():
        nb = read(path)
        if found := stored(nb):
            where = path.relative_to(ROOT).as_posix()
            whose = "Solutions to " if path.parent.name == "solutions" else ""
            lines += [f"## {whose}[{plain(title(path))}](../{where})", ""]
        for cell, output in found:
            name, text = output.metadata["figure"], plain(alt(output))
            if kind(output) == "image/gif":
                shown, made, files = "gif", "save_film(fig, …, ", f"[GIF]({name}.gif) · [poster]"
                files += f"({name}.png)"
            else:
                shown, made, files = "png", "save_figure(fig, ", f"[PNG]({name}.png) · [SVG]"
                files += f"({name}.svg)"
            lines += [f"### {name}", "", f"![{text}]({name}.{shown})", "", text, ""]
            made = f'`{made}"{name}", alt=…)` in cell {cell.execution_count}'
            lines += [f"{made} · {files}", ""]
    return "\n".join(lines)


def main():
    folder = ROOT / "figures"
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(render(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
