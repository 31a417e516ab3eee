import math

import numpy as np
import pytest
import torch
from places import GOLDEN

from tokenizer.angular_margin import arc_loss, arc_weight, ball_radius, project_to_ball
from tokenizer.functional.vectors import unit_vectors

ARC_FILES = sorted(GOLDEN.glob("arc_loss_*.npz"))
BALL_FILES = sorted(GOLDEN.glob("ball_clip_*.npz"))


def golden_arc(file, dtype=torch.float64):
    golden = np.load(file)
    latents = torch.tensor(golden["z"], dtype=dtype, requires_grad=True)
    codebook = torch.tensor(golden["codebook"], dtype=dtype)
    loss = arc_loss(latents, codebook, golden["scale"].item(), golden["margin"].item(), golden["top_k"].item())
    loss.backward()
    return loss, latents.grad, golden


def loss_and_gradient(latents, codebook, **options):
    latents = latents.detach().clone().requires_grad_()
    loss = arc_loss(latents, codebook, **options)
    loss.backward()
    return loss.detach(), latents.grad


def relative_error(found, expected):
    expected = torch.as_tensor(expected)
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def random_pair(tokens=40, codes=12, dim=6, dtype=torch.float64):
    return torch.randn(tokens, dim, dtype=dtype), torch.randn(codes, dim, dtype=dtype)


def test_the_golden_files_are_there():
    assert (len(ARC_FILES), len(BALL_FILES)) == (10, 4)


@pytest.mark.parametrize("file", ARC_FILES, ids=lambda file: file.stem)
def test_arc_loss_equals_the_golden_loss_and_gradient_in_float64(file):
    loss, gradient, golden = golden_arc(file)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-9)
    assert relative_error(gradient, golden["grad_z"]) < 1e-9


@pytest.mark.parametrize("file", ARC_FILES, ids=lambda file: file.stem)
def test_arc_loss_keeps_its_gradient_in_float32(file):
    loss, gradient, golden = golden_arc(file, torch.float32)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-5)
    assert relative_error(gradient, golden["grad_z"]) < 1e-4


def test_float32_gradient_of_a_positive_survives_angles_of_a_ten_thousandth():
    # acos of a float32 cosine cannot tell 1e-4 from 0. One positive, one negative at a right angle.
    code = torch.tensor([[1.0, 0.0]])
    latents = torch.tensor([[1.0, 1e-4], [0.0, 1.0]])
    _, found = loss_and_gradient(latents, code, top_k=1)
    _, exact = loss_and_gradient(latents.double(), code.double(), top_k=1)
    assert exact[0].norm() > 1e-6
    assert relative_error(found[0], exact[0]) < 1e-4


def test_arc_loss_equals_the_equation_token_by_token():
    latents, codebook = random_pair(tokens=9, codes=4, dim=3)
    scale, margin, top_k = 7.0, 0.3, 2
    terms = []
    for code in codebook:
        cosines = [torch.dot(code, z).item() / (code.norm() * z.norm()).item() for z in latents]
        positives = sorted(range(9), key=lambda j: -cosines[j])[:top_k]
        inside = sum(math.exp(scale * math.cos(math.acos(cosines[j]) + margin)) for j in positives)
        outside = sum(math.exp(scale * cosines[j]) for j in range(9) if j not in positives)
        terms.append(-math.log(inside / (inside + outside)))
    assert arc_loss(latents, codebook, scale, margin, top_k).item() == pytest.approx(np.mean(terms), rel=1e-12)


def test_defaults_are_the_papers():
    latents, codebook = random_pair()
    assert arc_loss(latents, codebook) == arc_loss(latents, codebook, scale=10.0, margin=0.1, top_k=3)


def test_lengths_of_latents_and_codes_do_not_matter():
    latents, codebook = random_pair()
    loss, gradient = loss_and_gradient(latents, codebook)
    lengths = torch.rand(40, 1, dtype=torch.float64) * 10 + 0.1
    scaled_loss, scaled_gradient = loss_and_gradient(latents * lengths, codebook * lengths[:12] ** 2)
    torch.testing.assert_close(scaled_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled_gradient * lengths, gradient, rtol=1e-9, atol=1e-12)
    # A loss of directions alone has no gradient along the latent.
    assert (gradient * latents).sum(dim=1).abs().max() < 1e-12


def test_permuted_tokens_and_codes_permute_the_gradient():
    latents, codebook = random_pair()
    loss, gradient = loss_and_gradient(latents, codebook)
    order = torch.randperm(40)
    permuted_loss, permuted_gradient = loss_and_gradient(latents[order], codebook[torch.randperm(12)])
    torch.testing.assert_close(permuted_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-9, atol=1e-13)


