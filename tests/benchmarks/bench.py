"""make bench: how fast the series is, beside the usual way and beside the floor, in one run.

python tests/benchmarks/bench.py               the table lands in out/benchmarks.md
python tests/benchmarks/bench.py --in-place    for maintainers: in tests/benchmarks/RESULTS.md
python tests/benchmarks/bench.py --part busy   one part, as JSON (make bench PART=busy)

The usual way is that of pytorch/examples: torchvision's MNIST with ToTensor in a DataLoader of 128
images, Adam at 1e-3, ten epochs. The floor is the matrix products of an epoch and nothing else.
Every part runs in a fresh process. It takes about a quarter of an hour, on a machine that does
nothing else; with CUDA, all clocks wait for the device.
"""

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import vae_classroom  # noqa: E402  before torch: it says how threads wait
import vae_helpers as v  # noqa: E402

# isort: split
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

LATENT, HIDDEN = 20, 400
EPOCHS = 10  # of the usual way
BATCH = 250  # the default of fit
# After setting the bias to the mean image, as in notebook 05. A larger rate than fit's default.
RECIPE = {"learning_rate": 1e-2, "steps": 800}
SEEDS = range(3)


def clock():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(task):
    start = clock()
    task()
    return clock() - start


def peak_memory():
    """The most memory that this process has had, in GB (Linux), or None."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("VmHWM")), None)


def data():
    mnist = vae_classroom.load_mnist()
    if mnist.source != "MNIST":
        sys.exit("make bench compares with published numbers: it needs the full MNIST")
    return mnist


def new_vae(seed=0, latent_dim=LATENT, hidden=HIDDEN):
    torch.manual_seed(seed)
    return v.VAE(latent_dim, hidden).to(vae_classroom._device(None))


def fit(vae, images, **recipe):
    return v.fit(vae, v.negative_elbo, images, **recipe)


@torch.no_grad()
def test_bound(vae, images):
    torch.manual_seed(0)
    return torch.cat([v.elbo(vae, part) for part in images.split(1000)]).mean().item()


# -------------------------------------------------------------------------------------- the parts


def floor(x):
    """The seven large and small products of a step forward and backward; x is one batch."""
    rows, device = len(x), x.device
    sizes = [(784, HIDDEN), (HIDDEN, 2 * LATENT), (LATENT, HIDDEN), (HIDDEN, 784)]
    inputs = [x] + [torch.randn(rows, n, device=device) for n, _ in sizes[1:]]
    outputs = [torch.randn(rows, m, device=device) for _, m in sizes]
    weights = [torch.randn(m, n, device=device) for n, m in sizes]  # as in nn.Linear

    def step():
        for number, (a, g, w) in enumerate(zip(inputs, outputs, weights, strict=True)):
            a @ w.T  # forward
            g.T @ a  # the gradient by the weights
            if number:  # nobody needs the gradient by the images
                g @ w  # the gradient by what came in

    return step


def by_hand(vae, images, steps, batch_size):
    """The loop of notebook 01 with fit's kind of Adam, and no bar, no checks, no rate that changes."""
    optimiser = torch.optim.Adam(vae.parameters(), lr=5e-3, fused=True)
    batches, history = [], []
    for _ in range(steps):
        if not batches:
            batches = list(torch.randperm(len(images)).split(batch_size))
        value = v.negative_elbo(vae, images[batches.pop(0)]).mean()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        history.append(value.item())


def part_epoch():
    """Seconds an epoch of the floor, of fit and of the loop by hand, by turns, for two batch sizes."""

    def rounds(batch_size):
        steps, vae = len(images) // batch_size, new_vae()
        product = floor(images[:batch_size].clone())
        sizes = {"steps": steps, "batch_size": batch_size}
        fit(vae, images, steps=20, batch_size=batch_size)  # warm
        for _ in range(5):
            yield [
                seconds(lambda: [product() for _ in range(steps)]),
                seconds(lambda: fit(vae, images, **sizes)),
                seconds(lambda: by_hand(vae, images, **sizes)),
            ]

    images = data().train
    return {batch_size: list(rounds(batch_size)) for batch_size in (BATCH, 2 * BATCH)}


def step_seconds(steps=40):
    """Seconds of one step of fit, libraries loaded."""
    images, vae = data().train, new_vae()
    fit(vae, images, steps=10)
    return seconds(lambda: fit(vae, images, steps=steps)) / steps


WAITS = {
    "short spin": {},  # as vae_helpers says
    "long spin": {"GOMP_SPINCOUNT": "300000"},  # the default of PyTorch's OpenMP on Linux
}


