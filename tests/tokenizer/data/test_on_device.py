"""Images that the device holds: the loader's batches, made without a copy in a step."""

from dataclasses import replace

import pytest
import torch
from fake_cuda import FakeCuda, HostWaits
from torch.utils._python_dispatch import TorchDispatchMode

from tokenizer.data import DataConfig, StepBatches, load_images, load_into_memory, training_batches
from tokenizer.data.in_memory import InMemoryImages
from tokenizer.data.on_device import DeviceBatches, drawn_flips
from tokenizer.data.transport import on_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(scope="module", params=[1, 3])
def images(request):
    """Noise in memory, grey or in colour."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (101, request.param, 6, 6), generator=generator, dtype=torch.uint8)
    source = load_images(DataConfig(), "train")
    return InMemoryImages(pixels, torch.arange(101) % 7, [*"abcdefg"], "noise", "train", source, "")


def held(images, run, device=CPU):
    """The batches that a device makes of all its images."""
    return DeviceBatches(images.pixels, images.labels, images.flip, StepBatches(len(images), **run), device)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("share", [{}, {"rank": 0, "world_size": 3}, {"rank": 2, "world_size": 3}])
@pytest.mark.parametrize(("start", "stop"), [(0, 23), (7, 9), (8, 16), (19, 19)])  # of epochs of 8 steps
def test_the_batches_are_those_of_the_loader_to_the_bit(images, flip, share, start, stop):
    images = replace(images, flip=flip)
    run = {"batch_size": 12, "seed": 5, "start_step": start, "stop_step": stop, **share}
    found, expected = held(images, run), training_batches(images, **run)
    assert len(found) == len(expected) == stop - start
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() and ours["images"].dtype == torch.float32
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert ours["images"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("flip", [False, True])
def test_an_epoch_begins_with_one_copy_and_its_steps_make_none(images, flip):
    images, run = replace(images, flip=flip), {"batch_size": 12, "seed": 5, "start_step": 5, "stop_step": 27}
    with FakeCuda() as cuda, Copies() as copies:
        batches = iter(held(images, run, CUDA))
        for step in range(5, 27):
            before = copies.number
            batch = next(batches)
            assert batch["images"].device.type == batch["labels"].device.type == "cuda"
            # The first of all also moves pixels and labels.
            assert copies.number - before == (3 if step == 5 else step % 8 == 0)
        cuda.refuses_copies = True
        with pytest.raises(HostWaits):
            next(iter(held(images, run, CUDA)))


class Copies(TorchDispatchMode):
    """Counts the copies from the CPU to a GPU."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Runs a call."""
        if function is torch.ops.aten._to_copy.default and "device" in kwargs:
            self.number += args[0].device.type == "cpu"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("held_there", [False, True])
def test_a_gpu_divides_as_the_cpu_does(images, held_there):
    """CUDA multiplies by the reciprocal where a number divides, which gives other floats for 111 of the 256 values."""
    run = {"batch_size": 12, "seed": 5, "start_step": 0, "stop_step": 1}
    divisors = []

    class Divisions(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket is torch.ops.aten.div_:
                divisors.append(args[1])
            return function(*args, **(kwargs or {}))

    with FakeCuda(), Divisions():
        if held_there:
            next(iter(held(images, run, CUDA)))
        else:
            on_device({"images": images.pixels}, CUDA)
    assert len(divisors) == 1 and isinstance(divisors[0], torch.Tensor) and divisors[0].device.type == "cuda"


def test_images_travel_as_bytes_and_become_floats_on_the_device():
    """A batch of float32 would be four times as many bytes."""
    config = DataConfig(flip=True)
    encoded = load_images(config, "train")
    run = {"batch_size": 50, "seed": 1, "start_step": 0, "stop_step": 3}
    for dataset in (encoded, load_into_memory(encoded, config)):
        batches = training_batches(dataset, **run)
        assert {batch["images"].dtype for batch in batches.batches} == {torch.uint8}
        assert {batch["images"].dtype for batch in batches} == {torch.float32}


def test_flips_do_not_depend_on_the_shape_of_the_indices():
    indices = torch.randperm(60).view(5, 12)
    assert torch.equal(drawn_flips(3, 2, indices).flatten(), drawn_flips(3, 2, indices.flatten()))
