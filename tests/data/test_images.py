"""One way to see a picture: files of every mode, written and read back."""

import io

import numpy as np
import PIL
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageCms

from madkd_hf.data.decoding import check_first
from madkd_hf.data.images import to_rgb


GREYS = np.linspace(0, 255, 12).reshape(3, 4)
WHITE, RED = (255, 255, 255), (200, 30, 20)


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def read(image: Image.Image, kind: str = "PNG", **settings) -> Image.Image:
    """The image as its file gives it back."""
    return Image.open(io.BytesIO(encoded(image, kind, **settings)))


def array(image: Image.Image) -> np.ndarray:
    seen = to_rgb(image)
    assert seen.mode == "RGB" and to_rgb(seen) is seen
    return np.asarray(seen)


def assert_grey(image: Image.Image, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(array(image), np.repeat(np.rint(expected)[..., None], 3, axis=-1))


# What is opaque and 8 bits


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_rgb_stays_as_it_is(kind):
    image = Image.effect_mandelbrot((7, 5), (-2, -1, 1, 1), 20).convert("RGB")
    opened = read(image, kind)
    assert to_rgb(opened) is opened
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(image))


def test_greyscale_one_bit_and_palettes_show_their_colours():
    assert_grey(read(Image.fromarray(GREYS.astype(np.uint8))), GREYS.astype(np.uint8))
    one_bit = read(Image.fromarray(GREYS > 127))
    assert one_bit.mode == "1"
    assert_grey(one_bit, (GREYS > 127) * 255)
    palette = read(Image.new("RGB", (4, 3), RED).quantize())
    assert palette.mode == "P" and (array(palette) == RED).all()


def test_a_gif_shows_its_first_frame():
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, WHITE)]
    assert (array(read(frames[0], "GIF", save_all=True, append_images=frames[1:])) == RED).all()


OLD = int(PIL.__version__.partition(".")[0]) < 13
YCBCR = pytest.param("YCbCr", marks=pytest.mark.skipif(OLD, reason="Pillow misreads the YCbCr that it wrote itself"))


@pytest.mark.parametrize("mode", ["CMYK", YCBCR, "LAB"])
def test_other_colour_spaces_are_those_of_pillow(mode):
    image = Image.new("RGB", (8, 8), RED)
    if mode == "LAB":
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    opened = read(image.convert(mode), "TIFF")
    assert opened.mode == mode
    assert np.abs(array(opened).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])  # Pillow writes CMYK JPEGs as Adobe does: inverted
def test_cmyk_is_not_inverted(kind):
    opened = read(Image.new("RGB", (16, 16), RED).convert("CMYK"), kind)
    assert opened.mode == "CMYK" and ("adobe" in opened.info) == (kind == "JPEG")
    assert np.abs(array(opened).astype(int) - RED).max() <= 8


# What is transparent


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_laid_on_white(mode, kind):
    image = Image.new("RGBA", (3, 1), (*RED, 255)).convert(mode)
    image.putalpha(Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint8)))
    opaque = array(image.convert(mode[:-1]))[0, 0].astype(float)
    opened = read(image, kind)
    assert opened.mode == mode
    expected = [[255] * 3, opaque * 128 / 255 + 127, opaque]
    np.testing.assert_allclose(array(opened)[0], expected, atol=1)


def test_what_hides_under_full_transparency_is_not_seen():
    hidden = np.random.default_rng(0).integers(0, 255, (5, 6, 4), dtype=np.uint8)
    hidden[..., 3] = 0
    assert (array(read(Image.fromarray(hidden))) == 255).all()
    assert (array(read(Image.fromarray(hidden), "WEBP", lossless=True, exact=True)) == 255).all()


@pytest.mark.parametrize("transparency", [0, b"\x00\xff", b"\x80"], ids=["one entry", "every entry", "half"])
def test_transparent_palette_entries_show_white(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 0), 1)
    opened = read(image, transparency=transparency)
    assert opened.mode == "P" and "transparency" in opened.info
    first = 127 if transparency == b"\x80" else 255
    assert array(opened).tolist() == [[[first] * 3, list(RED)]]


def test_a_transparent_gif_shows_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 0), 1)
    assert array(read(image, "GIF", transparency=0)).tolist() == [[list(WHITE), list(RED)]]


