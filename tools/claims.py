"""The tables of common claims: what people say, what is true, and what was measured.

python tools/claims.py    renews notebooks/CLAIMS.md, and the most surprising ones in the README, from
                          what `claim` printed into the notebooks' stored outputs
"""

import re

from links import ROOT, notebooks, read, title

PAGE = """\
# Common claims, measured

What people often say about autoencoders and VAEs, what is true, and what [the notebooks](../README.md) measured.

`python tools/claims.py` makes this page from the stored outputs (seed 0, full MNIST). CI measures every number
again, and fails the day one is out of its limits (in brackets). For ten seeds, and for three on the offline sample,
with mean and margin: [every claim, over seeds](../tests/benchmarks/SEEDS.md), renewed by `make seeds`.

TABLE
"""
PLACE = re.compile(r"<!-- claims -->.*?<!-- /claims -->", re.DOTALL)
LINE = re.compile(r"^✓ (.+): (\S+) \(claimed: (.+)\)$", re.MULTILINE)

# What people say; what is true; how the text of each claim begins that measures it. What surprises
# most stands in the README too.
README = "README"
STATEMENTS = [
    (
        "An autoencoder memorises its training data.",
        "With enough images it is as good on new ones; the same network on 500 images memorises.",
        ["500 images", "all training images"],
        README,
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
        README,
    ),
    (
        "An autoencoder can only reproduce the points of its training set.",
        "A mixture's samples are as far from the rebuilt training images as rebuilt test images are.",
        ["AE, d = 20: distance of a mixture's samples to the nearest"],
    ),
    (
        "A sampled point might be invalid.",
        "That depends on the sampler, which an autoencoder does not have.",
        ["AEs, d = 20: hole rate of samples from N(0, I), as a multiple"],
    ),
    (
        "Maximising the ELBO increases log p(x).",
        "Often. But what it increases is log p(x) minus the gap: it leaves the true model, and log p(x) "
        "can rise and fall again.",
        ["from a model too curved", "from the truth: change of log p(x)"],
    ),
    (
        "Estimating log p(x) by draws from the prior has high variance.",
        "It is biased low as well, by Var(w) / (2k p(x)²) once k is large.",
        ["naive estimate of log p(x), 300 draws"],
    ),
    (
        "Reparameterisation always has lower variance than the score function.",
        "For E[cos ωz] the order turns round as ω grows. In our VAE's encoder the reparameterised one is far quieter.",
        [
            "E[cos(omega z)]: omega at which",
            "VAE, mu head: gradient variance, reparameterised over score function with",
        ],
    ),
    (
        "Estimator B always has lower variance than estimator A.",
        "As an estimate of the bound A is often the better one, and has none at the exact posterior.",
        ["small VAE: variance of the bound"],
    ),
    (
        "Several draws of z for each image make training better.",
        "For as many passes through the decoder, more images with one draw each give the less noisy gradient.",
        ["gradient variance by 100 passes of the decoder"],
    ),
    (
        "The weight of the KL is free.",
        "In a bound on log p(x) it is not: another weight is another noise level, or a β-VAE, by choice. "
        "A mean over the pixels is a weight of 784, and the code goes unused.",
        ["d = 20, mean over pixels: KL that is left"],
        README,
    ),
    (
        "A loss is a loss: mean or sum, and some small factor before the KL.",
        "Each such choice is a weight β or a noise level on the pixels, and can be read off.",
        ["24 losses against the bounds that they are said to be"],
    ),
    (
        "A larger β draws better pictures.",
        "From N(0, I), up to a point. From a mixture fitted to the model's codes, 3 draws worse than 0.",
        [
            "weight of the KL, codes from N(0, I): Fréchet distance at 0 over",
            "weight of the KL, codes from a mixture",
        ],
    ),
    (
        "A little less weight on the KL makes a better VAE.",
        "It makes closer copies. The ELBO is best at 1, where it is what is trained.",
        [
            "d = 10: nats of the ELBO on training images lost by beta = 0.3",
            "d = 10: nats of the ELBO on training images lost by beta = 3",
        ],
    ),
    (
        "Posterior collapse is a failure of the optimiser.",
        "In the linear VAE the best model itself leaves empty every direction that varies less than the noise.",
        ["linear VAE: entries used too many", "linear VAE: nats by which"],
    ),
    (
        "This VAE has so many active units.",
        "After a short run most entries move and say next to nothing: the count depends on its threshold.",
        ["d = 50: entries that count as active"],
    ),
    (
        "Higher likelihood, better pictures.",
        "Two decoders nearly alike in nats draw very differently from N(0, I).",
        [
            "weight of the KL, 0.3 against 1, new encoders",
            "weight of the KL, codes from N(0, I): Fréchet distance at 0.3 over",
        ],
    ),
    (
        "My ELBO is ten nats better than yours.",
        "On which pixels? Thresholding the test images alone gave nearly that, with the same network.",
        ["d = 50, one network: nats of the ELBO gained"],
    ),
    (
        "The test loss of a VAE is its loss with z = mu.",
        "Nothing guarantees that it lies below log p(x): the code gets precision for which the KL does "
        "not charge.",
        ["d = 20: nats by which z = mu flatters"],
    ),
    (
        "The posterior of a VAE is Gaussian.",
        "q(z|x) is, by choice. The true posterior need not be.",
        ["banana model, x = 2: KL from the best mean-field Gaussian q"],
    ),
    (
        "A VAE assumes that the data in latent space are Gaussian.",
        "The prior is Gaussian, by choice. What the images fill, the aggregate, is not.",
        ["d = 2: KL(aggregate to the nearest Gaussian)"],
    ),
    (
        "We know the distribution of the data in latent space, so we can sample from it.",
        "We know the prior. The aggregate of the images is another; it leaves parts of the prior nearly empty.",
        ["d = 2: KL(aggregate to prior)"],
    ),
    (
        "A VAE draws better digits than an autoencoder, because of its prior.",
        "Its prior is not even a VAE's best sampler: a mixture fitted to its codes draws better ones.",
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
        ["d = 2: sigma / spread, VAE without KL over"],
        README,
    ),
    (
        "A VAE interpolates smoothly, an autoencoder jumps.",
        "Neither jumps. At d = 2 the VAE's steps are more even for most pairs of digits.",
        ["d = 2: share of 400 pairs of digits between which"],
    ),
    (
        "Scale your own photo to 28 × 28, and go.",
        "Its ELBO is thousands of nats lower. Prepared as MNIST's digits were, it costs next to nothing.",
        ["20 photographs, only made small", "20 photographs, prepared"],
    ),
    (
        "The higher the likelihood, the better the digit.",
        "Digits shrunk by a third have a higher ELBO than real ones: less ink is easier to predict.",
        ["shrunk digits: ELBO above"],
    ),
    (
        "Encode and decode a few times, and a VAE fills in the missing half.",
        "That is hardly better than the mean image, because the encoder takes what is missing for white. "
        "A q fitted to the visible half does much better, with the same decoder.",
        ["lower half, squared error: encode", "lower half, squared error: fitted q over the mean"],
    ),
    (
        "A VAE denoises.",
        "Through its encoder it does worse than a median. With the noise written into its likelihood the same "
        "decoder does far better.",
        [
            "noise, RMSE through the VAE",
            "noise, RMSE of a q fitted under the noise, over the median",
            "noise, RMSE of a q fitted under the noise, over a trained",
        ],
    ),
    (
        "In a conditional VAE the label says which digit, and z holds the style only.",
        "Nearly, with a code of two. With ten the code says the digit too, and the label is often not obeyed.",
        [
            "conditional VAE, d = 2: another label",
            "conditional VAE, d = 10: another label",
            "conditional VAE, d = 10: a small network",
        ],
    ),
    (
        "A label saves log 10 = 2.3 nats.",
        "At most so in log p(x) of one model that sums over the labels. Of two small ones, the one that is told "
        "the label gained many times that.",
        ["conditional VAE, d = 2: nats of the ELBO gained"],
    ),
    (
        "What gets a low likelihood is an anomaly.",
        "The empty page has a higher ELBO than every test digit, and half a digit, in most pairs, than a whole one.",
        [
            "AUROC of the ELBO, test digits against empty page",
            "AUROC of the ELBO, test digits against upper halves",
        ],
        README,
    ),
    (
        "Train on normal data, and the likelihood finds the rest.",
        "Clothes among digits, and most flipped digits. But trained on clothes, it prefers digits, which are easier "
        "to predict.",
        [
            "AUROC of the ELBO, test digits against clothes",
            "AUROC of the ELBO, test digits against flipped",
            "AUROC of the ELBO, trained on clothes",
        ],
    ),
    (
        "The better pixel model wins.",
        "On MNIST what decides is how cheaply it can say exactly 0, which most pixels are. Three of four lose "
        'to somebody who asks "is it 0?" and never looks.',
        [
            "bits a pixel saved by a discretised logistic over a continuous",
            "bits a pixel saved by a discretised logistic over asking",
        ],
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


def short(value):
    """At most three digits: more would be of one machine's making."""
    return f"{float(value):.3g}"


def plain(value):
    """For the README, where nobody should have to read 1.67e-07."""
    return "under 0.001" if 0 < abs(float(value)) < 0.001 else short(value)


def render(claims, brief=False):
    """The table for notebooks/CLAIMS.md, or the brief one for the README."""
    lines = ["| people say | what is true | measured | where |", "|---|---|---|---|"]
    for said, true, beginnings, *where in STATEMENTS:
        if brief and README not in where:
            continue
        numbers, places = [], []
        for beginning in beginnings:
            found = [claim for claim in claims if claim[0].startswith(beginning)]
            if len(found) != 1:
                raise ValueError(f"{len(found)} claims, not 1, begin with {beginning!r}")
            ((text, value, limits, path),) = found
            measured = f"**{plain(value)}**" if brief else f"**{short(value)}** ({limits})"
            numbers.append(f"{text}: {measured}".replace("|", "\\|"))
            folder = "notebooks/" if brief else ""
            places.append(f"[{title(path).split(' · ')[0]}]({folder}{path.name})")
        cells = [f"“{said}”", true, "; ".join(numbers), ", ".join(dict.fromkeys(places))]
        lines.append(f"| {' | '.join(cells)} |".replace("q(z|x)", "q(z\\|x)"))
    return "\n".join(lines)


def renewed(claims):
    """{path: text} of the two pages; empty for a project whose README has no place for claims."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    if not PLACE.search(text):
        return {}
    table = f"<!-- claims -->\n\n{render(claims, brief=True)}\n\n<!-- /claims -->"
    return {
        path: PLACE.sub(lambda _: table, text),
        ROOT / "notebooks/CLAIMS.md": PAGE.replace("TABLE", render(claims)),
    }


def write(pages):
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(renewed(measured()))
