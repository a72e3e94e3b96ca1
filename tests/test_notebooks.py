"""The notebooks' form, and what the tools around them promise; nbval runs the notebooks themselves.

Each rule is a function that looks at a notebook and yields complaints, so that it can be shown a
broken notebook: BROKEN has one for every rule.
"""

import ast
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import claims
import gallery
import links
import run_notebooks
import slides

ROOT = links.ROOT
NOTEBOOKS, SOLUTIONS = links.notebooks(), links.solutions()
SECTIONS = [
    "What you'll do",
    "What you'll learn",
    "What you'll need",
    "Exercises",
    "What you learned",
    "Further reading",
]
# A place on somebody's machine, but not the path of an address such as https://example.org/home/
MACHINE = re.compile(
    r"(?<![\w.~:/-])/(?:home|root|work|tmp|Users|private|opt|mnt|usr|var|content)/\S*|\b[A-Z]:\\+\w+"
)
REPR = re.compile(r"<(?:matplotlib|Figure|Axes|torch|function|bound method|generator|module)\b")
ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def prose(nb):
    """The Markdown without its code: a # there is a comment, a [ ] an index."""
    text = "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def outputs(nb):
    return [output for cell in code_cells(nb) for output in cell.outputs]


def output_texts(nb):
    for output in outputs(nb):
        yield output.get("text", "")
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield str(content)


# -------------------------------------------------------------------------- rules for each notebook


def check_format(nb):
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error.message}"
    size = len(nbformat.writes(nb).encode())
    if size > 2**20:
        yield f"{size / 2**20:.1f} MB, and at most 1 MB is allowed"
    kernel = nb.metadata.get("kernelspec", {})
    if (kernel.get("name"), kernel.get("display_name")) != ("python3", "Python 3 (ipykernel)"):
        yield f"kernel is {kernel}, not python3"
    if "version" in nb.metadata.get("language_info", {}):
        yield "the Python version of one machine is stored"
    if any("execution" in cell.metadata for cell in nb.cells):
        yield "the times of one run are stored"


def check_run(nb):
    counts = [cell.execution_count for cell in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"not run from top to bottom in a fresh kernel: {counts}"
    for output in outputs(nb):
        if output.output_type == "error":
            yield f"an error is stored: {output.ename}"
        if output.get("name") == "stderr":
            yield f"something on stderr is stored: {output.text[:80]}"
    for text in output_texts(nb):
        if "\r" in text:
            yield "all states of a progress bar are stored, not the last one"
        if "OFFLINE SAMPLE" in text:
            yield "the outputs come from the offline sample"
        for found in REPR.findall(text) + ADDRESS.findall(text):
            yield f"an object's repr is stored: {found}"
    if any(run_notebooks.WIDGET in output.get("data", {}) for output in outputs(nb)):
        yield "a widget is stored, which shows nothing without its kernel"


def check_places(nb):
    sources = [cell.source for cell in nb.cells]
    for text in [*sources, *output_texts(nb), json.dumps(nb.metadata)]:
        for found in MACHINE.findall(text):
            yield f"a path of one machine: {found}"


def check_code(nb):
    for cell in code_cells(nb):
        lines = cell.source.strip().splitlines()
        start = lines[0] if lines else "an empty cell"
        if not lines:
            yield "an empty code cell"
        if len(lines) > 25:
            yield f"a code cell of {len(lines)} lines, and at most 25 are allowed: {start}"
        if re.search(r"^\s*[%!]|^\s*[\w.]+\?+\s*$|get_ipython\(", cell.source, re.MULTILINE):
            # A magic that fails hides the rest of its cell from nbval.
            yield f"a magic or a shell command: {start}"
        if "plt.show" in cell.source:
            yield f"plt.show: {start}"
        if "NBVAL_" in cell.source:
            # With a word behind it nbval ignores such a comment; tags are safe.
            yield f"a comment for nbval, where a tag belongs: {start}"
        tags = cell.metadata.get("tags", [])
        if {"raises-exception", "nbval-raises-exception", "nbval-skip"} & set(tags):
            # nbval passes these whatever happens.
            yield f"a cell that nbval cannot fail, by its tags {tags}: {start}"
        if "nbval-check-output" in tags and not cell.outputs:
            yield f"nbval is to compare the outputs, and there are none: {start}"


def check_headings(nb):
    first = nb.cells[0]
    if first.cell_type != "markdown" or not re.match(r"# \d+ · \S.*", first.source):
        yield "the first line is not of the form '# 3 · Title'"
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(nb), re.MULTILINE)]
    if levels.count(1) != 1 or levels[0] != 1:
        yield "there must be one heading of level 1, the first"
    for above, below in zip(levels, levels[1:], strict=False):
        if below > above + 1:
            yield f"a heading of level {below} follows one of level {above}"