def part_busy():
    """Seconds of a step on an idle machine and beside a process that never rests, by how threads wait.

    The process has a session of its own, as a browser has: Linux shares the cores out by sessions,
    and threads that spin while they wait use up the share that the others of their step need.
    """
    code = "import bench; print(bench.step_seconds())"
    result = {f"{machine}, {wait}": [] for wait in WAITS for machine in ("idle", "busy")}
    for _ in range(5):
        for name, times in result.items():
            machine, wait = name.split(", ")
            other = None
            if machine == "busy":
                forever = [sys.executable, "-c", "while True: pass"]
                other = subprocess.Popen(forever, start_new_session=True)
            try:
                times.append(float(run_python("-c", code, **WAITS[wait]).splitlines()[-1]))
            finally:
                if other:
                    other.kill()
                    other.wait()
    return result


def part_usual():
    """Seconds of each epoch of the usual way, and the test bound after the last one."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    mnist = data()
    folder = vae_classroom._from_root(os.environ.get("VAE_DATA_DIR") or "data")
    pictures = datasets.MNIST(folder, train=True, transform=transforms.ToTensor())
    loader = DataLoader(pictures, batch_size=128, shuffle=True)
    device = mnist.train.device

    def step(vae, optimiser, x):
        x = x.to(device).view(-1, 784)
        mu, log_var = vae.encoder(x).chunk(2, dim=-1)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        pixels = F.binary_cross_entropy(torch.sigmoid(vae.decoder(z)), x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
        optimiser.zero_grad()
        (pixels + kl).backward()
        optimiser.step()

    for _ in range(2):  # the first, on a model to throw away, is not counted: it loads libraries
        vae = new_vae()
        optimiser = torch.optim.Adam(vae.parameters(), lr=1e-3)
        step(vae, optimiser, torch.rand(128, 1, 28, 28))
    vae = new_vae()
    optimiser = torch.optim.Adam(vae.parameters(), lr=1e-3)
    epochs = []
    for _ in range(EPOCHS):
        epochs.append(seconds(lambda: [step(vae, optimiser, x) for x, _ in loader]))
    return {"epochs": epochs, "bound": test_bound(vae, mnist.test)}


def part_ours():
    """Seconds and test bound of the recipe, for each seed."""
    mnist = data()
    fit(new_vae(), mnist.train, steps=2)  # as above: not counted
    runs = []
    for seed in SEEDS:
        vae = new_vae(seed)

        def train(vae=vae, seed=seed):
            mean = mnist.train.mean(0).clamp(0.001, 0.999)
            vae.decoder[-1].bias.data = mean.logit()
            fit(vae, mnist.train, seed=seed, **RECIPE)

        runs.append({"seconds": seconds(train), "bound": test_bound(vae, mnist.test)})
    return runs


def part_import():
    """Seconds to import vae_helpers, and what it needs at least, by turns."""
    result = {"vae_helpers": [], "torch, numpy, matplotlib.pyplot": []}
    for _ in range(7):
        for modules, times in result.items():
            code = f"import time; t = time.perf_counter(); import {modules}"
            code += "; print(time.perf_counter() - t)"
            times.append(float(run_python("-c", code).splitlines()[-1]))
    return {modules: times[1:] for modules, times in result.items()}  # the first fills the cache


def part_notebooks():
    """Seconds and peak memory of each notebook's kernel, and the seconds of a floor epoch beside it."""
    from nbformat.v4 import new_code_cell

    import links
    import run_notebooks

    probe = "import bench; print(bench.peak_memory())"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    os.environ["VAE_FIGURES_DIR"] = str(ROOT / "out/benchmark-figures")
    result = {}
    for path in links.notebooks():
        nb = links.read(path)
        nb.cells.append(new_code_cell(probe))
        start = time.perf_counter()
        problem = run_notebooks.execute(nb, path.parent)
        if problem:
            sys.exit(f"{path.name} {problem}")
        memory = nb.cells[-1].outputs[-1].text.strip()
        whole = time.perf_counter() - start
        row = {"seconds": whole, "memory": json.loads(memory), "floor": floor_epoch()}
        result[path.name] = row
    return result


