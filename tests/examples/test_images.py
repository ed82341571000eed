"""Which files are images, and that their pixels are what a person sees."""

import os
import pickle
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageCms, PngImagePlugin
from torchvision.transforms import v2

cbook = pytest.importorskip("matplotlib.cbook")

from examples.lib.command import ImageError  # noqa: E402
from examples.lib.data import find_image_files  # noqa: E402
from examples.lib.images import (  # noqa: E402
    FORMATS,
    center_crop,
    find_images,
    open_image,
    read_image,
    refuse,
)
from examples.lib.loaders import CenterCrops, random_box, random_crop  # noqa: E402
from examples.lib.networks import normalize  # noqa: E402
from tests.examples.command import ordinary_user  # noqa: E402

GRAY = np.arange(256, dtype="uint8").reshape(16, 16)  # each of the values
GRAY_16 = GRAY.astype("uint16") * 257  # the same in 16 bits
RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(path: Path) -> np.ndarray:
    """Return the picture that is read from a file, (H, W, 3)."""
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(path: Path) -> str:
    """Return why a file cannot be used."""
    with pytest.raises(ImageError) as error:
        open_image(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def write_tiff(
    path: Path,
    data: bytes,
    bits: int,
    order: str = "<",
    white_is_zero: bool = False,
    more: dict[int, int] | None = None,
) -> None:
    """Write a TIFF of 16 x 16 pixels, by default a gray one, of a kind that Pillow does not write.

    The color map, tag 320, is a number for each of its 768 values.
    """
    more = more or {}
    tags = {
        256: 16,  # width
        257: 16,  # height
        258: bits,
        259: 1,  # no compression
        262: 0 if white_is_zero else 1,
        273: 8 + 2 + 12 * (8 + len(more.keys() - {262})) + 4,  # where the pixels start
        278: 16,  # rows in a strip
        279: len(data),
        **more,
    }
    header = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    entries = [
        struct.pack(f"{order}HHII", tag, 3, 768, tags[273] + len(data))
        if tag == 320
        else struct.pack(f"{order}HHII", tag, 4, 1, value)
        for tag, value in sorted(tags.items())
    ]
    count, end = struct.pack(f"{order}H", len(tags)), bytes(4)
    color_map = struct.pack(f"{order}H", tags.get(320, 0)) * 768
    path.write_bytes(header + count + b"".join(entries) + end + data + color_map)


def write_gray(kind: str, folder: Path) -> Path:
    """Write the values of `GRAY_16` in a container of more than 8 bits."""
    path = folder / kind
    big_endian = GRAY_16.astype(">u2").tobytes()
    if kind == "12 bits.tif":
        pairs = (GRAY_16 >> 4).reshape(-1, 2).tolist()
        packed = b"".join(((left << 12) | right).to_bytes(3, "big") for left, right in pairs)
        write_tiff(path, packed, bits=12)
    elif kind == "big endian.tif":
        write_tiff(path, big_endian, bits=16, order=">")
    elif kind == "white is zero.tif":
        write_tiff(path, (65535 - GRAY_16).tobytes(), bits=16, white_is_zero=True)
    elif kind == "binary.pgm":
        path.write_bytes(b"P5 16 16 65535\n" + big_endian)
    elif kind == "12 bits.pgm":
        path.write_bytes(b"P5 16 16 4095\n" + (GRAY_16 >> 4).astype(">u2").tobytes())
    elif kind == "text.pgm":
        path.write_text("P2 16 16 65535\n" + " ".join(map(str, GRAY_16.flatten())))
    elif kind == "floats.pfm":
        path.write_bytes(b"Pf 16 16 -1\n" + (GRAY_16[::-1] / 65535).astype("<f4").tobytes())
    elif kind == "floats.tif":
        Image.fromarray((GRAY_16 / 65535).astype("float32")).save(path)
    else:
        Image.fromarray(GRAY_16).save(path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "gray.png",
        "gray.jp2",
        "little endian.tif",
        "big endian.tif",
        "12 bits.tif",
        "white is zero.tif",
        "binary.pgm",
        "12 bits.pgm",
        "text.pgm",
        "floats.tif",
        "floats.pfm",
    ],
)
def test_more_than_8_bits_are_scaled(kind, tmp_path):
    expected = np.stack([GRAY] * 3, axis=2)
    np.testing.assert_array_equal(pixels(write_gray(kind, tmp_path)), expected)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_values_of_unknown_scale_are_refused_by_name(dtype, tmp_path):
    path = tmp_path / "gray.tif"
    Image.fromarray(GRAY.astype(dtype)).save(path)
    assert refusal(path).startswith("gray values from 0 to 255 of unknown scale")