def check_pictures(nb):
    for output in outputs(nb):
        if "image/png" in output.get("data", {}):
            about = output.metadata.get("image/png", {})
            if not about.get("alt", "").strip():
                yield f"a picture without alt text: {output.metadata.get('figure', 'no name')}"
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", prose(nb)):
        if not alt.strip():
            yield f"a picture without alt text: {target}"
        if "://" in target:
            yield f"a picture from the network: {target}"
    if "<img" in prose(nb):
        yield "a picture as HTML, where Markdown does"


def check_lesson(nb):
    """For notebooks, not for solutions."""
    text = prose(nb).replace("’", "'")
    for section in SECTIONS:
        # as a heading, or as the bold or italic start of a line
        if not re.search(rf"^[#*_ ]*{section}\b", text, re.MULTILINE):
            yield f"no section '{section}'"
    code = "\n".join(cell.source for cell in code_cells(nb))
    claims = len(re.findall(r"^\s*claim\(", code, re.MULTILINE))
    if not 3 <= claims <= 8:
        yield f"{claims} claims, not 3 to 8"
    if not gallery.figures(nb):
        yield "no figure"


FORM = [
    check_format,
    check_run,
    check_places,
    check_code,
    check_headings,
    check_pictures,
]


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=relative)
def test_form(path):
    nb = links.read(path)
    rules = FORM if path in SOLUTIONS else [*FORM, check_lesson]
    assert [complaint for rule in rules for complaint in rule(nb)] == []


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=relative)
def test_the_number_in_the_title_is_the_number_of_the_file(path):
    assert int(links.title(path).split(" · ")[0]) == int(path.name[:2])


# -------------------------------------------------------------------- each rule, and what breaks it


def picture(**about):
    return new_output("display_data", {"image/png": "aGVsbG8=", "text/plain": "a"}, metadata=about)


def sound():
    """A notebook that no rule complains about."""
    text = "\n\n".join(f"## {section}\n\nText." for section in SECTIONS)
    cells = [
        new_markdown_cell(f"# 3 · Look at it\n\n{text}"),
        new_code_cell("claim('a', 1, low=0)\n" * 3, execution_count=1),
        new_code_cell("save_figure(fig, '03-a', alt='a')", execution_count=2),
        new_markdown_cell(
            "See https://example.org/home/page and `<Axes>`.\n\n```python\n# no\n```"
        ),
    ]
    cells[1].outputs = [new_output("stream", name="stdout", text="✓ a: 1\n")]
    cells[2].outputs = [picture(**{"image/png": {"alt": "a"}, "figure": "03-a"})]
    nb = new_notebook(cells=cells)
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    nb.metadata.language_info = {"name": "python"}
    return nb


def prints(text, name="stdout"):
    return lambda nb: nb.cells[1].outputs.append(new_output("stream", name=name, text=text))


def adds_code(source):
    return lambda nb: nb.cells.append(new_code_cell(source, execution_count=3))


def adds_text(source):
    return lambda nb: nb.cells.append(new_markdown_cell(source))


def tags(tag):
    return lambda nb: nb.cells[1].metadata.update(tags=[tag])


def returns_a_repr(nb):
    nb.cells[1].outputs.append(
        new_output("execute_result", {"text/plain": "[<x.Line2D at 0x7f0c2a3b4c5d>]"})
    )