def test_a_transparent_colour_shows_white():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((0, 0), (1, 2, 3))
    assert array(read(image, transparency=(1, 2, 3))).tolist() == [[list(WHITE), list(RED)]]
    grey = Image.fromarray(np.array([[7, 90]], dtype=np.uint8))
    assert array(read(grey, transparency=7)).tolist() == [[list(WHITE), [90] * 3]]


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_rarer_kinds_of_alpha_that_only_memory_holds(mode):
    image = Image.new({"La": "LA", "RGBa": "RGBA", "PA": "PA"}[mode], (2, 2)).convert(mode)
    assert image.mode == mode and (array(image) == 255).all()


# More than 8 bits


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("PPM", "I")])
def test_16_bit_greyscale_is_scaled_and_not_cut_off(kind, mode):
    opened = read(Image.fromarray((GREYS * 257).astype(np.uint16)), kind)
    assert opened.mode in (mode, "I")
    assert_grey(opened, GREYS)


def test_16_bit_greyscale_of_the_other_byte_order():
    pixels = (GREYS * 257).astype(">u2")
    opened = read(Image.frombytes("I;16B", (4, 3), pixels.tobytes()), "TIFF")
    assert opened.mode == "I;16B"
    assert_grey(opened, GREYS)


def test_a_dark_16_bit_image_stays_dark():
    assert_grey(read(Image.fromarray(np.full((3, 4), 2570, dtype=np.uint16))), np.full((3, 4), 10))


def test_32_bit_integers():
    for factor in (1, 257):  # 8 and 16 bits in a wide coat
        opened = read(Image.fromarray((GREYS * factor).astype(np.int32)), "TIFF")
        assert opened.mode == "I"
        assert_grey(opened, (GREYS * factor).astype(np.int32) / factor)
    stretched = (np.arange(12).reshape(3, 4) * 17 - 1000).astype(np.int32)
    assert_grey(read(Image.fromarray(stretched), "TIFF"), np.arange(12).reshape(3, 4) * 255 / 11)


def test_floats():
    for factor in (1 / 255, 1, 257):
        opened = read(Image.fromarray((GREYS * factor).astype(np.float32)), "TIFF")
        assert opened.mode == "F"
        assert_grey(opened, GREYS)
    assert_grey(read(Image.fromarray((GREYS * 2 - 255).astype(np.float32)), "TIFF"), GREYS)


@pytest.mark.filterwarnings("error")
def test_floats_that_are_no_numbers():
    pixels = np.array([[np.nan, 0.0, 1.0, np.inf, -np.inf]], dtype=np.float32)
    assert_grey(read(Image.fromarray(pixels), "TIFF"), np.array([[0, 0, 255, 255, 0]]))
    assert_grey(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)), np.zeros((2, 2)))
    assert_grey(Image.fromarray(np.full((2, 2), -1e30, dtype=np.float32)), np.zeros((2, 2)))


# Colours as their profile means them


