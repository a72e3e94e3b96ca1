"""The models of the series, their objective, the training loop and the measures, in plain PyTorch.

Each idea is first written out in the notebook that teaches it, and imported from here afterwards.

    x     images, float (B, 784), in [0, 1]     z        codes, (B, d)
    mu    mean of q(z|x), (B, d)                log_var  log-variance of q(z|x), (B, d)
    q     the distribution q(z|x)               p_x      the distribution p(x|z)
    elbo  nats per image, (B,), to be raised    kl       nats per image, (B,)

"The paper" is Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114.
"""

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor

# How long threads spin while they wait: too long, and one busy browser makes a step twenty times as
# slow; not at all, and waking them takes as long as the work. Read when torch is loaded.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "5000"}

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from tqdm import tqdm

# ------------------------------------------------------------------------------------------- models


def _layers(inputs, hidden, outputs):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Autoencoder(nn.Module):
    """784-hidden-d-hidden-784, ReLU between, nothing on the code (notebook 01)."""

    def __init__(self, latent_dim=2, hidden=400):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = _layers(784, hidden, latent_dim)
        self.decoder = _layers(latent_dim, hidden, 784)

    def encode(self, x):
        """Images (B, 784) in [0, 1] -> codes z (B, d)."""
        return self.encoder(x)

    def decode(self, z):
        """Codes (..., d) -> pictures (..., 784) in [0, 1]."""
        return torch.sigmoid(self.decoder(z))

    def forward(self, x):
        """Images (B, 784) -> their reconstructions (B, 784)."""
        return self.decode(self.encode(x))


class VAE(nn.Module):
    """The same layers, read as distributions, whose log_prob is in nats per image (notebook 05)."""

    def __init__(self, latent_dim=2, hidden=400):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = _layers(784, hidden, 2 * latent_dim)  # mu and log_var
        self.decoder = _layers(latent_dim, hidden, 784)  # the logits of the pixels
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)  # for the prior

    def encode(self, x):
        """Images (B, 784) in [0, 1] -> q(z|x), a diagonal Gaussian over (d,), batch (B,)."""
        mu, log_var = self.encoder(x).chunk(2, dim=-1)  # (B, 2d) -> (B, d), (B, d)
        return Independent(Normal(mu, torch.exp(0.5 * log_var), validate_args=False), 1)

    def decode(self, z):
        """Codes (..., d) -> p(x|z), Bernoulli pixels over (784,); its .mean is the picture."""
        # Not validated, so that log_prob takes grey targets: x log y + (1 - x) log(1 - y).
        return Independent(Bernoulli(logits=self.decoder(z), validate_args=False), 1)

    @property
    def prior(self):
        """p(z), the standard normal over (d,)."""
        return Independent(Normal(self.zeros, self.zeros + 1, validate_args=False), 1)

    def forward(self, x):
        """Images (B, 784) -> their reconstructions (B, 784): the pictures at the means of q(z|x)."""
        return self.decode(self.encode(x).mean).mean


# ---------------------------------------------------------------------------------------- objective


def reconstruction_loss(ae, x):
    """Cross-entropy of images and pictures, (B,) in nats per image: minus a VAE's first term."""
    return F.binary_cross_entropy(ae.decode(ae.encode(x)), x, reduction="none").sum(-1)