BROKEN = {
    "not a valid notebook": lambda nb: nb.cells[1].update(execution_count="one"),
    "at most 1 MB": lambda nb: nb.cells[0].update(source=nb.cells[0].source + "a" * 2**20),
    "not python3": lambda nb: nb.metadata.kernelspec.update(name="my-kernel"),
    "Python version of one machine": lambda nb: nb.metadata.language_info.update(version="3.11.7"),
    "times of one run": lambda nb: nb.cells[1].metadata.update(execution={"iopub": "12:00"}),
    "not run from top to bottom": lambda nb: nb.cells[1].update(execution_count=7),
    "[None, 2]": lambda nb: nb.cells[1].update(execution_count=None),
    "an error is stored": lambda nb: nb.cells[1].outputs.append(
        new_output("error", ename="NameError", evalue="x", traceback=[])
    ),
    "something on stderr": prints("a warning", name="stderr"),
    "all states of a progress bar": prints("\r 10%\r 20%"),
    "a widget is stored": lambda nb: nb.cells[2].outputs.append(
        new_output("display_data", {run_notebooks.WIDGET: {"model_id": "1"}, "text/plain": "a"})
    ),
    "the offline sample": prints("=== OFFLINE SAMPLE: 5 000 digits"),
    "repr is stored: <Figure": prints("<Figure size 640x480 with 1 Axes>"),
    "repr is stored: <torch": prints("<torch._C.Generator>"),
    "repr is stored: at 0x": returns_a_repr,
    "machine: /home/ada/x": prints("saved /home/ada/x"),
    "machine: /tmp/a": adds_code("open('/tmp/a')"),
    "machine: C:\\Users": prints("saved C:\\Users\\ada"),
    "empty code cell": adds_code(""),
    "26 lines": adds_code("a = 1\n" * 26),
    "shell command: !ls": adds_code("!ls"),
    "shell command: %time": adds_code("%time a"),
    "shell command: x = 1": adds_code("x = 1\nprint?"),
    "plt.show": adds_code("plt.show()"),
    "a comment for nbval": adds_code("# NBVAL_SKIP because it is slow\na = 1"),
    "nbval cannot fail": tags("raises-exception"),
    "there are none": lambda nb: (tags("nbval-check-output")(nb), nb.cells[1].update(outputs=[])),
    "first line": lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("3 · ", "")),
    "one heading of level 1": adds_text("# Again"),
    "level 4 follows one of level 2": adds_text("## a\n\n#### b"),
    "without alt text: 03-b": lambda nb: nb.cells[2].outputs.append(picture(figure="03-b")),
    "without alt text: no name": lambda nb: nb.cells[2].outputs.append(picture()),
    "without alt text: a.png": adds_text("![](a.png)"),
    "from the network": adds_text("![a](https://example.org/a.png)"),
    "as HTML": adds_text('<img src="a.png">'),
    "no section 'Exercises'": lambda nb: nb.cells[0].update(
        source=nb.cells[0].source.replace("Exercises", "Tasks")
    ),
    "2 claims": lambda nb: nb.cells[1].update(source="claim('a', 1, low=0)\n" * 2),
    "no figure": lambda nb: nb.cells[2].update(outputs=[]),
}


def complaints(nb):
    return [complaint for rule in [*FORM, check_lesson] for complaint in rule(nb)]


def test_a_sound_notebook_has_no_complaints():
    assert complaints(sound()) == []


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_notebook_is_complained_about(words):
    nb = sound()
    BROKEN[words](nb)
    assert words in " ".join(complaints(nb))


# ----------------------------------------------------------------------------- rules for the series


def check_figures(shown, files):
    """shown: [(number of the notebook, name)]; files: the names of those in figures/."""
    for number, name in shown:
        if not re.fullmatch(r"\d\d-[a-z0-9-]+", name) or name[:2] != number:
            yield f"{name} is no name for a figure of notebook {number}"
        for file in (f"{name}.png", f"{name}.svg"):
            if file not in files:
                yield f"figures/{file} is missing: make publish"
    counts = Counter(name for _, name in shown)
    yield from (f"{name} is saved {n} times" for name, n in counts.items() if n > 1)
    expected = {f"{name}.{kind}" for name in counts for kind in ("png", "svg")}
    yield from (f"figures/{file}: no notebook makes it" for file in sorted(set(files) - expected))


