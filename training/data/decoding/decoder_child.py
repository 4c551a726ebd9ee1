"""The program that decodes untrusted pictures, one after the other. `training.data.decoding.decoder` starts it.

It decodes a few pictures of its own to load all libraries, gives up files, network and memory, reports that it is
ready, and then serves requests until its input ends: that happens when the worker ends, for whatever reason. It does
not use a parent-death signal, because that is sent when the *thread* that started the process ends.
"""

import base64
import io
import os
import socket
import sys
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image, ImageCms

from core.errors import ImageInvalid
from training.data.decoding import decoder_protocol
from training.data.decoding.confinement import confine, limit_time
from training.data.pictures import FORMATS, PictureReport, prepare

# A HEIC picture of 64 x 64 pixels to load the codec with: the plugin cannot write one.
_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9j"
    "AAAAAERAAAEAAQAAAAABegABAAAAAAAAAC4AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlw"
    "cnAAAAC3aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AA"
    "AAMAkAAAAwAAAwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAA"
    "AABAAAAAQAAAABBwaXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAADZtZGF0AAAAKigBrxmA9wMrHglCzZKYugqSJzw5A7lb"
    "+OAdgcnWW8hR9SrgGhBcShJAsA=="
)


def main(max_pixels: int, max_bytes: int, memory_bytes: int, cpu_s: float, wall_s: float) -> None:
    """Serve requests on standard input, a socket, until it ends."""
    channel = socket.socket(fileno=os.dup(0))
    warnings.simplefilter("ignore")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # threads count as processes, and each takes memory
    _warm_up()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # from here on, library output may quote the file
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    decoder_protocol.send_frame(channel, {"held": confine(memory_bytes)})
    while True:
        try:
            asked, data = decoder_protocol.receive_frame(channel, max_bytes)
        except decoder_protocol.ProtocolError:
            return
        limit_time(cpu_s, wall_s)
        if known := asked.get("known"):
            asked["known"] = PictureReport(**known)
        try:
            made = prepare(bytes(data), max_pixels=max_pixels, max_bytes=max_bytes, **asked)
        except ImageInvalid as error:
            reply: dict[str, Any] = {"error": error.message}
            body = b""
        except MemoryError:
            reply, body = {"memory": True}, b""
        else:
            reply = {"width": made.width, "height": made.height, "report": asdict(made.report)}
            body = made.png
        limit_time(0, 0)
        try:
            decoder_protocol.send_frame(channel, reply, body)
        except decoder_protocol.ProtocolError:
            return
        del data, body


def _warm_up() -> None:
    """Use every codec once, so that nothing has to be imported after files are gone."""
    Image.init()
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Image.effect_noise((64, 96), 60).convert("RGB")
    for format_ in FORMATS:
        data = _HEIC if format_ == "HEIF" else _encoded(picture, format_, exif=exif, icc_profile=profile)
        prepare(data, resolution=64, aspect_buckets=True)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        prepare(_encoded(picture, "TIFF", compression=compression), resolution=64)
    prepare(_encoded(picture.convert("CMYK"), "JPEG"), resolution=64)
    prepare(_encoded(picture, "MPO", save_all=True, append_images=[picture]), resolution=64)
    prepare(_encoded(picture.convert("P"), "PNG", transparency=1), resolution=64, masked=True)
    prepare(_encoded(Image.fromarray(np.zeros((64, 64), np.uint16)), "PNG"), resolution=64)
    try:
        prepare(b"no picture", resolution=64)
    except ImageInvalid:
        sys.stderr.flush()


def _encoded(picture: Image.Image, format_: str, **options: object) -> bytes:
    out = io.BytesIO()
    fast = {"max_threads": 1, "speed": 10} if format_ == "AVIF" else {}
    picture.save(out, format_, **fast, **options)
    return out.getvalue()
