"""The deck of the figures, opened again with python-pptx, and the slide types of the cells."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from matplotlib.font_manager import findfont
from nbconvert import SlidesExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image, ImageDraw, ImageFont
from pptx import Presentation
from pptx.dml.color import RGBColor
from pptx.enum.shapes import MSO_SHAPE_TYPE
from pptx.util import Inches, Pt

import gallery
import links
import slides
import vae_classroom

ROOT = links.ROOT
FIGURES = [
    (path, name, alt)
    for path in links.notebooks()
    for name, alt in gallery.figures(links.read(path))
]


def tool(*arguments, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "tools/slides.py", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | environment,
        capture_output=True,
        encoding="utf-8",
    )


def pictures(slide):
    return [shape for shape in slide.shapes if shape.shape_type == MSO_SHAPE_TYPE.PICTURE]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "new/deck.pptx"
    slides.build(ROOT / "figures", path, "make publish")
    return path


@pytest.fixture(scope="module")
def deck(file):
    return Presentation(file)


@pytest.fixture(scope="module")
def figure_slides(deck):
    return [slide for slide in deck.slides if pictures(slide)]


@pytest.fixture
def words():
    return tomllib.loads(slides.DECK.read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------------- the deck


def test_every_figure_has_a_slide_in_the_notebooks_order(figure_slides):
    """The folder's picture, with the notebook's alt text."""
    for slide, (_, name, alt) in zip(figure_slides, FIGURES, strict=True):
        (image,) = pictures(slide)
        assert (image.name, image._element.nvPicPr.cNvPr.get("descr")) == (name, alt)
        film = ROOT / f"figures/{name}.gif"  # plays in the deck
        file = film if film.exists() else ROOT / f"figures/{name}.png"
        assert image.image.blob == file.read_bytes()


def test_titles_are_the_figures_own_plain_and_on_one_line(deck, figure_slides, words):
    assert all(slide.shapes.title.text_frame.text.strip() for slide in deck.slides)
    for slide, (path, name, _) in zip(figure_slides, FIGURES, strict=True):
        (cell,) = [c for c in links.read(path).cells if name in dict(slides.shown(c))]
        own = re.search(r'suptitle\("(.+?)"', cell.source)
        heading = slide.shapes.title.text_frame
        assert heading.text == (own[1].replace("$", "") if own else words[name]["title"])
        assert not re.search(r"[$\\`*\n]", heading.text)
        (run,) = heading.paragraphs[0].runs
        wide = ImageFont.truetype(findfont("DejaVu Sans"), 1000).getlength(heading.text) / 1000
        room = slide.shapes.title.width - heading.margin_left - heading.margin_right
        # One line, even where there is no Arial; and no smaller than that needs.
        assert Pt(22) <= run.font.size <= min(Pt(28), room / wide)
        assert run.font.size >= min(Pt(28), room / wide) - Pt(1.5)


def test_notes_say_what_to_see_what_to_ask_and_where_it_comes_from(figure_slides, words):
    for slide, (path, name, _) in zip(figure_slides, FIGURES, strict=True):
        notes = slide.notes_slide.notes_text_frame.text
        (cell,) = [c for c in links.read(path).cells if name in dict(slides.shown(c))]
        for part in (
            words[name]["see"],
            words[name]["ask"],
            words[name]["answer"],
            path.name,
            f"[{cell.execution_count}]",
        ):
            assert part in notes


def test_each_notebook_starts_with_a_divider(deck, words):
    expected = [slides.TITLE]
    for path in links.notebooks():
        nb = links.read(path)
        expected.append(links.title(path))
        expected += [f.headline or words[f.name]["title"] for f in slides.figures(nb)]
        (divider,) = [s for s in deck.slides if s.shapes.title.text_frame.text == links.title(path)]
        said = divider.placeholders[1].text_frame.text
        assert len(said) > 40 and said.split(",")[0] in nb.cells[0].source
    assert [slide.shapes.title.text_frame.text for slide in deck.slides] == expected


def test_type_has_14_points_and_nothing_is_off_the_page_or_on_top_of_another(deck):
    assert deck.slide_width * 9 == pytest.approx(deck.slide_height * 16, rel=1e-4)
    for slide in deck.slides:
        for shape in slide.shapes:
            for paragraph in shape.text_frame.paragraphs if shape.has_text_frame else ():
                assert paragraph.runs
                assert all(run.font.size and run.font.size >= Pt(14) for run in paragraph.runs)
            assert shape.name and shape.width > 0 and shape.height > 0
            assert 0 <= shape.left <= shape.left + shape.width <= deck.slide_width
            assert 0 <= shape.top <= shape.top + shape.height <= deck.slide_height
        stack = sorted(slide.shapes, key=lambda shape: shape.top)
        for above, below in zip(stack, stack[1:], strict=False):
            assert above.top + above.height <= below.top + Inches(0.01)


def test_pictures_keep_their_shape_and_are_large(deck, figure_slides):
    for slide in figure_slides:
        (image,) = pictures(slide)
        width, height = image.image.size
        shown = (width * (1 - image.crop_left - image.crop_right)) / (
            height * (1 - image.crop_top - image.crop_bottom)
        )
        assert image.width / image.height == pytest.approx(shown, rel=1e-3)
        assert image.width > 0.85 * deck.slide_width


def test_the_pictures_own_title_is_cut_off_and_nothing_else(figure_slides, words):
    for slide in figure_slides:
        (image,) = pictures(slide)
        if "title" in words[image.name]:  # the slide's title is another one
            continue
        assert 0.04 < image.crop_top < 0.35 and image.crop_bottom < 0.25
        with Image.open(ROOT / f"figures/{image.name}.png") as picture:
            width, height = picture.size
            line = picture.convert("RGB").crop((0, 0, width, round(image.crop_top * height)))
        inked = [any(high - low > 16 for low, high in line.crop((0, y, width, y + 1)).getextrema())
                 for y in range(line.height)]  # fmt: skip
        assert sum(a != b for a, b in zip(inked, inked[1:], strict=False)) == 2  # one band of type


def test_pictures_to_flip_between_lie_in_the_same_place(figure_slides):
    images = {pictures(slide)[0].name: pictures(slide)[0] for slide in figure_slides}
    twins = [name for name in images if name.endswith("-ae") and name[:-2] + "vae" in images]
    assert "06-plane-ae" in twins
    for name in twins:
        ae, vae = images[name], images[name[:-2] + "vae"]
        for place in ("left", "top", "width", "height", "crop_top", "crop_bottom"):
            assert getattr(ae, place) == getattr(vae, place), (name, place)


def drawn(*bands):
    picture = Image.new("RGB", (320, 180), "#101418")
    for top, bottom in bands:
        ImageDraw.Draw(picture).rectangle((20, top, 300, bottom - 1), fill="#f2f2f2")
    return picture


def test_crop():
    assert slides.crop(drawn((2, 10), (20, 170)), True) == (pytest.approx(15 / 180), 2 / 180)
    assert slides.crop(drawn((2, 10), (20, 180)), False) == (0, 0)
    assert slides.crop(drawn((2, 10), (12, 180)), True) == (0, 0)  # no band below the title
    assert slides.crop(drawn((2, 100), (120, 180)), True) == (0, 0)  # that is no title
    assert slides.crop(drawn((0, 180)), True) == (0, 0)


def test_colours_are_those_of_the_figures(deck, tmp_path):
    def theme_colours(deck):
        theme = deck.slide_master.part.part_related_by(
            "http://schemas.openxmlformats.org/officeDocument/2006/relationships/theme"
        ).blob.decode()
        return [
            "#" + re.search(rf'<a:{n}><a:srgbClr val="(\w+)"', theme)[1] for n in ("dk1", "lt1")
        ]

    assert theme_colours(deck) == [vae_classroom.INK.upper(), vae_classroom.PAPER.upper()]
    result = tool("--theme", "dark", "--figures", ROOT / "figures", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["vae-figures-dark.pptx"]
    ink, paper = theme_colours(Presentation(tmp_path / "vae-figures-dark.pptx"))
    assert sum(RGBColor.from_string(ink[1:])) > 600 and sum(RGBColor.from_string(paper[1:])) < 100


def test_the_same_figures_give_the_same_file(file, deck, tmp_path):
    slides.build(ROOT / "figures", tmp_path / "deck.pptx", "make publish")
    assert (tmp_path / "deck.pptx").read_bytes() == file.read_bytes()
    about = deck.core_properties
    assert (about.author, about.language) == ("The learn-vae contributors", "en-GB")
    assert about.title == slides.TITLE


def test_a_missing_picture_is_named_and_leaves_nothing(tmp_path):
    figures, out = tmp_path / "figures", tmp_path / "out"
    figures.mkdir()
    for _, name, _ in FIGURES:
        if name != "05-manifold":
            shutil.copyfile(ROOT / f"figures/{name}.png", figures / f"{name}.png")
    result = tool("--figures", figures, "--out", out)
    assert result.returncode == 1 and not out.exists()
    assert "05-manifold.png is missing" in result.stderr and "make notebooks" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    with pytest.raises(FileNotFoundError, match=r"00-.*\(and \d+ more\) is missing: make it"):
        slides.build(tmp_path, out / "deck.pptx", "make it")
    (figures / "05-manifold.png").write_text("no picture")
    with pytest.raises(OSError):
        slides.build(figures, out / "deck.pptx", "make it")
    assert not out.exists()


def test_a_deck_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def full_disk(path, content):
        with path.open("wb") as file:
            file.write(content[:1000])
        raise OSError("no space left")

    target = tmp_path / "deck.pptx"
    target.write_text("the old one")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        slides.build(ROOT / "figures", target, "make publish")
    assert target.read_text() == "the old one" and list(tmp_path.iterdir()) == [target]


def test_without_python_pptx_it_says_what_to_install(tmp_path):
    (tmp_path / "pptx.py").write_text("raise ModuleNotFoundError(name='pptx')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = tool("--out", tmp_path / "out", PYTHONPATH=path)
    assert result.returncode == 2 and '".[slides]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------- deck.toml


def test_deck_toml_has_an_entry_for_each_figure_and_for_nothing_else(words):
    names = {name for _, name, _ in FIGURES}
    assert set(words) == names
    for entry in words.values():
        assert {"see", "ask", "answer"} <= set(entry) <= {"see", "ask", "answer", "title"}
        assert entry["ask"].endswith("?") and entry["see"].endswith(".")
        assert entry["answer"].endswith(".")
        assert not re.search(r"[$\\`]", "".join(entry.values()))


def test_a_figure_without_an_entry_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "DECK", tmp_path / "deck.toml")
    text = 'see = "x"\nask = "x"\nanswer = "x"\ntitle = "x"\n'
    entries = [f'["{name}"]\n{text}' for _, name, _ in FIGURES[:-1]]
    slides.DECK.write_text("\n".join(entries), encoding="utf-8")
    with pytest.raises(KeyError, match=FIGURES[-1][1]):
        slides.build(ROOT / "figures", tmp_path / "deck.pptx", "make publish")
    assert not (tmp_path / "deck.pptx").exists()


def test_headline():
    assert (
        slides.headline('fig.suptitle("where does $q$ "\n    "go?", fontsize=9)')
        == "where does q go?"
    )
    assert slides.headline('fig.suptitle(f"{n} digits")') == ""
    assert slides.headline("fig = 1") is None


# ------------------------------------------------------------------------------------- slide types


def types(nb):
    return [cell.metadata.get("slideshow", {}).get("slide_type") for cell in nb.cells]


def test_slide_types():
    about = {"image/png": {"alt": "a"}, "figure": "01-a"}
    shown = [new_output("display_data", {"image/png": "aGk="}, metadata=about)]
    figure, again = (new_code_cell("save_figure(fig)", outputs=shown) for _ in range(2))
    cells = {
        "slide": [new_markdown_cell("# 1 · Title\n\n## What you'll do\n\nLearn.")],
        "skip": [new_code_cell("import torch")],
        "notes": [new_markdown_cell("Some prose.\n\n### A small heading")],
        "subslide": [figure],
        "slide ": [new_markdown_cell("What we saw.\n\n## A section")],
        "slide  ": [new_markdown_cell("## Common claims\n\n## Exercises\n\n### Exercise 1")],
        "skip ": [new_code_cell("answer_1 = None"), new_markdown_cell("### Exercise 2")],
        "skip  ": [again, new_markdown_cell("## What you learned")],
    }
    nb = new_notebook(cells=[cell for some in cells.values() for cell in some])
    slides.set_slide_types(nb)
    assert types(nb) == [kind.strip() for kind, some in cells.items() for _ in some]
    nb = new_notebook(cells=[*nb.cells[:1], new_markdown_cell("So.\n\n## Exercises")])
    slides.set_slide_types(nb)
    assert types(nb) == ["slide", "skip"]


def without_types(nb):
    for cell in nb.cells:
        cell.metadata.pop("slideshow", None)
    return nb


def test_slide_types_are_stable_and_change_nothing_else(tmp_path):
    paths = [shutil.copyfile(path, tmp_path / path.name) for path in links.notebooks()]
    slides.write_slide_types(paths)
    once = [path.read_bytes() for path in paths]
    slides.write_slide_types(paths)
    assert [path.read_bytes() for path in paths] == once
    for path in paths:
        nb = links.read(path)
        for cell in nb.cells:
            assert slides.shown(cell) == [] or cell.metadata.slideshow.slide_type == "subslide"
        assert without_types(nb) == without_types(links.read(ROOT / "notebooks" / path.name))


def test_nbconvert_makes_slides_of_them():
    path = ROOT / "notebooks/05_variational_autoencoder.ipynb"
    nb = links.read(path)
    slides.set_slide_types(nb)
    exporter = SlidesExporter(exclude_input=True)
    body, _ = exporter.from_notebook_node(nb)
    sections = re.findall(r"<section[^>]*>\s*<section[^>]*>(.*?)</section>", body, re.DOTALL)
    assert len(sections) == types(nb).count("slide")
    assert all(re.search(r"<h[12]", section) for section in sections)
    films = body.count(
        "Film: "
    )  # nbconvert does not know image/gif: what a film tells stands in its place
    assert len(re.findall(r"<img[^>]*data:image/png", body)) == len(gallery.figures(nb)) - films
    assert films == 1
    assert "answer_1" not in body and "torch.manual_seed" not in body
