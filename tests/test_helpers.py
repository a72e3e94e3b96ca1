"""What vae_helpers promises: shapes, memory, training, seeds, errors; and how small it is."""

import ast
import io
import math
import os
import re
import runpy
import subprocess
import sys
import tokenize

import numpy as np
import pytest
import torch

import vae_classroom
import vae_helpers as v
from vae_helpers import VAE, Autoencoder, elbo, elbo_terms, fit, log_likelihood, negative_elbo

torch.set_num_threads(1)  # the tensors are small, and other programs may be running
REPO = vae_classroom.ROOT
DEVICE = os.environ.get("VAE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def child(code, **settings):
    """Run code in a fresh Python that finds these modules; returns what it printed."""
    env = {k: value for k, value in os.environ.items() if k[:4] not in ("VAE_", "OMP_", "GOMP")}
    env |= {"PYTHONPATH": str(REPO), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"} | settings
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(message):
    """A ValueError that says so, in one line."""
    return pytest.raises(ValueError, match=rf"\A.*{re.escape(message)}.*\Z")


def images(n=3):
    return torch.rand(n, 784)


# ----------------------------------------------------------------------------- the modules as files


def code_lines(text):
    """How many lines are neither blank nor comment nor docstring."""
    lines, no_code = set(), (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in no_code and token.string.strip():
            lines |= set(range(token.start[0], token.end[0] + 1))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_the_modules_can_be_read_in_one_sitting():
    helpers = (REPO / "vae_helpers.py").read_text("utf-8")
    classroom = (REPO / "vae_classroom.py").read_text("utf-8")
    assert code_lines(helpers) <= 220 and len(helpers.splitlines()) <= 360
    assert code_lines(classroom) <= 480
    first = "\n".join(helpers.splitlines()[:120])
    assert all(f"\n{it}(" in first for it in ("class Autoencoder", "class VAE", "def elbo"))


def test_neither_module_offers_the_others_names():
    for module, other in ((v, vae_classroom), (vae_classroom, v)):
        modules = [getattr(value, "__module__", None) for value in vars(module).values()]
        assert module.__name__ in modules and other.__name__ not in modules


IMPORT = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(*(os.environ.get(key) for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")))
sys.meta_path.insert(0, Watch())
import {0}
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize(
    "module, set_by_the_user, then",
    [
        ("vae_helpers", {}, "passive 5000"),
        ("vae_classroom", {}, "passive 5000"),
        ("vae_helpers", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ("vae_helpers", {"GOMP_SPINCOUNT": "7"}, "None 7"),
    ],
)
def test_torch_is_loaded_with_threads_that_wait_in_peace(module, set_by_the_user, then):
    """Unless the user says otherwise; and with nothing that only some of the notebooks need."""
    first, loaded = child(IMPORT.format(module), **set_by_the_user).splitlines()
    assert first == then and module in loaded.split()
    if module == "vae_helpers":
        heavy = "matplotlib PIL torchvision mlxtend sklearn ipywidgets IPython scipy pandas"
        assert not set(heavy.split()) & set(loaded.split())


SEEDED = """
import os, torch, vae_helpers as v
print(v.SEED)
for seed in ("7", "8", ""):
    os.environ["VAE_SEED"] = seed
    v.fit(v.Autoencoder(1, 1), v.reconstruction_loss, torch.zeros(1, 784), steps=0)
    print("trained")
"""


def test_a_seed_set_after_the_import_is_told():
    first, *told = child(SEEDED, VAE_SEED="7").split("trained\n")
    assert first.startswith("7\n") and "VAE_SEED" not in first and told.pop() == ""
    for printed in told:
        assert "VAE_SEED stays 7 until the kernel is restarted" in printed


@pytest.mark.parametrize("seed", ["one", "-1", "2.5", "²", str(2**63)])
def test_a_seed_that_torch_does_not_take(seed, monkeypatch):
    monkeypatch.setenv("VAE_SEED", seed)
    with told(f"VAE_SEED must be a whole number from 0, got {seed!r}"):
        runpy.run_path(v.__file__)
    monkeypatch.setenv("VAE_SEED", str(2**63 - 1))
    assert runpy.run_path(v.__file__)["SEED"] == 2**63 - 1


# ----------------------------------------------------------------------------- models and objective


@pytest.mark.parametrize("d, hidden", [(1, 7), (2, 400)])
def test_ae_and_vae_have_the_same_layers(d, hidden):
    """But for the encoder's last, which gives mu and log_var; and nothing else is stored."""
    for model, codes in ((Autoencoder, d), (VAE, 2 * d)):
        encoder = [(hidden, 784), (hidden,), (codes, hidden), (codes,)]
        decoder = [(hidden, d), (hidden,), (784, hidden), (784,)]
        for built in (model(d, hidden), model())[: 1 + (d == 2)]:  # the defaults are 2 and 400
            assert [tuple(part.shape) for part in built.state_dict().values()] == encoder + decoder
            assert built.latent_dim == d


@pytest.mark.parametrize("lead", [(5,), (4, 5), ()])
def test_shapes(lead):
    """Of codes, distributions and pictures; any number of dimensions may come before the code's."""
    ae, vae, x, z = Autoencoder(3, 8), VAE(3, 8), images(5), torch.randn(*lead, 3)
    q, p_x = vae.encode(x), vae.decode(z)
    assert ae.encode(x).shape == (5, 3) and ae(x).shape == vae(x).shape == (5, 784)
    assert (q.batch_shape, q.event_shape, q.log_prob(torch.zeros(3)).shape) == ((5,), (3,), (5,))
    assert (vae.prior.batch_shape, vae.prior.event_shape) == ((), (3,))
    assert (p_x.batch_shape, p_x.event_shape) == (lead, (784,))
    assert p_x.log_prob(images(5 if lead else 1)).shape == (lead or (1,))  # grey targets
    for pictures in (ae.decode(z), p_x.mean):
        assert pictures.shape == (*lead, 784)
        assert 0 <= pictures.min() <= pictures.max() <= 1


def test_to_moves_the_whole_model():
    """To a device that has shapes only, because a GPU is rare."""
    vae, x = VAE(2, 8).to("meta", torch.float64), torch.zeros(3, 784, device="meta").double()
    assert vae.prior.sample().is_meta and vae.prior.sample().dtype == torch.float64
    assert elbo(vae, x).is_meta and vae(x).is_meta


def test_half_precision():
    """Autocast is the usual way to it."""
    vae, x = VAE(2, 8), images(7)
    expected = elbo(vae, x, num_samples=200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = elbo(vae, x, num_samples=200)
    torch.testing.assert_close(value.float(), expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("settings", [{}, {"num_samples": 5}])
def test_objective(settings):
    vae, x, values = VAE(3, 8), images(7), []
    for function in (elbo_terms, elbo, negative_elbo)[: 3 - len(settings)]:
        torch.manual_seed(1)
        values.append(function(vae, x, **settings))
    (first, kl), *bounds = values
    assert first.shape == kl.shape == (7,) and (first < 0).all() and (kl > 0).all()
    for bound, expected in zip(bounds, [first - kl, kl - first], strict=False):
        assert torch.equal(bound, expected)


def test_no_measure_needs_much_memory():
    """At most 10 000 pictures are decoded at a time, unless a single draw has more."""
    vae, sizes = VAE(2, 8).to(DEVICE), []
    decode = vae.decode
    vae.decode = lambda z: sizes.append(z[..., 0].numel()) or decode(z)
    value = log_likelihood(vae, torch.bernoulli(images(203)).to(DEVICE), 250)
    assert value.shape == (203,) and value.isfinite().all() and not value.requires_grad
    assert sum(sizes) == 203 * 250 and max(sizes) == 10_000
    for n, draws, expected in ((300, 70, [9900, 9900, 1200]), (10_001, 2, [10_001] * 2)):
        sizes.clear()
        with torch.no_grad():
            assert elbo_terms(vae, images(n).to(DEVICE), draws)[0].shape == (n,)
        assert sizes == expected


def test_log_likelihood_refuses_grey_images():
    x = torch.zeros(150, 784)
    x[120, 5] = 0.25
    with told("needs binary images, got grey ones: draw by torch.bernoulli(x)"):
        log_likelihood(VAE(2, 8), x, 1)
    with told("num_samples must be at least 1, got 0"):
        log_likelihood(VAE(2, 8), x.round(), 0)


# ----------------------------------------------------------------------------------------- training


def weights(model):
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()]).clone()


def trained(model=VAE, **settings):
    torch.manual_seed(1)
    model, x = model(2, 8).to(DEVICE), images(300).to(DEVICE)
    loss = v.reconstruction_loss if isinstance(model, Autoencoder) else negative_elbo
    return fit(model, loss, x, steps=12, **settings), weights(model)


def test_history(capsys):
    history, _ = trained()
    assert isinstance(history, np.ndarray) and history.dtype == np.float64
    assert history.shape == (12,) and np.isfinite(history).all()
    out, err = capsys.readouterr()  # err would be a red box in the notebook
    assert "12/12" in out and f"loss {history.mean():.1f}" in out and not err
    assert "VAE_SEED" not in out  # nobody set it


@pytest.mark.parametrize("model", [Autoencoder, VAE])
def test_same_seed_same_numbers(model):
    """And seed 0 is one of the defaults that the docstring's reader sees."""
    defaults = dict(batch_size=250, learning_rate=5e-3, seed=0)
    (first, w), (again, w_again), (_, w_other) = (
        trained(model, **settings) for settings in ({}, defaults, {"seed": 4})
    )
    assert np.array_equal(first, again) and torch.equal(w, w_again)
    assert not torch.equal(w, w_other)


TRAINED = """
import torch, vae_helpers as v
torch.manual_seed(1)
vae, x = v.VAE(2, 8), torch.rand(50, 784)
torch.rand(draws)
history = v.fit(vae, v.negative_elbo, x, steps=12, batch_size=20)
print(history.tobytes().hex(), vae.encoder[0].weight.tolist())
"""


def test_same_seed_same_numbers_in_another_process(capsys):
    """Also when other random numbers were drawn before."""
    exec("draws = 1" + TRAINED, {})
    here = capsys.readouterr().out.splitlines()[-1]
    assert len(here) > 1000 and here == child("draws = 2" + TRAINED).splitlines()[-1]


def test_the_callers_random_numbers_are_left_alone():
    """Also those of a GPU on which only the model is."""
    vae, x, draws = VAE(2, 8).to(DEVICE), images(50), []
    for train in (lambda *_, **__: None, fit):
        torch.manual_seed(1)  # on all devices
        train(vae, lambda vae, x: negative_elbo(vae, x.to(DEVICE)), x, steps=3, batch_size=20)
        draws.append(torch.rand(5).tolist() + torch.rand(5, device=DEVICE).tolist())
    assert draws[0] == draws[1]


class OnGPU(torch.nn.Parameter):
    """A weight that says so."""

    is_cuda, device = True, torch.device("cuda:1")


@pytest.mark.parametrize("on_gpu", [["model"], ["images"], []])
def test_the_random_state_of_every_gpu_in_use_is_kept(on_gpu, monkeypatch):
    class Images(list):
        shape, is_cuda, device = (2, 1), "images" in on_gpu, torch.device("cuda:0")

    class Seen(Exception):
        pass

    def fork_rng(devices):
        raise Seen(*devices)

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    model = torch.nn.Linear(1, 1, bias=False)
    if "model" in on_gpu:
        model.weight = torch.Tensor._make_subclass(OnGPU, torch.ones(1, 1), True)
    with pytest.raises(Seen) as seen:
        fit(model, squares, Images([0, 0]), steps=1)
    where = {"model": OnGPU.device, "images": Images.device}
    assert list(seen.value.args) == [where[what] for what in on_gpu]


def test_training_is_adam_on_the_mean_loss():
    """Written out in numpy for one weight: w must go to the data's mean."""
    steps, rate = 40, 0.1
    model = torch.nn.Linear(1, 1, bias=False).double()
    w = start = model.weight.item()
    x = torch.tensor([[1.0], [2.0], [6.0]]).double()

    def loss(model, x):
        return squares(model, torch.ones_like(x), x)

    history = fit(model, loss, x, steps=steps, learning_rate=rate)
    m = s = 0.0
    for t in range(steps):
        assert history[t] == pytest.approx(((w - x) ** 2).mean().item(), rel=1e-9)
        gradient = 2 * (w - 3)
        m, s = 0.9 * m + 0.1 * gradient, 0.999 * s + 0.001 * gradient**2
        schedule = min(1, (t + 1) / (0.05 * steps), (steps - t) / (0.5 * steps))
        m_hat, s_hat = m / (1 - 0.9 ** (t + 1)), s / (1 - 0.999 ** (t + 1))
        w -= rate * schedule * m_hat / (math.sqrt(s_hat) + 1e-8)
    assert abs(w - start) > 1
    assert model.weight.item() == pytest.approx(w, rel=1e-9)


def squares(model, x, target=0):
    return (model(x) - target).square().sum(-1)


def order(noise):
    """The rows that each step is given of two tensors, when the loss draws as many numbers."""
    rows, batches = torch.arange(10.0)[:, None], []

    def loss(model, *batch):
        torch.rand(noise)
        batches.append([part[:, 0].tolist() for part in batch])
        return squares(model, batch[0])

    fit(torch.nn.Linear(1, 1), loss, rows, 10 * rows, steps=7, batch_size=4)
    return batches


@pytest.mark.parametrize(
    "rows, batch_size", [(5, 1), (1, 250)], ids=["a batch of one", "one image"]
)
def test_odd_batches(rows, batch_size):
    history = fit(VAE(2, 8), negative_elbo, images(rows), steps=7, batch_size=batch_size)
    assert history.shape == (7,) and np.isfinite(history).all()


def test_every_row_once_an_epoch_in_a_new_order():
    batches = order(noise=0)
    assert batches == order(noise=5)  # so that an autoencoder and a VAE learn from the same
    assert [len(first) for first, _ in batches] == [4, 4, 2, 4, 4, 2, 4]  # the incomplete one too
    assert all([10 * i for i in first] == second for first, second in batches)  # the same of all
    epochs = [sum((first for first, _ in batches[i : i + 3]), []) for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1] and epochs[0] != list(range(10))


def test_no_steps():
    vae = VAE(2, 8)
    before = weights(vae)
    assert fit(vae, negative_elbo, images(), steps=0).shape == (0,)
    assert torch.equal(weights(vae), before)


def test_both_models_learn():
    digits = vae_classroom.load_mnist(sample=True).train
    for model, loss in ((Autoencoder, v.reconstruction_loss), (VAE, negative_elbo)):
        history = fit(model(2, 100).to(digits.device), loss, digits, steps=80)
        assert history[0] > 500 and history[-10:].mean() < 230  # from 784 log 2, nats per image


def test_what_is_frozen_stays_and_the_rest_learns():
    ae = Autoencoder(2, 8)
    ae.encoder.requires_grad_(False)
    before = weights(ae.encoder), weights(ae.decoder)
    fit(ae, v.reconstruction_loss, images(5), steps=2)
    assert torch.equal(weights(ae.encoder), before[0])
    assert not torch.equal(weights(ae.decoder), before[1])


# ------------------------------------------------------------------------ training that goes wrong


def at_step(n, what):
    """The negative ELBO, at step n times a number or stopped by an error; and all weights."""
    seen = []

    def loss(vae, x):
        seen.append(weights(vae))
        if len(seen) == n + 1 and isinstance(what, BaseException):
            raise what
        return negative_elbo(vae, x) * (what if len(seen) == n + 1 else 1)

    return loss, seen


def test_interrupt_keeps_what_was_learnt(capsys):
    vae = VAE(2, 8)
    loss, seen = at_step(7, KeyboardInterrupt())
    history = fit(vae, loss, images(50), steps=100)
    assert history.shape == (7,) and np.isfinite(history).all()
    assert torch.equal(weights(vae), seen[7]) and not torch.equal(seen[7], seen[0])
    out, err = capsys.readouterr()
    assert "stopped after 7 of 100 steps: the model keeps what it learnt" in out and not err


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops(value):
    vae = VAE(2, 8)
    loss, seen = at_step(3, value)
    message = f"^the loss is {value} at step 3: look for .*, or lower the learning rate of 0.005$"
    with pytest.raises(FloatingPointError, match=message):
        fit(vae, loss, images(50), steps=10)
    assert torch.equal(weights(vae), seen[3]) and weights(vae).isfinite().all()


@pytest.mark.parametrize("model", [Autoencoder, VAE, v.BananaModel])
def test_a_model_that_diverges_is_told(model):
    """Whatever PyTorch says of its numbers, which may be a RuntimeError or a ValueError."""
    loss = v.reconstruction_loss if model is Autoencoder else negative_elbo
    x = torch.randn(3, 1) if model is v.BananaModel else images()
    with pytest.raises(FloatingPointError, match="is (nan|inf) at step .* rate of 100000000.0$"):
        fit(model(), loss, x, steps=50, learning_rate=1e8)


@pytest.mark.parametrize("error", [RuntimeError("a shape"), ValueError("a value"), KeyError("x")])
def test_an_error_of_the_loss_itself_comes_through(error):
    with pytest.raises(type(error)) as raised:
        fit(VAE(2, 8), at_step(1, error)[0], images(5), steps=3)
    assert raised.value is error


AE, X = Autoencoder(2, 8), torch.linspace(0, 1, 5 * 784).view(5, 784)
WRONG = [
    ("steps must be at least 0, got -1", {"steps": -1}),
    ("one length of at least 1, got lengths [5, 4]", {"tensors": [X, X[:4]], "steps": 0}),
    ("one length of at least 1, got lengths [0]", {"tensors": [X[:0]], "steps": 0}),
    ("one length of at least 1, got lengths []", {"tensors": [], "steps": 0}),
    ("lie in [0, 1], got values from 0 to 1.5", {"tensors": [X, 1.5 * X], "steps": 0}),
    ("lie in [0, 1], got values from -0.5 to 0.5", {"tensors": [X - 0.5], "steps": 0}),
    ("lie in [0, 1], got values from nan to nan", {"model": AE, "tensors": [X / X], "steps": 0}),
    ("lie in [0, 1], got values from 0 to 255", {"tensors": [(255 * X).byte()], "steps": 0}),
    ("give (B,) = (5,), got ()", {"loss": lambda vae, x: elbo(vae, x).mean()}),
    ("give (B,) = (5,), got (5, 1)", {"loss": lambda vae, x: elbo(vae, x)[:, None]}),
    ("give (B,) = (5,), got float", {"loss": lambda vae, x: 1.0}),
    ("must depend on the model's parameters", {"loss": lambda vae, x: x.sum(-1)}),
    ("the model is frozen: none of its", {"model": VAE(2, 8).requires_grad_(False)}),
    ("fit needs gradients: call it outside no_grad()", {"gradients": False}),
]


def test_a_model_of_ones_own_may_want_other_numbers():
    assert fit(torch.nn.Linear(784, 1), squares, 255 * X, steps=1) > 0


@pytest.mark.parametrize("message, changed", WRONG)
def test_fit_errors(message, changed):
    """What is wrong with the data is told without a step."""
    given = {"model": VAE(2, 8), "loss": negative_elbo, "tensors": [X], "steps": 1} | changed
    with torch.set_grad_enabled(given.get("gradients", True)), told(message):
        fit(given["model"], given["loss"], *given["tensors"], steps=given["steps"])
