import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torch_fidelity.sample_similarity_lpips as peer
import torchvision
from lpips_stand_in import CHANNELS, StandIn, drawn_features, sha256
from scipy.ndimage import gaussian_filter

from tokenizer.losses import lpips as perceptual
from tokenizer.losses.lpips import LPIPS, RandomWeights, WeightFiles

SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}
nets = pytest.mark.parametrize("net", CHANNELS)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    return {net: StandIn(net, tmp_path_factory.mktemp("weights")) for net in CHANNELS}


@pytest.fixture(scope="module")
def networks(stand_ins):
    return {net: LPIPS(net, stand_in.files).double() for net, stand_in in stand_ins.items()}


def pictures(n, size, channels=3, seed=0):
    return 2 * torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)).double() - 1


def layers_read(net, weights, values):
    """The values after each depth at which LPIPS reads, by the functions of the network."""

    def convolved(name, values, **options):
        return F.relu(F.conv2d(values, weights[f"{name}.weight"], weights[f"{name}.bias"], **options))

    def fire(name, values):
        squeezed = convolved(f"{name}.squeeze", values)
        sides = convolved(f"{name}.expand1x1", squeezed), convolved(f"{name}.expand3x3", squeezed, padding=1)
        return torch.cat(sides, dim=1)

    read = []
    if net == "alex":
        read.append(convolved("features.0", values, stride=4, padding=2))
        read.append(convolved("features.3", F.max_pool2d(read[-1], 3, 2), padding=2))
        read.append(convolved("features.6", F.max_pool2d(read[-1], 3, 2), padding=1))
        read.append(convolved("features.8", read[-1], padding=1))
        read.append(convolved("features.10", read[-1], padding=1))
    elif net == "vgg":
        for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            values = F.max_pool2d(read[-1], 2, 2) if read else values
            for layer in block:
                values = convolved(f"features.{layer}", values, padding=1)
            read.append(values)
    else:
        read.append(convolved("features.0", values, stride=2))
        for pooled, blocks in ((True, (3, 4)), (True, (6, 7)), (True, (9,)), (False, (10,)), (False, (11,))):
            values = F.max_pool2d(read[-1], 3, 2, ceil_mode=True) if pooled else read[-1]
            for block in blocks:
                values = fire(f"features.{block}", values)
            read.append(values)
        read[3:] = [fire("features.9", F.max_pool2d(read[2], 3, 2, ceil_mode=True))]
        for block in (10, 11, 12):
            read.append(fire(f"features.{block}", read[-1]))
    return read


def direct(net, stand_in, images, reconstructions):
    weights = {name: value.double() for name, value in stand_in.features.items()}
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(1, 3, 1, 1)
    sides = [layers_read(net, weights, (side - shift) / scale) for side in (images, reconstructions)]
    total = torch.zeros(len(images), dtype=torch.float64)
    for depth, (a, b) in enumerate(zip(*sides, strict=True)):
        a, b = (side / (torch.linalg.vector_norm(side, dim=1, keepdim=True) + 1e-10) for side in (a, b))
        head = stand_in.heads[f"lin{depth}.model.1.weight"].double()
        total += F.conv2d((a - b) ** 2, head).mean(dim=(1, 2, 3))
    return total


