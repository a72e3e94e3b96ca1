"""The README's table of common claims: what people say, what is true, and what was measured.

python tools/claims.py    renews it from what `claim` printed into the notebooks' stored outputs
"""

import re

from links import ROOT, notebooks, read, title

PLACE = re.compile(r"<!-- claims -->.*?<!-- /claims -->", re.DOTALL)
LINE = re.compile(r"^✓ (.+): (\S+) \(claimed: (.+)\)$", re.MULTILINE)

# What people say; what is true; how the text of each claim begins that measures it.
STATEMENTS = [
    (
        "An autoencoder memorises its training data.",
        "With enough images it is as good on new ones; the same network on 500 images memorises.",
        ["500 images", "all training images"],
    ),
    (
        "A linear autoencoder is PCA.",
        "It finds PCA's subspace and error, on axes of its own.",
        ["linear autoencoder, d = 2: error", "linear autoencoder, d = 2: largest angle"],
    ),
    (
        "Autoencoders push the training points as far apart as possible.",
        "The loss does not change when codes go through a map that the decoder undoes: no scale.",
        ["AE, d = 2: relative change of the loss"],
    ),
    (
        "An autoencoder can only reproduce the points of its training set.",
        "A mixture's samples are as far from the rebuilt training images as rebuilt test images are.",
        ["AE, d = 20: distance of a mixture's samples to the nearest"],
    ),
    (
        "A sampled point might be invalid.",
        "That depends on the sampler, which an autoencoder does not have.",
        ["AEs, d = 20: hole rate of samples from N(0, I) minus"],
    ),
    (
        "Maximising the ELBO increases log p(x).",
        "It increases log p(x) minus the gap: many steps lower log p(x), and it leaves the true model.",
        ["share of steps on which the bound rose", "from the truth: change of log p(x)"],
    ),
    (
        "Estimating log p(x) by draws from the prior has high variance.",
        "It is biased low as well, by Var(w) / (2k p(x)²) once k is large.",
        ["naive estimate of log p(x), 300 draws"],
    ),
    (
        "Reparameterisation always has lower variance than the score function.",
        "For E[cos ωz] the order turns round as ω grows. On a VAE the reparameterised one wins by far.",
        [
            "E[cos(omega z)]: omega at which",
            "VAE, mu head: gradient variance, estimator B over the score function with a baseline",
        ],
    ),
    (
        "Estimator B always has lower variance than estimator A.",
        "As an estimate of the bound A is often the better one, and has none at the exact posterior.",
        ["small VAE: variance of the bound", "linear-Gaussian model: variance of the bound"],
    ),
    (
        "Several draws of z for each image make training better.",
        "At equal cost more images with one draw each give the less noisy gradient.",
        ["estimator B: gradient variance at equal cost"],
    ),
    (
        "The weight of the KL is free.",
        "The bound fixes it. A mean over the pixels is a weight of 784, and the code goes unused.",
        ["d = 20, mean over pixels: KL that is left"],
    ),
    (
        "The test loss of a VAE is its loss with z = mu.",
        "That is no bound on anything: the code gets precision for which the KL does not charge.",
        ["d = 20: nats by which z = mu flatters"],
    ),
    (
        "A VAE assumes that the data in latent space are Gaussian.",
        "Prior and q(z|x) are Gaussian by choice. The true posterior and the aggregate are not.",
        [
            "banana model, x = 2: KL from the best Gaussian q",
            "d = 2: KL(aggregate to the nearest Gaussian)",
        ],
    ),
    (
        "We know the distribution of the data in latent space, so we can sample from it.",
        "We know the prior. The aggregate of the images is another; it leaves parts of the prior nearly empty.",
        ["d = 2: KL(aggregate to prior)"],
    ),
    (
        "A VAE draws better digits than an autoencoder, because of its prior.",
        "Asked at its codes an autoencoder does as well; its prior is not even a VAE's best sampler.",
        ["VAE, d = 20: Fréchet distance, its prior over"],
    ),
    (
        "The KL in the loss compares the data's distribution in latent space with the prior.",
        "It is a mean over images: information about the image, plus that comparison.",
        ["d = 2: mean KL against information"],
    ),
    (
        "What makes a VAE's latent space is the noise.",
        "Without the KL the noise is switched off; the KL gives the codes a place and a scale.",
        ["d = 2, VAE without KL: sigma / spread", "d = 2: sigma / spread, VAE without KL over"],
    ),
]


def measured(done=None):
    """[(text, value, limits, notebook)] of every claim in the outputs; done: [(path, nb)]."""
    found = []
    for path, nb in done or [(path, read(path)) for path in notebooks()]:
        for cell in nb.cells:
            text = "".join(output.get("text", "") for output in cell.get("outputs", []))
            found += [(*match, path) for match in LINE.findall(text)]
    return found


def render(claims):
    lines = ["| people say | what is true | measured | where |", "|---|---|---|---|"]
    for said, true, beginnings in STATEMENTS:
        numbers, places = [], []
        for beginning in beginnings:
            found = [claim for claim in claims if claim[0].startswith(beginning)]
            if len(found) != 1:
                raise ValueError(f"{len(found)} claims, not 1, begin with {beginning!r}")
            ((text, value, limits, path),) = found
            numbers.append(f"{text}: **{value}** ({limits})".replace("|", "\\|"))
            places.append(f"[{title(path).split(' · ')[0]}](notebooks/{path.name})")
        where = ", ".join(dict.fromkeys(places))
        lines.append(
            f"| “{said}” | {true} | {'; '.join(numbers)} | {where} |".replace("q(z|x)", "q(z\\|x)")
        )
    return "\n".join(lines)


def renewed(text, claims):
    """The README's text with the table renewed."""
    return PLACE.sub(lambda _: f"<!-- claims -->\n\n{render(claims)}\n\n<!-- /claims -->", text)


def main():
    path = ROOT / "README.md"
    text = renewed(path.read_text(encoding="utf-8"), measured())
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
