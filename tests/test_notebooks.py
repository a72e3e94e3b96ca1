"""The notebooks' form, and what the tools around them promise; nbval runs the notebooks themselves.

Each rule is a function that looks at a notebook and yields complaints, so that it can be shown a
broken notebook: BROKEN has one for every rule.
"""

import ast
import base64
import io
import json
import math
import os
import pty
import re
import shutil
import subprocess
import symtable
import sys
import tomllib
from collections import Counter

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import gallery
import links
import published
import run_notebooks
import slides
import vae_classroom

ROOT = links.ROOT
NOTEBOOKS, SOLUTIONS = links.notebooks(), links.solutions()
SERIES = NOTEBOOKS + SOLUTIONS
SECTIONS = ["What you'll do", "What you'll learn", "What you'll need", "Your turn"]
SECTIONS += ["What you learned", "Further reading"]
# A place on somebody's machine, but not the path of an address such as https://example.org/home/
MACHINE = re.compile(
    r"(?<![\w.~:/-])/(?:home|root|work|tmp|Users|private|opt|mnt|usr|var|content)/\S*|\b[A-Z]:\\+\w+"
)
REPR = re.compile(
    r"<(?:matplotlib|Figure|Axes|torch|function|bound method|generator|module)\b|\bat 0x[0-9a-f]{6,}"
)


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
    if size > 1.5 * 2**20:
        yield f"{size / 2**20:.1f} MB, and at most 1.5 MB is allowed"
    kernel = nb.metadata.get("kernelspec", {})
    if (kernel.get("name"), kernel.get("display_name")) != ("python3", "Python 3 (ipykernel)"):
        yield f"kernel is {kernel}, not python3"
    if "version" in nb.metadata.get("language_info", {}):
        yield "the Python version of one machine is stored"
    if any("execution" in cell.metadata for cell in nb.cells):
        yield "the times of one run are stored"


def check_run(nb):
    # The cell for Colab is run there only.
    counts = [
        c.execution_count for c in code_cells(nb) if "colab" not in c.metadata.get("tags", [])
    ]
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
        for found in REPR.findall(text):
            yield f"an object's repr is stored: {found}"
    if any(run_notebooks.WIDGET in output.get("data", {}) for output in outputs(nb)):
        yield "a widget is stored, which shows nothing without its kernel"


def check_places(nb):
    sources = [cell.source for cell in nb.cells]
    for text in [*sources, *output_texts(nb), json.dumps(nb.metadata)]:
        for found in MACHINE.findall(text):
            yield f"a path of one machine: {found}"


SHELL = r"^\s*[%!]|^\s*[\w.]+\?+\s*$|get_ipython\("
UNWANTED = {
    # A magic that fails hides the rest of its cell from nbval.
    "a magic or a shell command": SHELL,
    "plt.show": r"plt\.show",
    # With a word behind it nbval ignores such a comment; tags are safe.
    "a comment for nbval, where a tag belongs": "NBVAL_",
    # A name for it, or words about few images in its cell: Fashion-MNIST has 60 000 as well.
    "not MNIST is not yet the sample": r"""source [=!]= .MNIST(?s:.*)(sample|\bfew\b)|^\w+ = .*[=!]= .MNIST""",
}


def check_code(nb):
    for cell in code_cells(nb):
        lines = cell.source.strip().splitlines()
        start = lines[0] if lines else "an empty cell"
        if not lines:
            yield "an empty code cell"
        if len(lines) > 25:
            yield f"a code cell of {len(lines)} lines, and at most 25 are allowed: {start}"
        for complaint, pattern in UNWANTED.items():
            if re.search(pattern, cell.source, re.MULTILINE):
                yield f"{complaint}: {start}"
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
        if gallery.kind(output):
            if not gallery.alt(output).strip():
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
    first = nb.cells[0].source.startswith("# 0 ")  # claims nothing beyond what is on the screen
    if not (claims == 0 if first else 3 <= claims <= 8):
        yield f"{claims} claims, not 3 to 8"
    if not gallery.figures(nb):
        yield "no figure"


# The most that the main line may have, and of the first notebook less; turns: in all, at least.
PACE = {"words": 2000, "visible lines": 200, "words to a picture": 300}
PACE |= {"words to Your turn": 500, "longest stretch": 200}
FIRST = PACE | {"words": 900, "visible lines": 120}
PART_ONE = 12_000  # words of the main lines of 00 to 06
MARK = re.compile(r"^(#+ Your turn.*|!\[.*)$", re.MULTILINE)  # a turn, or a picture in the text


