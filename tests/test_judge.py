"""The judge, the hole rate and the Fréchet distance of vae_helpers, against independent truths."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vae_helpers
from vae_helpers import frechet_distance, hole_rate, train_judge

torch.set_num_threads(1)  # the tensors are small, and other programs may be running
DEVICE = os.environ.get("VAE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def cloud(n=5000, k=6, seed=0, dtype=torch.float64):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --------------------------------------------------------------------------------- Fréchet distance


def test_frechet_of_any_covariances_is_scipys():
    linalg = pytest.importorskip("scipy.linalg")
    a = cloud(seed=2) @ cloud(6, 6, seed=3)
    b = cloud(seed=4) @ cloud(6, 6, seed=5) + 0.3
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square((a.mean(0) - b.mean(0)).numpy()).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_frechet_of_one_feature_and_of_features_that_never_fire():
    x = (cloud(100, 1) - cloud(100, 1).mean()) / cloud(100, 1).std()
    assert frechet_distance(2 * x + 1, 5 * x + 4) == pytest.approx(9 + 9)
    dead = torch.zeros(100, 3, dtype=torch.float64)
    assert frechet_distance(torch.cat([2 * x, dead], 1), torch.cat([5 * x, dead], 1)) == (
        pytest.approx(9)
    )


def test_frechet_is_computed_in_double_precision():
    x = cloud(dtype=torch.float32) + 1000  # the small difference of large numbers
    assert frechet_distance(x, x + 0.125) == pytest.approx(6 / 64, rel=1e-6)


@pytest.mark.parametrize("shape", [(6, 2), (5, 3), (5,)])
def test_frechet_refuses_unequal_clouds(shape):
    with pytest.raises(ValueError, match=r"one shape, got \(5, 2\) and \("):
        frechet_distance(torch.zeros(5, 2), torch.zeros(shape))


# ---------------------------------------------------------------------------------------- hole rate


def test_hole_rate_counts_what_is_below_the_fifth_percentile():
    known = SimpleNamespace(certainty=torch.tensor)
    real = [k / 100 for k in range(101)]  # the 5th percentile is 0.05
    assert hole_rate(known, [0.01, 0.04, 0.06, 0.9], real) == 0.5
    assert hole_rate(known, [0.9, 1.0], real) == 0
    assert hole_rate(known, [0.0], real) == 1
    assert hole_rate(known, [0.7] * 20, [0.7] * 20) == 0  # as sure as that is sure enough


# ---------------------------------------------------------------------------------------- the judge


@pytest.fixture(scope="module")
def digits():
    """Ten easy classes: class k is ink in columns 2k to 2k+3, on all 28 rows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (2000,), generator=generator)
    column = torch.arange(784) % 28
    first = 2 * labels[:, None] + 2
    x = ((column >= first) & (column < first + 4)).float()
    return x * (0.8 + 0.2 * torch.rand(2000, 784, generator=generator)), labels


def test_the_judge_learns_and_turns_junk_down(digits):
    (x, labels), judge = digits, train_judge(*digits, steps=120, seed=0)
    assert (judge(x).argmax(-1) == labels).float().mean() > 0.95
    real = judge.certainty(x)
    assert judge.certainty(torch.rand(500, 784)).median() < real.quantile(0.05)
    blends = ((x + x.roll(1, 0)) / 2)[labels != labels.roll(1)]
    assert judge.certainty(blends).median() < real.quantile(0.05)


def test_the_judge_is_small_and_frozen(digits):
    """So small that it is trained in half a minute on any laptop; notebook 02 writes it out."""
    judge = train_judge(*digits, steps=1)
    expected = [(8, 1, 5, 5), (8,), (16, 8, 5, 5), (16,), (64, 784), (64,), (11, 64), (11,)]
    assert [tuple(weight.shape) for weight in judge.parameters()] == expected
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in judge.modules()) == 3
    assert not any(weight.requires_grad for weight in judge.parameters()) and not judge.training


def test_the_judges_answers():
    judge, x = vae_helpers._Judge(), torch.rand(1500, 784)  # more than one part of 1000
    features, certainty = judge.features(x), judge.certainty(x)
    assert torch.allclose(judge.last(features), judge(x), atol=1e-5)
    odds = judge(x).exp()  # of eleven answers, the last "not a digit"
    assert torch.allclose(certainty, odds[:, :10].max(1).values / odds.sum(1), atol=1e-5)
    assert not features.requires_grad and not certainty.requires_grad