@nets
def test_lpips_is_the_weighted_difference_of_normalised_features(net, stand_ins, networks):
    images, reconstructions = pictures(2, 40), pictures(2, 40, seed=1)
    expected = direct(net, stand_ins[net], images, reconstructions)
    assert expected.min() > 0.1
    # The constants of the normalisation are float32 in the module.
    found = networks[net](images, reconstructions)
    assert found.shape == (2,) and found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_lpips_of_vgg_is_torch_fidelitys(stand_ins, monkeypatch):
    with torch.device("meta"):
        features = torchvision.models.vgg16(weights=None).features
    features.load_state_dict(
        {name.removeprefix("features."): value for name, value in stand_ins["vgg"].features.items()}, assign=True
    )

    class Loads(peer.SampleSimilarityLPIPS):
        def load_state_dict(self, state_dict):
            """The heads alone, before there is a network."""
            return super().load_state_dict(state_dict, strict=True)

    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *args, **kwargs: stand_ins["vgg"].heads)
    monkeypatch.setattr(peer, "torchvision_load_pretrained_vgg16", lambda: types.SimpleNamespace(features=features))
    theirs = Loads("lpips-vgg16")
    generator = torch.Generator().manual_seed(0)
    images, reconstructions = torch.randint(256, (2, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    expected = theirs(images, reconstructions)
    ours = LPIPS("vgg", stand_ins["vgg"].files)
    found = ours(images.float() / 127.5 - 1, reconstructions.float() / 127.5 - 1)
    assert expected.shape == (3,) and expected.min() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@nets
def test_lpips_is_zero_for_equal_images_and_symmetric(net, networks):
    images, reconstructions = pictures(2, 33), pictures(2, 33, seed=1)
    assert networks[net](images, images).tolist() == [0.0, 0.0]
    forth, back = networks[net](images, reconstructions), networks[net](reconstructions, images)
    assert (forth > 0.01).all()
    torch.testing.assert_close(forth, back, rtol=1e-12, atol=0)


@nets
def test_a_pair_does_not_see_the_others_of_its_batch(net, networks):
    images, reconstructions = pictures(3, 33), pictures(3, 33, seed=1)
    alone = torch.cat([networks[net](a[None], b[None]) for a, b in zip(images, reconstructions, strict=True)])
    torch.testing.assert_close(networks[net](images, reconstructions), alone, rtol=1e-12, atol=0)


@nets
def test_the_gradient_is_that_of_the_values(net, networks):
    images, reconstructions = pictures(1, 33), pictures(1, 33, seed=1).requires_grad_()
    direction = pictures(1, 33, seed=2)
    networks[net](images, reconstructions).sum().backward()
    slope = (reconstructions.grad * direction).sum().item()
    step = 1e-6
    ends = [networks[net](images, reconstructions.detach() + sign * step * direction).item() for sign in (1, -1)]
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)
    assert not any(weight.requires_grad for weight in networks[net].parameters())


def test_in_training_the_gradient_goes_to_the_reconstructions_alone(networks):
    """The originals' features keep no graph, which would take as much memory again, nor do the weights."""
    network = networks["squeeze"]
    images, reconstructions = pictures(1, 33), pictures(1, 33, seed=1).requires_grad_()
    assert not any(features.requires_grad for features in network._unit_features(images))
    assert all(features.requires_grad for features in network._unit_features(reconstructions))
    network(images, reconstructions).sum().backward()
    assert reconstructions.grad.abs().max() > 0
    assert all(tensor.grad is None for tensor in (images, *network.parameters(), *network.buffers()))


@nets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_equal_images_and_where_all_channels_are_zero(net, stand_ins, tmp_path, dtype):
    live = stand_ins[net]
    # Nothing of the first layer is above 0: features of length 0.
    dead = {name: value.clone() for name, value in live.features.items()}
    dead["features.0.bias"] -= 1e3
    for stand_in in (live, StandIn(net, tmp_path, dead, live.heads)):
        network = LPIPS(net, stand_in.files).to(dtype)
        for other in (0, 1):
            images = pictures(1, 33).to(dtype)
            reconstructions = pictures(1, 33, seed=other).to(dtype).requires_grad_()
            distance = network(images, reconstructions)
            distance.sum().backward()
            assert distance.isfinite().all() and reconstructions.grad.isfinite().all()
            if stand_in is live:
                assert bool((reconstructions.grad != 0).any()) is (other == 1)


@nets
def test_more_blur_is_farther(net, networks):
    images = pictures(2, 33)
    blurred = [
        torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, sigma, sigma))) for sigma in (0.3, 0.5, 0.8, 1.5)
    ]
    values = torch.stack([networks[net](images, other) for other in blurred])
    assert (values[0] > 0).all() and (values.diff(dim=0) > 0).all()


@nets
def test_grey_images_are_three_equal_channels(net, networks):
    images, reconstructions = pictures(2, 33, channels=1), pictures(2, 33, channels=1, seed=1)
    colour = [side.repeat(1, 3, 1, 1) for side in (images, reconstructions)]
    assert torch.equal(networks[net](images, reconstructions), networks[net](*colour))


@nets
def test_the_smallest_image_is_taken_and_a_smaller_one_refused(net, networks):
    smallest = networks[net].smallest
    assert smallest == SMALLEST[net]
    assert networks[net](pictures(1, smallest), pictures(1, smallest, seed=1)).item() > 0
    small = pictures(1, smallest)[..., 1:]
    with pytest.raises(ValueError, match=rf"images of {smallest}x{smallest - 1} are too small for lpips-{net}"):
        networks[net](small, small)


