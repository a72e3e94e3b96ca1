"""What `make publish` leaves as it is: pictures that look the same, and outputs that tell other times.

So a publication in which nothing changed changes no file.
"""

import base64
import io
import json
import re

from PIL import Image, ImageChops, ImageFilter, ImageSequence

import gallery

NUMBER = re.compile(r"[-−]?\d+(?:[., ]\d+)*(?:e[-+]?\d+)?")
# A progress bar, whose length depends on what stands beside it; a clock; seconds.
TIME = re.compile(r"(?<=%)\|[^|]*\||\d+:\d\d|\d+(?:\.\d+)? ?(?:it/s|s/it|µs|ms|s)\b")


def alike(one, other, limit=30):
    """Do two pictures or films, as files, show the same, but for what another processor changes?

    Means over 3 x 3 pixels of a picture of 1280 x 720 may differ by the limit, of 255. Another digit
    in the smallest grey type differs by 84 and more, a faint point that moved by 4 of 2560 pixels by
    34; a curve drawn from numbers that differ by a ten-thousandth by 18.
    """
    one, other = (Image.open(io.BytesIO(file)) for file in (one, other))
    if getattr(one, "n_frames", 1) != getattr(other, "n_frames", 1):
        return False
    films = map(ImageSequence.Iterator, (one, other))  # a PNG is a film of one picture
    return all(difference(*pictures) <= limit for pictures in zip(*films, strict=True))


def difference(one, other):
    one, other = one.convert("RGB"), other.convert("RGB")
    size = min(one.size, other.size, (1280, 720))
    one, other = (
        picture.resize(size, Image.Resampling.BOX).filter(ImageFilter.BoxBlur(1))
        for picture in (one, other)
    )
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def same_words(one, other, but=NUMBER):
    """Are two texts the same but for their numbers?"""
    return but.sub("#", one) == but.sub("#", other)


def keep_text(before, new):
    one, other = (
        json.dumps(output | {"execution_count": None}, ensure_ascii=False, sort_keys=True)
        for output in (before, new)
    )
    if same_words(one, other, TIME):
        new.update({key: before[key] for key in ("text", "data") if key in before})


def keep_picture(before, new, made, figures):
    name = new.metadata["figure"]
    files = {file: figures / file.name for file in made.glob(f"{name}.*")}
    if not all(file.exists() for file in files.values()):
        return
    published, fresh = ((folder / f"{name}.png").read_bytes() for folder in (figures, made))
    told = Image.open(io.BytesIO(published)).text.get("Description", "")
    told = same_words(told, gallery.alt(new))
    if alike(stored(before), stored(new)) and alike(published, fresh):
        new.data[gallery.kind(new)] = before.data[gallery.kind(before)]
    else:
        return
    for file in files if told else ():
        file.unlink()


def stored(output):
    return base64.b64decode(output.data[gallery.kind(output)])


def by_name(cell):
    """{a figure's name, or another output's place: the output}."""
    outputs = enumerate(cell.get("outputs", []))
    return {output.get("metadata", {}).get("figure", place): output for place, output in outputs}


def keep(old, nb, made, figures):
    """Of the stored outputs of `old` put what stays into those of a new run, `nb`.

    A picture that stays keeps its stored pixels, and its files too unless its alt text has other
    words: then the new ones are removed from `made`, so that they do not replace those in `figures`.
    """
    cells = {cell.id: by_name(cell) for cell in old.cells}
    for cell in nb.cells:
        for name, new in by_name(cell).items():
            before = cells.get(cell.id, {}).get(name, {})
            if before.get("output_type") != new.output_type:
                continue
            if isinstance(name, str):
                keep_picture(before, new, made, figures)
            else:
                keep_text(before, new)