def profile(primaries: list[tuple[float, float, float]] | None = None, gamma: float = 2.2) -> bytes:
    """An ICC profile: XYZ (D50) of red, green and blue, or without any a grey one."""

    def number(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    curve = b"curv\0\0\0\0\0\0\0\1" + round(gamma * 256).to_bytes(2, "big") + b"\0\0"
    text = b"desc\0\0\0\0\0\0\0\5test\0" + bytes(78) + b"\0"
    tags = {b"desc": text, b"wtpt": xyz(0.9642, 1, 0.8249)}
    tags |= {b"kTRC": curve} if primaries is None else {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    tags |= {name + b"XYZ": xyz(*each) for name, each in zip((b"r", b"g", b"b"), primaries or [])}
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + (start + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content + bytes(-len(content) % 4)
    space = b"GRAY" if primaries is None else b"RGB "
    head = bytes(8) + b"\2\x10\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    content = head + xyz(0.9642, 1, 0.8249)[8:] + bytes(48) + len(tags).to_bytes(4, "big") + table + body
    return (len(content)).to_bytes(4, "big") + content[4:]


SRGB = [(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]
RED_IS_GREEN = profile([SRGB[1], SRGB[0], SRGB[2]])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_are_those_of_the_embedded_profile(kind):
    settings = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    opened = read(Image.new("RGB", (16, 16), (220, 10, 10)), kind, icc_profile=RED_IS_GREEN, **settings)
    seen = array(opened).astype(int)
    assert np.abs(seen - (10, 220, 10)).max() <= 12, seen[0, 0]
    assert to_rgb(opened).info.get("icc_profile") is None


def test_alpha_palettes_and_greys_have_profiles_too():
    half = Image.new("RGBA", (4, 4), (220, 10, 10, 128))
    assert np.abs(array(read(half, icc_profile=RED_IS_GREEN)).astype(int) - (132, 237, 132)).max() <= 9
    palette = Image.new("RGB", (4, 4), (220, 10, 10)).quantize()
    assert np.abs(array(read(palette, icc_profile=RED_IS_GREEN)).astype(int) - (10, 220, 10)).max() <= 12
    linear = read(Image.new("L", (4, 4), 55), icc_profile=profile(gamma=1.0))  # 0.216 of the light is 128 in sRGB
    assert np.abs(array(linear).astype(int) - 128).max() <= 2


def test_srgb_and_profiles_of_no_use_change_nothing():
    image = Image.effect_mandelbrot((7, 5), (-2, -1, 1, 1), 20).convert("RGB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for useless in (srgb, b"garbage", RED_IS_GREEN[:150], profile(gamma=1.0)):
        opened = read(image, icc_profile=useless)
        assert opened.info["icc_profile"] == useless
        np.testing.assert_array_equal(array(opened), np.asarray(image))


# Upright


def oriented(kind: str, orientation: int, pixels: np.ndarray | None = None, **settings) -> bytes:
    """A white left half, a black right half, and a note of how to turn it."""
    halves = np.repeat(np.array([[255] * 8 + [0] * 8], dtype=np.uint8), 8, axis=0) if pixels is None else pixels
    image = Image.fromarray(halves)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image if pixels is not None else image.convert("RGB"), kind, exif=exif, **settings)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_applied_once(kind):
    opened = Image.open(io.BytesIO(oriented(kind, 6)))
    once = to_rgb(opened)
    assert once.size == (8, 16) and to_rgb(once) is once
    assert np.asarray(once)[1].min() > 240 and np.asarray(once)[-2].max() < 15  # turned clockwise: left is now up


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_decoded_dataset_image_is_not_turned_again(kind):
    for orientation in range(1, 9):
        content = oriented(kind, orientation)
        rows = Dataset.from_dict({"image": [{"bytes": content, "path": None}]}, Features({"image": ImageFeature()}))
        np.testing.assert_array_equal(array(rows[0]["image"]), array(Image.open(io.BytesIO(content))))


def test_16_bit_greyscale_is_turned_too():
    content = oriented("PNG", 6, (GREYS * 257).astype(np.uint16))
    assert_grey(Image.open(io.BytesIO(content)), np.rot90(GREYS, -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0\0\0\0"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_metadata_do_not_spoil_a_good_picture(exif):
    for kind in ("JPEG", "PNG", "WEBP"):
        assert array(read(Image.new("RGB", (16, 8), RED), kind, exif=exif)).shape == (8, 16, 3)


def test_an_orientation_that_does_not_exist_turns_nothing():
    for orientation in (0, 9):
        assert array(Image.open(io.BytesIO(oriented("PNG", orientation)))).shape == (8, 16, 3)


# Sizes, and what stays


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1)])
def test_a_picture_may_be_a_line(mode, size):
    assert to_rgb(Image.new(mode, size)).size == size


def test_the_argument_stays_as_it_was():
    image = Image.new("RGBA", (4, 3), (10, 20, 30, 40))
    before = image.tobytes()
    to_rgb(image)
    assert image.mode == "RGBA" and image.tobytes() == before


def test_a_truncated_file_is_an_error():
    content = encoded(Image.effect_noise((64, 64), 50), "PNG")
    with pytest.raises(OSError):
        to_rgb(Image.open(io.BytesIO(content[: len(content) // 2])))


def test_the_first_images_of_a_stream_are_checked_without_the_warnings_of_pillow(recwarn):
    broken = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"  # five entries are told, and half of one is there
    rows = Dataset.from_dict(
        {"image": [{"bytes": encoded(Image.new("RGB", (4, 4)), "JPEG", exif=broken), "path": None}]},
        features=Features({"image": ImageFeature()}),
    )
    assert check_first(rows.to_iterable_dataset(), "image", "train") == []
    assert not recwarn
