"""Runs the series from top to bottom, each notebook in a fresh kernel.

python tools/run_notebooks.py               executed notebooks, pages and figures land in out/
python tools/run_notebooks.py --figures dark    the figures only, here in out/figures-dark/
python tools/run_notebooks.py --in-place    make publish: renews the stored outputs of notebooks and
                                            solutions, figures/ and the tables of claims, on the full
                                            MNIST only
"""

import argparse
import contextlib
import copy
import html
import os
import posixpath
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jupyter_server_mathjax
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter

import claims
import gallery
import links
import published
import slides

ROOT = links.ROOT
ANSI = re.compile(r"\x1b\[[0-9;]*m")
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 600  # seconds; no cell takes a tenth of it on two cores

INDEX = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>From autoencoder to VAE</title>
<h1>From autoencoder to VAE</h1>
<ul style="list-style: none">
ROWS
</ul>
</html>
"""


def stopped(client):
    """nbclient answers Ctrl-C by ending the kernel; over what it then stumbles, or whether, is chance."""
    return getattr(client, "_async_cleanup_kernel_future", None) is not None


def execute(nb, folder, follow=None):
    """Run all cells, working in the folder. Returns None, or what went wrong in which cell.

    follow(cell=…, cell_index=…) is called before each code cell.
    """
    for cell in nb.cells:
        cell.get("metadata", {}).pop("execution", None)  # the times of an earlier run
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None  # nothing stale after a cell that fails
    client = NotebookClient(
        nb,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,  # a progress bar's hundred states become its last one
        record_timing=False,
        skip_cells_with_tag="colab",  # it would fetch what is here, and is stored without a count
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # its warnings speak of sockets
        on_cell_execute=follow,
    )
    problem = None
    try:
        client.execute()
    except CellExecutionError as error:
        lines = [line for line in ANSI.sub("", error.traceback).splitlines() if line.strip()]
        problem = "\n".join(lines[-8:])
    except CellTimeoutError:
        problem = f"the cell was not done after {CELL_TIMEOUT} s"
    except DeadKernelError:
        problem = "the kernel died (out of memory?)"
    except Exception:
        if not stopped(client):
            raise
    if stopped(client):
        sys.exit("stopped")
    # What differs between machines but not in meaning would only make diffs longer.
    nb.metadata.kernelspec = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    nb.metadata.get("language_info", {}).pop("version", None)
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):  # its state went with the kernel
                text = "Something to move with the pointer: it appears when this cell is run."
                output.data = {"text/plain": text}
    if problem is not None:
        begun = [cell.execution_count for cell in nb.cells if cell.get("execution_count")]
        problem = f"in cell [{max(begun, default='?')}]:\n{problem}"
    return problem


def follower(label, nb):
    """For a terminal: a hook for `execute` that says on the label's line which cell is running."""
    code = [place for place, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    start = time.perf_counter()

    def follow(cell, cell_index):
        where = f"cell {code.index(cell_index) + 1} of {len(code)}"
        print(f"\r{label} {where} {time.perf_counter() - start:5.0f} s", end="", flush=True)

    return follow if sys.stdout.isatty() else None


def execute_all(paths):
    """Run notebooks one after the other. Returns [(path, nb)], and whether all went well."""
    done, fine = [], True
    for path in paths:
        label = f"{path.relative_to(ROOT).as_posix():<50}"
        print(label, end=" ", flush=True)
        start = time.perf_counter()
        nb = links.read(path)
        problem = execute(nb, path.parent, follower(label, nb))
        seconds = f"{time.perf_counter() - start:5.0f} s"
        if sys.stdout.isatty():  # wipe the line
            print(f"\r{'':79}\r{label}", end=" ")
        if problem is None:
            print(seconds, "ok", flush=True)
        else:
            print(seconds, "FAILED", problem.replace("\n", "\n    "), flush=True)
            fine = False
        done.append((path, nb))
    return done, fine


def to_html(nb, name, pages):
    """The notebook as a page that needs no network. Links to the given pages lead to them."""

    def local(match):
        attribute, target = match.groups()
        target = posixpath.normpath(posixpath.join("notebooks", target))
        if target == "README.md":
            target = "index.html"
        elif Path(target).stem in pages and posixpath.dirname(target) == "notebooks":
            target = Path(target).stem + ".html"
        else:
            target = "../../" + target  # from out/html/ to the file in the repository
        return f'{attribute}"{target}"'

    exporter = HTMLExporter(
        extra_template_paths=[str(ROOT / "tools")], template_file="page.html.j2"
    )
    nb = copy.deepcopy(nb)
    for _, output in gallery.stored(nb):
        if "image/gif" in output.data:  # nbconvert knows no films
            film, alt = output.data["image/gif"], html.escape(gallery.alt(output))
            film = f'<img src="data:image/gif;base64,{film}" alt="{alt}" width="960">'
            output.data = {"text/html": film}
    body, _ = exporter.from_notebook_node(nb, resources={"metadata": {"name": name}})
    return re.sub(r'(<a href=|<img [^>]*?src=)"(?![a-z]+:|[#/])([^"]+)"', local, body)


def write_pages(done, folder):
    folder.mkdir(parents=True)
    mathjax = Path(jupyter_server_mathjax.__file__).parent / "static"
    shutil.copytree(mathjax, folder / "mathjax")
    pages = [path.stem for path, _ in done]
    rows = []
    for path, nb in done:
        name = links.title(path)
        page = to_html(nb, name, pages)
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        rows.append(f'<li><a href="{path.stem}.html">{name}</a></li>')
    index = INDEX.replace("ROWS", "\n".join(rows))
    (folder / "index.html").write_text(index, encoding="utf-8")


def run():
    out = ROOT / "out"
    for name in ("notebooks", "html", "figures"):
        shutil.rmtree(out / name, ignore_errors=True)
    os.environ.setdefault("VAE_FIGURES_DIR", str(out / "figures"))
    done, fine = execute_all(links.notebooks())
    (out / "notebooks").mkdir(parents=True)
    for path, nb in done:
        links.write(nb, out / "notebooks" / path.name)
    write_pages(done, out / "html")
    print("executed notebooks: out/notebooks/  to read: out/html/index.html  figures: out/figures/")
    return 0 if fine else 1


def only_figures(theme):
    folder = ROOT / "out" / ("figures" if theme == "light" else f"figures-{theme}")
    shutil.rmtree(folder, ignore_errors=True)
    os.environ.update(VAE_THEME=theme, VAE_FIGURES_DIR=str(folder))
    _, fine = execute_all(links.notebooks())
    print(f"figures: {folder.relative_to(ROOT).as_posix()}/")
    return 0 if fine else 1


def full_mnist():
    """None if load_mnist gives the full MNIST, else what it gives."""
    import vae_classroom

    try:
        with contextlib.redirect_stdout(None):  # the sample's banner; what follows says enough
            source = vae_classroom.load_mnist(device="cpu").source
    except (OSError, ValueError) as error:
        return str(error)
    return None if source == "MNIST" else f"load_mnist() gave {source!r}"


def publish():
    # Everybody gets the same outputs, whatever the maintainer has set.
    for name in ("VAE_SEED", "VAE_THEME"):
        os.environ.pop(name, None)
    problem = full_mnist()
    if problem:
        print(f"publish needs the full MNIST, and {problem}: nothing was changed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VAE_FIGURES_DIR"] = folder
        made, figures = Path(folder), ROOT / "figures"
        done, fine = execute_all(links.notebooks() + links.solutions())
        if not fine:
            print("nothing was changed", file=sys.stderr)
            return 1
        names = {path.stem for path in made.iterdir()}
        for path, nb in done:
            published.keep(links.read(path), nb, made, figures)
        pages = claims.renewed(claims.measured(done))
        # From here on only files are moved: nothing that takes long or is likely to fail.
        for path, nb in done:
            links.renew(nb, path)
            if path in links.notebooks():
                nb.metadata["code_published"] = links.code_digest(nb)  # .ci/run asks whether it is
                slides.set_slide_types(nb)
            links.write(nb, path)
        figures.mkdir(exist_ok=True)
        for old in figures.glob("[0-9][0-9]-*"):
            if old.stem not in names:
                old.unlink()
        for new in made.iterdir():
            shutil.copyfile(new, figures / new.name)
    gallery.main()
    claims.write(pages)
    return 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figures", choices=["light", "dark"], help="make figures THEME=...")
    parser.add_argument("--in-place", action="store_true", help="for maintainers: make publish")
    arguments = parser.parse_args()
    os.environ.pop("MPLBACKEND", None)  # kernels would inherit it and show no figures
    if not links.notebooks():
        print("there is no notebook in notebooks/", file=sys.stderr)
        return 1
    if arguments.figures:
        return only_figures(arguments.figures)
    return publish() if arguments.in_place else run()


if __name__ == "__main__":
    sys.exit(main())