def check_links(text, folder):
    """Relative links, in Markdown, that lead nowhere."""
    for target in re.findall(r"\]\(<?([^)#\s>]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not re.match(r"[a-z]+:", target) and not (folder / target).exists():
            yield f"{target} leads nowhere"


def test_there_are_notebooks_and_each_has_a_solution():
    assert NOTEBOOKS
    assert [path.name for path in NOTEBOOKS] == [path.name for path in SOLUTIONS]
    everything = {
        path
        for path in (ROOT / "notebooks").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts and not path.name.startswith("classroom-")
    }
    assert everything == {*NOTEBOOKS, *SOLUTIONS}


def checks(nb):
    """The source of each check of an exercise, by name."""
    return {
        node.name: ast.unparse(node)
        for cell in code_cells(nb)
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.FunctionDef) and re.fullmatch(r"check_\d", node.name)
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_solutions_try_the_notebooks_own_checks(path):
    """nbval runs the solutions, so a check that takes a wrong answer, or turns down the right one, fails."""
    ours, solution = checks(links.read(path)), links.read(path.parent / "solutions" / path.name)
    assert 3 <= len(ours) <= 5
    assert checks(solution) == ours
    code = "\n".join(cell.source for cell in code_cells(solution))
    for name in ours:
        number = name.removeprefix("check_")
        assert f'assert {name}(answer_{number}).startswith("right")' in code
        assert f'assert {name}(None) == "not yet"' in code
        assert re.search(rf"assert not {name}\(.*\)\.startswith\(.right.\)", code), (
            f"{name} is not shown a wrong answer"
        )


def test_figures():
    shown = [
        (path.name[:2], name)
        for path in NOTEBOOKS + SOLUTIONS
        for name, _ in gallery.figures(links.read(path))
    ]
    files = [path.name for path in (ROOT / "figures").iterdir() if path.suffix in (".png", ".svg")]
    assert list(check_figures(shown, files)) == []


def test_figure_rules_can_fail():
    files = ["01-a.png", "01-a.svg", "02-old.png"]
    found = list(check_figures([("01", "01-a"), ("01", "01-a"), ("01", "02-B")], files))
    assert found == [
        "02-B is no name for a figure of notebook 01",
        "figures/02-B.png is missing: make publish",
        "figures/02-B.svg is missing: make publish",
        "01-a is saved 2 times",
        "figures/02-old.png: no notebook makes it",
    ]


def small(png):
    """A picture of 160 x 90 grey levels, to compare by: alike at any size and in any palette."""
    picture = Image.open(io.BytesIO(png)).convert("L").resize((160, 90), Image.Resampling.BOX)
    return np.asarray(picture, dtype=float)


def check_published(name, alt, stored, published):
    """Is the published file the figure that the notebook shows under this name?"""
    about = Image.open(io.BytesIO(published)).text
    if about.get("Title") != name:
        yield f"figures/{name}.png says that it is {about.get('Title')}"
    if about.get("Description") != alt:
        yield f"figures/{name}.png has another alt text than the notebook"
    if np.abs(small(stored) - small(published)).mean() > 2:
        yield f"figures/{name}.png is another picture than the notebook shows: make publish"


def shown_pictures(nb):
    for output in outputs(nb):
        name = output.get("metadata", {}).get("figure")
        if name:
            alt = output.metadata["image/png"]["alt"]
            yield name, alt, base64.b64decode(output.data["image/png"])


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=relative)
def test_published_figures_are_those_of_the_notebook(path):
    for name, alt, stored in shown_pictures(links.read(path)):
        published = (ROOT / f"figures/{name}.png").read_bytes()
        assert list(check_published(name, alt, stored, published)) == []


def test_swapped_figures_are_found():
    (one, alt, stored), (other, other_alt, _) = list(shown_pictures(links.read(NOTEBOOKS[0])))[:2]
    published = (ROOT / f"figures/{other}.png").read_bytes()
    assert list(check_published(one, alt, stored, published)) == [
        f"figures/{one}.png says that it is {other}",
        f"figures/{one}.png has another alt text than the notebook",
        f"figures/{one}.png is another picture than the notebook shows: make publish",
    ]
    # the picture alone, under the right name
    assert list(check_published(other, other_alt, stored, published)) == [
        f"figures/{other}.png is another picture than the notebook shows: make publish"
    ]


def test_the_gallery_is_up_to_date():
    assert (ROOT / "figures/README.md").read_text(encoding="utf-8") == gallery.render()


def test_the_table_of_claims_is_up_to_date():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert claims.renewed(text, claims.measured()) == text, "run python tools/claims.py"
    assert len(claims.PLACE.findall(text)) == 1


def test_a_claim_that_is_gone_is_missed():
    found = claims.measured()
    beginning = claims.STATEMENTS[0][2][0]
    with pytest.raises(ValueError, match="0 claims, not 1, begin with"):
        claims.render([claim for claim in found if not claim[0].startswith(beginning)])
    text, _, limits, path = next(claim for claim in found if claim[0].startswith(beginning))
    others = [claim for claim in found if claim[0] != text]
    assert "**7.25**" in claims.render([*others, (text, "7.25", limits, path)])


