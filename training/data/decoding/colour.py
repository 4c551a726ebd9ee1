"""The colours of a decoded picture: any mode and profile to sRGB, without transparency."""

import io
import struct
import zlib
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms

# What Pillow raises on damaged or malicious files. It has no common base class for errors.
DECODE_FAULTS = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError,
    RuntimeError, struct.error, zlib.error, ImageCms.PyCMSError, Image.DecompressionBombError,
)  # fmt: skip


def resizable(image: Image.Image) -> Image.Image:
    """`image` in a mode that can be resized correctly: L, RGB, RGBA or CMYK."""
    if image.mode.startswith("I"):
        # 16 bits. Pillow's own conversion clips all values above 255.
        levels = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        # Floating point: 0 to 1, unless a value is larger.
        values = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
        return Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).astype(np.uint8))
    if image.mode == "LAB":
        return _lab().apply(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


@cache
def _lab() -> ImageCms.ImageCmsTransform:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(*profiles, "LAB", "RGB")


def flatten(small: Image.Image, image: Image.Image, background: str, notes: list[str]) -> Image.Image:
    """`small`, a resized `image`, as sRGB over `background`, without metadata.

    Colours are converted after resizing: that is much less work, and the difference is below one level.
    """
    colours = small.convert("RGB") if small.mode == "RGBA" else small
    rgb = _to_srgb(colours, None if image.mode == "LAB" else image.info.get("icc_profile"), notes)
    if small.mode == "RGBA":
        rgb.putalpha(small.getchannel("A"))
        rgb = over(background, rgb)
    rgb.info = {}
    return rgb


def over(background: str, image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    below = Image.new("RGB", image.size, background)
    below.paste(image, mask=image.getchannel("A"))
    return below


def _to_srgb(colours: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Convert L, RGB or CMYK to sRGB. A broken or unsuitable profile is ignored and noted."""
    if profile:
        try:
            transform = _transform(profile, colours.mode)
            if transform is not None:
                return transform.apply(colours)
            notes.append("ignored a colour profile for another colour mode")
        except DECODE_FAULTS:
            notes.append("ignored a broken colour profile")
    elif colours.mode == "CMYK":
        notes.append("CMYK without a colour profile: colours are approximate")
    return colours.convert("RGB")


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from `profile` to sRGB; None if the profile is for another mode. Cached: cameras repeat profiles.

    Transforms are thread-safe: lcms2 works on a copy of its one-pixel cache.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != {"L": "GRAY"}.get(mode, mode):
        return None
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