def test_values_that_are_no_numbers_are_refused(tmp_path):
    values = (GRAY / 255).astype("float32")
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "gray.tif")
    assert "unknown scale" in refusal(tmp_path / "gray.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_over_white(mode, tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))  # black
    image.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "picture.png", **({"transparency": 1} if mode == "P" else {}))
    assert pixels(tmp_path / "picture.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("alpha", [0, 255])
def test_alpha_that_is_zero_everywhere_is_no_alpha(alpha, tmp_path):
    color = np.stack([GRAY, GRAY.T, GRAY[::-1], np.full_like(GRAY, alpha)], axis=2)
    Image.fromarray(color).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(pixels(tmp_path / "picture.png"), color[..., :3])


def test_a_picture_that_is_transparent_everywhere_is_refused(tmp_path):
    Image.new("RGBA", (16, 16)).save(tmp_path / "layer.png")
    assert refusal(tmp_path / "layer.png") == "transparent everywhere"


def png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def write_png(path: Path, bits: int, color_type: int, rows: bytes, transparent: bytes) -> None:
    """Write a PNG of 2 x 1 pixels with one transparent color, of a kind that Pillow reads only."""
    header = struct.pack(">IIBBBBB", 2, 1, bits, color_type, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    data = b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize(
    "bits, color_type, rows, transparent",
    [
        (4, 0, b"\0\x37", b"\0\7"),  # gray values 3 and 7 of 15
        (16, 0, b"\0\x33\x33\x77\x77", b"\x77\x77"),
        (16, 2, b"\0" + b"\x33" * 6 + b"\x77\x12" * 3, b"\x77\x12" * 3),
    ],
    ids=["4 bits", "16 bits", "16 bits in color"],
)
def test_one_transparent_color_is_white_at_any_depth(bits, color_type, rows, transparent, tmp_path):
    write_png(tmp_path / "picture.png", bits, color_type, rows, transparent)
    assert pixels(tmp_path / "picture.png").tolist() == [[[0x33] * 3, [255] * 3]]


def test_colors_of_a_profile_are_converted_to_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"swap").replace(b"bXYZ", b"rXYZ").replace(b"swap", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    image = Image.new("RGB", (2, 1), RED)
    for name, profile in ("srgb", srgb), ("swapped", swapped), ("damaged", b"no profile"):
        image.save(tmp_path / f"{name}.png", icc_profile=profile)
    assert np.allclose(pixels(tmp_path / "swapped.png"), (0, 0, 255), atol=2)  # blue for red
    for name in "srgb", "damaged":
        np.testing.assert_array_equal(pixels(tmp_path / f"{name}.png"), np.asarray(image))
    image.putalpha(Image.frombytes("L", (2, 1), b"\xff\0"))
    image.save(tmp_path / "transparent.png", icc_profile=swapped)
    blue, white = pixels(tmp_path / "transparent.png")[0]
    assert np.allclose(blue, (0, 0, 255), atol=2)
    assert white.tolist() == [255, 255, 255]


def test_a_tiff_that_is_stored_on_its_side_is_upright(tmp_path):
    stored = np.arange(8, dtype="uint8").reshape(2, 4) * 30
    Image.fromarray(stored).save(tmp_path / "picture.tif", tiffinfo={274: 6})
    np.testing.assert_array_equal(pixels(tmp_path / "picture.tif")[..., 0], np.rot90(stored, -1))


def test_an_avif_that_calls_itself_heif_is_read(tmp_path):
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (32, 32), RED).save(tmp_path / "picture.avif", quality=95)
    data = (tmp_path / "picture.avif").read_bytes()
    (tmp_path / "picture.avif").write_bytes(data.replace(b"ftypavif", b"ftypmif1"))
    assert np.allclose(pixels(tmp_path / "picture.avif"), RED, atol=4)


def test_a_heic_is_not_its_thumbnail(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = pillow_heif.from_pillow(Image.new("RGB", (256, 256), RED))
    file.info["thumbnails"] = [64]
    file.save(tmp_path / "with a thumbnail.heic", quality=90)
    assert open_image(tmp_path / "with a thumbnail.heic", min_size=32).size == (256, 256)


@pytest.mark.parametrize("colors", [1, 3])
def test_colors_multiplied_by_their_alpha_are_on_white(colors, tmp_path):
    data = bytes([*[50] * colors, 128]) * 256  # 100, half of it transparent
    more = {277: colors + 1, 338: 1, 262: 1 if colors == 1 else 2}
    write_tiff(tmp_path / "picture.tif", data, bits=8, more=more)
    assert np.allclose(pixels(tmp_path / "picture.tif"), 50 + 127, atol=1)


@pytest.mark.parametrize(
    "data, bits, more, reason",
    [
        (bytes(256), 8, {262: 3, 320: 255}, "a TIFF with a color map of 8 bits"),
        (bytes(1536), 16, {262: 2, 277: 3, 284: 2}, "a TIFF with a plane of 16 bits for each"),
        (bytes(3072), 32, {262: 2, 277: 3, 339: 3}, "or its header is damaged or unusual"),
    ],
    ids=["color map", "planes", "colors that are floats"],
)
def test_a_tiff_that_pillow_shows_otherwise_is_refused_with_the_reason(
    data, bits, more, reason, tmp_path
):
    write_tiff(tmp_path / "picture.tif", data, bits, more=more)
    assert reason in refusal(tmp_path / "picture.tif")


def test_a_gif_whose_first_frame_is_a_part_is_refused(tmp_path):
    path = tmp_path / "picture.gif"
    Image.new("P", (16, 16)).save(path)
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 32, 32)  # the size of the screen
    path.write_bytes(data)
    assert "a GIF whose first frame is only a part of the picture" in refusal(path)


def test_thumbnails_of_network_drives_and_archives_are_left_out(tmp_path):
    write_images(tmp_path, "a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.png", "__MACOSX/._a/b.png")
    assert find_images(tmp_path, refuse) == ([tmp_path / "a.png"], 0)
    write_images(tmp_path, "cat/1.png")
    assert find_image_files(tmp_path, "", min_size=48).classes == ["cat"]


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_long_text_in_a_png_does_not_matter(is_compressed, tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "x" * 2_000_000, zip=is_compressed)
    Image.fromarray(GRAY).save(tmp_path / "picture.png", pnginfo=text)
    np.testing.assert_array_equal(pixels(tmp_path / "picture.png")[..., 0], GRAY)


def test_a_header_with_a_wrong_checksum_is_refused(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "picture.png")
    data = (tmp_path / "picture.png").read_bytes()
    (tmp_path / "picture.png").write_bytes(data.replace(b"\x10\x00\x00\x00\x10", b"\x10\0\0\0\x0f"))
    assert "not an image" in refusal(tmp_path / "picture.png")


@pytest.mark.parametrize("extension", ["eps", "ps", "png", "jpg"])
def test_a_format_for_which_pillow_starts_a_program_is_refused(extension, tmp_path):
    path = tmp_path / f"picture.{extension}"
    Image.new("RGB", (16, 16)).save(path, "EPS")
    assert refusal(path).startswith(f"not an image that is read ({', '.join(FORMATS)})")
    found = 0 if extension in ("eps", "ps") else 1
    assert len(find_images(tmp_path, refuse)[0]) == found


@pytest.mark.parametrize("tag", [{254: 1}, {50706: b"\1\4\0\0"}])
@pytest.mark.parametrize("extension", ["dng", "tif"])
def test_a_raw_photograph_is_refused(tag, extension, tmp_path):
    Image.fromarray(GRAY).save(tmp_path / f"raw.{extension}", "TIFF", tiffinfo=tag)
    assert "raw photograph" in refusal(tmp_path / f"raw.{extension}")


@pytest.mark.parametrize("name", ["a\nb.png", "a\rb.png", "a\x1b[31mb.png", "a\u202eb.png"])
def test_a_name_cannot_add_a_line_or_drive_a_terminal(name, tmp_path):
    with pytest.raises(ImageError) as error:
        open_image(tmp_path / name)
    assert str(error.value).isprintable()
    assert "No such file" in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "heic"])