def test_batches_that_do_not_match_are_refused(networks):
    images = pictures(2, 33)
    for a, b in ((images, images[:1]), (images, images[:, :1]), (images[0], images[0]), (images[:, :2],) * 2):
        with pytest.raises(ValueError, match="not two batches"):
            networks["squeeze"](a, b)


@nets
def test_only_the_published_weights_give_lpips_its_plain_name(net, stand_ins, monkeypatch):
    stand_in, backbone = stand_ins[net], perceptual._BACKBONES[net]
    short = stand_in.hash[:8]
    network = LPIPS(net, stand_in.files)
    assert network.name == f"lpips-{net}-{short}-{short}"
    assert network.hashes == {backbone.file.title: stand_in.hash, backbone.heads.title: stand_in.hash}
    published = {kind: replace(getattr(backbone, kind), sha256=(stand_in.hash,)) for kind in ("file", "heads")}
    for kind in published:  # one of the two is not enough
        monkeypatch.setitem(perceptual._BACKBONES, net, replace(backbone, **{kind: published[kind]}))
        assert LPIPS(net, stand_in.files).name == f"lpips-{net}-{short}-{short}"
    monkeypatch.setitem(perceptual._BACKBONES, net, replace(backbone, **published))
    assert LPIPS(net, replace(stand_in.files, accept_sha256=None)).name == f"lpips-{net}"


def test_heads_are_read_from_the_file_of_one_network_and_from_that_of_all(stand_ins, tmp_path, monkeypatch):
    stand_in, backbone = stand_ins["squeeze"], perceptual._BACKBONES["squeeze"]
    own = tmp_path / "squeeze.pth"
    torch.save(stand_in.heads, own)
    heads = replace(backbone.heads, sha256=(sha256(own),))
    monkeypatch.setitem(perceptual._BACKBONES, "squeeze", replace(backbone, heads=heads))
    network = LPIPS("squeeze", replace(stand_in.files, lpips=str(own)))
    assert network.name == f"lpips-squeeze-{stand_in.hash[:8]}-{sha256(own)[:8]}"
    images, reconstructions = pictures(1, 33).float(), pictures(1, 33, seed=1).float()
    assert torch.equal(network(images, reconstructions), LPIPS("squeeze", stand_in.files)(images, reconstructions))


def test_weights_of_another_network_are_refused(stand_ins, tmp_path):
    live = stand_ins["squeeze"]
    for changed in ({"lin3.model.1.weight": None}, {"lin3.model.1.weight": torch.ones(1, 383, 1, 1)}):
        heads = {name: value for name, value in (live.heads | changed).items() if value is not None}
        with pytest.raises(ValueError, match=r"LPIPS squeeze head weights have no lin3\.model\.1\.weight"):
            LPIPS("squeeze", StandIn("squeeze", tmp_path, live.features, heads).files)
    features = {name: value for name, value in live.features.items() if name != "features.4.squeeze.bias"}
    with pytest.raises(ValueError, match=r"SqueezeNet weights have no features\.4\.squeeze\.bias of \(16,\)"):
        LPIPS("squeeze", StandIn("squeeze", tmp_path, features, live.heads).files)
    with pytest.raises(ValueError, match="LPIPS has no network 'resnet'; take one of alex, vgg, squeeze"):
        LPIPS("resnet")


def test_every_file_has_an_option_under_which_it_is_named():
    options = {file.option for net in perceptual._BACKBONES.values() for file in (net.file, net.heads)}
    assert options == {f"weights.{name}" for name in ("alexnet", "vgg16", "squeezenet", "lpips")}
    assert all(hasattr(WeightFiles(), option.removeprefix("weights.")) for option in options)


@nets
def test_random_weights_have_the_sizes_of_published_ones_and_a_name_of_their_own(net):
    network = LPIPS(net, RandomWeights())
    assert network.name == f"lpips-{net}-random-random"
    features = {f"features.{name}": value.shape for name, value in network.features.state_dict().items()}
    assert features.items() <= {name: value.shape for name, value in drawn_features(net).items()}.items()
    images = pictures(2, 33).float()
    distance = network(images, images.flip(0))
    assert distance.isfinite().all() and (distance > 1e-3).all()
    with pytest.raises(ValueError, match="no random weights of Inception"):
        RandomWeights().read(replace(perceptual.VGG16, title="Inception"))
