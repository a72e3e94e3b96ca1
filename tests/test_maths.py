"""Layer 1: the mathematics, against truths that do not come from vae_helpers.

Two models have known answers: a linear-Gaussian one (probabilistic PCA), whose log p(x) is exact,
and a VAE with one latent dimension, whose integrals over z can be done on a grid. All in float64,
on the CPU.
"""

import itertools
import math
import os
from statistics import NormalDist
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import vae_helpers as v
from vae_helpers import VAE, Autoencoder, elbo, elbo_terms, log_likelihood, reconstruction_loss

torch.set_num_threads(1)  # the tensors are small, and other programs may be running
DATA_DIR = v.ROOT / (os.environ.get("VAE_DATA_DIR") or "../shared/data")


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


def by_hand(layers, x):
    """Linear, ReLU, linear in numpy."""
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in layers.parameters())
    return np.maximum(np.asarray(x) @ w1.T + b1, 0) @ w2.T + b2


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


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_kl_closed_form(latent_dim):
    vae, x = tiny_vae(latent_dim), grey()
    mu, log_var = np.split(by_hand(vae.encoder, x), 2, axis=1)
    truth = 0.5 * (mu**2 + np.exp(log_var) - 1 - log_var).sum(1)  # the paper, appendix B
    kl = elbo_terms(vae, x)[1]
    assert truth.min() > 0.01
    np.testing.assert_allclose(kl.detach(), truth, rtol=1e-10)


def test_kl_monte_carlo():
    vae, x = tiny_vae(3), grey(1)
    mu, log_var = torch.tensor(by_hand(vae.encoder, x)).chunk(2, dim=1)
    q = MultivariateNormal(mu[0], torch.diag(log_var[0].exp()))
    p = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    z = q.sample((20_000,))
    assert_mean(q.log_prob(z) - p.log_prob(z), elbo_terms(vae, x)[1].item())


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
        q = self.encode(torch.zeros(1, 4).double())
        if isinstance(q, MultivariateNormal):
            return MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
        return Independent(Normal(torch.zeros(2).double(), 1), 1)

    def posterior(self, x):
        precision = self.W.T @ self.W / self.noise**2 + torch.eye(2)
        return (x - self.b) @ self.W / self.noise**2 @ precision.inverse(), precision.inverse()

    def log_p(self, x):
        covariance = self.W @ self.W.T + self.noise**2 * torch.eye(4).double()
        return MultivariateNormal(self.b, covariance).log_prob(x)


def diagonal(mean, covariance):
    """A wrong q, narrower than the posterior in one direction and beside it."""
    return Independent(Normal(mean + 0.1, covariance.diagonal().sqrt()), 1)


DATA = torch.tensor([[0.0, 0, 0, 0], [1, -2, 3, 0.5], [4, 1, 0, 5]]).double()


