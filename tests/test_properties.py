"""Bad inputs by the hundred: what is wrong is told in one line, and what is right is computed.

Hypothesis makes the inputs, the same ones in every run. For each function a rule of a few words
says what is right, and `holds` demands that exactly the rest is refused: with a ValueError or a
TypeError that has a message, within seconds, and without a NaN.
"""

import collections
import math
import os

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vae_helpers as v

settings.register_profile(
    "bad inputs",
    max_examples=200,
    deadline=10_000,  # a hang is a failure too
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("bad inputs")

REFUSED = collections.Counter()
AE, VAE = v.Autoencoder(2, 8), v.VAE(2, 8)
JUDGE = v._Judge().requires_grad_(False)
MODELS = {"AE": AE, "VAE": VAE}


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    for key in [key for key in os.environ if key.startswith("VAE_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("VAE_DEVICE", "cpu")
    monkeypatch.setenv("VAE_FIGURES_DIR", str(tmp_path))
    yield
    plt.close("all")


def holds(function, right, check=lambda result: True):
    """Right input gives a result that passes the check, and any other is refused."""
    try:
        result = function()
    except (ValueError, TypeError) as error:
        assert not right, f"right input was refused: {error!r}"
        assert len(str(error)) > 10, f"no message: {error!r}"
        REFUSED[type(error)] += 1
    else:
        assert right, "bad input was taken"
        assert check(result)


def finite(result):
    return bool(torch.isfinite(torch.as_tensor(result)).all())


def is_count(value, least=1):
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least


# ------------------------------------------------------------------------------------ what is made

FILLS = [0.0, 0.25, 1.0, -0.01, 1.01, 255.0, math.nan, math.inf, -math.inf]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool]
DTYPES += [torch.bfloat16, torch.complex64]
SHAPES = [(3, 784), (1, 784), (0, 784), (784,), (3, 28, 28), (3, 100), (), (2, 3, 784)]
SHAPES += [(4, 2), (1, 2), (0, 2), (2,), (3, 3), (5, 4, 2), (2, 0), (3,), (3, 1)]

ODD = [None, True, 0, -1, 2, 2.5, math.nan, math.inf, -1e300, "", "2", "MNIST", [], [1, 2], b"x"]
ODD += [np.int64(2), np.zeros((3, 784)), object(), {}, 2**70, 1j, AE]
things = st.sampled_from(ODD)


def mostly(*strategies):
    """The first half of the time, the second a quarter and so on; one_of would prefer variety."""
    likely = [s for k, s in enumerate(reversed(strategies)) for _ in range(2**k)]
    return st.sampled_from(likely).flatmap(lambda strategy: strategy)


@st.composite
def tensors(draw, shapes=tuple(SHAPES)):
    """Mostly zeros and halves, with one odd value somewhere, or with another type or shape."""
    # What is right is drawn often: of two faults at a time one would hide the other.
    shape = draw(st.sampled_from(shapes))
    dtype = draw(mostly(st.just(torch.float32), st.sampled_from(DTYPES)))
    tensor = torch.full(shape, 0.5)
    if tensor.numel():
        tensor.view(-1)[draw(st.sampled_from([0, -1]))] = draw(st.sampled_from(FILLS))
    if not dtype.is_floating_point:
        tensor = tensor.nan_to_num(0, 9, 0)
    return tensor.to(dtype)


def images():
    return mostly(tensors(((3, 784), (1, 784))), tensors(), things)


def are_images(x):
    return (
        isinstance(x, torch.Tensor)
        and (x.ndim, x.dtype, *x.shape[1:]) == (2, torch.float32, 784)
        and len(x) > 0
        and bool(((x >= 0) & (x <= 1)).all())
    )


counts = mostly(st.integers(1, 4), things)


# ------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("model", [v.Autoencoder, v.VAE])
@given(latent_dim=counts, hidden=counts)
def test_sizes(model, latent_dim, hidden):
    right = all(is_count(size) and size < 2**63 for size in (latent_dim, hidden))
    holds(lambda: model(latent_dim, hidden), right, lambda m: m.latent_dim == latent_dim)


@pytest.mark.parametrize("name", MODELS)
@given(x=images())
def test_encode(name, x):
    def check(code):
        if name == "VAE":
            return code.batch_shape == x.shape[:1] and finite(code.mean) and finite(code.variance)
        return code.shape == (len(x), 2) and finite(code)

    holds(lambda: MODELS[name].encode(x), are_images(x), check)


@pytest.mark.parametrize("name", MODELS)
@given(z=mostly(tensors(((4, 2), (1, 2), (2,), (5, 4, 2))), tensors(), things))
def test_decode(name, z):
    """A NaN among the codes makes its own picture NaN, and no other."""
    right = isinstance(z, torch.Tensor) and z.dtype == torch.float32 and z.shape[-1:] == (2,)

    def check(picture):
        picture = picture if name == "AE" else picture.mean
        assert picture.shape == (*z.shape[:-1], 784)
        return finite(picture[z.isfinite().all(-1)]) and picture[z.isnan().any(-1)].isnan().all()

    holds(lambda: MODELS[name].decode(z), right, check)


@given(
    curve=mostly(st.just(1.0), things),
    noise=mostly(st.just(0.3), things),
    x=mostly(tensors(((3, 1),)), tensors(), things),
)
def test_banana(curve, noise, x):
    def number(value):
        return isinstance(value, int | float | np.integer) and math.isfinite(value)

    right = number(curve) and number(noise) and 0 < noise and abs(curve) < 1e30 > noise > 1e-30
    right = right and isinstance(x, torch.Tensor) and x.shape[1:] == (1,) and x.ndim == 2
    right = right and x.dtype == torch.float32 and finite(x)
    extreme = number(curve) and number(noise) and not (abs(curve) < 1e30 and 1e-30 < noise < 1e30)
    if not extreme or noise <= 0:
        holds(lambda: v.BananaModel(curve, noise).encode(x).mean, right, finite)


# --------------------------------------------------------------------------------------- objective


@given(x=images(), num_samples=counts)
def test_objective(x, num_samples):
    right, count = are_images(x), is_count(num_samples) and num_samples < 2**63
    per_image = lambda value: value.shape == x.shape[:1] and finite(value)  # noqa: E731
    holds(lambda: v.reconstruction_loss(AE, x), right, per_image)
    holds(lambda: v.elbo(VAE, x, num_samples), right and count, per_image)
    holds(lambda: v.elbo_terms(VAE, x, num_samples)[1], right and count, per_image)
    binary = right and bool(((x == 0) | (x == 1)).all())
    holds(lambda: v.log_likelihood(VAE, x, num_samples), binary and count, per_image)


@given(num_samples=st.integers(1, 4), rows=st.integers(1, 3))
def test_log_likelihood_takes_binary_images(num_samples, rows):
    x = torch.zeros(rows, 784)
    holds(lambda: v.log_likelihood(VAE, x, num_samples), True, finite)


# ---------------------------------------------------------------------------------------- training


def squares(model, x):
    return (model(x) ** 2).sum(-1)


LOSSES = {
    "right": squares,
    "a number": lambda model, x: squares(model, x).mean(),
    "a float": lambda model, x: 1.0,
    "nothing": lambda model, x: None,
    "a list": lambda model, x: [1.0] * len(x),
    "constant": lambda model, x: torch.ones(len(x)),
    "whole numbers": lambda model, x: torch.ones(len(x), dtype=torch.int64),
}


@given(
    steps=mostly(st.integers(1, 3), st.sampled_from([0, -1, 2.5, None, True, "2"])),
    batch_size=mostly(counts, st.just(2**62)),
    learning_rate=mostly(st.just(0.01), st.floats(), st.sampled_from([None, "x", 0])),
    seed=mostly(st.integers(0, 2**63 - 1), things),
    rows=st.integers(0, 4),
    loss=mostly(st.just("right"), st.sampled_from(list(LOSSES))),
)
def test_fit_settings(steps, batch_size, learning_rate, seed, rows, loss):
    right = is_count(steps, 0) and is_count(batch_size) and is_count(seed, 0) and rows > 0
    right = right and batch_size < 2**63 and seed < 2**63
    right = right and isinstance(learning_rate, int | float) and 0 < learning_rate < math.inf
    right = right and (loss == "right" or steps == 0)
    model = torch.nn.Linear(2, 1)
    data = torch.ones(rows, 2)
    arguments = dict(batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    try:
        holds(
            lambda: v.fit(model, LOSSES[loss], data, steps=steps, **arguments),
            right,
            lambda history: history.shape == (steps,) and np.isfinite(history).all(),
        )
    except FloatingPointError as error:  # a learning rate of 1e300
        assert learning_rate > 1 and "step" in str(error)


@given(data=st.lists(mostly(tensors(((3, 2), (4, 2))), tensors(), things), max_size=2))
def test_fit_data(data):
    """Whatever there is to train on: tensors of one length, or an error before the first step."""
    right = bool(data) and all(isinstance(part, torch.Tensor) and part.ndim for part in data)
    right = right and len({len(part) for part in data}) == 1 and len(data[0]) > 0
    model = torch.nn.Linear(1, 1)

    def loss(model, *parts):
        return model(torch.ones(len(parts[0]), 1)).sum(-1) ** 2

    holds(lambda: v.fit(model, loss, *data, steps=1), right, lambda h: np.isfinite(h).all())


@given(model=things)
def test_fit_model(model):
    if model is not AE:
        holds(lambda: v.fit(model, squares, torch.ones(3, 2), steps=1), False)


# ----------------------------------------------------------------------------------------- judging


@given(x=images())
def test_judge(x):
    right = are_images(x)
    for method, width in ((JUDGE, 11), (JUDGE.features, 64), (JUDGE.certainty, None)):
        shape = (len(x), width)[: 2 if width else 1] if right else None
        holds(lambda m=method: m(x), right, lambda y, s=shape: y.shape == s and finite(y))


@settings(max_examples=40)
@given(
    x=images(),
    labels=mostly(
        st.lists(st.integers(-1, 10), min_size=1, max_size=4).map(torch.tensor),
        st.just(torch.zeros(3, dtype=torch.int64)),
        tensors(((3,), (1,))),
        things,
    ),
)
def test_train_judge(x, labels):
    right = are_images(x) and isinstance(labels, torch.Tensor) and labels.shape == x.shape[:1]
    right = right and labels.dtype == torch.int64 and bool(((labels >= 0) & (labels <= 9)).all())
    holds(
        lambda: v.train_judge(x, labels, steps=1),
        right,
        lambda judge: finite(judge(x)),
    )


@given(pictures=images(), real=images())
def test_hole_rate(pictures, real):
    right = are_images(pictures) and are_images(real)
    holds(lambda: v.hole_rate(JUDGE, pictures, real), right, lambda share: 0 <= share <= 1)


@given(a=mostly(tensors(((4, 2), (3, 3))), tensors(), things), b=mostly(tensors(), things))
def test_frechet(a, b):
    for first, second in ((a, b), (a, a)):
        right = all(
            isinstance(part, torch.Tensor) and part.ndim == 2 and part.shape[1] > 0
            for part in (first, second)
        )
        right = right and first.shape == second.shape and len(first) > 1
        right = right and not first.is_complex() and not second.is_complex()
        right = right and finite(first) and finite(second)
        holds(lambda f=first, s=second: v.frechet_distance(f, s), right, math.isfinite)


# ------------------------------------------------------------------------------------------ claims

numbers = mostly(st.floats(), st.integers(-3, 3), tensors(((1,), (), (2,))), things)


@given(value=numbers, low=mostly(numbers, st.none()), high=mostly(numbers, st.none()))
def test_claim(value, low, high):
    """It holds, or it fails as a claim does, or the question was wrong."""

    def number(x):
        try:
            return float(x)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            return None

    given_limits = [limit for limit in (low, high) if limit is not None]
    given_values = [number(x) for x in (value, *given_limits)]
    right = bool(given_limits) and None not in given_values
    right = right and not any(math.isnan(limit) for limit in given_values[1:])
    if right and len(given_limits) == 2:
        right = given_values[1] <= given_values[2]

    def ask():
        try:
            return v.claim("a claim", value, low=low, high=high) is None
        except AssertionError as error:
            return "✗" in str(error)

    holds(ask, right, bool)


# ----------------------------------------------------------------------------------------- looking


@given(pictures=images(), columns=counts)
def test_show_images(pictures, columns):
    """Lists and NumPy's arrays are taken too, and what leaves [0, 1] a little."""
    tensor = pictures
    if isinstance(pictures, np.ndarray):
        tensor = torch.as_tensor(pictures)
    right = isinstance(tensor, torch.Tensor) and not tensor.is_complex() and tensor.numel() > 0
    right = right and (tensor.shape[-1:] == (784,) or tensor.shape[-2:] == (28, 28))
    right = right and bool((abs(tensor.double() - 0.5) <= 1.5).all()) and is_count(columns)
    right = right and columns < 2**63
    holds(lambda: v.show_images(pictures, columns=columns), right)
    plt.close("all")


@given(
    z=mostly(tensors(((4, 2), (1, 2))), tensors(), things),
    labels=mostly(
        st.lists(st.integers(-1, 10), min_size=4, max_size=4), st.just([0]), tensors(), things
    ),
)
def test_plot_latent_space(z, labels):
    right = isinstance(z, torch.Tensor) and z.ndim == 2 and z.shape[1] == 2 and len(z) > 0
    right = right and not z.is_complex() and finite(z)
    if right:
        try:
            digits = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            right = False
        else:
            right = digits.shape == z.shape[:1] and not digits.is_floating_point()
            right = right and not digits.is_complex() and digits.dtype != torch.bool
            right = right and bool(((digits >= 0) & (digits <= 9)).all())
    holds(lambda: v.plot_latent_space(z, labels), right)
    plt.close("all")


@given(
    n=counts,
    extent=mostly(
        st.none(),
        st.just((-1, 1, -1, 1)),
        st.tuples(*[st.floats(-5, 5)] * 4),
        st.lists(st.floats(), max_size=5),
        st.text(max_size=3),
    ),
    decode=mostly(st.just(AE.decode), st.sampled_from([VAE.decode, AE, None, lambda z: z])),
)
def test_plot_manifold(n, extent, decode):
    right = is_count(n) and n < 2**63 and decode == AE.decode
    if extent is not None:
        right = right and not isinstance(extent, str) and len(extent) == 4
        right = right and all(abs(number) < 1e30 for number in extent)
    holds(lambda: v.plot_manifold(decode, n=n, extent=extent), right)
    plt.close("all")


@given(
    histories=mostly(
        st.dictionaries(st.text(max_size=3), st.lists(st.floats(0, 9), max_size=5), max_size=2),
        things,
    ),
    window=counts,
)
def test_plot_history(histories, window):
    right = isinstance(histories, dict) and is_count(window) and window < 2**63
    if right and all("$" not in name for name in histories):
        holds(lambda: v.plot_history(histories, window=window), right)
    elif not right:
        holds(lambda: v.plot_history(histories, window=window), False)
    plt.close("all")


# ------------------------------------------------------------------------------------ data, export


@given(
    fig=mostly(st.sampled_from([(12.8, 7.2), (16, 9), (8, 8), (1, 9)]), things),
    name=mostly(st.just("06-a-name"), st.text(max_size=8), things),
    alt=mostly(st.just("A line."), st.none(), st.just(" \n")),
)
@settings(max_examples=40)
def test_save_figure(fig, name, alt):
    right = isinstance(fig, tuple) and abs(fig[0] / fig[1] - 16 / 9) < 0.01
    right = right and name == "06-a-name" and alt == "A line."
    if isinstance(fig, tuple):
        fig = plt.figure(figsize=fig)
    holds(lambda: v.save_figure(fig, name, alt), right)
    plt.close("all")


@given(
    name=mostly(st.just("MNIST"), st.text(max_size=8), things),
    device=mostly(st.just("cpu"), st.text(max_size=8), st.sampled_from(["cuda:99", 2.5, [1]])),
)
@settings(max_examples=40)
def test_load_mnist(name, device):
    def is_device():
        try:
            torch.empty(0, device=device or "cpu")
        except (RuntimeError, AssertionError, TypeError, ValueError):
            return False
        return True

    right = isinstance(name, str) and name == "MNIST" and is_device()
    holds(
        lambda: v.load_mnist(name, sample=True, device=device),
        right,
        lambda data: data.train.shape == (4000, 784),
    )


def test_more_than_two_hundred_bad_inputs_were_refused(request):
    """In all of the above together, when all were run."""
    ours = [item for item in request.session.items if item.path == request.path]
    if len(ours) < 20:
        pytest.skip("only some of this file's tests were run")
    assert REFUSED.total() >= 200