def test_pictures_are_upright(extension, tmp_path):
    if extension == "heic":
        pytest.importorskip("pillow_heif")
    stored = Image.new("RGB", (64, 32), "white")
    stored.paste("red", (0, 0, 32, 32))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    path = tmp_path / f"picture.{extension}"
    stored.save(path, exif=exif.tobytes())
    seen = pixels(path)
    assert seen.shape == (64, 32, 3)
    assert np.allclose(seen[8, 16], RED, atol=4)
    assert np.allclose(seen[56, 16], WHITE, atol=4)


def test_broken_exif_is_ignored(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    exif = b"eXIf" + b"\x00\x08\x00\x02\x01\x12\x00\x03"  # no header
    chunk = struct.pack(">I", len(exif) - 4) + exif + struct.pack(">I", zlib.crc32(exif))
    start = whole.index(b"IDAT") - 4
    (tmp_path / "broken.png").write_bytes(whole[:start] + chunk + whole[start:])
    np.testing.assert_array_equal(pixels(tmp_path / "broken.png"), pixels(tmp_path / "whole.png"))


def truncated(path: Path) -> None:
    Image.fromarray(GRAY).resize((256, 256)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "name, write, reason",
    [
        ("empty.png", lambda path: path.write_bytes(b""), "not an image"),
        ("text.jpg", lambda path: path.write_text("no image"), "not an image"),
        ("truncated.jpg", truncated, "truncated"),
        ("missing.jpg", lambda path: None, "No such file or directory"),
        ("folder.jpg", Path.mkdir, "Is a directory"),
        ("strip.png", lambda path: Image.new("1", (1, 60_000)).save(path), "too long"),
        ("strip.jpg", lambda path: Image.new("L", (10_001, 100)).save(path), "too long"),
        ("bomb.pgm", lambda path: path.write_bytes(b"P5 20000 20000 255\n"), "exceeds limit"),
    ],
)
def test_files_that_are_no_use_are_refused_in_one_line(name, write, reason, tmp_path):
    write(tmp_path / name)
    assert reason in refusal(tmp_path / name)


def test_a_panorama_is_read(tmp_path):
    Image.new("L", (10_000, 100)).save(tmp_path / "panorama.png")
    assert pixels(tmp_path / "panorama.png").shape == (100, 10_000, 3)


@pytest.mark.parametrize(
    "min_size, expected",
    [
        (None, (1000, 760)),
        (381, (1000, 760)),
        (380, (500, 380)),
        (190, (250, 190)),
        (95, (125, 95)),
        (10, (125, 95)),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_size_allowed(min_size, expected, tmp_path):
    Image.new("RGB", (1000, 760)).save(tmp_path / "photo.jpg")
    assert open_image(tmp_path / "photo.jpg", min_size).size == expected


def test_a_png_is_decoded_in_full(tmp_path):
    Image.new("RGB", (1000, 760)).save(tmp_path / "photo.png")
    assert open_image(tmp_path / "photo.png", min_size=95).size == (1000, 760)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """The photograph of Grace Hopper, 512 x 600."""
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize("size", [(512, 600), (640, 480), (223, 1001), (90, 61)])
def test_validation_crops_are_torchvisions_within_two_of_256_values(size, photograph):
    image = photograph.resize(size)
    for crop_size, resize_size in (224, 256), (64, 73):
        crop = torch.from_numpy(center_crop(image, crop_size, resize_size)).int()
        official = v2.Compose([v2.Resize(resize_size), v2.CenterCrop(crop_size), v2.PILToTensor()])
        difference = (crop - official(image).int()).abs()
        assert difference.max() <= 2
        assert difference.float().mean() < 0.3


def test_training_boxes_are_those_of_torchvision():
    crop = v2.RandomResizedCrop(32, scale=(0.5, 1))
    for seed, (width, height) in enumerate([(500, 375), (30, 40), (7, 300), (300, 7), (1, 1)] * 4):
        torch.manual_seed(seed)
        box = crop.make_params([torch.empty(3, height, width)])
        left, top, right, bottom = random_box(
            width, height, torch.Generator().manual_seed(seed), min_area=0.5
        )
        found = {"left": left, "top": top, "width": right - left, "height": bottom - top}
        assert found == box


@pytest.mark.parametrize("kind", [Image.Image, torch.Tensor])
def test_normalized_crops_are_torchvisions_within_one_of_256_values(kind, photograph, tmp_path):
    photograph.save(tmp_path / "photo.png")
    crop = torch.from_numpy(read_image(tmp_path / "photo.png", 224, 256))
    official = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    image = photograph if kind is Image.Image else v2.functional.pil_to_tensor(photograph)
    difference = (normalize(crop[None])[0] - official(image)).abs()
    assert difference.max() <= 1.01 / 255 / 0.224
    assert difference.mean() < 0.2 / 255 / 0.224


def test_images_that_are_reduced_are_close_to_torchvisions(photograph, tmp_path):
    large = photograph.resize((2560, 3000), Image.Resampling.BICUBIC)
    large.save(tmp_path / "photo.jpg")
    image = torch.from_numpy(read_image(tmp_path / "photo.jpg", 224, 256))
    official = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    difference = (normalize(image[None])[0] - official(Image.open(tmp_path / "photo.jpg"))).abs()
    assert 0 < difference.max() < 0.15  # a step of the 256 values is 0.017
    assert difference.mean() < 0.01


@pytest.mark.parametrize("size", [(60, 40), (3, 5), (40, 40)])
def test_crops_are_square_bytes(size):
    image = Image.new("RGB", size, RED)
    for crop in center_crop(image, 32, 36), random_crop(image, 32, torch.Generator()):
        assert crop.dtype == np.uint8
        assert np.array_equal(crop, np.tile(np.reshape(RED, (3, 1, 1)), (1, 32, 32)))


def test_training_crops_are_random_and_of_at_least_half_of_the_image():
    ramp = np.tile(np.arange(0, 240, 4, dtype="uint8"), (60, 1))
    image = Image.fromarray(ramp).convert("RGB")  # 60 x 60, brighter to the right
    widths, mirrored, generator = set(), set(), torch.Generator()
    for _ in range(100):
        row = random_crop(image, 60, generator)[0, 30].astype(int)
        widths.add(abs(row[-1] - row[0]) // 4 + 1)
        mirrored.add(bool(row[0] > row[-1]))
    assert mirrored == {False, True}
    assert len(widths) > 5
    assert min(widths) >= 60 * (0.5 * 3 / 4) ** 0.5 - 1  # half of the area, 3/4 as wide as high


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        extension = path.suffix[1:].lower()
        kind = {"jfif": "JPEG", "apng": "PNG", "mpo": "MPO"}.get(extension)
        Image.new("RGB", (32, 32), RED).save(path, format=kind)


@pytest.mark.parametrize(
    "extension",
    "jpg JPEG jfif mpo png apng gif webp avif tif bmp ppm jp2 heic".split(),  # noqa: SIM905
)
def test_a_file_of_every_format_is_found_and_read(extension, tmp_path):
    if extension == "heic":
        pytest.importorskip("pillow_heif")
    write_images(tmp_path, f"picture.{extension}")
    assert find_images(tmp_path, refuse) == ([tmp_path / f"picture.{extension}"], 0)
    assert np.allclose(pixels(tmp_path / f"picture.{extension}"), RED, atol=4)


def test_images_of_all_folders_are_sorted(tmp_path):
    write_images(tmp_path, "b/2.png", "c.png", "b/a/1.png", "a.png")
    images, ignored = find_images(tmp_path, refuse)
    names = [str(path.relative_to(tmp_path)) for path in images]
    assert (names, ignored) == (["a.png", "b/2.png", "b/a/1.png", "c.png"], 0)


def test_no_file_of_a_folder_is_asked_for(tmp_path, monkeypatch):
    write_images(tmp_path, "a.png", "b/2.png")

    def stat(path, **options):
        assert path.suffix != ".png", "on a network drive, each call takes a millisecond"
        return original(path, **options)

    original = Path.stat
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        images, _ = find_images(tmp_path, refuse)
    assert len(images) == 2


def test_files_that_are_not_images_are_counted(tmp_path):
    write_images(tmp_path, "a.png")
    for name in "notes.txt", "Thumbs.db", "archive.h5", "no extension", "._a.png", ".DS_Store":
        (tmp_path / name).touch()
    assert find_images(tmp_path, refuse) == ([tmp_path / "a.png"], 6)


def test_hidden_folders_are_not_searched(tmp_path):
    write_images(tmp_path / ".data", "a.png", ".ipynb_checkpoints/a-checkpoint.png")
    images, _ = find_images(tmp_path / ".data", refuse)  # the folder that is given may be hidden
    assert images == [tmp_path / ".data" / "a.png"]


def test_links_never_lead_to_an_image_twice(tmp_path):
    write_images(tmp_path / "data", "a/1.png", "b/2.png")
    write_images(tmp_path / "elsewhere", "3.png")
    (tmp_path / "data" / "a" / "itself").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "data" / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "a" / "endless.png").symlink_to(tmp_path / "data" / "a" / "endless.png")
    images, _ = find_images(tmp_path / "data", refuse)
    assert sorted(path.name for path in images) == ["1.png", "2.png", "3.png"]


def test_a_link_to_a_folder_above_adds_no_images_of_other_classes(tmp_path):
    write_images(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    images, _ = find_images(tmp_path / "cat", refuse)
    assert images == [tmp_path / "cat" / "1.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_an_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert find_images(tmp_path, refuse) == ([], 1)


def test_a_missing_folder_is_refused_by_name(tmp_path):
    errors: list[ImageError] = []
    images, ignored = find_images(tmp_path / "none", errors.append)
    (error,) = errors
    assert (images, ignored) == ([], 0)
    assert str(error) == f"{tmp_path / 'none'}: No such file or directory"


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of folders")
def test_a_folder_that_cannot_be_read_is_named_and_costs_no_other_image():
    with tempfile.TemporaryDirectory() as name:  # the folders above `tmp_path` are private
        folder = Path(name)
        folder.chmod(0o755)
        write_images(folder, "a.png", "lost+found/b.png", "z/c.png")
        (folder / "lost+found").chmod(0)
        with ordinary_user():
            errors: list[ImageError] = []
            images, ignored = find_images(folder, errors.append)
            (error,) = errors
        (folder / "lost+found").chmod(0o755)
        assert (images, ignored) == ([folder / "a.png", folder / "z" / "c.png"], 0)
        assert str(error) == f"{folder / 'lost+found'}: Permission denied"


def test_folders_are_classes_and_hidden_ones_are_not(tmp_path):
    write_images(tmp_path, "dog/1.jfif", "cat/2.gif", "cat/deep/3.png", ".ipynb_checkpoints/4.png")
    (tmp_path / "cat" / "._2.gif").touch()
    (tmp_path / "labels.txt").touch()
    (tmp_path / "endless").symlink_to(tmp_path / "endless")
    data = find_image_files(tmp_path, "", min_size=48)
    assert data.classes == ["cat", "dog"]
    assert data.samples == [
        ("cat/2.gif", 0),
        ("cat/deep/3.png", 0),
        ("dog/1.jfif", 1),
    ]
    assert data.ignored == 3
    assert len(data) == 3
    image, label = CenterCrops(data, 24, 27)[2]
    assert (image.shape, image.dtype, label) == ((3, 24, 24), np.uint8, 1)


def test_a_damaged_image_is_a_value_that_names_it(tmp_path):
    write_images(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "2.png").write_text("no image")
    error = CenterCrops(find_image_files(tmp_path, "", min_size=48), 24, 27)[1]
    assert isinstance(error, ImageError)
    assert str(error).startswith(f"{tmp_path / 'cat' / '2.png'}: ")


def test_a_class_without_images_is_refused_by_name(tmp_path):
    write_images(tmp_path, "cat/1.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "notes.txt").touch()
    with pytest.raises(ImageError, match=f"{tmp_path / 'dog'}: no images"):
        find_image_files(tmp_path, "", min_size=48)


def test_images_that_are_not_in_class_folders_are_refused(tmp_path):
    write_images(tmp_path, "1.png", "2.png")
    with pytest.raises(ImageError, match=f"{tmp_path}: no class folders"):
        find_image_files(tmp_path, "", min_size=48)


def test_a_missing_split_is_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match=f"{tmp_path / 'val'}: No such file or directory"):
        find_image_files(tmp_path, "val", min_size=48)