def elbo_terms(vae, x, num_samples=1):
    """(expected log-likelihood, KL), each (B,) in nats per image (the paper, equation 7), the first
    over num_samples draws of z, for any model with encode(x), decode(z) and prior.
    """
    q = vae.encode(x)
    z = q.rsample((num_samples,))  # (L, B, d)
    parts = z.split(max(1, 10_000 // len(x)))  # no more pictures at a time than fit in memory
    log_p = torch.cat([vae.decode(part).log_prob(x) for part in parts])  # (L, B)
    return log_p.mean(0), kl_divergence(q, vae.prior)


def elbo(vae, x, num_samples=1):
    """Evidence lower bound, (B,) in nats per image; larger is better (the paper, equation 7)."""
    log_likelihood_term, kl = elbo_terms(vae, x, num_samples)
    return log_likelihood_term - kl


def negative_elbo(vae, x):
    """The loss of a VAE, (B,) in nats per image, with one draw of z: for `fit`."""
    return -elbo(vae, x)


@torch.no_grad()
def log_likelihood(vae, x, num_samples=1000):
    """Importance-weighted estimate of log p(x), (B,) in nats per image; rises with k, the samples.

    log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x), z_i from q(z|x) (Burda et al., arXiv 1509.00519,
    equation 8). Errors: ValueError for images outside the support of p(x|z), grey ones for a VAE.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    estimates = []
    for part in x.split(100):
        q = vae.encode(part)
        log_sum = torch.full(part.shape[:1], -math.inf, dtype=part.dtype, device=part.device)
        for start in range(0, num_samples, 100):  # 100 x 100 pictures at a time: 30 MB, whatever k
            z = q.sample((min(100, num_samples - start),))  # (k, B, d)
            p_x = vae.decode(z)
            if start == 0 and not p_x.support.check(part).all():
                raise ValueError("needs binary images, got grey ones: draw by torch.bernoulli(x)")
            log_w = p_x.log_prob(part) + vae.prior.log_prob(z) - q.log_prob(z)  # (k, B)
            log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
        estimates.append(log_sum - math.log(num_samples))
    return torch.cat(estimates)


# ----------------------------------------------------------------------------------------- training

_seed = os.environ.get("VAE_SEED") or "0"
if not _seed.isdecimal() or int(_seed) >= 2**63:
    raise ValueError(f"VAE_SEED must be a whole number from 0, got {_seed!r}")
SEED = int(_seed)


def fit(model, loss, *tensors, steps, batch_size=250, learning_rate=5e-3, seed=0):
    """Minimise the mean of loss(model, *batch) by Adam, in place (notebook 01 writes it out).

    loss gives (B,), in nats per image; tensors, one or more, have the same length N, and each step
    takes the same random rows of all. seed fixes their order and the noise; the caller's random
    numbers stay as they are. The learning rate rises over the first twentieth of the steps and falls
    to zero over the second half. Returns the loss of each step, a float array (steps,). Ctrl-C ends
    early and keeps what was learnt. Errors: ValueError for what cannot be trained on, for a loss of
    another shape or without a gradient; FloatingPointError for one that is not finite.
    """
    _check_training(model, tensors, steps)

    def not_finite(value):
        return FloatingPointError(
            f"the loss is {value} at step {len(history)}: look for NaN in the images, a log of 0 or "
            f"a division by 0 in the loss, or lower the learning rate of {learning_rate}"
        )

    history = []
    gpus = {part.device for part in [*tensors, *model.parameters()] if part.is_cuda}
    try:
        # The first optimiser of a kernel loads libraries for a second, and half loaded they stay
        # broken until a restart: so in a thread, which the stop button does not reach.
        with ThreadPoolExecutor(1) as thread:
            adam = thread.submit(torch.optim.Adam, model.parameters(), learning_rate, fused=True)
        optimiser = adam.result()
        # On stdout, because a notebook shows stderr as a red box.
        bar = tqdm(total=steps, file=sys.stdout, mininterval=0.5, ncols=80)
        with bar, torch.random.fork_rng(gpus):
            torch.manual_seed(seed)
            batches = _batches(len(tensors[0]), batch_size, torch.Generator().manual_seed(seed))
            for step in range(steps):
                rows = next(batches)
                batch = [part.index_select(0, rows.to(part.device)) for part in tensors]
                values = loss(model, *batch)
                if step == 0:
                    _check_loss(values, len(rows), model)
                value = values.mean()
                number = value.item()
                if not math.isfinite(number):
                    raise not_finite(number)
                rate = min(1, (step + 1) / (0.05 * steps), (steps - step) / (0.5 * steps))
                optimiser.param_groups[0]["lr"] = learning_rate * rate
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                history.append(number)
                bar.update()
                if step % 50 == 0 or step == steps - 1:
                    bar.set_postfix_str(f"loss {np.mean(history[-100:]):.1f}", refresh=False)
    except KeyboardInterrupt:
        print(f"stopped after {len(history)} of {steps} steps: the model keeps what it learnt")
    except (RuntimeError, ValueError) as error:  # PyTorch has words of its own for NaN
        if all(weight.abs().max() < 1e6 for weight in model.parameters()):
            raise
        raise not_finite("nan") from error
    return np.array(history)


def _batches(n, batch_size, generator):
    while True:  # every epoch in a new order
        yield from torch.randperm(n, generator=generator).split(min(batch_size, n))


def _check_training(model, tensors, steps):
    """What is wrong is told before the first step, not after the last."""
    if (os.environ.get("VAE_SEED") or "0") != _seed:
        print(f"VAE_SEED stays {_seed} until the kernel is restarted: set it before the imports")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(f"fit needs tensors of one length of at least 1, got lengths {lengths}")
    pixels = isinstance(model, (Autoencoder, VAE, _Judge))  # a model of one's own may want others
    for images in (tensor for tensor in tensors if pixels and tensor.shape[1:] == (784,)):
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):  # written so that NaN fails too
            raise ValueError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")


def _check_loss(values, rows, model):
    got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
    if got != (rows,):
        raise ValueError(f"the loss must give (B,) = ({rows},), got {got}")
    if not torch.is_grad_enabled():
        raise ValueError("fit needs gradients: call it outside no_grad(), which switches them off")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError("the model is frozen: none of its parameters has requires_grad=True")
    if not values.requires_grad:
        raise ValueError("the loss must depend on the model's parameters, and does not")


# ----------------------------------------------------------------------------------------- measures


class _Judge(nn.Module):
    """A small convolutional classifier with eleven answers: the ten digits, and "not a digit"."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 8, 5, stride=2, padding=2),  # (B, 8, 14, 14)
            nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=2, padding=2),  # (B, 16, 7, 7)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 7 * 7, 64),
            nn.ReLU(),
        )
        self.last = nn.Linear(64, 11)

    def forward(self, x):
        return self.last(self.layers(x))

    @torch.no_grad()
    def features(self, x):
        return torch.cat([self.layers(part) for part in x.split(1000)])

    @torch.no_grad()
    def certainty(self, x):
        return torch.cat([self(part).softmax(-1)[:, :10].amax(-1) for part in x.split(1000)])