def pace(nb):
    """How long the main line is, how soon its reader sees and does something, and how long they only read."""
    words = lines = stretch = 0
    found, stretches = {}, [0]
    for cell, text in links.main_line(nb):
        if cell.cell_type == "code":
            stretches.append(stretch)
            stretch = 0
            lines += links.is_visible(cell) and sum(
                bool(line.strip()) for line in text.splitlines()
            )
            if any(gallery.kind(output) for output in cell.outputs):
                found.setdefault("words to a picture", words)
            continue
        for part in MARK.split(text):
            if part.startswith("!["):
                found.setdefault("words to a picture", words)
                stretches.append(stretch)
                stretch = 0
                continue
            if re.match("#+ Your turn", part):
                found.setdefault("words to Your turn", words)
            words += len(part.split())
            stretch += len(part.split())
    longest = max(*stretches, stretch)
    return {"words": words, "visible lines": lines, "longest stretch": longest} | found


def check_pace(nb):
    measured, limits = pace(nb), FIRST if nb.cells[0].source.startswith("# 0 ") else PACE
    for what, most in limits.items():
        if not measured.get(what, math.inf) <= most:
            yield f"{what}: {measured.get(what)}, and at most {most} are allowed"


def rebound(sources):
    """Names that one cell reads and two cells bind: going back to a cell, one finds another thing there.

    A cell that binds a name before it reads it, such as fig, may have it to itself.
    """
    binds, reads = {}, {}
    for k, source in enumerate(sources):
        tree = ast.parse(source)
        table = symtable.symtable(source, f"cell {k}", "exec")
        bound = {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_assigned() or symbol.is_imported()
        }
        bound |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_namespace()}
        for name in bound:
            binds.setdefault(name, []).append(k)
        for name in first_read(tree) | (read_in_functions(table) - bound):
            reads.setdefault(name, []).append(k)
    return sorted(name for name in reads if len(binds.get(name, [])) > 1)


def first_read(tree):
    """Names that the cell's own statements read before they bind them."""
    bound, found = set(), set()
    for statement in tree.body:
        names = [node for node in own_nodes(statement) if isinstance(node, ast.Name)]
        stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        loaded = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        # A loop binds its names first, an assignment reads first.
        found |= loaded - bound - (stored if isinstance(statement, (ast.For, ast.With)) else set())
        bound |= stored
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            bound.add(statement.name)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    return found


def own_nodes(node):
    """The nodes of a statement, but for what a function, a class or a comprehension has to itself."""
    yield node
    if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
        return
    own = [n for g in getattr(node, "generators", []) for n in ast.walk(g.target)]
    own = {n.id for n in own if isinstance(n, ast.Name)}
    for child in ast.iter_child_nodes(node):
        for inner in own_nodes(child):
            if not (isinstance(inner, ast.Name) and inner.id in own):
                yield inner


def read_in_functions(table):
    """Global names that functions, methods and comprehensions of the cell read when they are called."""
    found = set()
    for child in table.get_children():
        symbols = [s for s in child.get_symbols() if s.is_global() and s.is_referenced()]
        found |= {symbol.get_name() for symbol in symbols}
        found |= read_in_functions(child)
    return found


def check_names(nb):
    sources = [c.source for c in code_cells(nb) if not re.search(SHELL, c.source, re.MULTILINE)]
    for name in rebound(sources):
        yield f"{name} is bound in two cells, and a cell reads it: back in that cell, it is something else"


FORM = [check_format, check_run, check_places, check_code, check_headings, check_pictures]
FORM += [check_names]


@pytest.mark.parametrize("path", SERIES, ids=relative)
def test_form(path):
    nb = links.read(path)
    rules = FORM if path in SOLUTIONS else [*FORM, check_lesson]
    assert [complaint for rule in rules for complaint in rule(nb)] == []
    assert int(links.title(path).split(" · ")[0]) == int(path.name[:2])


def test_the_main_lines_are_short_and_soon_show_something(capsys):
    table = {path: pace(links.read(path)) for path in NOTEBOOKS}
    results = (links.ROOT / "tests/benchmarks/RESULTS.md").read_text(encoding="utf-8")
    epochs = dict(re.findall(r"^\| (\d\d_\w+\.ipynb) \| \d+ \| (\d+)\b", results, re.M))
    with capsys.disabled():
        print()
        for path, row in table.items():
            nb = links.read(path)
            row = row | {"turns": len(checks(nb)), "minutes": links.minutes(links.main_line(nb))}
            row |= {"floor epochs": epochs[path.name]}  # measured by make bench PART=notebooks
            print(f"{path.stem:26s}", ", ".join(f"{what} {value}" for what, value in row.items()))
    assert sum(row["words"] for path, row in table.items() if path.name < "07") <= PART_ONE
    assert all(
        int(count) <= 120 for count in epochs.values()
    )  # none keeps a class waiting for long
    assert {path.name: list(check_pace(links.read(path))) for path in NOTEBOOKS} == {
        path.name: [] for path in NOTEBOOKS
    }


# -------------------------------------------------------------------- each rule, and what breaks it