def test_the_gallery_survives_any_alt_text():
    assert gallery.plain("a\nb | c [d](e) *f* <g>") == "a b \\| c \\[d\\](e) \\*f\\* \\<g\\>"
    nb = sound()
    nb.cells[2].outputs[0].metadata["image/png"]["alt"] = "two\nlines"
    assert gallery.figures(nb) == [("03-a", "two\nlines")]


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=relative)
def test_the_navigation_is_up_to_date(path):
    nb = links.read(path)
    before = [cell.source for cell in nb.cells]
    links.set_nav(nb, links.nav_line(path))
    assert [cell.source for cell in nb.cells] == before, "run python tools/links.py"


def test_navigation_is_set_once_and_at_both_ends():
    nb = sound()
    links.set_nav(nb, "old")
    links.set_nav(nb, "new")
    assert nb.cells[0].source.startswith(
        "# 3 · Look at it\n\n<!-- nav -->\nnew\n<!-- /nav -->\n\n##"
    )
    assert nb.cells[-1].source.endswith("\n\n<!-- nav -->\nnew\n<!-- /nav -->")
    assert "old" not in nbformat.writes(nb)
    nb.cells.append(nbformat.v4.new_code_cell("assert True", id="code"))
    links.set_nav(nb, "new")
    assert [cell.cell_type for cell in nb.cells[-2:]] == ["code", "markdown"]
    assert nb.cells[-2].source == "assert True", "a link has no place in code"


def markdown_files():
    names = ("README.md", "CONTRIBUTING.md", "TEACHING.md", "figures/README.md")
    return [ROOT / name for name in names]


def test_the_teachers_page_names_figures_that_are_there():
    text = (ROOT / "TEACHING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b0\d-[a-z0-9]+(?:-[a-z0-9]+)*", text))
    shown = {name for path in NOTEBOOKS for name, _ in gallery.figures(links.read(path))}
    assert len(named) > 20
    assert named - shown == set()


@pytest.mark.parametrize("path", markdown_files() + NOTEBOOKS + SOLUTIONS, ids=relative)
def test_links_lead_somewhere(path):
    text = prose(links.read(path)) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    assert list(check_links(text, path.parent)) == []


def test_a_dead_link_is_found(tmp_path):
    text = "[a](https://example.org) [b](#here) ![c](no.png) [d](no.md#part)"
    assert list(check_links(text, tmp_path)) == ["no.png leads nowhere", "no.md leads nowhere"]


def test_the_table_in_the_readme_is_the_series():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\(notebooks/(\w+\.ipynb)\)", text, re.MULTILINE)
    assert rows == [(links.title(path), path.name) for path in NOTEBOOKS]


# ------------------------------------------------------------------------------------- dependencies

DISTRIBUTIONS = {
    "IPython": "ipython",
    "PIL": "pillow",
    "jupyter_server": "jupyterlab",  # comes with it
    "pptx": "python-pptx",
    "sklearn": "scikit-learn",
}
CONDA = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "jupyter-client": "jupyter_client",
    "jupyter-server-mathjax": "jupyter_server_mathjax",
}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def extras(*names):
    """The requirements of these extras of pyproject.toml, of all by default."""
    optional = project()["optional-dependencies"]
    return [requirement for name in names or optional for requirement in optional[name]]


