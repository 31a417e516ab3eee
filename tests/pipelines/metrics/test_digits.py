import math
import re

import pytest
import torch
from images import Images

from pipelines.metrics import digits as features
from pipelines.metrics import generation_metrics, to_uint8
from pipelines.metrics.digits import (
    DigitClassifier,
    DigitExtractor,
    class_accuracy,
    digit_classifier,
    train_digit_classifier,
)
from pipelines.metrics.extractors import ExtractorConfig, make_extractor
from tokenizer.data import DataConfig, load_images


def digits(split):
    """uint8 (N, 3, 32, 32) and labels int64 (N,)."""
    dataset = load_images(DataConfig(name="digits"), split)
    images = torch.stack([dataset[index]["images"] for index in range(len(dataset))])
    return to_uint8(images).repeat(1, 3, 1, 1), dataset.labels


@pytest.fixture(scope="session")
def held_out_digits():
    return digits("test")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "not" / "there" / "yet"


@pytest.fixture(scope="session")
def classifier(cache_dir):
    return digit_classifier(cache_dir)


@pytest.fixture(scope="session")
def extractor(classifier):
    return DigitExtractor(classifier)


def accuracy(extractor, images, labels):
    return class_accuracy(extractor.extract(images)[1], labels)


def equal_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_reads_at_least_98_percent_of_unseen_digits(extractor, held_out_digits):
    images, labels = held_out_digits
    assert accuracy(extractor, images, labels) >= 0.98
    assert len(labels) == 360


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 4), (4, 0), (4, 4)])
def test_digits_shifted_by_two_pixels_are_still_read(extractor, held_out_digits, top, left):
    images, labels = held_out_digits
    shifted = torch.nn.functional.pad(images, (2, 2, 2, 2))[:, :, top : top + 32, left : left + 32]
    assert accuracy(extractor, shifted, labels) >= 0.95  # 0.98; trained without shifts: 0.78 to 0.87


def test_accuracy_is_the_share_of_labels_that_agree(extractor, held_out_digits):
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [-3.0, -1.0, -2.0], [0.0, 5.0, 5.0]])
    for labels, expected in (([0, 2, 1, 1], 1.0), ([0, 2, 1, 0], 0.75), ([1, 0, 2, 0], 0.0)):
        assert class_accuracy(logits, torch.tensor(labels)) == expected
    images, labels = held_out_digits
    shuffled = labels[torch.randperm(360, generator=torch.Generator().manual_seed(0))]
    assert accuracy(extractor, images, shuffled) < 0.25
    noise = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert accuracy(extractor, noise, labels) < 0.25


def test_accuracy_refuses_mismatched_labels_and_nothing():
    logits, labels = torch.zeros(360, 10), torch.zeros(360, dtype=torch.int64)
    with pytest.raises(ValueError, match="360 images came with 359 labels"):
        class_accuracy(logits, labels[1:])
    with pytest.raises(ValueError, match="0 images came with 0 labels"):
        class_accuracy(logits[:0], labels[:0])