def picture(png="aGVsbG8=", **about):
    return new_output("display_data", {"image/png": png, "text/plain": "a"}, metadata=about)


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


def adds(output, cell=1):
    return lambda nb: nb.cells[cell].outputs.append(output)


def prints(text, name="stdout"):
    return adds(new_output("stream", name=name, text=text))


def adds_code(*sources):
    cells = [new_code_cell(source, execution_count=k) for k, source in enumerate(sources, 3)]
    return lambda nb: nb.cells.extend(cells)


def adds_text(source):
    return lambda nb: nb.cells.append(new_markdown_cell(source))


def renames(old, new):
    return lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace(old, new))


def tags(tag):
    return lambda nb: nb.cells[1].metadata.update(tags=[tag])


BROKEN = {
    "not a valid notebook": lambda nb: nb.cells[1].update(execution_count="one"),
    "at most 1.5 MB": lambda nb: nb.cells[0].update(source=nb.cells[0].source + "a" * 2**21),
    "not python3": lambda nb: nb.metadata.kernelspec.update(name="my-kernel"),
    "Python version of one machine": lambda nb: nb.metadata.language_info.update(version="3.11.7"),
    "times of one run": lambda nb: nb.cells[1].metadata.update(execution={"iopub": "12:00"}),
    "not run from top to bottom": lambda nb: nb.cells[1].update(execution_count=7),
    "[None, 2]": lambda nb: nb.cells[1].update(execution_count=None),
    "an error is stored": adds(new_output("error", ename="NameError", evalue="x", traceback=[])),
    "something on stderr": prints("a warning", name="stderr"),
    "all states of a progress bar": prints("\r 10%\r 20%"),
    "a widget is stored": adds(
        new_output("display_data", {run_notebooks.WIDGET: {"model_id": "1"}})
    ),
    "the offline sample": prints("=== OFFLINE SAMPLE: 5 000 digits"),
    "repr is stored: <Figure": prints("<Figure size 640x480 with 1 Axes>"),
    "repr is stored: <torch": prints("<torch._C.Generator>"),
    "stored: at 0x": adds(new_output("execute_result", {"text/plain": "<x.Line2D at 0x7f0c2a3b>"})),
    "machine: /home/ada/x": prints("saved /home/ada/x"),
    "machine: /tmp/a": adds_code("open('/tmp/a')"),
    "machine: C:\\Users": prints("saved C:\\Users\\ada"),
    "empty code cell": adds_code(""),
    "a is bound in two cells": adds_code("a = 1", "print(a)", "for a in []:\n    pass"),
    "f is bound in two cells": adds_code("def f(): pass", "g = lambda: f()", "import a as f"),
    "26 lines": adds_code("a = 1\n" * 26),
    "shell command: !ls": adds_code("!ls"),
    "shell command: %time": adds_code("%time a"),
    "shell command: x = 1": adds_code("x = 1\nprint?"),
    "plt.show": adds_code("plt.show()"),
    "yet the sample: full": adds_code("full = mnist.source == 'MNIST'"),
    "yet the sample: if": adds_code("if mnist.source != 'MNIST':\n    print('images: too few')"),
    "a comment for nbval": adds_code("# NBVAL_SKIP because it is slow\na = 1"),
    "nbval cannot fail": tags("raises-exception"),
    "there are none": lambda nb: (tags("nbval-check-output")(nb), nb.cells[1].update(outputs=[])),
    "first line": renames("3 · ", ""),
    "one heading of level 1": adds_text("# Again"),
    "level 4 follows one of level 2": adds_text("## a\n\n#### b"),
    "without alt text: 03-b": adds(picture(figure="03-b"), cell=2),
    "without alt text: no name": adds(picture(), cell=2),
    "without alt text: a.png": adds_text("![](a.png)"),
    "from the network": adds_text("![a](https://example.org/a.png)"),
    "as HTML": adds_text('<img src="a.png">'),
    "no section 'Your turn'": renames("Your turn", "Tasks"),
    "2 claims": lambda nb: nb.cells[1].update(source="claim('a', 1, low=0)\n" * 2),
    "no figure": lambda nb: nb.cells[2].update(outputs=[]),
}


def complaints(nb):
    return [complaint for rule in [*FORM, check_lesson] for complaint in rule(nb)]


def test_a_sound_notebook_has_no_complaints():
    assert complaints(sound()) == []


