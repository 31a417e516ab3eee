"""Recognise weight files by their first bytes; name the web page, pointer or archive that was saved instead."""

import re
from typing import Literal

# Bytes of a file that `not_weights` reads.
HEAD = 1024

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
_NOT_TEXT = frozenset(range(32)) - frozenset(b"\t\n\f\r\x1b")


def not_weights(head: bytes, size: int) -> str | None:
    """Describe for an error message what a file is instead of weights, with the remedy; None if it may be weights.

    Args:
        head: the first HEAD bytes of the file.
        size: size of the file in bytes.
    """
    if size == 0:
        return "it is empty; get it anew"
    if size < 8:
        return f"it has {size} bytes alone; get it anew"
    if not any(head):
        return "it begins with zeros, as a download that was not completed; get it anew"
    if head.startswith(_LFS_POINTER):
        stands_for = re.search(rb"^size (\d{1,20})$", head, re.MULTILINE)
        number = f" of {int(stands_for[1]):,} bytes" if stands_for else ""
        return f"it is a git-LFS pointer in the place of the file{number}; get it anew with: git lfs pull"
    if _PAGE.match(head):
        return "it is an HTML page, as sites send one for a login or a consent; get it anew, the file itself"
    if head[257:262] == b"ustar":
        return "it is a tar archive; unpack it, and name the file in it"
    for magic, kind in _ARCHIVES.items():
        if head.startswith(magic):
            return f"it is a {kind} archive; unpack it, and name the file in it"
    if not _NOT_TEXT.intersection(head):
        words = " ".join(head[:60].decode("utf-8", "replace").split())
        return f"it is a text, which begins with {words!r}; get it anew, the file itself"
    return None


def format_of(head: bytes) -> Literal["safetensors", "zip", "pickle"] | None:
    """Return the container format that the first bytes indicate (zip and pickle: torch.save's); None for others."""
    # safetensors: the header's length in eight bytes (below 2^32 in practice), then the header in JSON.
    if head[4:9] == b"\x00\x00\x00\x00{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    return "pickle" if head.startswith(b"\x80") else None
