"""Every claim over seeds, in the background: make seeds

python tools/seeds.py [01 03]       these notebooks only
python tools/seeds.py --in-place    the table is published too, in tests/benchmarks/SEEDS.md

Runs each notebook for the seeds 0 to 9 on the full MNIST and 0 to 2 on the offline sample, one after the
other, and writes what `claim` recorded to out/seeds/, with a table over seeds in README.md there.
It can be stopped at any time: what is done is kept, and not done again until the code of the notebook or
of a module changes. Ends with 1 if a claim failed, or a notebook, or if the limit of a claim is
fewer than four standard deviations from the mean.
"""

import hashlib
import json
import os
import statistics
import sys
import tempfile
import time

import links
import run_notebooks
import vae_classroom

OUT = links.ROOT / "out/seeds"
SEEDS = {"MNIST": range(10), "sample": range(3)}


def digest(nb):
    """Changes with the code that the notebook runs, and not with its prose."""
    modules = [links.ROOT / f"{name}.py" for name in ("vae_helpers", "vae_classroom")]
    code = [path.read_text(encoding="utf-8") for path in modules] + links.code_cells(nb)
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:12]


def record(path, source, seed, file):
    """Run one notebook; its claims land in the file if all went well. Returns what went wrong."""
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    os.environ |= {"VAE_SEED": str(seed), "VAE_CLAIMS": str(part)}
    os.environ["VAE_DATA"] = "sample" if source == "sample" else ""
    with tempfile.TemporaryDirectory() as figures:
        os.environ["VAE_FIGURES_DIR"] = figures
        problem = run_notebooks.execute(links.read(path), path.parent)
    if problem:
        return problem.splitlines()[-1]
    claims = read(part) if part.exists() else []
    if any(claim["source"] != source for claim in claims):
        return f"the data should have been {source}: set VAE_DATA_DIR"
    part.touch()  # a notebook without claims is done too
    part.replace(file)  # only now does it count as done


def read(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def measured(files):
    """For each claim, in the order of the notebooks: where, what, its values, its limits, its margin.

    files: {(notebook, source, seed): path}. The margin is in standard deviations over the seeds, from
    the mean to the nearer limit; None where all values are the same.
    """
    rows = {}
    for (notebook, source, _), file in files.items():
        for claim in read(file):
            rows.setdefault((notebook, claim["claim"], source), []).append(claim)
    for where, claims in sorted(rows.items(), key=lambda row: row[0][0]):
        values = [claim["value"] for claim in claims]
        limits = [(claims[0][side], sign) for side, sign in (("low", "≥"), ("high", "≤"))]
        limits = [(limit, sign) for limit, sign in limits if limit is not None]
        mean, sd = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        margin = min(abs(limit - mean) for limit, _ in limits) / sd if sd else None
        yield where, values, limits, margin


def table(files):
    """Markdown: a row a claim."""
    lines = [
        "| notebook | claim | data | seeds | mean | sd | least | most | claimed | margin, sd |"
    ]
    lines.append("|" + "---|" * 10)
    for (notebook, text, source), values, limits, margin in measured(files):
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        claimed = " and ".join(f"{sign} {limit:.4g}" for limit, sign in limits)
        numbers = statistics.fmean(values), sd, min(values), max(values)
        numbers = [f"{number:.4g}" for number in numbers]
        cells = [notebook, text.replace("|", "\\|"), source, str(len(values)), *numbers, claimed]
        lines.append("| " + " | ".join([*cells, "–" if margin is None else f"{margin:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


HEAD = """# Every claim, over seeds

Made by `make seeds` from what `claim` recorded; nothing here is typed. The margin is the distance from
the mean to the limit claimed, in standard deviations over the seeds; under four it is too thin.

"""


def main():
    os.environ.pop("MPLBACKEND", None)
    OUT.mkdir(parents=True, exist_ok=True)
    in_place = "--in-place" in sys.argv
    wanted = tuple(name for name in sys.argv[1:] if name != "--in-place") or ("",)
    notebooks = [path for path in links.notebooks() if path.name.startswith(wanted)]
    if not notebooks:
        sys.exit(f"no notebook's name starts with {' or '.join(wanted)}")
    if vae_classroom.load_mnist().source != "MNIST":
        sys.exit("expected the full MNIST, got the offline sample: see VAE_DATA_DIR in README.md")
    files, fine = {}, True
    for source, seeds in SEEDS.items():
        for seed in seeds:
            for path in notebooks:
                file = OUT / f"{path.stem}-{source}-{seed}-{digest(links.read(path))}.jsonl"
                print(f"{path.stem:30} {source:6} seed {seed}", end=" ", flush=True)
                start = time.perf_counter()
                problem = None if file.exists() else record(path, source, seed, file)
                print(f"{time.perf_counter() - start:5.0f} s", problem or "ok", flush=True)
                if problem:
                    fine = False
                else:
                    files[path.stem[:2], source, seed] = file
    published = [OUT / "README.md"]
    published += [links.ROOT / "tests/benchmarks/SEEDS.md"] if in_place and fine else []
    for path in published:
        path.write_text(HEAD + table(files), encoding="utf-8", newline="\n")
        print("table:", path.relative_to(links.ROOT))
    for (notebook, text, source), _, _, margin in measured(files):
        if margin is not None and margin < 4:
            print(f"too thin, {margin:.1f} standard deviations: {notebook} {text} ({source})")
            fine = False
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