def test_a_slow_start_is_complained_about():
    nb = sound()
    text = "# 3 · Title\n\n" + "word " * 400 + "\n\n## Your turn\n\n" + "word " * 1500
    cells = [new_markdown_cell(text), new_code_cell("a = 1\n" * 201)]
    cells.append(new_code_cell("a = 1\n" * 130, metadata={"tags": ["hide-input"]}))
    cells.append(new_markdown_cell("one\n\n## Second reading\n\n" + "word " * 999))
    nb.cells = [*cells, new_code_cell("a = 1\n" * 130, outputs=nb.cells[2].outputs)]
    measured = pace(nb)
    assert measured == {
        "words": 1908,
        "visible lines": 201,
        "longest stretch": 1907,
        "words to Your turn": 404,
    }
    found = " ".join(check_pace(nb))
    for what in ("visible lines: 201", "words to a picture: None", "longest stretch: 1907"):
        assert what in found
    assert "Your turn" not in found and "words: 1" not in found


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_notebook_is_complained_about(words):
    nb = sound()
    BROKEN[words](nb)
    assert words in " ".join(complaints(nb))


# ----------------------------------------------------------------------------- rules for the series


def check_figures(shown, files):
    """shown: [(number of the notebook, name, kind)]; files: the names of those in figures/."""
    expected = set()
    for number, name, kind in shown:
        if not re.fullmatch(r"\d\d-[a-z0-9-]+", name) or name[:2] != number:
            yield f"{name} is no name for a figure of notebook {number}"
        both = {f"{name}.png", f"{name}.{'gif' if kind == 'image/gif' else 'svg'}"}
        expected |= both
        for file in sorted(both):
            if file not in files:
                yield f"figures/{file} is missing: make publish"
    counts = Counter(name for _, name, _ in shown)
    yield from (f"{name} is saved {n} times" for name, n in counts.items() if n > 1)
    yield from (f"figures/{file}: no notebook makes it" for file in sorted(set(files) - expected))


def check_links(text, folder):
    """Relative links, in Markdown, that lead nowhere."""
    for target in re.findall(r"\]\(<?([^)#\s>]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not re.match(r"[a-z]+:", target) and not (folder / target).exists():
            yield f"{target} leads nowhere"


def test_there_are_notebooks_and_each_has_a_solution():
    assert [path.name for path in NOTEBOOKS] == [path.name for path in SOLUTIONS] != []
    everything, aside = (ROOT / "notebooks").rglob("*.ipynb"), r"\.ipynb_checkpoints/|/classroom-"
    assert {p for p in everything if not re.search(aside, p.as_posix())} == set(SERIES)


def checks(nb):
    """The source of each check of an exercise, by name."""
    return {
        node.name: ast.unparse(node)
        for cell in code_cells(nb)
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.FunctionDef) and re.fullmatch(r"check_\d", node.name)
    }


def tried(code):
    """Counter of (check, is it refused?): the answers that a solution feeds to each check."""
    found, tree = Counter(), ast.parse(code)
    literals = (ast.List, ast.Tuple, ast.Set)
    named = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def size(node):
        """How many things a loop over this goes through."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            node = node.func.value  # the .items() of a dict
        elif isinstance(node, ast.Call) and node.args:
            return min(map(size, node.args))  # zip(…), enumerate(…)
        node = named.get(node.id, node) if isinstance(node, ast.Name) else node
        kinds = {ast.Dict: "keys"} | dict.fromkeys(literals, "elts")
        return len(getattr(node, kinds.get(type(node), ""), [0]))

    def visit(node, times):
        if isinstance(node, ast.For):
            times *= size(node.iter)
        if isinstance(node, ast.Assert):
            refused = isinstance(node.test, ast.UnaryOp)
            for call in ast.walk(node.test):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                    if not any(isinstance(a, ast.Constant) and a.value is None for a in call.args):
                        found[call.func.id, refused] += times
        for child in ast.iter_child_nodes(node):
            visit(child, times)

    visit(tree, 1)
    return found


def test_the_answers_that_a_solution_tries_are_counted():
    code = """assert check_1(None) == "not yet"
for wrong in (1, 2, {3: 4}):
    assert not check_1(wrong).startswith("right")