def package(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


def imported(source):
    """The distributions that the source imports, the standard library and our own modules aside."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    folders = ("", "tools", "tests", "tests/benchmarks")
    own = {path.stem for folder in folders for path in (ROOT / folder).glob("*.py")}
    names -= own | sys.stdlib_module_names
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names}


def test_every_import_is_declared():
    needed = {package(requirement) for requirement in project()["dependencies"]}
    tested = {package(requirement) for requirement in extras()}
    notebook_code = [
        "\n".join(c.source for c in code_cells(links.read(p))) for p in NOTEBOOKS + SOLUTIONS
    ]
    helpers = (ROOT / "vae_helpers.py").read_text(encoding="utf-8")
    assert set().union(*map(imported, [helpers, *notebook_code])) - needed == set()
    ours = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    ours = [path.read_text(encoding="utf-8") for path in ours]
    assert set().union(*map(imported, ours)) - needed - tested == set()


def test_imports_are_seen_wherever_they_stand():
    source = "import os, sklearn.svm\ndef f():\n    from PIL import Image\n    import vae_helpers"
    assert imported(source) == {"scikit-learn", "pillow"}


def test_environment_yml_has_the_packages_of_pyproject():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^  - ([\w-]+)(\S*)", text, re.MULTILINE)
    listed = {
        name: bound for name, bound in listed if name not in ("conda-forge", "nodefaults", "pip")
    }
    wanted = {"python": project()["requires-python"]}
    # No channel of ours has playwright; the tests that need it are skipped.
    for requirement in project()["dependencies"] + extras("test", "slides"):
        name = package(requirement)
        wanted[CONDA.get(name, name)] = requirement[len(name) :]
    assert listed == wanted
    assert "nodefaults" in text and "- pip:\n      - -e ." in text


def test_requirements_txt_is_a_lock_of_pyproject_for_any_machine():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    wanted = project()["dependencies"] + extras()
    assert {package(requirement) for requirement in wanted} - set(pins) == set()
    assert not re.search(r"://|file:|\+cpu|^-|@", text, re.MULTILINE), (
        "tied to one machine or index"
    )


# -------------------------------------------------------------------------------------------- tools


def run(*arguments, cwd=ROOT, **environment):
    # PYTHONPATH reaches kernels too, and lets a copied project's vae_helpers come first.
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(cwd), "PYTHONUTF8": "1"} | environment,
        capture_output=True,
        encoding="utf-8",
    )


def contents(*folders):
    return {
        path: path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and ".ipynb_checkpoints" not in path.parts
    }


def test_nbval_collects_every_notebook():
    result = run("-m", "pytest", "--collect-only", "-q", "--nbval-lax", "notebooks")
    collected = set(re.findall(r"^(\S+\.ipynb)::", result.stdout, re.MULTILINE))
    assert collected == {relative(path) for path in NOTEBOOKS + SOLUTIONS}


def test_the_rest_of_a_notebook_is_skipped_after_its_first_failure(tmp_path):
    sources = ["a = 1", "1 / 0", "b", "c"]
    cells = [new_code_cell(source, execution_count=i) for i, source in enumerate(sources, 1)]
    links.write(new_notebook(cells=cells), tmp_path / "01_bad.ipynb")
    rules = ROOT / "tests/conftest.py"
    result = run("-m", "pytest", "-c", ROOT / "pyproject.toml", "--nbval-lax", rules, tmp_path)
    assert "1 failed, 1 passed, 2 skipped" in result.stdout, result.stdout


def test_publish_refuses_the_offline_sample():
    before = contents(ROOT / "notebooks", ROOT / "figures")
    result = run("tools/run_notebooks.py", "--in-place", VAE_DATA="sample")
    assert result.returncode == 2
    assert "publish needs the full MNIST" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert contents(ROOT / "notebooks", ROOT / "figures") == before


HELPERS = """
import base64, collections, os
from pathlib import Path
from IPython.display import display
def load_mnist(device=None):
    return collections.namedtuple("Data", "source")("MNIST")
def save_figure(name):
    folder = Path(os.environ["VAE_FIGURES_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        (folder / f"{name}.{kind}").write_text("x")
    data = {"image/png": base64.b64encode(b"x").decode(), "text/plain": "alt"}
    display(data, raw=True, metadata={"image/png": {"alt": "alt"}, "figure": name})
"""


@pytest.fixture
def small_project(tmp_path):
    """A project with one notebook, its solution and an old figure, whose helpers need no data."""
    root = tmp_path / "a project"
    shutil.copytree(ROOT / "tools", root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "notebooks/solutions").mkdir(parents=True)
    (root / "figures").mkdir()
    (root / "figures/01-old.png").write_text("x")
    (root / "README.md").write_text("# A project")
    (root / "vae_helpers.py").write_text(HELPERS)
    figure = "import vae_helpers\nvae_helpers.save_figure('01-new')"
    for name, code in [("01_a.ipynb", figure), ("solutions/01_a.ipynb", "'\\rdone'")]:
        cells = [
            new_markdown_cell("# 1 · Title $x^2$"),
            new_code_cell(code),
            new_markdown_cell("End"),
        ]
        links.write(new_notebook(cells=cells), root / "notebooks" / name)
    return root


def test_publish_renews_all_or_nothing(small_project):
    tool, folders = (
        "tools/run_notebooks.py",
        [small_project / "notebooks", small_project / "figures"],
    )
    solution = small_project / "notebooks/solutions/01_a.ipynb"
    good, bad = links.read(solution), links.read(solution)
    bad.cells[1].source = "1 / 0"
    links.write(bad, solution)
    before = contents(*folders)
    result = run(tool, "--in-place", cwd=small_project)
    assert result.returncode == 1 and "in cell [1]" in result.stdout, result.stdout
    assert "ZeroDivisionError" in result.stdout
    assert contents(*folders) == before

    links.write(good, solution)
    result = run(tool, "--in-place", cwd=small_project)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = sorted(path.name for path in (small_project / "figures").iterdir())
    assert figures == ["01-new.png", "01-new.svg", "README.md"]
    assert "![alt](01-new.png)" in (small_project / "figures/README.md").read_text("utf-8")
    nb = links.read(small_project / "notebooks/01_a.ipynb")
    assert nb.cells[1].execution_count == 1 and "<!-- nav -->" in nb.cells[0].source
    assert list(check_format(nb)) == []


def test_figures_of_a_theme_have_a_folder_of_their_own(small_project):
    result = run("tools/run_notebooks.py", "--figures", "dark", cwd=small_project)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [path.name for path in sorted((small_project / "out").iterdir())] == ["figures-dark"]
    made = sorted(path.name for path in (small_project / "out/figures-dark").iterdir())
    assert made == ["01-new.png", "01-new.svg"]
    result = run("tools/run_notebooks.py", "--figures", "pink", cwd=small_project)
    assert result.returncode == 2 and "invalid choice: 'pink'" in result.stderr


def test_make_notebooks_goes_on_after_a_failure_and_changes_nothing(small_project):
    path = small_project / "notebooks/01_a.ipynb"
    nb = links.read(path)
    bar = "import sys\nfor i in range(3):\n    print(f'\\r{i}', end='', flush=True)"
    nb.cells.insert(1, new_code_cell(bar))
    links.write(nb, path.with_name("02_b.ipynb"))
    nb.cells.insert(1, new_code_cell("raise ValueError('too small')"))
    links.write(nb, path)
    before = contents(small_project / "notebooks", small_project / "figures")
    result = run("tools/run_notebooks.py", cwd=small_project, MPLBACKEND="Agg")
    assert result.returncode == 1
    assert re.search(r"01_a.ipynb .* FAILED in cell \[1\]", result.stdout)
    assert "too small" in result.stdout and re.search(r"02_b.ipynb .* ok", result.stdout)
    assert contents(small_project / "notebooks", small_project / "figures") == before
    stored = links.read(small_project / "out/notebooks/02_b.ipynb")
    assert [output.text for output in stored.cells[1].outputs] == ["2"]
    assert (small_project / "out/figures/01-new.svg").exists()


def test_pages_have_the_alt_texts():
    nb = sound()
    nb.cells[2].outputs = [
        picture(**{"image/png": {"alt": 'a "b"', "width": 960}, "figure": "03-a"})
    ]
    page = run_notebooks.to_html(nb, "3 · Look at it", [])
    (image,) = re.findall(r"<img[^>]*>", page)
    assert "alt='a \"b\"'" in image and 'width="960"' in image
    assert "No description" not in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_cells_say_which_are_slides(path):
    nb = links.read(path)
    before = nbformat.writes(nb)
    slides.set_slide_types(nb)
    assert nbformat.writes(nb) == before, "stale: python tools/slides.py --types"


def test_pages_need_no_network(tmp_path):
    nb = sound()
    nb.cells[0].source += "\n\n[a](04_b.ipynb) [b](../README.md) [c](solutions/03_a.ipynb) $x$"
    page = run_notebooks.to_html(nb, "3 · Look at it", ["03_a", "04_b"])
    loads = re.findall(
        r"(?:src=|<link[^>]*href=|@import|import\(|url\()\s*[\"']?([^\"'\s>)]+)", page
    )
    assert [target for target in loads if re.match(r"(?:https?:)?//", target)] == []
    assert any(target.startswith("mathjax/MathJax.js") for target in loads)
    for target in ("04_b.html", "index.html", "../../notebooks/solutions/03_a.ipynb"):
        assert f'<a href="{target}">' in page
