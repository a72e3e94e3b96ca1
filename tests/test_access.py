"""The figures' colours: contrast by WCAG 2.2, and a simulation of colour blindness (Machado 2009)."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from colorspacious import cspace_convert, deltaE
from matplotlib.colors import to_rgb

import links

ASK = """
import json, vae_classroom as v, matplotlib.pyplot as plt
cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
print(json.dumps([v.PAPER, v.INK, v.QUIET, v.COLOURS, cycle, v.DIGIT_COLOURS]))
"""


@pytest.fixture(scope="module", params=["light", "dark"])
def colours(request):
    answer = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=links.ROOT,
        env=os.environ | {"VAE_THEME": request.param, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


def luminance(colour):
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    dark, light = sorted([luminance(a), luminance(b)])
    return (light + 0.05) / (dark + 0.05)


def nearest(colours, kind):
    """The smallest difference of two of the colours, in CAM02-UCS, as a colour-blind person sees them."""
    space = {"name": "sRGB1+CVD", "cvd_type": kind, "severity": 100}
    seen = [np.clip(cspace_convert(to_rgb(colour), space, "sRGB1"), 0, 1) for colour in colours]
    return min(deltaE(a, b, input_space="sRGB1") for a, b in itertools.combinations(seen, 2))


def test_the_measures_know_what_is_known():
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)  # WCAG's known near miss
    red_and_green = ["#c04040", "#60803c"]  # told apart by most people, and not by all
    assert nearest(red_and_green, "deuteranomaly") < 0.5 * nearest(red_and_green, "tritanomaly")


def test_words_can_be_read_on_the_paper(colours):
    paper, ink, quiet, models, cycle, _ = colours
    for colour in [ink, quiet, *models.values(), *cycle]:
        assert contrast(colour, paper) >= 4.5, colour


@pytest.mark.parametrize("kind", ["deuteranomaly", "protanomaly", "tritanomaly"])
def test_colours_differ_for_the_colour_blind(colours, kind):
    _, ink, _, models, cycle, digits = colours
    assert nearest([ink, *models.values()], kind) > 15
    assert nearest([ink, *cycle], kind) > 10
    assert nearest(digits, kind) > 10