assert check_1(a).startswith("right")
more = {"a": 1, "b": 2}
for name, answer in more.items():
    assert check_1(answer).startswith("right"), name"""
    assert tried(code) == {("check_1", True): 3, ("check_1", False): 3}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_solutions_try_the_notebooks_own_checks(path):
    """nbval runs the solutions, so a check that takes a wrong answer, or turns down the right one, fails."""
    ours, solution = checks(links.read(path)), links.read(path.parent / "solutions" / path.name)
    assert 4 <= len(ours) <= 6
    assert checks(solution) == ours
    code = "\n".join(cell.source for cell in code_cells(solution))
    for name in ours:
        number = name.removeprefix("check_")
        assert f'assert {name}(answer_{number}).startswith("right")' in code
        assert f'assert {name}(None) == "not yet"' in code
        most = 1 if path == NOTEBOOKS[0] else 2  # there one is a choice of three
        assert tried(code)[name, True] >= 3 and tried(code)[name, False] >= most, name


def test_figures():
    shown = [
        (path.name[:2], output.metadata["figure"], gallery.kind(output))
        for path in SERIES
        for _, output in gallery.stored(links.read(path))
    ]
    kinds = (".png", ".svg", ".gif")
    files = [path.name for path in (ROOT / "figures").iterdir() if path.suffix in kinds]
    assert list(check_figures(shown, files)) == []


def test_figure_rules_can_fail():
    files = ["01-a.png", "01-a.svg", "01-f.png", "02-old.png"]
    png = [("01", "01-a", "image/png"), ("01", "01-a", "image/png"), ("01", "02-B", "image/png")]
    found = list(check_figures([*png, ("01", "01-f", "image/gif")], files))
    assert found == [
        "02-B is no name for a figure of notebook 01",
        "figures/02-B.png is missing: make publish",
        "figures/02-B.svg is missing: make publish",
        "figures/01-f.gif is missing: make publish",
        "01-a is saved 2 times",
        "figures/02-old.png: no notebook makes it",
    ]


def check_published(name, alt, stored, file, poster=None):
    """Is the published file the figure that the notebook shows? A film's poster has its words."""
    about = Image.open(io.BytesIO(poster or file)).text
    if about["Title"] != name:
        yield f"figures/{name}.png says that it is {about['Title']}"
    if not published.same_words(about["Description"], alt):
        yield f"figures/{name}.png has another alt text than the notebook"
    if not published.alike(stored, file, limit=100):  # they have palettes of their own
        yield f"figures/{name}.png is another picture than the notebook shows: make publish"


def shown_pictures(path):
    for output in outputs(links.read(path)):
        name = output.get("metadata", {}).get("figure")
        if name:
            yield name, gallery.alt(output), base64.b64decode(output.data[gallery.kind(output)])


@pytest.mark.parametrize("path", SERIES, ids=relative)
def test_published_figures_are_those_of_the_notebook(path):
    for name, alt, stored in shown_pictures(path):
        files = [ROOT / f"figures/{name}.{kind}" for kind in ("gif", "png")]
        files = [file.read_bytes() for file in files if file.exists()]
        assert list(check_published(name, alt, stored, *files)) == []


def test_swapped_figures_are_found():
    (one, alt, stored), (other, other_alt, _) = list(shown_pictures(NOTEBOOKS[0]))[:2]
    file = (ROOT / f"figures/{other}.png").read_bytes()
    found = list(check_published(one, alt, stored, file))
    assert len(found) == 3 and "another alt text" in found[1]
    # the picture alone, under the right name
    (complaint,) = check_published(other, other_alt, stored, file)
    assert complaint == found[2].replace(one, other)


def test_the_gallery_is_up_to_date():
    assert (ROOT / "figures/README.md").read_text(encoding="utf-8") == gallery.render()


def test_the_gallery_survives_any_alt_text():
    assert gallery.plain("a\nb | c [d](e) *f* <g>") == "a b \\| c \\[d\\](e) \\*f\\* \\<g\\>"
    nb = sound()
    nb.cells[2].outputs[0].metadata["image/png"]["alt"] = "two\nlines"
    assert gallery.figures(nb) == [("03-a", "two\nlines")]


@pytest.mark.parametrize("path", SERIES, ids=relative)
def test_navigation_and_slide_types_are_up_to_date(path):
    nb = links.read(path)
    before = nbformat.writes(nb)
    links.renew(nb, path)
    if path in NOTEBOOKS:
        slides.set_slide_types(nb)
    assert nbformat.writes(nb) == before, "python tools/links.py; python tools/slides.py --types"


def test_navigation_is_set_once_and_at_both_ends():
    nb = sound()
    links.set_nav(nb, "old")
    links.set_nav(nb, "new")
    start = "# 3 · Look at it\n\n<!-- nav -->\nnew\n<!-- /nav -->\n\n##"
    assert nb.cells[0].source.startswith(start)
    assert nb.cells[-1].source.endswith("\n\n<!-- nav -->\nnew\n<!-- /nav -->")
    assert "old" not in nbformat.writes(nb)
    nb.cells.append(nbformat.v4.new_code_cell("assert True", id="code"))
    links.set_nav(nb, "new")
    assert [cell.cell_type for cell in nb.cells[-2:]] == ["code", "markdown"]
    assert nb.cells[-2].source == "assert True", "a link has no place in code"


MARKDOWN = "README.md CONTRIBUTING.md TEACHING.md figures/README.md".split()
MARKDOWN += ["notebooks/CLAIMS.md", "notebooks/GLOSSARY.md"]
MARKDOWN = [ROOT / name for name in MARKDOWN]


def test_the_teachers_page_names_figures_that_are_there():
    text = (ROOT / "TEACHING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b0\d-[a-z0-9]+(?:-[a-z0-9]+)*", text))
    shown = {name for path in SERIES for name, _, _ in shown_pictures(path)}
    assert len(named) > 20
    assert named - shown == set()