def _junk(x, labels):
    """Images (B, 784) -> what is no digit: half of it blends of two digits, then noise, scraps."""
    partner = torch.randperm(len(x), device=x.device)
    brightness = 0.5 + 0.5 * torch.rand(len(x), 1, device=x.device)
    blends = ((x + x[partner]) * brightness).clamp(max=1)
    blends[labels == labels[partner]] = 0  # two sevens may blend to a seven: leave the page empty
    row, cut = torch.arange(784, device=x.device) // 28, torch.randint(8, 15, (len(x), 1))
    scraps = x * (row < cut.to(x.device))  # the upper part of a digit
    kind = torch.arange(len(x), device=x.device)[:, None] % 4
    return torch.where(kind < 2, blends, torch.where(kind == 2, torch.rand_like(x), scraps))


def _judge_loss(judge, x, labels):
    """Cross-entropy (B,), a fifth of the batch turned into junk, a fifth blurred."""
    from torchvision.transforms.functional import gaussian_blur  # slow to import, seldom needed

    fifth, sigma = len(x) // 5, 0.3 + 1.7 * torch.rand(()).item()  # pixels; another width each time
    blurred = gaussian_blur(x[fifth : 2 * fifth].view(-1, 1, 28, 28), 13, sigma).flatten(1)
    mixed = torch.cat([_junk(x[:fifth], labels[:fifth]), blurred, x[2 * fifth :]])
    answers = torch.cat([torch.full_like(labels[:fifth], 10), labels[fifth:]])
    return F.cross_entropy(judge(mixed), answers, reduction="none")


def train_judge(images, labels, *, steps=700, seed=0):
    """A classifier to judge pictures by, trained and frozen (notebook 02 writes it out).

    images (N, 784) in [0, 1]; labels (N,) int64, ValueError if not 0 to 9. Returns a module: logits
    judge(x) (B, 11), judge.certainty(x) (B,) of a digit, the last layer's judge.features(x) (B, 64).
    """
    if not 0 <= labels.min() <= labels.max() <= 9:
        raise ValueError(f"labels must be 0 to 9, got {labels.min()} to {labels.max()}")
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        judge = _Judge().to(images.device)
    fit(judge, _judge_loss, images, labels, steps=steps, seed=seed)
    return judge.requires_grad_(False).eval()


def hole_rate(judge, pictures, real):
    """Share of pictures (N, 784) of which the judge is less sure than of 95% of real ones (M, 784)."""
    return (judge.certainty(pictures) < judge.certainty(real).quantile(0.05)).float().mean().item()


def frechet_distance(a, b):
    """Distance of two clouds of features (N, K), as if each were Gaussian, in squared features.

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), in float64 (Heusel et al.,
    arXiv 1706.08500, equation 6). Biased upwards, the more the smaller N: clouds of equal N only.
    Errors: ValueError for clouds of unequal shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"features must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(torch.cov(features.T)) for features in (a, b))  # (K, K)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # C_a^1/2
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return distance.item()


class BananaModel(nn.Module):
    """z (2,), x (1,): so small that a grid knows p(x) and p(z|x) (notebook 03). All z along a parabola
    explain x alike: p(z) = N(0, I) and p(x|z) = N(x; z_2 + curve z_1^2, noise^2).
    """

    def __init__(self, curve=1.0, noise=0.3, hidden=16):
        super().__init__()
        self.curve = nn.Parameter(torch.tensor(float(curve)))
        self.log_noise = nn.Parameter(torch.tensor(float(noise)).log())
        self.encoder = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 4))

    def encode(self, x):
        """x (B, 1) -> q(z|x), a diagonal Gaussian over (2,), batch (B,)."""
        mu, log_var = self.encoder(x).chunk(2, dim=-1)  # (B, 4) -> (B, 2), (B, 2)
        return Independent(Normal(mu, torch.exp(0.5 * log_var), validate_args=False), 1)

    def decode(self, z):
        """z (..., 2) -> p(x|z) over (1,)."""
        mean = z[..., 1:] + self.curve * z[..., :1] ** 2  # (..., 1)
        return Independent(Normal(mean, self.log_noise.exp(), validate_args=False), 1)

    @property
    def prior(self):
        return Independent(Normal(self.curve.new_zeros(2), self.curve.new_ones(2)), 1)
