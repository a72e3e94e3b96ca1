"""How the tests, and nbval's runs of the notebooks, are set up."""

import os
import shutil

import matplotlib
import pytest
from nbval.plugin import IPyNbFile

# Kernels inherit it, and Agg would turn their inline figures off. The tests themselves draw on Agg.
os.environ.pop("MPLBACKEND", None)
# Or the makes that tests start would take themselves for parts of `make test`.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)
matplotlib.use("Agg")
# Some tests have servers of their own, which no proxy knows.
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = f"127.0.0.1,localhost,{os.environ.get(name, '')}"


class NotebookRules:
    """After a notebook's first failed cell, the rest is skipped: it lacks names, not sense."""

    def pytest_collectstart(self, collector):
        if isinstance(collector, IPyNbFile):
            collector.skip_compare += ("stderr",)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if isinstance(item.parent, IPyNbFile) and report.failed:
            item.parent.first_failed = getattr(item.parent, "first_failed", item.name)
        return report

    def pytest_runtest_setup(self, item):
        failed = getattr(item.parent, "first_failed", None)
        if failed is not None:
            pytest.skip(f"{failed} of this notebook failed")


def pytest_configure(config):
    # The hooks of a conftest.py reach the tests beside it only, and the notebooks are elsewhere.
    config.pluginmanager.register(NotebookRules())


@pytest.fixture(autouse=True)
def unset_by_the_user(monkeypatch):
    """A unit test means the same whatever the user has set; data and device may vary."""
    for name in ("VAE_SEED", "VAE_THEME", "VAE_FIGURES_DIR", "VAE_CLAIMS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; without one the test is skipped, or fails with VAE_BROWSER=required."""

    def missing(reason):
        (pytest.fail if os.environ.get("VAE_BROWSER") == "required" else pytest.skip)(reason)

    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("playwright is not installed")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run"
    flags += " --disable-background-networking --disable-component-update --disable-sync"
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        try:  # without a program on the path: playwright's own
            found = playwright.chromium.launch(executable_path=program, args=flags.split())
        except Error as error:
            missing(f"no browser: {str(error).splitlines()[0]}")
        yield found
        found.close()