def test_elbo_is_log_p_for_the_exact_posterior():
    model = LinearGaussian(SigmaPoints)
    assert abs(model.posterior(DATA)[1][0, 1]) > 0.01  # correlated: no diagonal q would do
    bound = elbo(model, DATA, num_samples=4)
    torch.testing.assert_close(bound, model.log_p(DATA), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift, stretch", [(0, 0.5), (0, 3), (0.3, 1), (-1, 2)])
def test_elbo_misses_log_p_by_the_kl_to_the_posterior(shift, stretch):
    def wrong(mean, covariance):
        return SigmaPoints(mean + shift, covariance.diagonal().diag() * stretch)

    model = LinearGaussian(wrong)
    gap = kl_divergence(model.encode(DATA), MultivariateNormal(*model.posterior(DATA)))
    bound = elbo(model, DATA, num_samples=4)
    assert (gap > 0.01).all() and (bound < model.log_p(DATA)).all()
    torch.testing.assert_close(bound, model.log_p(DATA) - gap, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_samples", [1, 8])
def test_elbo_estimate_is_unbiased(num_samples):
    model, x = LinearGaussian(diagonal), DATA[1:2]
    mean, covariance = model.posterior(x)
    q = MultivariateNormal(mean + 0.1, covariance.diagonal().diag())
    truth = model.log_p(x) - kl_divergence(q, MultivariateNormal(mean, covariance))
    assert_mean(elbo(model, x.expand(20_000, -1), num_samples), truth.item())


def test_more_samples_make_the_elbo_less_noisy():
    model, x = LinearGaussian(diagonal), DATA[1:2].expand(5_000, -1)
    ratio = elbo(model, x).var() / elbo(model, x, num_samples=16).var()
    assert 14 < ratio < 18


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


def test_log_likelihood_rises_to_log_p_with_k():
    model, x = LinearGaussian(diagonal), DATA[1:2]
    truth = model.log_p(x).item()
    values = [elbo(model, x.expand(4_000, -1)).mean().item()]
    values += [log_likelihood(model, x.expand(4_000, -1), k).mean().item() for k in (3, 10, 100)]
    assert values == sorted(values)
    assert values[0] < truth - 0.05 and truth - 0.02 < values[-1] < truth + 0.005


# ------------------------------------------ the Bernoulli decoder, with z integrated over on a grid


@pytest.fixture
def grid():
    """A VAE with one latent dimension, a binary image, and the truth by quadrature."""
    vae, x = tiny_vae(), torch.bernoulli(grey(1))
    z = np.linspace(-8, 8, 4_001)
    dz = z[1] - z[0]
    logits = by_hand(vae.decoder, z[:, None])
    log_p_x_z = (x.numpy() * logits - np.logaddexp(0, logits)).sum(1)
    log_joint = log_p_x_z - 0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    log_p = np.logaddexp.reduce(log_joint) + math.log(dz)
    posterior = np.exp(log_joint - log_p) * dz
    mean = (posterior * z).sum()
    std = 1.3 * math.sqrt(
        (posterior * (z - mean) ** 2).sum()
    )  # too wide, so that the bound has a gap
    with torch.no_grad():
        vae.encoder[2].weight.zero_()
        vae.encoder[2].bias.copy_(torch.tensor([mean, 2 * math.log(std)]))
    log_q = -0.5 * ((z - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
    q = np.exp(log_q) * dz
    return SimpleNamespace(
        vae=vae,
        x=x,
        log_p=log_p,
        elbo=(q * (log_joint - log_q)).sum(),
        reconstruction=(q * log_p_x_z).sum(),
    )


def test_log_likelihood_against_quadrature(grid):
    estimate = log_likelihood(grid.vae, grid.x.expand(500, -1), 20)
    assert_mean(torch.exp(estimate - grid.log_p), 1)
    assert abs(log_likelihood(grid.vae, grid.x, 3_000).item() - grid.log_p) < 0.05


def test_elbo_against_quadrature(grid):
    with torch.no_grad():
        assert_mean(elbo(grid.vae, grid.x.expand(4_000, -1)), grid.elbo)
        assert_mean(elbo_terms(grid.vae, grid.x.expand(4_000, -1))[0], grid.reconstruction)
    assert grid.elbo < grid.log_p - 0.01


def test_bound_on_grey_images_is_the_mean_bound_on_their_binarisations():
    """log Bernoulli(x; y) is linear in x; q is given the grey image (5 grey pixels: 32 images)."""
    vae, x = tiny_vae(2), torch.bernoulli(grey(1))
    x[0, :5] = torch.tensor([0.1, 0.25, 0.5, 0.7, 0.99])
    given_grey = SimpleNamespace(encode=lambda _: vae.encode(x), decode=vae.decode, prior=vae.prior)

    def bound(image):
        torch.manual_seed(1)  # the same noise for all
        return elbo(given_grey, image).item()

    expected = 0.0
    for pixels in itertools.product([0.0, 1.0], repeat=5):
        pixels = torch.tensor(pixels).double()
        binary = torch.cat([pixels[None], x[:, 5:]], dim=1)
        expected += torch.where(pixels == 1, x[0, :5], 1 - x[0, :5]).prod().item() * bound(binary)
    assert bound(x) == pytest.approx(expected, abs=1e-9)


# ------------------------------------------------------------------------------ gradients and units


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


def test_reconstruction_loss_is_bernoulli_in_nats_per_image():
    ae, x = Autoencoder(2, hidden=8).double(), grey(4)
    logits = by_hand(ae.decoder, by_hand(ae.encoder, x))
    y = 1 / (1 + np.exp(-logits))
    truth = -(x.numpy() * np.log(y) + (1 - x.numpy()) * np.log(1 - y)).sum(
        1
    )  # a sum over the pixels
    assert truth.min() > 300  # about 784 log 2: no mean over pixels
    np.testing.assert_allclose(reconstruction_loss(ae, x).detach(), truth, rtol=1e-10)


def test_reconstruction_loss_is_the_first_term_of_the_elbo_with_its_sign_turned():
    """An autoencoder and a VAE with the same layers, whose q is a point."""
    ae, vae, x = Autoencoder(2, hidden=8).double(), VAE(2, hidden=8).double(), grey(4)
    with torch.no_grad():
        vae.load_state_dict(ae.state_dict() | {f"encoder.2.{k}": p for k, p in point(ae).items()})
        torch.testing.assert_close(reconstruction_loss(ae, x), -elbo_terms(vae, x)[0])


def point(ae):
    """The last layer of an encoder that gives the autoencoder's code, almost without noise."""
    layer = ae.encoder[2]
    minus_60 = torch.full_like(layer.bias, -60)
    return {
        "weight": torch.cat([layer.weight, torch.zeros_like(layer.weight)]),
        "bias": torch.cat([layer.bias, minus_60]),
    }


# ----------------------------------------------------------------- numbers known for the full MNIST


@pytest.fixture(scope="module")
def mnist():
    if not (DATA_DIR / "MNIST" / "raw").is_dir():
        pytest.skip("no full MNIST: VAE_DATA_DIR is not set and ../shared/data is not there")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VAE_DATA", raising=False)
        data = v.load_mnist(root=DATA_DIR, device="cpu")
    assert data.source == "MNIST"
    return data


def test_mnist_pixels(mnist):
    assert mnist.train.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert (len(mnist.train), len(mnist.test)) == (60_000, 10_000)
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_mean_pixel_model(mnist):
    """What an image costs a model that knows the mean of every pixel and nothing else."""
    y = mnist.train.mean(0).clamp(0.001, 0.999)
    mean_pixel = SimpleNamespace(encode=lambda x: x, decode=lambda z: y.expand_as(z))
    assert reconstruction_loss(mean_pixel, mnist.test).mean().item() == pytest.approx(
        205.97, abs=0.005
    )


def test_mnist_entropy_floor(mnist):
    """The least that grey images can cost: a decoder that returns the image itself."""
    perfect = SimpleNamespace(encode=lambda x: x, decode=lambda z: z)
    assert reconstruction_loss(perfect, mnist.test).mean().item() == pytest.approx(45.53, abs=0.005)


# ------------------------------------------------------------------------ the codes of the manifold


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_manifold_is_at_the_middles_of_equal_shares_of_the_prior(n):
    seen = []
    v.plot_manifold(lambda z: seen.append(z) or torch.zeros(len(z), 784), n=n)
    z = torch.cat(seen).reshape(n, n, 2)
    share = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]  # torch-free
    assert z.isfinite().all()
    for i in range(n):
        np.testing.assert_allclose(z[i, :, 0], share, atol=2e-6)  # z1 to the right
        np.testing.assert_allclose(
            z[:, i, 1], share[::-1], atol=2e-6
        )  # z2 upwards: rows from the top


def test_manifold_over_a_box():
    seen = []
    v.plot_manifold(
        lambda z: seen.append(z) or torch.zeros(len(z), 784), n=2, extent=(-4, 4, 10, 30)
    )
    assert seen[0].tolist() == [[-2, 25], [2, 25], [-2, 15], [2, 15]]


@pytest.mark.parametrize("axis, order", [(0, [0.2, 0.5, 0.8]), (1, [0.8, 0.5, 0.2])])
def test_manifold_draws_each_picture_where_its_code_lies(axis, order):
    def brightness(z):
        return (0.5 + 0.3 * torch.sign(z[:, axis : axis + 1])).expand(-1, 784)

    image = v.plot_manifold(brightness, n=3).images[0]
    cells = np.asarray(image.get_array())[14::28, 14::28]
    assert image.origin == "upper"
    np.testing.assert_allclose(cells[0] if axis == 0 else cells[:, 0], order, atol=1e-6)


# ------------------------------------------------------------------- the story of notebooks 03 and 04


def test_the_banana_is_its_density_and_its_bound_is_below():
    """log p(x) by an integral in NumPy over z_1: x | z_1 is N(curve z_1^2, 1 + noise^2)."""
    torch.manual_seed(0)
    model = v.BananaModel(curve=0.7, noise=0.4).double()
    x = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.double)
    z_1, step = np.linspace(-9, 9, 20_001, retstep=True)
    variance = 1 + 0.4**2
    exponent = -(z_1**2) / 2 - (x.numpy() - 0.7 * z_1**2) ** 2 / (2 * variance)
    exact = np.log(np.exp(exponent).sum(1) * step / (2 * np.pi * variance**0.5))
    estimate = v.log_likelihood(model, x, num_samples=200_000).numpy()
    assert np.abs(estimate - exact).max() < 0.05
    assert (v.elbo(model, x, num_samples=2000).detach().numpy() < exact + 0.05).all()


def test_the_banana_draws_what_it_says():
    torch.manual_seed(0)
    model = v.BananaModel(curve=0.7, noise=0.4)
    z = model.prior.sample((200_000,))  # (200000, 2)
    with torch.no_grad():
        x = model.decode(z).sample()  # (200000, 1)
    # E[x] = curve, Var[x] = 1 + 2 curve^2 + noise^2, because Var[z_1^2] = 2
    assert abs(x.mean().item() - 0.7) < 0.02
    assert abs(x.var().item() - (1 + 2 * 0.7**2 + 0.4**2)) < 0.05
    assert model.encode(x[:5]).mean.shape == (5, 2) and model.prior.log_prob(z[:5]).shape == (5,)