def test_a_common_rotation_rotates_the_gradient():
    latents, codebook = random_pair()
    loss, gradient = loss_and_gradient(latents, codebook)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    rotated_loss, rotated_gradient = loss_and_gradient(latents @ rotation, codebook @ rotation)
    torch.testing.assert_close(rotated_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(rotated_gradient, gradient @ rotation, rtol=1e-9, atol=1e-13)


def test_a_step_against_the_gradient_brings_the_closest_latents_closer_to_the_codes():
    latents, codebook = random_pair()
    loss, gradient = loss_and_gradient(latents, codebook)
    moved = latents - 0.1 * gradient
    assert arc_loss(moved, codebook) < loss
    nearest = [(unit_vectors(codebook) @ unit_vectors(z).T).topk(3).values.sum() for z in (latents, moved)]
    assert nearest[1] > nearest[0]


def test_a_larger_margin_costs_more():
    latents, codebook = random_pair()
    losses = [arc_loss(latents, codebook, margin=margin).item() for margin in (0.0, 0.1, 0.3, 0.6)]
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_top_k_of_all_tokens_or_more_has_no_negatives():
    latents, codebook = random_pair(tokens=5)
    for top_k in (5, 6, 1000):
        loss, gradient = loss_and_gradient(latents, codebook, top_k=top_k)
        assert loss == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert arc_loss(latents, codebook, top_k=4) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_k", [1, 3, 8])
@pytest.mark.parametrize("case", ["exact hit", "opposite", "zero latents", "zero codes", "all equal", "huge", "tiny"])
def test_degenerate_vectors_give_a_finite_loss_and_gradient(case, top_k, dtype):
    latents, codebook = random_pair(tokens=8, codes=4, dtype=dtype)
    if case == "exact hit":
        latents[:4] = codebook * 2
    elif case == "opposite":
        latents[:] = -codebook[0]
    elif case == "zero latents":
        latents[::2] = 0
    elif case == "zero codes":
        codebook[0] = 0
    elif case == "all equal":
        latents[:] = codebook[0]
    else:
        latents *= 1e35 if case == "huge" else 1e-35
    loss, gradient = loss_and_gradient(latents, codebook, top_k=top_k)
    assert loss >= 0 and loss.isfinite() and gradient.isfinite().all()


def test_loss_of_an_exact_hit_and_of_an_opposite_latent():
    code = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    latents = torch.tensor([[3.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    # Angle 0 is the positive, angle pi the negative.
    expected = math.log1p(math.exp(10 * math.cos(math.pi) - 10 * math.cos(0.1)))
    assert arc_loss(latents, code, top_k=1).item() == pytest.approx(expected, rel=1e-12)
    # Only opposite latents: the positive's angle is pi + m.
    expected = math.log1p(math.exp(10 * math.cos(math.pi) - 10 * math.cos(math.pi + 0.1)))
    assert arc_loss(latents[[1, 1]], code, top_k=1).item() == pytest.approx(expected, rel=1e-12)


def test_zero_latents_count_as_right_angles():
    code = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    latents = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    expected = math.log1p(math.exp(0 - 10 * math.cos(0.1)))
    assert arc_loss(latents, code, top_k=1).item() == pytest.approx(expected, rel=1e-12)


def test_half_precision_is_computed_in_float32():
    latents, codebook = random_pair(dtype=torch.bfloat16)
    loss, gradient = loss_and_gradient(latents, codebook)
    expected_loss, expected_gradient = loss_and_gradient(latents.float(), codebook.float())
    assert loss.dtype == torch.float32 and loss == expected_loss
    assert gradient.dtype == torch.bfloat16 and torch.equal(gradient, expected_gradient.bfloat16())


def test_autocast_changes_nothing():
    latents, codebook = random_pair(dtype=torch.float32)
    expected_loss, expected_gradient = loss_and_gradient(latents, codebook)
    latents.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = arc_loss(latents, codebook)
        loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected_loss) and torch.equal(latents.grad, expected_gradient)


@pytest.mark.parametrize("margin", [0.0, 0.1, 1.5])
def test_gradient_equals_finite_differences(margin):
    latents, codebook = random_pair(tokens=7, codes=3, dim=4)
    latents.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: arc_loss(z, codebook, margin=margin, top_k=2), [latents])


def test_the_codebook_gets_no_gradient():
    latents, codebook = random_pair()
    codebook.requires_grad_()
    latents.requires_grad_()
    arc_loss(latents, codebook).backward()
    assert codebook.grad is None and latents.grad.norm() > 0


@pytest.mark.parametrize(
    ("latents", "codebook", "options", "message"),
    [
        ((0, 4), (3, 4), {}, "at least one latent"),
        ((5, 4), (3, 5), {}, r"\(5, 4\) and \(3, 5\)"),
        ((5, 4, 1), (3, 4), {}, r"\(N, D\)"),
        ((5, 4), (4,), {}, r"\(K, D\)"),
        ((5, 0), (3, 0), {}, "of one dimension"),
        ((5, 4), (0, 4), {}, "at least one code"),
        ((5, 4), (3, 4), {"scale": 0.0}, "scale > 0"),
        ((5, 4), (3, 4), {"scale": math.inf}, "finite scale"),
        ((5, 4), (3, 4), {"scale": math.nan}, "scale > 0"),
        ((5, 4), (3, 4), {"margin": -0.1}, "margin between 0 and pi"),
        ((5, 4), (3, 4), {"margin": 3.2}, "margin between 0 and pi"),
        ((5, 4), (3, 4), {"top_k": 0}, "top_k >= 1"),
    ],
)
def test_arc_loss_refuses(latents, codebook, options, message):
    with pytest.raises(ValueError, match=message):
        arc_loss(torch.ones(latents), torch.ones(codebook), **options)


@pytest.mark.parametrize("file", BALL_FILES, ids=lambda file: file.stem)
def test_project_to_ball_equals_the_golden_table(file):
    golden = np.load(file)
    radius = ball_radius(torch.tensor(golden["step"].item()), golden["alpha"].item())
    clipped = project_to_ball(torch.from_numpy(golden["codebook"]), radius)
    np.testing.assert_allclose(clipped.numpy(), golden["clipped"], rtol=1e-12, atol=0)


def test_project_to_ball_leaves_what_is_inside_and_draws_the_rest_to_the_surface():
    codebook = torch.randn(200, 6) * torch.rand(200, 1) * 2
    codebook[:3] = 0
    radius = 1.5
    outside = codebook.norm(dim=1) > radius
    assert 20 < outside.sum() < 180
    projected = project_to_ball(codebook, radius)
    assert torch.equal(projected[~outside], codebook[~outside])
    torch.testing.assert_close(projected[outside].norm(dim=1), torch.full((int(outside.sum()),), radius))
    torch.testing.assert_close(unit_vectors(projected), unit_vectors(codebook))
    torch.testing.assert_close(project_to_ball(projected, radius), projected, rtol=3e-7, atol=0)
    assert projected.dtype == torch.float32
    assert project_to_ball(codebook, ball_radius(torch.tensor(3), 0.1)).dtype == torch.float32


def test_ball_radius_grows_exponentially_and_stays_finite():
    assert ball_radius(torch.tensor(0), 3e-4) == 1
    # e^7.35, the end of the published CIFAR-10 run.
    assert ball_radius(torch.tensor(24500), 3e-4).item() == pytest.approx(math.exp(7.35), rel=1e-12)
    last = ball_radius(torch.tensor(10**9), 3e-4)
    assert last.isfinite() and last > ball_radius(torch.tensor(10**5), 3e-4)
    codebook = torch.randn(5, 3)
    assert torch.equal(project_to_ball(codebook, last), codebook)


def test_ball_radius_tells_late_steps_apart():
    # In float32, steps above 2^24 run together.
    radii = [ball_radius(torch.tensor(2**24 + extra), 1e-9) for extra in (0, 1)]
    assert radii[1] > radii[0]


def test_arc_weight_decays_exponentially():
    assert arc_weight(torch.tensor(0), 0.7, 5e-4).item() == pytest.approx(0.7, rel=1e-15)
    assert arc_weight(torch.tensor(2000), 0.7, 5e-4).item() == pytest.approx(0.7 / math.e, rel=1e-12)
    assert arc_weight(torch.tensor(10**9), 0.7, 5e-4) == 0
    assert arc_weight(torch.tensor(12345), 0.7, 0.0).item() == pytest.approx(0.7, rel=1e-15)


def test_the_gradient_is_the_same_on_every_run_of_several_threads():
    latents, codebook = torch.randn(4096, 64), torch.randn(512, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(8):
            leaf = latents.clone().requires_grad_()
            arc_loss(leaf, codebook).backward()
            gradients.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