ENTRY = re.compile(
    r"^\| \*\*(.+?)\*\* \| (.+?) \| \[(\d)\]\((\w+\.ipynb)\), \*(.+)\* \|$", re.MULTILINE
)


def check_glossary(text, folder):
    """Each entry's section is there, and explains the word: it has it in bold."""
    found = [match[1] for match in ENTRY.finditer(text)]
    if found != sorted(set(found), key=lambda term: term.lower().replace("β", "beta")):
        yield "the words are not in the order of the alphabet, each once"
    if len(found) != text.count("\n| **"):
        yield "a row is not of the form of the others"
    for term, _, number, file, section in ENTRY.findall(text):
        if int(file[:2]) != int(number):
            yield f"{term}: notebook {number} is not {file}"
        parts = re.split(r"^#+ (.*)$", prose(links.read(folder / file)), flags=re.MULTILINE)
        sections = dict(zip(map(str.strip, parts[1::2]), parts[2::2], strict=True))
        bold = " ".join(re.findall(r"\*\*(.+?)\*\*", sections.get(section, ""), re.DOTALL))
        words = [word.strip().lower() for word in re.split(r"[,()]", term) if word.strip()]
        if not any(word in re.sub(r"\s+", " ", bold).lower() for word in words):
            yield f"{term}: not in bold in {file}, {section}"


def test_the_glossary_says_where_each_word_is_explained():
    text = (ROOT / "notebooks/GLOSSARY.md").read_text(encoding="utf-8")
    assert list(check_glossary(text, ROOT / "notebooks")) == []
    terms = " ".join(match[1] for match in ENTRY.finditer(text)).lower()
    field = "latent variable, prior, likelihood, evidence, posterior, variational, elbo, mean-field"
    field += (
        ", amortised, aggregated posterior, posterior collapse, β-vae, annealing, gumbel-softmax"
    )
    for word in field.split(", "):
        assert word in terms, word


def test_a_glossary_that_is_wrong_is_complained_about(tmp_path):
    nb = sound()
    nb.cells[0].source += "\n\n## Words\n\nThe **latent\nvariable** is hidden."
    links.write(nb, tmp_path / "03_a.ipynb")
    good = "# Glossary\n\n| **latent variable** | Hidden. | [3](03_a.ipynb), *Words* |\n"
    assert list(check_glossary(good, tmp_path)) == []
    for old, new in [("latent v", "Prior v"), ("*Words*", "*Text*"), ("[3]", "[4]"), (", *", " *")]:
        assert list(check_glossary(good.replace(old, new), tmp_path)) != []
    assert list(check_glossary(good + "| **a** | b | [3](03_a.ipynb), *Words* |\n", tmp_path)) != []


@pytest.mark.parametrize("path", MARKDOWN + SERIES, ids=relative)
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

DISTRIBUTIONS = {"IPython": "ipython", "PIL": "pillow", "pptx": "python-pptx"}
DISTRIBUTIONS |= {"jupyter_server": "jupyterlab", "sklearn": "scikit-learn"}
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
CONDA |= {name: name.replace("-", "_") for name in ("jupyter-client", "jupyter-server-mathjax")}


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
    code = [cell.source for path in SERIES for cell in code_cells(links.read(path))]
    code += [path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")]
    assert set().union(*map(imported, code)) - needed == set()
    ours = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    ours = [path.read_text(encoding="utf-8") for path in ours]
    assert set().union(*map(imported, ours)) - needed - tested == set()


def test_imports_are_seen_wherever_they_stand():
    source = "import os, sklearn.svm\ndef f():\n    from PIL import Image\n    import vae_helpers"
    assert imported(source) == {"scikit-learn", "pillow"}


def test_environment_yml_has_the_packages_of_pyproject():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    listed = r"^  - (?!conda-forge$|nodefaults$|pip:?$)([\w-]+)(\S*)"
    listed = dict(re.findall(listed, text, re.MULTILINE))
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
    # not tied to one machine or index
    assert not re.search(r"://|file:|\+cpu|^-|@", text, re.MULTILINE)


# -------------------------------------------------------------------------------------------- tools


def run(*arguments, cwd=ROOT, stdout=subprocess.PIPE, **environment):
    # PYTHONPATH reaches kernels too, and lets a copied project's vae_helpers come first.
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(cwd), "PYTHONUTF8": "1"} | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def contents(*folders):
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths if ".ipynb_checkpoints" not in path.parts}


def test_nbval_collects_every_notebook():
    result = run("-m", "pytest", "--collect-only", "-q", "--nbval-lax", "notebooks")
    collected = set(re.findall(r"^(\S+\.ipynb)::", result.stdout, re.MULTILINE))
    assert collected == set(map(relative, SERIES))


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