def floor_epoch():
    """Seconds of an epoch of the floor, now: the median of three."""
    least = floor(data().train[:BATCH])
    least()
    return statistics.median(
        seconds(lambda: [least() for _ in range(60_000 // BATCH)]) for _ in range(3)
    )


def part_first():
    """Seconds from Run All to the first digit that the VAE drew, and to the end of notebook 0."""
    import links
    import run_notebooks

    os.environ["VAE_FIGURES_DIR"] = str(ROOT / "out/benchmark-figures")
    path, rounds = links.notebooks()[0], []
    for source in ("MNIST", "sample") * 3:
        os.environ["VAE_DATA"] = "" if source == "MNIST" else "sample"
        nb, begun = links.read(path), {}
        first = next(i for i, cell in enumerate(nb.cells) if "00-first-drawings" in cell.source)

        def note(cell, cell_index, begun=begun):
            begun[cell_index] = time.perf_counter()

        if problem := run_notebooks.execute(nb, path.parent, note):
            sys.exit(f"{path.name} {problem}")
        start, numbers = min(begun.values()), sorted(begun)
        drawn = begun[numbers[numbers.index(first) + 1]] - start  # when the next cell begins
        # The last cell's check takes no time; what follows is the end of the kernel.
        whole = max(begun.values()) - start
        os.environ["VAE_DATA"] = ""
        rounds.append({"source": source, "drawn": drawn, "whole": whole, "floor": floor_epoch()})
    return rounds


def part_growth():
    """How seconds grow with one size at a time; medians of three."""
    images = data().train

    def median(task):
        return statistics.median(seconds(task) for _ in range(3))

    def epoch(n=60_000, **sizes):
        vae = new_vae(**sizes)
        return median(lambda: fit(vae, images[:n], steps=n // BATCH))

    epoch(n=5000)  # warm
    vae, binary = new_vae(), torch.bernoulli(images[:100])
    return {
        "an epoch by images": {n: epoch(n=n) for n in (7500, 15_000, 30_000, 60_000)},
        "an epoch by latent size": {d: epoch(latent_dim=d) for d in (2, 20, 200)},
        "an epoch by hidden size": {h: epoch(hidden=h) for h in (100, 200, 400, 800)},
        "log p(x) of 100 images by k": {
            k: median(lambda k=k: v.log_likelihood(vae, binary, num_samples=k))
            for k in (1, 10, 100, 1000, 5000)
        },
    }


def part_log_likelihood():
    """Seconds and memory above the model of log p(x): 1 000 binary images, 5 000 draws."""
    binary, vae = torch.bernoulli(data().test[:1000]), new_vae()
    v.log_likelihood(vae, binary, num_samples=1)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated() / 1e9, None
    else:
        clear = Path("/proc/self/clear_refs")
        if clear.exists():
            clear.write_text("5")  # the peak counts from here
        before = peak_memory()
    took = seconds(lambda: v.log_likelihood(vae, binary, num_samples=5000))
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else peak_memory()
    return {"seconds": took, "memory": None if before is None else peak - before}


PARTS = {name[5:]: part for name, part in list(globals().items()) if name.startswith("part_")}

# -------------------------------------------------------------------------------------- the table


def run_python(*arguments, **settings):
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUTF8": "1"} | settings
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def measure(part):
    print(f"{part} …", file=sys.stderr, flush=True)
    return json.loads(run_python(__file__, "--part", part).splitlines()[-1])


def machine():
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{cpu}, {torch.get_num_threads()} threads, {device}; {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    )


def verdict(value, limit):
    return f"at most {limit:g}: {'met' if value <= limit else '**missed**'}"  # missed for NaN


def spread(values, form):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def busy_report(steps, machine):
    def over(a, b):
        return [x / y for x, y in zip(steps[a], steps[b], strict=True)]

    slower, spinning = (
        over("busy, short spin", "idle, short spin"),
        over("busy, long spin", "idle, long spin"),
    )
    pays = over("idle, short spin", "idle, long spin")
    return [
        "## A busy laptop",
        "",
        "A step of `fit`, alone on the machine and beside one process that never rests and has a session "
        "of its own, as a browser has. Threads that wait for each other spin a short while, as vae_helpers "
        f"says, or long, as PyTorch's do by themselves. Machine: {machine}.",
        "",
        "| what | measured | target |",
        "| --- | --- | --- |",
        f"| a step beside a busy process, over an idle machine | {spread(slower, '.1f')} "
        f"| {verdict(statistics.median(slower), 2.5)} |",
        f"| the same with threads that spin long | {spread(spinning, '.1f')} | |",
        f"| what an idle machine pays for threads that spin a short while | {spread(pays, '.2f')} "
        f"| {verdict(statistics.median(pays), 1.15)} |",
        "",
    ]


def first_report(rounds, machine):
    lines = [
        "## The first digit",
        "",
        "Notebook 0, from Run All: until the first digit that the VAE drew is shown, and until all is "
        "done; and the same over the floor, an epoch's matrix products (batches of 250), timed after "
        f"each run. Machine: {machine}.",
        "",
        "| data | first digit, s | over the floor | all, s | over the floor |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for source in ("MNIST", "sample"):
        mine = [one for one in rounds if one["source"] == source]
        drawn, whole = ([one[what] for one in mine] for what in ("drawn", "whole"))
        floors = [[one[what] / one["floor"] for one in mine] for what in ("drawn", "whole")]
        note = verdict(statistics.median(floors[1]), 25)
        lines.append(
            f"| {source} | {spread(drawn, '.1f')} | {spread(floors[0], '.1f')} "
            f"| {spread(whole, '.1f')} | {spread(floors[1], '.1f')}, {note} |"
        )
    return [*lines, ""]


def report(results):
    """The results as Markdown. Medians, and in brackets the least and the most."""
    usual, ours = results["usual"], results["ours"]
    ten_epochs = sum(usual["epochs"])
    ours_seconds = [run["seconds"] for run in ours]
    reached = all(run["bound"] >= usual["bound"] for run in ours)
    lines = [
        "# How fast the series is",
        "",
        "Made by `make bench`, which prints the same table for your machine; `make publish` renews "
        "it. Medians of several repeats, in brackets the least and the most; every part in a fresh "
        "process. Times of a shared machine vary: the ratios are what to compare.",
        "",
        f"Machine: {results['machine']}.",
        "",
        f"Network 784-{HIDDEN}-{LATENT}, full MNIST. *The usual way*: torchvision's MNIST with "
        "ToTensor in a DataLoader of 128 images, Adam at 1e-3. *The floor*: the matrix products of "
        "an epoch alone, forward and backward, with the same shapes and batch size; what a step has "
        "beside them is PyTorch's, and its share differs from machine to machine. *The loop by hand*: "
        "the steps of `fit` with no bar and no checks.",
        "",
        "| what | measured | target |",
        "| --- | --- | --- |",
        f"| an epoch, the usual way | {spread(usual['epochs'], '.1f')} s | |",
    ]
    for batch, processes in results["epoch"].items():
        floors, fits, loops = zip(*(turn for process in processes for turn in process), strict=True)
        over_floor, over_loop = (
            [mine / other for mine, other in zip(fits, others, strict=True)]
            for others in (floors, loops)
        )
        lines += [
            f"| an epoch, the floor, batches of {batch} | {spread(floors, '.2f')} s | |",
            f"| an epoch, `fit`, batches of {batch} | {spread(fits, '.2f')} s | |",
            f"| `fit` over the floor, batches of {batch} | {spread(over_floor, '.2f')} | |",
            f"| `fit` over its loop by hand, batches of {batch} | {spread(over_loop, '.2f')} "
            f"| {verdict(statistics.median(over_loop), 1.1)} |",
        ]
    bounds = [run["bound"] for run in ours]
    faster = ten_epochs / statistics.median(ours_seconds)
    imports = results["import"]
    ratio = [a / b for a, b in zip(*imports.values(), strict=True)]
    books, part = results["notebooks"], results["log_likelihood"]
    total = sum(book["seconds"] for name, book in books.items() if name >= "01")
    memory = [book["memory"] for book in books.values() if book["memory"]]
    lines += [
        f"| test bound after the usual way's ten epochs | {usual['bound']:.2f} nats | |",
        f"| test bound after ours, {len(ours)} seeds | {spread(bounds, '.2f')} nats "
        f"| at least the usual way's: {'met' if reached else '**missed**'} |",
        f"| seconds to that bound, the usual way | {ten_epochs:.0f} s | |",
        f"| seconds to that bound, ours | {spread(ours_seconds, '.1f')} s | |",
        f"| the usual way over ours | {faster:.1f} | |",
        f"| import of vae_helpers over torch, numpy and pyplot | {spread(ratio, '.2f')} "
        f"| {verdict(statistics.median(ratio), 1.15)} |",
        f"| the notebooks from 01 on over the usual way's ten epochs | {total / ten_epochs:.1f} | |",
        f"| largest peak memory of a kernel | {max(memory, default=float('nan')):.2f} GB "
        f"| {verdict(max(memory, default=float('nan')), 2)} |",
        f"| log p(x), 1 000 images, 5 000 draws: seconds | {part['seconds']:.0f} s "
        f"| {verdict(part['seconds'], 60)} |",
        f"| the same: memory above the model | {part['memory'] or float('nan'):.2f} GB "
        f"| {verdict(part['memory'] or float('nan'), 1)} |",
        "",
        f"Ours: the output layer's bias at the mean image, then `fit` with {settings()}. The clock "
        "starts before the bias is set; evaluation, loading the data and the first step of a process "
        "(it loads libraries, with a model to throw away) are counted on neither side.",
        "",
        *notebooks_report(books, results["machine"]),
        "## How time grows",
        "",
        f"Seconds, batches of {BATCH}; all other sizes as above.",
        "",
    ]
    for what, times in results["growth"].items():
        head = " | ".join([what, *times])
        lines += [f"| {head} |", "| --- |" + " ---: |" * len(times)]
        lines += ["| seconds | " + " | ".join(f"{t:.3g}" for t in times.values()) + " |", ""]
    lines += busy_report(results["busy"], results["machine"])
    lines += first_report(results["first"], results["machine"])
    lines += [
        "## To repeat it",
        "",
        "```bash",
        "make bench               # all of it, into out/benchmarks.md",
        "make bench PART=busy     # one part of: " + ", ".join(PARTS),
        "```",
    ]
    return "\n".join(lines) + "\n"


def notebooks_report(books, machine):
    """The budget in epochs of the floor, 200 for Part I, 00 to 06; kernels under 2 GB."""
    epochs = {name: book["seconds"] / book["floor"] for name, book in books.items()}
    part_one = {name for name in books if name < "07"}
    memory = max((book["memory"] for book in books.values() if book["memory"]), default=math.nan)
    total = sum(epochs[name] for name in part_one)
    budget = {"07": 40, "08": 30}
    limits = {
        name: f" ({verdict(epochs[name], budget[name[:2]])})" if name[:2] in budget else ""
        for name in books
    }
    rows = [
        f"| {name} | {book['seconds']:.0f} | {epochs[name]:.0f}{limits[name]} "
        f"| {book['memory'] or math.nan:.2f} GB |"
        for name, book in books.items()
    ]
    return [
        "## Each notebook",
        "",
        "From the start of its kernel to its end, in epochs of the floor measured right after it.",
        "",
        f"Machine: {machine}.",
        "",
        "| notebook | seconds | epochs of the floor | peak memory |",
        "| --- | ---: | ---: | ---: |",
        *rows,
        f"| 00 to 06 | {sum(books[name]['seconds'] for name in part_one):.0f} | {total:.0f} "
        f"({verdict(total, 200)}) | {memory:.2f} GB |",
        "",
    ]


def renew_section(section, in_place):
    """Prints the section, and puts it in the place of the published one if that is asked for."""
    print(section)
    if in_place:
        path = ROOT / "tests/benchmarks/RESULTS.md"
        text = path.read_text(encoding="utf-8")
        head = section.partition("\n")[0]
        if head not in text:
            text = text.replace("## To repeat it", f"{head}\n## To repeat it")
        old = rf"^{re.escape(head)}\n.*?(?=^## )"
        text = re.sub(old, lambda _: f"{section}\n", text, flags=re.S | re.M)
        path.write_text(text, encoding="utf-8", newline="\n")


SECTIONS = {
    "notebooks": notebooks_report,
    "busy": busy_report,
    "first": first_report,
}  # can be renewed by themselves


def settings():
    return ", ".join(f"{key}={value:g}" for key, value in RECIPE.items())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, help="one part, in this process, as JSON")
    parser.add_argument("--in-place", action="store_true", help="for maintainers")
    arguments = parser.parse_args()
    if arguments.part:
        result = PARTS[arguments.part]()
        if arguments.part in SECTIONS:
            section = "\n".join(SECTIONS[arguments.part](result, machine()))
            renew_section(section, arguments.in_place)
        print(json.dumps(result))
        return
    data()  # complains now, not after ten minutes
    results = {"machine": machine()}
    # The address of memory decides a little about speed, so that epochs are timed in five processes.
    processes = [measure("epoch") for _ in range(5)]
    results["epoch"] = {batch: [p[batch] for p in processes] for batch in processes[0]}
    for part in PARTS:
        if part not in results:
            results[part] = measure(part)
    text = report(results)
    target = ROOT / ("tests/benchmarks/RESULTS.md" if arguments.in_place else "out/benchmarks.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", newline="\n")
    print(text)


if __name__ == "__main__":
    main()
