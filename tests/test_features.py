import math
import re

import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset

from pipelines import features
from pipelines.features import (
    DigitClassifier,
    class_accuracy,
    digit_classifier,
    register_digit_extractor,
    train_digit_classifier,
)
from pipelines.metrics import generation_metrics, to_uint8
from tokenizer.data import DataConfig, load_images


def digits(split):
    """uint8 (N, 3, 32, 32) and labels int64 (N,)."""
    dataset = load_images(DataConfig(name="digits"), split)
    images = torch.stack([dataset[index]["images"] for index in range(len(dataset))])
    return to_uint8(images).repeat(1, 3, 1, 1), dataset.labels


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="session")
def held_out_digits():
    return digits("test")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "not" / "there" / "yet"


@pytest.fixture(scope="session")
def classifier(cache_dir):
    return digit_classifier(cache_dir)


def equal_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_reads_at_least_98_percent_of_unseen_digits(classifier, held_out_digits):
    images, labels = held_out_digits
    assert class_accuracy(classifier, images, labels) >= 0.98
    assert len(labels) == 360


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 4), (4, 0), (4, 4)])
def test_digits_shifted_by_two_pixels_are_still_read(classifier, held_out_digits, top, left):
    images, labels = held_out_digits
    shifted = torch.nn.functional.pad(images, (2, 2, 2, 2))[:, :, top : top + 32, left : left + 32]
    assert class_accuracy(classifier, shifted, labels) >= 0.95  # 0.98; trained without shifts: 0.78 to 0.87


def test_accuracy_is_the_share_of_labels_that_agree(classifier, held_out_digits):
    images, labels = held_out_digits
    right = class_accuracy(classifier, images, labels)
    wrong = labels.clone()
    wrong[:180] = (wrong[:180] + 1) % 10
    assert class_accuracy(classifier, images, wrong) == pytest.approx(right / 2, abs=0.02)
    assert class_accuracy(classifier, images, (labels + 1) % 10) <= 0.02
    shuffled = labels[torch.randperm(360, generator=torch.Generator().manual_seed(0))]
    assert class_accuracy(classifier, images, shuffled) < 0.25
    noise = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert class_accuracy(classifier, noise, labels) < 0.25


def test_accuracy_of_a_data_set_and_a_list_equals_that_of_the_tensor(classifier, held_out_digits):
    images, labels = held_out_digits
    expected = class_accuracy(classifier, images, labels)
    assert class_accuracy(classifier, Images(images), labels) == expected
    assert class_accuracy(classifier, list(images), labels) == expected


def test_accuracy_refuses_mismatched_labels_and_other_images(classifier, held_out_digits):
    images, labels = held_out_digits
    with pytest.raises(ValueError, match="360 images came with 359 labels"):
        class_accuracy(classifier, images, labels[1:])
    with pytest.raises(ValueError, match="0 images came with 0 labels"):
        class_accuracy(classifier, images[:0], labels[:0])
    for wrong in (images[:, :1], images[:, :, :28, :28], images.float()):
        with pytest.raises(ValueError, match=re.escape(f"{wrong.dtype} {tuple(wrong[:256].shape)}, not uint8")):
            class_accuracy(classifier, wrong, labels)


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


def test_real_digits_score_better_than_noise(classifier, held_out_digits):
    images, _ = held_out_digits
    train = Images(digits("train")[0][:400])
    extractor = register_digit_extractor(classifier)
    real = generation_metrics(Images(images), train, extractor)
    noise = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fake = generation_metrics(Images(noise), train, extractor)
    name = "digits-classifier"
    assert real["extractor"] == name and real["extractor_hash"] == extractor.weights_hash
    assert real[f"frechet_distance[{name}]"] < 0.1 * fake[f"frechet_distance[{name}]"]
    assert real[f"precision[{name}]"] > 0.8 > 0.2 > fake[f"precision[{name}]"]
    assert 8 < real[f"inception_score[{name}]"] <= 10
    assert real[f"inception_score[{name}]"] > 2 * fake[f"inception_score[{name}]"]


def test_the_registered_extractor_gives_the_classifiers_features_and_logits(classifier, held_out_digits):
    images, _ = held_out_digits
    extractor = register_digit_extractor(classifier)
    registered = torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY[extractor.torch_fidelity_name]
    grey = images[:8, :1].float() / 127.5 - 1
    expected, expected_logits = classifier(grey)
    for layers in (["features", "logits"], ["logits", "features"]):
        given = dict(zip(layers, registered("any", layers)(images[:8]), strict=True))
        torch.testing.assert_close(given["features"], expected.double())
        torch.testing.assert_close(given["logits"], expected_logits.double())
    assert expected.shape == (8, 64) and expected_logits.shape == (8, 10)
    with pytest.raises(ValueError, match=r"torch.uint8 \(8, 3, 28, 28\), not uint8 \(B, 3, 32, 32\)"):
        registered("any", ["features"])(images[:8, :, :28, :28])


def test_registering_is_repeatable_and_weights_do_not_get_mixed_up(classifier, held_out_digits):
    images, _ = held_out_digits
    samples, reference = Images(images[:40]), Images(images[40:80])
    key = "frechet_distance[digits-classifier]"

    def distance(extractor):
        return generation_metrics(samples, reference, extractor)[key]

    first = register_digit_extractor(classifier)
    first_distance = distance(first)
    other = DigitClassifier()
    second = register_digit_extractor(other)
    second_distance = distance(second)
    assert second.weights_hash != first.weights_hash
    assert second_distance != first_distance
    assert register_digit_extractor(classifier) == first
    with torch.no_grad():
        other.trunk[-2].weight *= 2.0  # trained further it is another classifier; the registered one stays as it was
    third = register_digit_extractor(other)
    assert third.weights_hash != second.weights_hash
    assert distance(third) != second_distance
    assert distance(second) == second_distance
    assert distance(first) == first_distance


def test_a_classifier_with_nan_weights_is_refused():
    broken = DigitClassifier()
    with torch.no_grad():
        broken.head.bias[3] = math.nan
    with pytest.raises(ValueError, match=r"weight head\.bias of the digit classifier is NaN"):
        register_digit_extractor(broken)