CLASSROOM = """
import base64, collections, os
from pathlib import Path
from IPython.display import display
from PIL import Image
def load_mnist(device=None):
    return collections.namedtuple("Data", "source")("MNIST")
def save_figure(name):
    picture = Path(__file__).with_name("picture.png")
    Path(os.environ["VAE_FIGURES_DIR"]).mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        (Path(os.environ["VAE_FIGURES_DIR"]) / f"{name}.{kind}").write_bytes(picture.read_bytes())
    data = {"image/png": base64.b64encode(picture.read_bytes()).decode(), "text/plain": "alt"}
    alt = Image.open(picture).text["Description"]
    display(data, raw=True, metadata={"image/png": {"alt": alt}, "figure": name})
"""
CODE = "import time, vae_classroom\nvae_classroom.save_figure('01-new')\nprint(time.time(), 's')"


def drawing(noise=0.0, label="93.4", point=0.0, alt="A curve to 93.4"):
    """A figure as save_figure would write it."""
    fig, ax = plt.subplots()
    x = np.linspace(0, 6, 200)
    ax.plot(x, np.sin(x) * (1 + noise))
    ax.scatter([3, 4], [0.5, 0.5 + point], s=6, alpha=0.5)
    ax.text(1, 0.2 + noise, label, fontsize=16)
    with io.BytesIO() as file:
        fig.savefig(file, dpi=200)
        plt.close(fig)
        picture = Image.open(file).convert("RGB")
    return vae_classroom._png(picture, Title="01-new", Description=alt)


@pytest.fixture
def small_project(tmp_path):
    """A project with one notebook, its solution and an old figure, whose helpers need no data."""
    root = tmp_path / "a project"
    shutil.copytree(ROOT / "tools", root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "notebooks/solutions").mkdir(parents=True)
    (root / "figures").mkdir()
    (root / "figures/01-old.png").write_text("x")
    (root / "README.md").write_text("# A project")
    (root / "picture.png").write_bytes(drawing())
    (root / "vae_classroom.py").write_text(CLASSROOM)
    for name, code in [("01_a.ipynb", CODE), ("solutions/01_a.ipynb", "'\\rdone'")]:
        cells = [new_markdown_cell("# 1 · Title $x^2$"), new_code_cell(code)]
        cells.append(new_markdown_cell("End"))
        links.write(new_notebook(cells=cells), root / "notebooks" / name)
    return root


def test_publish_renews_all_or_nothing(small_project):
    tool = "tools/run_notebooks.py"
    folders = [small_project / "notebooks", small_project / "figures"]
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
    assert "![A curve to 93.4](01-new.png)" in (folders[1] / "README.md").read_text("utf-8")
    nb = links.read(small_project / "notebooks/01_a.ipynb")
    assert nb.cells[1].execution_count == 1 and "<!-- nav -->" in nb.cells[0].source
    assert list(check_format(nb)) == []

    before = contents(*folders)
    (small_project / "picture.png").write_bytes(drawing(noise=1e-5))
    assert run(tool, "--in-place", cwd=small_project).returncode == 0
    assert contents(*folders) == before, "nothing changed but times and last digits"


