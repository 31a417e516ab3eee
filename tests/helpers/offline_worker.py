"""Runs Python from its input where no connection can be made, and saves the `images` that it leaves, if any."""

import os
import socket
import sys

os.environ["HF_HUB_OFFLINE"] = "1"


def _refuse(*args, **kwargs):
    raise AssertionError("a model's folder needs no network")


socket.socket.connect = socket.create_connection = _refuse
names: dict = {}
exec(compile(sys.stdin.read(), "README.md", "exec"), names)
os.makedirs("out", exist_ok=True)  # noqa: PTH103
for index, image in enumerate(names.get("images", ())):
    image.save(f"out/{index}.png")
