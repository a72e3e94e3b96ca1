"""Layer 1: the mathematics, against truths that do not come from vae_helpers.

Two models have known answers: a linear-Gaussian one (probabilistic PCA), whose log p(x) is exact,
and a VAE with one latent dimension, whose integrals over z can be done on a grid. All in float64,
on the CPU.
"""

import math
import os
from statistics import NormalDist
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import vae_classroom
import vae_helpers as v
from vae_helpers import VAE, Autoencoder, elbo, elbo_terms, log_likelihood, reconstruction_loss

torch.set_num_threads(1)  # the tensors are small, and other programs may be running
DATA_DIR = vae_classroom.ROOT / (os.environ.get("VAE_DATA_DIR") or "../shared/data")


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)
    yield
    plt.close("all")


def assert_mean(samples, truth):
    """The mean of independent samples is within 4 standard errors of the truth; and they vary."""
    error = samples.std() / math.sqrt(len(samples))
    assert 0 < error < 0.1
    assert abs(samples.mean() - truth) < 4 * error


def by_hand(layers, x, bend=lambda h: np.maximum(h, 0)):
    """Linear, ReLU, linear in numpy."""
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in layers.parameters())
    return bend(np.asarray(x) @ w1.T + b1) @ w2.T + b2


def tiny_vae(latent_dim=1, hidden=8):
    """A VAE whose KL and likelihood vary by several nats (fresh weights hardly depend on z)."""
    vae = VAE(latent_dim, hidden).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(2)
    return vae


def grey(n=3):
    return torch.rand(n, 784, dtype=torch.float64)


# -------------------------------------------------------------------------------- the KL divergence


def test_kl_closed_form():
    banana = (v.BananaModel().double(), grey()[:, :1], np.tanh)
    for model, x, *bend in ((tiny_vae(1), grey()), (tiny_vae(5), grey()), banana):
        mu, log_var = np.split(by_hand(model.encoder, x, *bend), 2, axis=1)
        truth = 0.5 * (mu**2 + np.exp(log_var) - 1 - log_var).sum(1)  # the paper, appendix B
        assert truth.min() > 0.01
        np.testing.assert_allclose(elbo_terms(model, x)[1].detach(), truth, rtol=1e-10)


# ------------------------------------------------------- the bound on a model with a known log p(x)


class SigmaPoints(MultivariateNormal):
    """ "Samples" mean ± sqrt(d) L e_i: their averages are exact for quadratic functions."""

    def rsample(self, shape=()):
        d = self.loc.shape[-1]
        assert shape == (2 * d,)
        points = math.sqrt(d) * torch.cat([torch.eye(d), -torch.eye(d)]).double()
        return self.loc + torch.einsum("bij,kj->kbi", self.scale_tril, points)


class LinearGaussian:
    """x = W z + b + noise: log p(x) and p(z|x) are exact. `q` makes q(z|x) from the latter."""

    W = torch.tensor([[2.0, 1.0], [-1.0, 1.5], [0.5, -0.5], [1.0, 2.0]]).double()
    b = torch.tensor([0.1, -0.2, 0.3, 0.0]).double()
    noise = 0.7

    def __init__(self, q):
        self.q = q

    def encode(self, x):
        return self.q(*self.posterior(x))

    def decode(self, z):
        return Independent(Normal(z @ self.W.T + self.b, self.noise), 1)

    @property
    def prior(self):
        return MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())

    def posterior(self, x):
        precision = self.W.T @ self.W / self.noise**2 + torch.eye(2)
        return (x - self.b) @ self.W / self.noise**2 @ precision.inverse(), precision.inverse()

    def log_p(self, x):
        covariance = self.W @ self.W.T + self.noise**2 * torch.eye(4).double()
        return MultivariateNormal(self.b, covariance).log_prob(x)


def diagonal(mean, covariance):
    """A wrong q, narrower than the posterior in one direction and beside it."""
    return MultivariateNormal(mean + 0.1, covariance.diagonal().diag())


DATA = torch.tensor([[0.0, 0, 0, 0], [1, -2, 3, 0.5], [4, 1, 0, 5]]).double()