def test_the_seed_decides_and_the_callers_random_numbers_stay(digits):
    """Those of the device too, on which nothing is drawn but noise."""
    digits = [part.to(DEVICE) for part in digits]

    def rest(*seeds):
        torch.manual_seed(7)  # on all devices
        judges = [train_judge(*digits, steps=3, **seed) for seed in seeds]
        return judges, torch.rand(5).tolist() + torch.rand(5, device=DEVICE).tolist()

    (one, same, other), after = rest({}, {"seed": 0}, {"seed": 2})
    assert after == rest()[1]
    x = digits[0][:50]
    # Not bit by bit: on a GPU the sum of a gradient has no fixed order.
    assert torch.allclose(one(x), same(x), atol=1e-4) and not torch.allclose(
        one(x), other(x), atol=1e-2
    )


def test_the_judge_works_where_the_images_are(monkeypatch):
    """On a device that has shapes only, because a GPU is rare."""
    seen = []
    monkeypatch.setattr(vae_helpers, "fit", lambda *_, **settings: seen.append(settings))
    x, labels = torch.empty(20, 784, device="meta"), torch.arange(20) % 10
    judge = train_judge(x, labels, steps=7, seed=5)
    assert judge.last.weight.is_meta and seen == [{"steps": 7, "seed": 5}]
    assert vae_helpers._judge_loss(judge, x, labels.to("meta")).is_meta


def test_junk_is_no_digit():
    """Of even grey images, so that each kind can be told."""
    x, labels = torch.full((4000, 784), 0.4), torch.arange(4000) % 10
    junk = vae_helpers._junk(x, labels)
    blends, noise, scraps = junk.view(-1, 4, 784).split([2, 1, 1], dim=1)
    brightness = blends.amax(-1)
    assert torch.equal(blends, brightness[..., None].expand_as(blends))
    empty = brightness == 0  # blends of two digits of one class would be digits
    assert 0.07 < empty.float().mean() < 0.13
    low, high = brightness[~empty].aminmax()
    assert 0.4 <= low < 0.41 and 0.79 < high < 0.8  # the sum of two, half as bright or more
    assert 0 <= noise.min() < 1e-3 and 1 - 1e-3 < noise.max() < 1 and 0.49 < noise.mean() < 0.51
    lit = (scraps == x[0, 0]).sum(-1)  # the upper rows, a quarter to a half of them
    assert set(lit.flatten().tolist()) == {28 * rows for rows in range(8, 15)}
    assert (scraps.diff() <= 0).all() and scraps.unique().tolist() == [0, x[0, 0]]
    assert vae_helpers._junk(torch.ones(100, 784), torch.arange(100)).max() == 1


def test_a_batch_is_a_fifth_junk_a_fifth_blurred_and_the_rest_as_it_is():
    x, labels, seen = torch.zeros(50, 784), torch.arange(50) % 10, []
    x[:, 28 * 14 + 14] = 0.9

    def judge(x):
        """Sure of "not a digit" for the first fifth and of the label of the rest, but for one."""
        seen.append(x.view(-1, 28, 28))
        answers = torch.where(torch.arange(50) < 10, 10, labels)
        answers[30] += 1
        return 100 * torch.nn.functional.one_hot(answers, 11).float()

    ndimage, widths = pytest.importorskip("scipy.ndimage"), []
    for seed in range(40):
        torch.manual_seed(seed)
        loss = vae_helpers._judge_loss(judge, x, labels)
        assert loss.shape == (50,) and (loss > 1e-6).nonzero().tolist() == [[30]]
        junk, blurred, plain = seen.pop().split([10, 10, 30])
        assert (junk != plain[0]).flatten(1).any(1).all()
        assert torch.equal(plain, x[20:].view(-1, 28, 28))
        # the width from the profile through the point: log(v[14] / v[15]) = 1 / (2 sigma^2)
        middle, beside = blurred[0, 14, 14:16].double()
        widths.append((0.5 / (middle / beside).log()).sqrt().item())
        expected = ndimage.gaussian_filter(plain[0], widths[-1], radius=6)
        assert np.allclose(blurred, expected, atol=1e-4)
    assert 0.3 <= min(widths) < 0.5 and 1.8 < max(widths) <= 2  # another width in each batch


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (torch.full((4, 784), 2.0), [0] * 4, r"images must lie in \[0, 1\]"),
        (torch.rand(4, 784), [0] * 3, r"one length of at least 1, got lengths \[4, 3\]"),
        (torch.rand(4, 784), [0, 3, 10, 1], "labels must be 0 to 9, got 0 to 10"),
        (torch.rand(4, 784), [9, 3, -1, 1], "labels must be 0 to 9, got -1 to 9"),
    ],
)
def test_train_judge_refuses(images, labels, words):
    with pytest.raises(ValueError, match=words):
        train_judge(images, torch.tensor(labels), steps=1)
