"""load_picture: photographs, drawings and files of all kinds become what MNIST's digits are."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vae_classroom import ROOT, load_mnist, load_picture


@pytest.fixture(scope="module")
def digits():
    return load_mnist(sample=True, device="cpu").test[::10]  # (100, 784), of all classes


def seven(paper=255, ink=20):
    """A drawing of 300 x 400 pixels."""
    image = Image.new("L", (300, 400), paper)
    ImageDraw.Draw(image).line([(80, 90), (220, 90), (120, 330)], fill=ink, width=26, joint="curve")
    return image


def photograph(x, seed):
    """A digit, dark on a grey page with light from one side, noise, and not in the middle."""
    large = Image.fromarray(np.uint8(255 * x.reshape(28, 28))).resize((300, 300), Image.BICUBIC)
    page = np.zeros((460, 520))
    page[100:400, 60:360] = np.asarray(large) / 255
    rows, columns = np.indices(page.shape) / 500
    lit = 0.85 * (1 - 0.15 * rows - 0.1 * columns) * (1 - 0.7 * page)
    return (lit + 0.02 * np.random.default_rng(seed).standard_normal(page.shape)).clip(0, 1)


def test_mnists_own_digits_stay_as_they_are(digits):
    back = torch.stack([load_picture(x.view(28, 28)) for x in digits])
    assert back.dtype == torch.float32
    assert (
        (back - digits).abs().amax(1) < 1e-6
    ).float().mean() >= 0.97  # some lie between two pixels


def test_a_photograph_comes_back_as_the_digit_it_was(digits):
    back = torch.stack([load_picture(photograph(x.numpy(), k)) for k, x in enumerate(digits[:30])])
    apart = (back - digits[:30]).abs().mean(1)
    others = (back - digits[:30].roll(1, 0)).abs().mean(1)
    assert apart.median() < 0.05 and apart.max() < 0.1
    assert (apart < 0.6 * others).all()


def test_what_is_written_across_the_rim_is_no_paper():
    clean = np.ones((300, 400))
    clean[70:, 150:250] = 0  # a quarter of the lower rim
    clean[70:90, 150:190] = 1
    lit = (0.9 - 0.2 * np.indices(clean.shape)[1] / 400) * clean
    noise = 0.02 * np.random.default_rng(0).standard_normal(clean.shape)
    photographed = load_picture((lit + noise).clip(0, 1))
    assert (photographed - load_picture(clean)).abs().mean() < 0.01


KINDS = {
    "chalk": lambda: Image.eval(seven(), lambda value: 255 - value),
    "colours": lambda: seven().convert("RGB"),
    "palette": lambda: seven().convert("P"),
    "16 bits": lambda: Image.fromarray(np.asarray(seven()).astype(np.uint16) * 257),
    "grey page": lambda: Image.eval(seven(), lambda value: round(0.8 * value)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_picture_makes_no_difference(kind, tmp_path):
    KINDS[kind]().save(tmp_path / "seven.png")
    assert torch.allclose(load_picture(tmp_path / "seven.png"), load_picture(seven()), atol=0.02)


def test_transparent_paper_is_white(tmp_path):
    image = Image.new("RGBA", (300, 400), (0, 0, 0, 0))  # black, but nobody sees it
    ink = Image.eval(seven(ink=0), lambda value: 255 - value)
    image.paste((0, 0, 0, 255), mask=ink)
    image.save(tmp_path / "seven.png")
    assert torch.allclose(
        load_picture(tmp_path / "seven.png"), load_picture(seven(ink=0)), atol=0.01
    )


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_camera_s_rotation_is_undone_and_its_ripples_are_no_ink(mode, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    turned = seven().transpose(Image.Transpose.ROTATE_90).convert(mode)
    turned.save(tmp_path / "seven.jpg", exif=exif, quality=80)
    assert (load_picture(tmp_path / "seven.jpg") - load_picture(seven())).abs().mean() < 0.01


def test_the_three_drawn_photographs_are_prepared_and_carry_nothing_else():
    """28 by 28, 20 on the longer side, and no word in the files about where they come from."""
    files = sorted((ROOT / "notebooks/photos").iterdir())
    assert [file.name for file in files] == ["five.jpg", "four.jpg", "two.jpg"]
    for file in files:
        with Image.open(file) as image:
            assert set(image.getexif()) <= {0x0112}  # turned by a quarter
            assert file.stat().st_size < 40_000 and not image.info.get("comment")
        x = load_picture(file).view(28, 28)
        sides = [np.ptp(np.flatnonzero(x.sum(axis) > 0.3)) + 1 for axis in (0, 1)]
        assert max(sides) in (19, 20, 21) and 40 < x.sum() < 160, (file.name, sides, x.sum())


def bad_files(folder):
    """{file: words of the error}, each made for real."""
    jpeg = io.BytesIO()
    seven().save(jpeg, "JPEG")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture\n" * 20)
    (folder / "half.jpg").write_bytes(jpeg.getvalue()[:1500])
    seven().resize((3, 3)).save(folder / "tiny.png")
    Image.new("L", (300, 300), 180).save(folder / "one_colour.png")
    Image.new("1", (10_000, 10_000), 1).save(folder / "huge.png")
    Image.new("1", (15_000, 15_000), 1).save(folder / "bomb.png")
    seven().save(folder / "film.gif", save_all=True, append_images=[seven(ink=120)])
    return {
        "empty.png": "cannot be opened as a picture",
        "text.png": "cannot be opened as a picture",
        "half.jpg": "cannot be read to its end",
        "tiny.png": "has 3 x 3 pixels, expected 14 x 14 at least",
        "one_colour.png": "shows no ink",
        "huge.png": "has 10000 x 10000 pixels, expected .* 60 million at most",
        "bomb.png": "is too large, 60 million pixels at most",
        "film.gif": "holds 2 pictures, expected one",
    }


def test_what_is_wrong_with_a_file_is_told(tmp_path, recwarn):
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=f"{name} {words}") as caught:
            load_picture(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
    assert not recwarn.list
    with pytest.raises(FileNotFoundError):
        load_picture(tmp_path / "nowhere.png")
    with pytest.raises(IsADirectoryError):
        load_picture(tmp_path)


WRONG = {"list": [[1, 2], [3]], "NoneType": None, r"\(784,\)": torch.zeros(784), r"\(\)": 7}
WRONG |= {r"\(28, 28, 3\)": np.zeros((28, 28, 3)), r"\(30, 30\)": np.full((30, 30), np.nan)}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_with_grey_values_is_told(words):
    with pytest.raises(ValueError, match=f"got {words}"):
        load_picture(WRONG[words])
    with pytest.raises(ValueError, match="got"):
        load_picture(np.full((28, 28), 2.0))
