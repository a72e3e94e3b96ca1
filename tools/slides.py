"""A deck of the figures, one a slide, for a teacher at a projector.

python tools/slides.py                  make slides: out/slides/vae-figures.pptx, from figures/
python tools/slides.py --theme dark     out/slides/vae-figures-dark.pptx, from out/figures-dark/
python tools/slides.py --types          for maintainers: says in the notebooks which cells are slides
                                        for jupyter nbconvert --to slides

The slides' titles and alt texts come from the notebooks, what to see, to ask and to answer from deck.toml.
"""

import argparse
import ast
import io
import os
import re
import sys
import tomllib
import zipfile
from collections import namedtuple
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

import gallery
from links import ROOT, notebooks, read, title, write

DECK = ROOT / "tools/deck.toml"
TITLE = "From autoencoder to VAE"
PAGE = (13 + 1 / 3, 7.5)  # inches, 16:9
HEAD, FOOT, MARGIN = 0.5, 0.28, 0.15  # what a figure leaves free above, below and beside it

# headline: the figure's own suptitle ("" if computed), or None; cell: the number of the cell that makes it
Figure = namedtuple("Figure", "name alt headline cell")


def plain(text):
    """Text without the signs of Markdown and of LaTeX's short formulas."""
    return " ".join(re.sub(r"[$*`]", "", text).split())


def headline(source):
    """The text that a cell's code gives to suptitle; "" if it is computed, None if there is none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "suptitle":
            constant = node.args and isinstance(node.args[0], ast.Constant)
            return plain(node.args[0].value) if constant else ""
    return None


def short(path):
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path


def shown(cell):
    """(name, alt text) of the figures that a cell's stored outputs show."""
    return gallery.figures(SimpleNamespace(cells=[cell]))


def figures(nb):
    """The figures of a notebook, in order."""
    return [
        Figure(name, alt, headline(cell.source), cell.execution_count)
        for cell in nb.cells
        for name, alt in shown(cell)
    ]


def picture(folder, name):
    """The file that goes into the deck: a film, if there is one, plays in PowerPoint."""
    film = folder / f"{name}.gif"
    return film if film.exists() else folder / f"{name}.png"


def aim(nb):
    """What the notebook says under "What you'll do"."""
    return plain(re.search(r"## What you.ll do\s+(.+?)(?=\n\n|\Z)", nb.cells[0].source, re.S)[1])


# ----------------------------------------------------------------------------------------- the deck