def test_training_is_a_function_of_the_seed_and_leaves_the_process_alone():
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = train_digit_classifier(seed=3, steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(2)
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        with torch.no_grad():
            second = train_digit_classifier(seed=3, steps=5)
    finally:
        torch.set_num_threads(threads)
    assert equal_weights(first, second)
    assert not equal_weights(first, train_digit_classifier(seed=4, steps=5))
    assert not any(weight.requires_grad for weight in first.parameters())


def test_the_cached_file_is_read_back_and_nothing_is_trained_again(classifier, cache_dir, monkeypatch):
    monkeypatch.setattr(features, "train_digit_classifier", lambda: pytest.fail("trained again"))
    state = torch.get_rng_state()
    cached = digit_classifier(cache_dir)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal_weights(cached, classifier)
    assert not any(weight.requires_grad for weight in cached.parameters())
    (file,) = cache_dir.iterdir()
    assert re.fullmatch(r"digits-classifier-[0-9a-f]{8}\.safetensors", file.name)


def test_another_recipe_has_another_file(cache_dir, classifier, monkeypatch, tmp_path):
    (old,) = cache_dir.iterdir()
    monkeypatch.setattr(features, "train_digit_classifier", DigitClassifier)
    monkeypatch.setattr(features, "RECIPE", "of the test")
    digit_classifier(tmp_path)
    (new,) = tmp_path.iterdir()
    assert new.name != old.name


def test_an_interrupted_write_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(features, "train_digit_classifier", DigitClassifier)

    def interrupt(state):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features.safetensors.torch, "save", interrupt)
        digit_classifier(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_cached_file_is_one_clear_line(classifier, cache_dir, tmp_path):
    (good,) = cache_dir.iterdir()
    path = tmp_path / good.name
    for content in (b"", good.read_bytes()[:1000], features.safetensors.torch.save({"head.bias": torch.zeros(10)})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no digit classifier .* delete it and it is trained anew") as error:
            digit_classifier(tmp_path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_real_digits_score_better_than_noise(extractor, held_out_digits):
    images, _ = held_out_digits
    train = Images(digits("train")[0][:400])
    real = generation_metrics(Images(images), train, extractor)
    noise = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fake = generation_metrics(Images(noise), train, extractor)
    name = "digits-classifier"
    assert real[f"frechet_distance[{name}]"] < 0.1 * fake[f"frechet_distance[{name}]"]
    assert real[f"precision[{name}]"] > 0.8 > 0.2 > fake[f"precision[{name}]"]
    assert 8 < real[f"inception_score[{name}]"] <= 10
    assert real[f"inception_score[{name}]"] > 2 * fake[f"inception_score[{name}]"]


def test_the_extractor_gives_the_classifiers_features_and_logits(classifier, extractor, held_out_digits):
    images, _ = held_out_digits
    expected, expected_logits = classifier(images[:8, :1].float() / 127.5 - 1)
    for given in (images[:8], images[:8, :1]):
        found, logits = extractor.extract(given)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(logits, expected_logits)
    assert expected.shape == (8, 64) and expected_logits.shape == (8, 10)
    coloured = torch.stack([images[:8, 0], 0 * images[:8, 0], 0 * images[:8, 0]], dim=1)
    assert torch.equal(extractor.extract(coloured)[0], classifier(images[:8, :1].float() / 3 / 127.5 - 1)[0])


def test_the_extractor_takes_images_of_32_pixels_or_a_resize_to_them(classifier, extractor, held_out_digits):
    images, _ = held_out_digits
    for wrong, size in ((images[:8, :, :28, :28], "28x28"), (images[:8].repeat(1, 1, 2, 1), "64x32")):
        with pytest.raises(ValueError, match=f"reads images of 32 pixels, not of {size}; .*--resize 32"):
            extractor.extract(wrong)
    resizing = DigitExtractor(classifier, resize=32)
    assert resizing.name == "digits-classifier-32px"
    resizing.check_size(28, 28)
    torch.testing.assert_close(resizing.extract(images[:8])[0], extractor.extract(images[:8])[0])
    large = images[:8].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert accuracy(resizing, large, held_out_digits[1][:8]) == 1.0
    with pytest.raises(ValueError, match="not of 64 pixels"):
        DigitExtractor(classifier, resize=64).check_size(64, 64)


def test_the_extractor_is_made_by_its_name_from_the_cached_file(extractor, cache_dir, held_out_digits, monkeypatch):
    monkeypatch.setattr(features, "train_digit_classifier", lambda: pytest.fail("trained again"))
    made = make_extractor("digits-classifier", ExtractorConfig(cache_dir=cache_dir))
    assert made.name == extractor.name == "digits-classifier" and not made.is_fid
    assert made.sha256 == extractor.sha256 and len(made.sha256) == 64
    assert {weight.dtype for weight in made.parameters()} == {torch.float64}
    images, labels = held_out_digits
    torch.testing.assert_close(made.extract(images[:8])[0], extractor.extract(images[:8])[0], rtol=1e-4, atol=1e-4)
    assert accuracy(made, images, labels) == accuracy(extractor, images, labels)
    resizing = make_extractor("digits-classifier", ExtractorConfig(cache_dir=cache_dir, resize=32, double=False))
    assert resizing.name == "digits-classifier-32px"
    assert {weight.dtype for weight in resizing.parameters()} == {torch.float32}


def test_an_extractor_keeps_its_weights_and_the_hash_is_theirs(classifier, extractor, held_out_digits):
    images, _ = held_out_digits
    other = DigitClassifier()
    second = DigitExtractor(other)
    before, _ = second.extract(images[:8])
    assert DigitExtractor(classifier).sha256 == extractor.sha256 != second.sha256
    with torch.no_grad():
        other.trunk[-2].weight *= 2.0  # trained further it is another classifier; the extractor stays as it was
    third = DigitExtractor(other)
    assert third.sha256 != second.sha256
    assert not torch.equal(third.extract(images[:8])[0], before)
    assert torch.equal(second.extract(images[:8])[0], before)
    second.double()
    assert {weight.dtype for weight in other.parameters()} == {torch.float32}


def test_a_classifier_with_nan_weights_is_refused():
    broken = DigitClassifier()
    with torch.no_grad():
        broken.head.bias[3] = math.nan
    with pytest.raises(ValueError, match=r"weight head\.bias of the digit classifier is NaN"):
        DigitExtractor(broken)
