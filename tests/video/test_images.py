"""Images of every kind decode to the right pixels, or to one reason; damage is not overlooked."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.video import images
from pipeline.video.images import BadVideoError, decode_image, decoder_errors
from support.sources import BOMB, chunk, pictures, png


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_16_bit_grey_keeps_its_brightness() -> None:
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    image, flags = decode_image(encoded(Image.fromarray(grey), "PNG"))
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]
    assert flags[0].startswith("converted from I")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb_and_are_flagged(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image, flags = decode_image(encoded(Image.new("RGB", (4, 3)).convert(mode), kind))
    assert image.shape == (3, 4, 3)
    assert flags == (f"converted from {mode}",)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, flags = decode_image(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif))
    assert image.shape == (8, 4, 3)
    assert flags == ("rotated by EXIF",)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_gives_the_pixels_that_pillow_gives(mode: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(pictures(1)[0]).convert(mode), "JPEG", quality=90, **options)
    image, flags = decode_image(data)
    with Image.open(io.BytesIO(data)) as expected:
        np.testing.assert_array_equal(image, np.asarray(expected.convert("RGB")))
    assert flags == (() if mode == "RGB" else ("converted from L",))


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    return encoded(Image.fromarray(pictures(1)[0]).convert(mode), "JPEG", **options)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_with_damaged_or_missing_pixels_is_refused(mode: str, progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise).convert(mode), "JPEG", progressive=progressive)
    assert decode_image(data)[0].shape == (48, 64, 3)
    scarred = bytearray(data)
    scarred[-150:-140] = b"\xff\xd2" * 5
    for damaged in (bytes(scarred), data[:-100] + b"\xff\xd9", data[:-100]):
        with pytest.raises(BadVideoError, match=r"Corrupt JPEG data|Premature end"):
            decode_image(damaged)


def outcome(data: bytes) -> object:
    """The pixels' bytes, shape and flags, or the reason why there are none."""
    try:
        pixels, flags = decode_image(data)
    except BadVideoError as error:
        return str(error)
    return pixels.tobytes(), pixels.shape, flags


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"comment": b"a comment"},
        {"restart_marker_blocks": 2, "subsampling": 0},
        {"optimize": True, "quality": 30},
        {"icc_profile": b"no profile"},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"},
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_what_pillow_need_not_see_it_would_not_change(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images changed anywhere in their headers, cut, joined; by both ways."""
    data = encoded(Image.fromarray(pictures(1)[0]).resize((24, 16)), "JPEG", **options)
    header = data.index(b"\xff\xda") + 14
    rng = np.random.default_rng(0)
    cases = [data, data + data, data[2:], *(data[:end] for end in range(1, len(data), 7))]
    for at in range(2, header):
        for value in {0, 0xFF, data[at] ^ 1, data[at] ^ 0x80, int(rng.integers(256))}:
            cases.append(data[:at] + bytes([value]) + data[at + 1 :])
    directly = [outcome(case) for case in cases]
    assert images._decode_plain_jpeg(data) is not None or {"icc_profile", "exif"} & options.keys()
    monkeypatch.setattr(images, "_decode_plain_jpeg", lambda data: None)
    for case, found in zip(cases, directly, strict=True):
        assert outcome(case) == found


def test_progressive_jpeg_without_its_last_scans_is_flagged() -> None:
    data = jpeg(progressive=True, quality=90)
    assert decode_image(data)[1] == ()
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    for end in scans[1:]:
        cut = data[:end] + b"\xff\xd9"
        assert decode_image(cut)[1] == ("progressive without its last scans",)


def test_arithmetic_coded_jpeg_is_flagged_since_its_damage_goes_unnoticed() -> None:
    data = jpeg("L")
    header = data[: data.index(b"\xff\xda") + 10].replace(b"\xff\xc0", b"\xff\xc9")
    image, flags = decode_image(header + b"\xff\xd9")  # no pixels at all
    assert image.shape == (48, 64, 3)
    assert flags == ("arithmetic-coded, which hides damage", "converted from L")


BAD_PNGS = {
    "text bomb": (png(chunk(b"zTXt", b"a\0\0" + BOMB)), "ValueError: Decompressed data too large"),
    "profile bomb": (png(chunk(b"iCCP", b"a\0\0" + BOMB)), "ValueError: Decompressed"),
    "short tRNS": (png(chunk(b"tRNS", b"\0")), "ValueError: Truncated tRNS chunk"),
    "short IHDR": (png().replace(png()[8:33], chunk(b"IHDR", b"\0\0\0\4\0")), "Truncated IHDR"),
    "short acTL": (png(chunk(b"acTL", b"\0")), "ValueError: APNG contains truncated acTL chunk"),
    "bad EXIF": (png(chunk(b"eXIf", b"MM\0*\xff\xff")), "error: unpack requires"),
    "no pixels": (png().replace(png()[33:-12], b""), "OSError: cannot load this image"),
    "no width": (png(width=0), "not an image"),
    "longer than any image": (png(width=101, height=1), "101 x 1 pixels: one side is more than"),
    "wrong checksum": (png()[:-20] + b"\1" + png()[-19:], "damaged or cut in PNG chunk b'IDAT'"),
}


@pytest.mark.parametrize("kind", BAD_PNGS)
def test_bad_png_has_one_reason(kind: str) -> None:
    data, reason = BAD_PNGS[kind]
    with pytest.raises(BadVideoError, match=reason):
        decode_image(data)


def test_every_changed_bit_of_a_png_is_noticed() -> None:
    data = encoded(Image.fromarray(pictures(1)[0]), "PNG")
    image, _ = decode_image(data)
    for at in range(8 * len(data)):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        try:
            same = decode_image(bytes(changed))[0]
        except BadVideoError:
            continue
        np.testing.assert_array_equal(same, image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "MPO"])
def test_image_of_several_pictures_is_its_first_and_flagged(kind: str) -> None:
    first, *rest = [Image.fromarray(picture) for picture in pictures(3)]
    options = {} if kind == "MPO" else {"lossless": True}
    data = encoded(first, kind, save_all=True, append_images=rest, **options)
    image, flags = decode_image(data)
    assert "first of several pictures" in flags
    assert np.abs(image.astype(int) - np.asarray(first)).mean() < 20


def test_smallest_image_is_read() -> None:
    assert decode_image(png(width=1, height=1))[0].tolist() == [[[0, 0, 0]]]


def test_reason_is_text_that_every_store_can_hold() -> None:
    reason = str(BadVideoError("a\udcff.jpg: " + 1000 * "x"))
    assert reason.startswith("a\\udcff.jpg: x")
    assert len(reason) == 500


@pytest.mark.parametrize("error", [MemoryError("8 EiB"), struct.error("x"), OSError(5, "bad disk")])
def test_reason_names_what_a_decoder_raised(error: Exception) -> None:
    text = getattr(error, "strerror", None) or str(error)
    with pytest.raises(BadVideoError, match=f"{type(error).__name__}: {text}"), decoder_errors():
        raise error


def test_stopping_is_no_property_of_a_video() -> None:
    with pytest.raises(KeyboardInterrupt), decoder_errors():
        raise KeyboardInterrupt
