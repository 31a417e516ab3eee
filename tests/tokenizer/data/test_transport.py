"""The way of a batch to the device: what a thread makes ahead, and what becomes of errors."""

import threading

import pytest
import torch

from tokenizer.data.transport import made_ahead, mirrored_where, on_device


@pytest.mark.parametrize("number", [0, 1, 2, 3, 20])
def test_items_that_are_made_ahead_are_the_same_in_order(number):
    assert list(made_ahead(iter(range(number)), 3)) == list(range(number))


def test_the_next_items_are_made_while_one_is_used_and_no_more():
    made, two_ahead = [], threading.Event()

    def items():
        for number in range(10):
            made.append(number)
            if number == 2:
                two_ahead.set()
            yield number

    batches = made_ahead(items(), 2)
    assert next(batches) == 0
    assert two_ahead.wait(10) and made == [0, 1, 2]
    batches.close()
    assert made == [0, 1, 2]


def test_an_error_comes_where_its_item_would():
    def items():
        yield from range(3)
        raise ValueError("image 3 is broken")

    batches, seen = made_ahead(items(), 2), []
    with pytest.raises(ValueError, match="image 3 is broken"):
        for item in batches:
            seen.append(item)
    assert seen == [0, 1, 2]


def test_only_bytes_are_converted_and_only_marked_images_mirrored():
    pixels = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    flips = torch.tensor([True, False, False, True])
    found = on_device({"images": pixels.clone(), "flips": flips, "labels": torch.arange(4)}, torch.device("cpu"))
    assert found.keys() == {"images", "labels"} and torch.equal(found["labels"], torch.arange(4))
    for image, flip, original in zip(found["images"], flips, pixels, strict=True):
        assert torch.equal(image, (original.flip(-1) if flip else original).float() / 127.5 - 1)
    floats = torch.rand(4, 3, 5, 5)
    assert torch.equal(on_device({"images": floats}, torch.device("cpu"))["images"], floats)
    channels_last = mirrored_where(flips, pixels.permute(0, 2, 3, 1).contiguous(), -2).permute(0, 3, 1, 2)
    assert torch.equal(channels_last, mirrored_where(flips, pixels.clone(), -1))