def crop(picture, has_title):
    """Shares of the picture's height to cut off, above and below: blank rows, and its own title.

    The title goes only if it is one line at the top with a blank band under it.
    """
    pixels = np.asarray(picture.convert("RGB")).astype("int16")  # (height, width, 3)
    inked = (abs(pixels - pixels[0, 0]) > 16).any(axis=(1, 2))  # (height,)
    edges = np.flatnonzero(np.diff(inked, prepend=False, append=False))
    starts, ends, height = edges[::2], edges[1::2], len(inked)
    first = 0
    if has_title and len(starts) > 1 and ends[0] < 0.08 * height and starts[1] - ends[0] >= 4:
        first = starts[1] - min(8, (starts[1] - ends[0]) // 2)
    return first / height, max(0, height - ends[-1] - 8) / height


def say(frame, text, size, colour="TEXT_1"):
    from pptx.enum.dml import MSO_THEME_COLOR
    from pptx.enum.lang import MSO_LANGUAGE_ID
    from pptx.util import Pt

    frame.text = text
    for run in (run for paragraph in frame.paragraphs for run in paragraph.runs):
        run.font.size, run.font.language_id = Pt(size), MSO_LANGUAGE_ID.ENGLISH_UK
        run.font.color.theme_color = MSO_THEME_COLOR[colour]


def one_line(text):
    """Points, 28 at most, in which a title stays on one line even in DejaVu Sans.

    LibreOffice takes that wide font where it has no Arial, and a second line would be cut off.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    # Points; a text frame keeps 0.1 inches free on each side.
    room = (PAGE[0] - 2 * MARGIN - 0.2) * 72
    width = TextPath((0, 0), text, size=28, prop=FontProperties("DejaVu Sans")).get_extents().x1
    return int(min(28, 0.99 * 28 * room / width))


def blank_deck():
    """An empty deck in the colours of vae_classroom's theme, with layouts for 16:9."""
    from pptx import Presentation
    from pptx.opc.constants import RELATIONSHIP_TYPE
    from pptx.util import Inches

    from vae_classroom import COLOURS, INK, PAPER, QUIET

    deck = Presentation()
    stretch = Inches(PAGE[0]) / deck.slide_width
    deck.slide_width, deck.slide_height = map(Inches, PAGE)
    shapes = [shape for page in (deck.slide_master, *deck.slide_layouts) for shape in page.shapes]
    places = [(shape.left, shape.top, shape.width, shape.height) for shape in shapes]
    for shape, (left, top, width, height) in zip(shapes, places, strict=True):
        shape.left, shape.width = round(left * stretch), round(width * stretch)
        shape.top, shape.height = top, height
    head = deck.slide_layouts.get_by_name("Title Only").placeholders[0]
    head.left, head.top, head.width = (Inches(MARGIN), 0, deck.slide_width - 2 * Inches(MARGIN))
    head.height = Inches(HEAD)

    theme = deck.slide_master.part.part_related_by(RELATIONSHIP_TYPE.THEME)
    colours = {"dk1": INK, "lt1": PAPER, "dk2": QUIET, "lt2": PAPER}
    colours |= {"accent1": COLOURS["AE"], "accent2": COLOURS["VAE"]}
    text = theme.blob.decode()
    for name, colour in colours.items():
        value = f'<a:{name}><a:srgbClr val="{colour[1:].upper()}"/></a:{name}>'
        text = re.sub(rf"<a:{name}>.*?</a:{name}>", value, text, flags=re.S)
    text = text.replace('<a:latin typeface="Calibri"/>', '<a:latin typeface="Arial"/>')
    theme._blob = text.encode()
    return deck


def add_page(deck, heading, text):
    slide = deck.slides.add_slide(deck.slide_layouts.get_by_name("Title Slide"))
    say(slide.shapes.title.text_frame, heading, 44)
    say(slide.placeholders[1].text_frame, text, 24)
    return slide


def add_figure(deck, path, figure, words, file):
    from pptx.enum.text import MSO_ANCHOR
    from pptx.util import Inches

    slide = deck.slides.add_slide(deck.slide_layouts.get_by_name("Title Only"))
    head = figure.headline or words["title"]
    say(slide.shapes.title.text_frame, head, one_line(head))
    with Image.open(file) as opened:
        # A film stays whole: programs do not agree on what becomes of one that is cropped.
        film = opened.format == "GIF"
        above, below = (0, 0) if film else crop(opened, figure.headline is not None)
        width, height = opened.size[0], opened.size[1] * (1 - above - below)
    room = PAGE[0] - 2 * MARGIN, PAGE[1] - HEAD - FOOT
    scale = min(room[0] / width, room[1] / height)  # inches a pixel
    left, top = (PAGE[0] - width * scale) / 2, HEAD + (room[1] - height * scale) / 2
    places = map(Inches, (left, top, width * scale, height * scale))
    image = slide.shapes.add_picture(str(file), *places)
    image.crop_top, image.crop_bottom, image.name = above, below, figure.name
    image._element.nvPicPr.cNvPr.set("descr", figure.alt)

    foot = [Inches(inches) for inches in (MARGIN, PAGE[1] - FOOT, PAGE[0] - 2 * MARGIN, FOOT)]
    frame = slide.shapes.add_textbox(*foot).text_frame
    frame.margin_top = frame.margin_bottom = 0
    frame.word_wrap = True  # or it would be centred
    frame.vertical_anchor = MSO_ANCHOR.MIDDLE
    say(frame, f"Notebook {int(path.name[:2])} · {figure.name}", 14, "TEXT_2")
    slide.notes_slide.notes_text_frame.text = (
        f"See: {words['see']}\n\nAsk: {words['ask']}\n\nAnswer: {words['answer']}\n\n"
        f'Made by notebooks/{path.name}, cell [{figure.cell}]: save_figure(fig, "{figure.name}", …)'
    )


def always_the_same(content):
    """A zip file with the times of its members set back, so that the same deck is the same file."""
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
            for name in old.namelist():
                packed = name.endswith((".png", ".gif"))
                kind = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
                new.writestr(zipfile.ZipInfo(name), old.read(name), kind)
        return buffer.getvalue()


def build(folder, target, maker):
    """Write the deck from the pictures in the folder; maker is the command that makes these.

    Errors: FileNotFoundError for a missing picture, KeyError for a figure that deck.toml does not
    have; then nothing is written. The theme is that of vae_classroom, chosen by VAE_THEME.
    """
    chapters = [(path, nb, figures(nb)) for path, nb in ((p, read(p)) for p in notebooks())]
    words = tomllib.loads(DECK.read_text(encoding="utf-8"))
    pictures = {f.name: picture(folder, f.name) for _, _, found in chapters for f in found}
    missing = [picture for picture in pictures.values() if not picture.exists()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise FileNotFoundError(f"{short(missing[0])}{more} is missing: {maker} makes it")
    for figure in (figure for _, _, found in chapters for figure in found):
        needed = ["see", "ask", "answer"] + ([] if figure.headline else ["title"])
        for key in needed:
            if not words.get(figure.name, {}).get(key):
                raise KeyError(f"tools/deck.toml has no {key!r} for {figure.name}")

    deck = blank_deck()
    first = f"{len(pictures)} figures from {len(chapters)} notebooks\n"
    first += "What to see, to ask and to answer is in the speaker notes"
    add_page(deck, TITLE, first)
    for path, nb, found in chapters:
        slide = add_page(deck, title(path), aim(nb))
        slide.notes_slide.notes_text_frame.text = f"notebooks/{path.name}"
        for figure in found:
            add_figure(deck, path, figure, words[figure.name], pictures[figure.name])
    about = deck.core_properties
    about.title, about.author, about.language = TITLE, "The learn-vae contributors", "en-GB"
    about.last_modified_by, about.revision = about.author, 1
    about.created = about.modified = datetime(2000, 1, 1)
    with io.BytesIO() as buffer:
        deck.save(buffer)
        content = always_the_same(buffer.getvalue())
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


# --------------------------------------------------------------------------- jupyter's own slides


def set_slide_types(nb):
    """Say for each cell what nbconvert --to slides does with it; nothing else is changed.

    Sections and figures are slides, other prose is speaker notes; other code, and all from the
    exercises on, is left out.
    """
    done = False  # are we in the exercises?
    for number, cell in enumerate(nb.cells):
        sections = [] if cell.cell_type == "code" else re.findall(r"^## (.+)", cell.source, re.M)
        if number == 0 or (not done and sections and sections[0] != "Exercises"):
            kind = "slide"
        elif cell.cell_type == "code":
            kind = "subslide" if shown(cell) and not done else "skip"
        else:
            kind = "skip" if done or sections else "notes"
        done = done or "Exercises" in sections
        cell.metadata["slideshow"] = {"slide_type": kind}


def write_slide_types(paths):
    for path in paths:
        nb = read(path)
        set_slide_types(nb)
        write(nb, path)


# --------------------------------------------------------------------------------------- commands


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="take the pictures from here"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=ROOT / "out/slides")
    parser.add_argument("--types", action="store_true", help="for maintainers: mark the cells")
    arguments = parser.parse_args()
    if arguments.types:
        write_slide_types(notebooks())
        return 0
    dark = arguments.theme == "dark"
    if arguments.figures:
        folder = arguments.figures
        maker = f"VAE_THEME={arguments.theme} VAE_FIGURES_DIR={folder} make notebooks"
    elif dark:
        folder, maker = ROOT / "out/figures-dark", "make figures THEME=dark"
    else:
        folder, maker = ROOT / "figures", "make publish"
    target = arguments.out / f"vae-figures{'-dark' if dark else ''}.pptx"
    os.environ["VAE_THEME"] = arguments.theme  # vae_classroom reads it when it is imported
    try:
        build(folder, target, maker)
    except ModuleNotFoundError as error:
        if error.name != "pptx":
            raise
        print('slides need python-pptx: pip install -e ".[slides]"', file=sys.stderr)
        return 2
    except (FileNotFoundError, KeyError) as error:
        print(error.args[0], file=sys.stderr)
        return 1
    print(short(target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
