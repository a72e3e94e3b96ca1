"""The judge, the hole rate and the Fréchet distance of vae_helpers, against independent truths."""

import numpy as np
import pytest
import torch

import vae_helpers
from vae_helpers import frechet_distance, hole_rate, train_judge


def cloud(n=5000, k=6, seed=0, dtype=torch.float64):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whitened(n=500, k=4, seed=0):
    """Mean 0 and covariance I, exactly."""
    x = cloud(n, k, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


# --------------------------------------------------------------------------------- Fréchet distance


def test_frechet_of_a_cloud_with_itself_is_zero():
    assert abs(frechet_distance(cloud(), cloud())) < 1e-9


def test_frechet_of_a_shift_is_its_squared_length():
    shift = torch.tensor([3.0, -4.0, 0, 0, 0, 12], dtype=torch.float64)
    assert frechet_distance(cloud(), cloud() + shift) == pytest.approx(169)


def test_frechet_of_commuting_covariances_is_the_distance_of_their_roots():
    base, (a, b) = whitened(), torch.tensor([[1.0, 2, 3, 0], [2.0, 2, 0.5, 1]]).double()
    turn = torch.linalg.qr(cloud(4, 4, seed=1)).Q
    expected = (a - b).square().sum().item()
    assert frechet_distance(base * a, base * b) == pytest.approx(expected)
    assert frechet_distance(base * a @ turn, base * b @ turn) == pytest.approx(expected)


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


@pytest.mark.parametrize(
    "a, b",
    [
        (torch.zeros(5), torch.zeros(5)),
        (torch.zeros(5, 2), torch.zeros(6, 2)),
        (torch.zeros(5, 2), torch.zeros(5, 3)),
        (torch.zeros(1, 2), torch.zeros(1, 2)),
        (torch.full((5, 2), torch.nan), torch.zeros(5, 2)),
        (torch.zeros(5, 2), torch.full((5, 2), torch.inf)),
    ],
)
def test_frechet_refuses(a, b):
    with pytest.raises(ValueError, match="^features must be") as error:
        frechet_distance(a, b)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- hole rate


class KnownJudge:
    """As sure of a picture as its first pixel says."""

    def certainty(self, x):
        return x[:, 0]


def pictures(certainties):
    x = torch.zeros(len(certainties), 784)
    x[:, 0] = torch.as_tensor(certainties)
    return x


def test_hole_rate_is_a_twentieth_on_real_images():
    real = pictures(torch.rand(10_000, generator=torch.Generator().manual_seed(0)))
    assert hole_rate(KnownJudge(), real, real) == pytest.approx(0.05, abs=2e-4)


def test_hole_rate_counts_what_is_below_the_fifth_percentile():
    real = pictures(torch.linspace(0, 1, 101))  # the 5th percentile is 0.05
    assert hole_rate(KnownJudge(), pictures([0.01, 0.04, 0.06, 0.9]), real) == 0.5
    assert hole_rate(KnownJudge(), pictures([0.9, 1.0]), real) == 0
    assert hole_rate(KnownJudge(), pictures([0.0]), real) == 1


def test_as_sure_as_the_threshold_is_sure_enough():
    same = pictures([0.7] * 20)
    assert hole_rate(KnownJudge(), same, same) == 0


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


@pytest.fixture(scope="module")
def judge(digits):
    return train_judge(*digits, steps=200, seed=0)


def test_the_judge_learns_and_turns_junk_down(judge, digits):
    x, labels = digits
    assert (judge(x).argmax(-1) == labels).float().mean() > 0.95
    real = judge.certainty(x)
    assert judge.certainty(torch.rand(500, 784)).median() < real.quantile(0.05)
    blends = ((x + x.roll(1, 0)) / 2)[labels != labels.roll(1)]
    assert judge.certainty(blends).median() < real.quantile(0.05)


def test_the_judges_shapes_and_units(judge, digits):
    x = digits[0][:1500]  # more than one part of 1000
    assert judge(x).shape == (1500, 11)
    assert judge.features(x).shape == (1500, 64)
    assert torch.allclose(judge.last(judge.features(x)), judge(x), atol=1e-5)
    expected = judge(x).softmax(-1)[:, :10].amax(-1)
    assert torch.allclose(judge.certainty(x), expected, atol=1e-5)
    assert not judge.certainty(x).requires_grad


def test_the_judge_is_frozen(judge):
    assert not any(weight.requires_grad for weight in judge.parameters())
    assert not judge.training


def test_the_seed_decides_and_the_callers_random_numbers_stay(digits):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, same, other = (train_judge(*digits, steps=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    x = digits[0][:50]
    assert torch.equal(one(x), same(x)) and not torch.allclose(one(x), other(x))


def test_junk_is_no_digit_and_stays_in_range(digits):
    x, labels = digits[0][:40], digits[1][:40].clone()
    labels[:] = 3  # no two different digits, so every blend is an empty page
    junk = vae_helpers._junk(x, labels)
    assert junk.shape == x.shape and 0 <= junk.min() and junk.max() <= 1
    kind = torch.arange(40) % 4
    assert (junk[kind < 2] == 0).all()
    assert 0.45 < junk[kind == 2].mean() < 0.55
    scraps = junk[kind == 3].view(-1, 28, 28)
    assert (scraps[:, 14:] == 0).all() and (scraps[:, :8] > 0).any()


def test_a_fifth_of_a_batch_is_asked_for_the_eleventh_answer(digits):
    x, labels = digits[0][:50], digits[1][:50]

    class Always(torch.nn.Module):
        def forward(self, x):  # certain of "not a digit", whatever it sees
            return torch.tensor([[0.0] * 10 + [100.0]]).expand(len(x), 11)

    loss = vae_helpers._judge_loss(Always(), x, labels)
    assert loss.shape == (50,)
    assert (loss[:10] < 1e-6).all() and (loss[10:] > 99).all()


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (torch.full((4, 784), 2.0), torch.zeros(4).long(), "images must lie in"),
        (torch.rand(4, 100), torch.zeros(4).long(), "images must have the shape"),
        (torch.rand(4, 784), torch.zeros(3).long(), "labels must be 4 digits"),
        (torch.rand(4, 784), torch.zeros(4), "labels must be 4 digits"),
        (torch.rand(4, 784), torch.full((4,), 10), "labels must be 4 digits"),
        (torch.rand(4, 784), torch.full((4,), -1), "labels must be 4 digits"),
    ],
)
def test_train_judge_refuses(images, labels, words):
    with pytest.raises(ValueError, match=words) as error:
        train_judge(images, labels, steps=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["features", "certainty", "forward"])
def test_the_judge_refuses(judge, method):
    for bad in (torch.rand(3, 100), torch.rand(3, 784) + 1, torch.rand(0, 784)):
        with pytest.raises(ValueError, match="images must"):
            getattr(judge, method)(bad)