@pytest.mark.parametrize("copies", [1, 1000])
def test_elbo_is_log_p_for_the_exact_posterior(copies):
    """Of 3000 images with four draws each, too many for one part, too."""
    model, x = LinearGaussian(SigmaPoints), DATA.repeat(copies, 1)
    assert abs(model.posterior(x)[1][0, 1]) > 0.01  # correlated: no diagonal q would do
    torch.testing.assert_close(elbo(model, x, num_samples=4), model.log_p(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift, stretch", [(0, 0.5), (0, 3), (0.3, 1), (-1, 2)])
def test_elbo_misses_log_p_by_the_kl_to_the_posterior(shift, stretch):
    def wrong(mean, covariance):
        return SigmaPoints(mean + shift, covariance.diagonal().diag() * stretch)

    model = LinearGaussian(wrong)
    gap = kl_divergence(model.encode(DATA), MultivariateNormal(*model.posterior(DATA)))
    bound = elbo(model, DATA, num_samples=4)
    assert (gap > 0.01).all() and (bound < model.log_p(DATA)).all()
    torch.testing.assert_close(bound, model.log_p(DATA) - gap, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 7, 100, 250])
def test_log_likelihood_is_exact_for_the_exact_posterior(k):
    """Every weight is then p(x), for any k; across the seams of the chunks too."""
    model, x = LinearGaussian(MultivariateNormal), DATA.repeat(70, 1)
    torch.testing.assert_close(log_likelihood(model, x, k), model.log_p(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 10, 150])
def test_importance_weights_are_unbiased(k):
    """E[exp(estimate)] = p(x) for every k."""
    model, x = LinearGaussian(diagonal), DATA[1:2]
    estimate = log_likelihood(model, x.expand(4_000, -1), k)
    assert_mean(torch.exp(estimate - model.log_p(x)), 1)


# ------------------------------------------ the Bernoulli decoder, with z integrated over on a grid


def test_a_vae_against_quadrature():
    """One latent dimension, and a binary image."""
    vae, x = tiny_vae(), torch.bernoulli(grey(1))
    z, step = np.linspace(-8, 8, 4_001, retstep=True)
    logits = by_hand(vae.decoder, z[:, None])
    log_joint = (x.numpy() * logits - np.logaddexp(0, logits)).sum(1)
    log_joint += -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    log_p = np.logaddexp.reduce(log_joint) + math.log(step)
    mean, square = (np.exp(log_joint - log_p) * step * [z, z**2]).sum(1)
    variance = 1.7 * (square - mean**2)  # wider than the posterior, so that the bound has a gap
    log_q = -0.5 * (z - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)
    bound = (np.exp(log_q) * step * (log_joint - log_q)).sum()
    with torch.no_grad():
        vae.encoder[2].weight.zero_()
        vae.encoder[2].bias.copy_(torch.tensor([mean, math.log(variance)]))
        assert_mean(elbo(vae, x.expand(4_000, -1)), bound)
    assert_mean(torch.exp(log_likelihood(vae, x.expand(500, -1), 20) - log_p), 1)
    assert bound < log_p - 0.01


# ------------------------------------------------------------------------------ gradients and units


@pytest.mark.parametrize("model", [Autoencoder, VAE])
def test_a_reconstruction_is_the_picture_at_the_code(model):
    """At the code's mean for a VAE."""
    model, x = model(3, hidden=8).double(), grey()
    logits = by_hand(model.decoder, by_hand(model.encoder, x)[:, :3])
    np.testing.assert_allclose(model(x).detach(), 1 / (1 + np.exp(-logits)), rtol=1e-10)


@pytest.mark.parametrize("part", ["encoder.0", "encoder.2", "decoder.0", "decoder.2"])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_gradient_of_the_elbo_against_finite_differences(part, num_samples):
    """With the noise fixed, so it is the gradient through the sample as well."""
    vae, x = tiny_vae(2, hidden=4), grey(2)

    def bound():
        torch.manual_seed(2)
        return elbo(vae, x, num_samples).sum()

    bound().backward()
    step = 1e-6
    for parameter in vae.get_submodule(part).parameters():
        direction = torch.randn_like(parameter)
        values = []
        for sign in (+1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append(bound().item())
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-5)


def test_grey_images_cost_their_cross_entropy():
    """In nats per image: a sum over the pixels, no mean."""
    ae, vae, x = Autoencoder(2, hidden=8).double(), VAE(2, hidden=8).double(), grey(4)
    z = torch.randn(4, 2).double()
    for layers, code, value in (
        (ae.decoder, by_hand(ae.encoder, x), reconstruction_loss(ae, x)),
        (vae.decoder, z, -vae.decode(z).log_prob(x)),
    ):
        y = 1 / (1 + np.exp(-by_hand(layers, code)))
        truth = -(x.numpy() * np.log(y) + (1 - x.numpy()) * np.log(1 - y)).sum(1)
        assert truth.min() > 300
        np.testing.assert_allclose(value.detach(), truth, rtol=1e-10)


# ----------------------------------------------------------------- numbers known for the full MNIST


@pytest.mark.skipif(not (DATA_DIR / "MNIST" / "raw").is_dir(), reason="no full MNIST there")
def test_what_is_known_of_mnist(monkeypatch):
    monkeypatch.delenv("VAE_DATA", raising=False)
    mnist = vae_classroom.load_mnist(root=DATA_DIR, device="cpu")
    assert (len(mnist.train), len(mnist.test), mnist.source) == (60_000, 10_000, "MNIST")
    assert mnist.train.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    y = mnist.train.mean(0).clamp(0.001, 0.999)
    for decode, nats in (
        (lambda z: y.expand_as(z), 205.97),  # knows the mean of every pixel and nothing else
        (lambda z: z, 45.53),  # returns the image: the least that grey ones can cost
    ):
        model = SimpleNamespace(encode=lambda x: x, decode=decode)
        cost = reconstruction_loss(model, mnist.test).mean().item()
        assert cost == pytest.approx(nats, abs=0.005)


# ------------------------------------------------------------------------ the codes of the manifold


def codes_on_the_page(reach, **settings):
    """The grids of z1 and z2, read off from pictures as bright as their codes are large."""
    for axis in (slice(0, 1), slice(1, 2)):
        decode = lambda z, axis=axis: (0.5 + z[:, axis] / (2 * reach)).expand(-1, 784)  # noqa: E731
        image = vae_classroom.plot_manifold(decode, **settings).images[0]
        assert image.origin == "upper"
        yield (np.asarray(image.get_array(), dtype=float)[14::28, 14::28] - 0.5) * 2 * reach


@pytest.mark.parametrize("n", [1, 5, 20])
def test_manifold_is_at_the_middles_of_equal_shares_of_the_prior(n):
    share = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    z1, z2 = codes_on_the_page(3, n=n)
    np.testing.assert_allclose(z1, np.tile(share, (n, 1)), atol=2e-6)
    np.testing.assert_allclose(z2, np.tile(share[::-1], (n, 1)).T, atol=2e-6)


def test_manifold_over_a_box():
    z1, z2 = codes_on_the_page(32, n=2, extent=(-4, 4, 10, 30))
    np.testing.assert_allclose(z1, [[-2, 2], [-2, 2]], atol=1e-5)
    np.testing.assert_allclose(z2, [[25, 25], [15, 15]], atol=1e-5)


# ------------------------------------------------------------------- the story of notebooks 03 and 04


def test_the_banana_is_its_density_and_its_bound_is_below():
    """log p(x) by an integral in NumPy over z_1: x | z_1 is N(curve z_1^2, 1 + noise^2)."""
    assert [part.numel() for part in v.BananaModel().parameters()] == [1, 1, 16, 16, 64, 4]
    assert v.BananaModel().curve == 1 and v.BananaModel().log_noise.exp().isclose(torch.tensor(0.3))
    model = v.BananaModel(curve=0.7, noise=0.4).double()
    x = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.double)
    z_1, step = np.linspace(-9, 9, 20_001, retstep=True)
    variance = 1 + 0.4**2
    exponent = -(z_1**2) / 2 - (x.numpy() - 0.7 * z_1**2) ** 2 / (2 * variance)
    exact = np.log(np.exp(exponent).sum(1) * step / (2 * np.pi * variance**0.5))
    estimate = v.log_likelihood(model, x, num_samples=200_000).numpy()
    assert np.abs(estimate - exact).max() < 0.05
    assert (v.elbo(model, x, num_samples=2000).detach().numpy() < exact + 0.05).all()
