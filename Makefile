# make help lists the commands. Everything they make lies in .venv/ and out/, which git ignores;
# only `make publish` changes tracked files.

PYTHON = python3
PY = .venv/bin/python
THEME = light
OPTIONS =
# Files that `make test` runs at a time, with one thread each: 1.6 GB a notebook.
JOBS = 2

# With MPLBACKEND=Agg set by the user or by CI, kernels would show no figures.
unexport MPLBACKEND

.PHONY: help notebooks lab test figures slides explorer bench seeds publish clean

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile

notebooks: .venv/.installed  ## run the whole series; executed notebooks, HTML pages and figures land in out/
	$(PY) tools/run_notebooks.py

lab: .venv/.installed  ## open the series in JupyterLab, which is given OPTIONS="--port 9999", for instance
	JUPYTER_CONFIG_PATH="$(CURDIR)/tools:$$JUPYTER_CONFIG_PATH" $(PY) -m jupyterlab $(OPTIONS)

test: .venv/.installed  ## lint, unit tests, the notebooks' form, and every notebook and solution run by nbval
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile --nbval-lax tests notebooks

figures: .venv/.installed  ## the figures only, in out/figures/; with THEME=dark the dark ones, in out/figures-dark/
	$(PY) tools/run_notebooks.py --figures $(THEME)

slides: .venv/.installed  ## the figures as a deck, in out/slides/; with THEME=dark after make figures THEME=dark
	$(PY) tools/slides.py --theme $(THEME)

explorer: .venv/.installed  ## the latent explorer as one file, out/latent_explorer.html
	$(PY) tools/explorer.py

bench: .venv/.installed  ## how fast the series is on this machine, beside the usual way and the floor, in out/benchmarks.md
	$(PY) tests/benchmarks/bench.py $(if $(PART),--part $(PART))

seeds: .venv/.installed  ## every claim over ten seeds and on the sample, about an hour and a half; goes on where it was stopped
	$(PY) tools/seeds.py

publish: .venv/.installed  ## for maintainers: renew stored outputs, figures/, the gallery and the benchmark, on the full MNIST
	$(PY) tools/run_notebooks.py --in-place
	$(PY) tools/explorer.py --in-place
	$(PY) tests/benchmarks/bench.py --in-place

clean:  ## remove what the commands made, except .venv/ and data/, which take long to get
	rm -rf out build .pytest_cache .ruff_cache *.egg-info
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Where pip is told to install for the user, it would refuse to install into an environment.
export PIP_USER = 0

# What cannot work is told before anything is downloaded. (Under a Python for Intel a newer Mac looks like
# an Intel one.) The stamp comes last and goes first, so an interrupted installation is done again the next time.
.venv/.installed: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is not: try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import platform, sys; sys.exit(platform.system() + platform.machine() == "Darwinx86_64")' || \
	  { echo "There is no PyTorch 2.6 for Intel Macs, which $(PYTHON) is made for: see README.md, Other ways in" >&2; exit 1; }
	rm -f $@
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -r requirements.txt
	$(PY) -m pip install --no-deps -e .
	touch $@