CHANGES = {  # what is drawn anew: does it look the same, and do the files stay?
    "the last digits": (dict(noise=1e-5), True, True),
    "a label": (dict(label="93.5"), False, False),
    "a point": (dict(point=0.01), False, False),
    "a number of the alt text": (dict(alt="A curve to -93.5"), True, True),
    "a word of the alt text": (dict(alt="A line to 93.4"), True, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_looks_different_is_published(change, tmp_path):
    changed, looks_same, stays = CHANGES[change]
    old, new, made, figures = sound(), sound(), tmp_path / "made", tmp_path / "figures"
    for nb, folder, png in [(old, figures, drawing()), (new, made, drawing(**changed))]:
        folder.mkdir()
        (folder / "03-a.png").write_bytes(png)
        alt = Image.open(io.BytesIO(png)).text["Description"]
        about = {"image/png": {"alt": alt}, "figure": "03-a"}
        shown = picture(base64.b64encode(png).decode(), **about)
        nb.cells[2].update(id="picture", outputs=[shown])
    published.keep(old, new, made, figures)
    same = new.cells[2].outputs[0].data == old.cells[2].outputs[0].data
    assert (same, list(made.iterdir()) == []) == (looks_same, stays)
    assert new.cells[2].outputs[0].metadata == about


def film(*places):
    """A GIF: a black square at each of the places."""
    pictures = [Image.new("RGB", (160, 90), "white") for _ in places]
    for picture, x in zip(pictures, places, strict=True):
        picture.paste("black", (x, 30, x + 20, 50))
    with io.BytesIO() as buffer:
        pictures[0].save(buffer, "gif", save_all=True, append_images=pictures[1:])
        return buffer.getvalue()


def test_films_are_compared_picture_by_picture():
    assert published.alike(film(90, 10, 50, 90), film(90, 10, 50, 90))
    assert not published.alike(film(90, 10, 50, 90), film(90, 10, 70, 90))
    assert not published.alike(film(90, 10, 50, 90), film(90, 10, 90))


BAR = "100%|██| 20/20 [00:01<00:00, 13.2it/s, loss 1.9]"
TEXTS = [  # stored, new: does the stored one stay?
    (BAR, BAR.replace("██", "█").replace("00:01", "00:09").replace("13.2", "103.22"), True),
    (BAR, BAR.replace("1.9", "1.8"), False),
    ("load: 2.05 s, index: 0.1 s", "load: 2.1 s, index: 0.2 s", True),
    ("✓ a over b: 0.0067", "✓ a over b: 7.1e-03", False),
]


@pytest.mark.parametrize("before, after, stays", TEXTS)
def test_outputs_that_tell_other_times_stay(before, after, stays, tmp_path):
    old, new = sound(), sound()
    for nb, text in [(old, before), (new, after)]:
        nb.cells[1].update(id="text", outputs=[new_output("stream", name="stdout", text=text)])
    published.keep(old, new, tmp_path, tmp_path)
    assert new.cells[1].outputs[0].text == (before if stays else after)


def test_figures_of_a_theme_have_a_folder_and_a_terminal_shows_the_cell(small_project):
    ours, theirs = pty.openpty()
    run("tools/run_notebooks.py", "--figures", "dark", cwd=small_project, stdout=theirs)
    assert [path.name for path in (small_project / "out").iterdir()] == ["figures-dark"]
    made = sorted(path.name for path in (small_project / "out/figures-dark").iterdir())
    assert made == ["01-new.png", "01-new.svg"]
    line = os.read(ours, 10_000).decode().split("\r\n")[0]  # written over itself twice
    assert re.search(r"\r\S*01_a.ipynb +cell 1 of 1 +\d+ s\r +\r\S*01_a.ipynb +\d+ s ok$", line)


def test_make_notebooks_goes_on_after_a_failure_and_changes_nothing(small_project):
    path = small_project / "notebooks/01_a.ipynb"
    nb = links.read(path)
    bar = "import sys\nfor i in range(3):\n    print(f'\\r{i}', end='', flush=True)"
    nb.cells.insert(1, new_code_cell(bar))
    links.write(nb, path.with_name("02_b.ipynb"))
    nb.cells.insert(1, new_code_cell("raise ValueError('✗ too small')"))
    links.write(nb, path)
    before = contents(small_project / "notebooks", small_project / "figures")
    narrow = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}  # as in a pipe on Windows: no ✗
    result = run("tools/run_notebooks.py", cwd=small_project, MPLBACKEND="Agg", **narrow)
    assert result.returncode == 1
    assert re.search(r"01_a.ipynb .* FAILED in cell \[1\]", result.stdout), result.stderr
    assert "? too small" in result.stdout and re.search(r"02_b.ipynb .* ok", result.stdout)
    assert contents(small_project / "notebooks", small_project / "figures") == before
    stored = links.read(small_project / "out/notebooks/02_b.ipynb")
    assert [output.text for output in stored.cells[1].outputs] == ["2"]
    assert (small_project / "out/figures/01-new.svg").exists()


def test_pages_have_the_alt_texts_and_need_no_network():
    nb = sound()
    nb.cells[0].source += "\n\n[a](04_b.ipynb) [b](../README.md) [c](solutions/03_a.ipynb) $x$"
    nb.cells[2].outputs = [picture(**{"image/png": {"alt": 'a "b"', "width": 960}})]
    page = run_notebooks.to_html(nb, "3 · Look at it", ["03_a", "04_b"])
    (image,) = re.findall(r"<img[^>]*>", page)
    assert "alt='a \"b\"'" in image and 'width="960"' in image
    assert "No description" not in page
    nb.cells[1].metadata.tags = ["hide-input"]
    gif = {"image/gif": "R0lGODlh", "text/plain": "a"}
    about = {"image/gif": {"alt": "A film"}, "figure": "03-a"}
    nb.cells[2].outputs = [new_output("display_data", gif, metadata=about)]
    folded = run_notebooks.to_html(nb, "3 · Look at it", ["03_a"])
    (image,) = re.findall(r"<img[^>]*>", folded)
    assert 'alt="A film"' in image and "data:image/gif;base64,R0lGODlh" in image
    assert folded.count("<details><summary>Code</summary>") == 1 and "<details>" not in page
    assert gallery.figures(nb) == [("03-a", "A film")]
    loads = re.findall(
        r"(?:src=|<link[^>]*href=|@import|import\(|url\()\s*[\"']?([^\"'\s>)]+)", page
    )
    assert [target for target in loads if re.match(r"(?:https?:)?//", target)] == []
    assert any(target.startswith("mathjax/MathJax.js") for target in loads)
    for target in ("04_b.html", "index.html", "../../notebooks/solutions/03_a.ipynb"):
        assert f'<a href="{target}">' in page
