"""A run in one process: the parts of a step, what is due, logged and averaged."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from arcvq.runs.changed_parts import ChangedParts
from arcvq.runs.named_scalars import Terms
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.run import Run
from arcvq.runs.starts import read_starts
from tokenizer import VQTokenizer
from tokenizer.data.bad_images import BadImages
from tokenizer.data.decoding import ImageError


class Points(Dataset):
    """Batches of the points of a plane and of what is to be learnt of them."""

    def __getitem__(self, indices):
        x = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0)).double()[indices]
        return {"x": x, "y": x.sum(dim=-1)}

    def __len__(self):
        return 40


def make(folder, name="run", ema_decay=None, model=None, beside=None, dataset=None, data="points", **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    policy = options.pop("other_settings", "refuse")
    optim = OptimConfig(**{"max_steps": 6, "batch_size": 8, "lr": 0.01, "eps": 1e-4, **options})
    config = RunConfig(name, str(folder), log_every=2, checkpoint_every=3, other_settings=policy)
    run = Run(config, optim, {"run": {}})
    if beside is not None:
        run.add_module(beside, "discriminator")
    run.prepare(
        model or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(),
        dataset or Points(),
        {"data": data},
        0,
        ema_decay,
    )
    return run


def train(run):
    """A prior's plain loop; for each of its turns the steps done and whether the log was due."""
    turns = []
    for batch in run.steps():
        loss = (run.main.wrapped(batch["x"]).squeeze(-1) - batch["y"]).square().mean()
        run.update(loss, Terms.stack({"loss": loss}))
        turns.append((run.step, run.is_due(1), run.is_due(2)))
    return turns


def lines(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_the_parts_of_a_step_make_the_step_of_the_whole(tmp_path):
    runs = {parts: make(tmp_path, f"parts-{parts}", accumulation=parts, max_grad_norm=0.1) for parts in (1, 4)}
    turns = {parts: train(run) for parts, run in runs.items()}
    assert turns[1] == [(step, True, step % 2 == 0) for step in range(1, 7)]
    expected = [(step + (part == 3), part == 3, part == 3 and step % 2 == 1) for step in range(6) for part in range(4)]
    assert turns[4] == expected
    for one, four in zip(runs[1].model.parameters(), runs[4].model.parameters(), strict=True):
        torch.testing.assert_close(one, four, rtol=1e-9, atol=1e-9)
    logs = {parts: [(line["step"], line["loss"]) for line in lines(run)] for parts, run in runs.items()}
    assert [step for step, _ in logs[1]] == [2, 4, 6]
    torch.testing.assert_close(torch.tensor(logs[1]), torch.tensor(logs[4]))
    norms = [[line["gradient_norm_model"] for line in lines(run)] for run in runs.values()]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and min(norms[0]) > 0.1


def test_a_mean_is_over_the_steps_that_have_it(tmp_path):
    run = make(tmp_path)
    for index, _ in enumerate(run.steps(whole=True)):
        seldom = {"seldom": torch.tensor(7.0)} if index == 3 else {}
        run.record_step(torch.tensor(True), Terms.stack({"always": torch.tensor(float(index)), **seldom}))
        run.end_step()
    found = [(line["always"], line.get("seldom")) for line in lines(run)]
    assert found == [(0.5, None), (2.5, 7.0), (4.5, None)]
    assert all(0 <= line["loader_share"] <= 1 and line["images_per_second"] > 0 for line in lines(run))


def test_a_resumed_run_ends_as_one_never_stopped(tmp_path):
    runs = []
    for name, stops in (("straight", [6]), ("stopped", [3, 6])):
        for stop in stops:
            torch.manual_seed(0)
            run = make(tmp_path, name, ema_decay=0.9, max_steps=stop, accumulation=2)
            assert run.step == (3 if stop == 6 and name == "stopped" else 0)
            train(run)
        runs.append(run)
    for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(runs[0].average.tensors, runs[1].average.tensors, strict=True):
        assert torch.equal(a, b)


def test_each_start_that_trains_is_recorded_with_the_step_it_goes_on_from(tmp_path):
    train(make(tmp_path, max_steps=3))
    train(make(tmp_path, max_steps=6))
    train(make(tmp_path, max_steps=6))  # nothing is left
    assert [start["step"] for start in read_starts(tmp_path / "run")] == [0, 3]


def test_the_rate_times_the_batch(tmp_path):
    run = make(tmp_path, scale_lr=True, lr=0.001, warmup_steps=2)
    rates = []
    for batch in run.steps():
        rates.append(run.main.optimizer.param_groups[0]["lr"])
        loss = run.main.wrapped(batch["x"]).sum()
        run.update(loss, Terms.stack({"loss": loss}))
    assert rates == pytest.approx([0.004, *[0.008] * 5])


def test_fp16_without_its_scaler_is_refused(tmp_path, monkeypatch):
    """As on a CPU, where accelerate would compute in float32."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match=r"fp16 needs a GPU.*set bf16, or no"):
        Run(RunConfig("run", str(tmp_path), mixed_precision="fp16"), OptimConfig(), {"run": {}})
    AcceleratorState._reset_state(reset_partial_state=True)


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        ValueError, match=r"batch_size 8 does not go into 1 processes with optim.accumulation 3; .* of 3"
    ):
        make(tmp_path, accumulation=3)
    with pytest.raises(ValueError, match=r"41 is not in 1\.\.40"):
        make(tmp_path, batch_size=41)
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(RunConfig("run", str(tmp_path), gradient_checkpointing=True), OptimConfig(batch_size=8), {"run": {}})
    with pytest.raises(ValueError, match="network 'conv' has no gradient checkpointing"):
        run.prepare(VQTokenizer(3, 16, hidden_channels=8), Points(), {})
    assert not list(tmp_path.iterdir())


def notes(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]


def updated(run):
    """One step of every module in training."""
    for _ in run.steps(whole=True):
        for trained in run._trained:
            sum((weight.square().sum() for weight in trained.module.parameters()), torch.zeros(())).backward()
        for trained in run._trained[::-1]:
            done = trained.optimizer_step(torch.zeros(()))
        run.record_step(done, Terms.stack({"loss": torch.zeros(())}))
        run.end_step()


def test_an_average_that_is_added_begins_with_the_present_weights(tmp_path, capsys):
    train(make(tmp_path, max_steps=3))
    capsys.readouterr()
    run = make(tmp_path, ema_decay=0.9, max_steps=6)
    (line,) = notes(capsys)
    assert "EMA" in line and "anew" in line and "step 3" in line
    expected = [parameter.detach().clone() for parameter in run.model.parameters()]
    assert all(map(torch.equal, run.average.tensors, expected))
    seen = []
    for batch in run.steps():
        loss = (run.main.wrapped(batch["x"]).squeeze(-1) - batch["y"]).square().mean()
        run.update(loss, Terms.stack({"loss": loss}))
        decay = min(0.9, run.step / (9 + run.step))  # by the steps of the run, so that a resumed one goes on alike
        expected = [decay * a + (1 - decay) * b for a, b in zip(expected, run.model.parameters(), strict=True)]
        seen.append(run.step)
    assert seen == [4, 5, 6]
    for found, wanted in zip(run.average.tensors, expected, strict=True):
        torch.testing.assert_close(found, wanted.detach())


def test_an_average_that_was_added_is_taken_up_as_any_other(tmp_path, capsys):
    averages = []
    for name, stops in (("straight", [9]), ("stopped", [6, 9])):
        torch.manual_seed(0)
        train(make(tmp_path, name, max_steps=3))
        for stop in stops:
            run = make(tmp_path, name, ema_decay=0.9, max_steps=stop)
            train(run)
        averages.append(run.average.tensors)
    assert all(map(torch.equal, *averages))
    assert len(notes(capsys)) == 2  # of the two first starts with an average


def test_an_average_that_is_left_out_is_told_and_gone(tmp_path, capsys):
    train(make(tmp_path, ema_decay=0.9, max_steps=3))
    capsys.readouterr()
    run = make(tmp_path, max_steps=6)
    (line,) = notes(capsys)
    assert "EMA" in line and "ends" in line
    train(run)
    assert not list((run.folder / "checkpoints" / "step-6").glob("ema*"))


def network(width):
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1)).double()


def test_a_network_that_joins_starts_anew_and_the_model_goes_on(tmp_path, capsys):
    updated(make(tmp_path, max_steps=3))
    capsys.readouterr()
    before = load_file(tmp_path / "run/checkpoints/step-3/model.safetensors")
    fresh = network(5)
    start = {name: value.clone() for name, value in fresh.state_dict().items()}
    run = make(tmp_path, beside=fresh)
    (line,) = notes(capsys)
    assert "discriminator" in line and "anew" in line and "step 3" in line
    assert run.step == 3 and run.joined_at("discriminator") == 3
    assert all(torch.equal(value, start[name]) for name, value in fresh.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    beside, main = (trained.optimizer.state_dict()["state"] for trained in run._trained)
    assert not beside and all(state["step"] == 3 for state in main.values())
    updated(run)
    assert len(list((run.folder / "checkpoints/step-6").glob("*.safetensors"))) == 3  # two, and what is added up
    again = make(tmp_path, beside=network(5), max_steps=9)
    assert not notes(capsys) and again.joined_at("discriminator") == 3
    states = [trained.optimizer.state_dict()["state"] for trained in again._trained]
    assert [state["step"] for one in states for state in one.values()] == [3] * 4 + [6] * 4


def test_a_network_that_leaves_is_told_and_the_model_goes_on(tmp_path, capsys):
    first = make(tmp_path, beside=network(5), max_steps=3)
    updated(first)
    capsys.readouterr()
    run = make(tmp_path)
    (line,) = notes(capsys)
    assert "discriminator" in line and "ends" in line
    for found, wanted in zip(run.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(found, wanted)
    updated(run)
    assert not (run.folder / "checkpoints/step-6/model_1.safetensors").exists()


def test_a_network_of_other_sizes_starts_anew_by_the_name_of_what_does_not_fit(tmp_path, capsys):
    updated(make(tmp_path, beside=network(5), max_steps=3))
    capsys.readouterr()
    fresh = network(7)
    start = {name: value.clone() for name, value in fresh.state_dict().items()}
    run = make(tmp_path, beside=fresh)
    (line,) = notes(capsys)
    assert "discriminator" in line and "anew" in line and "0.bias" in line and "(5,)" in line and "(7,)" in line
    assert all(torch.equal(value, start[name]) for name, value in fresh.state_dict().items())
    assert run.step == 3 and all(state["step"] == 3 for state in run.main.optimizer.state_dict()["state"].values())


def test_all_at_once_is_a_line_for_each(tmp_path, capsys):
    updated(make(tmp_path, ema_decay=0.9, max_steps=3))
    capsys.readouterr()
    make(tmp_path, beside=network(5), max_steps=6)
    assert len(found := notes(capsys)) == 2 and "discriminator" in found[0] and "EMA" in found[1]


def test_a_loss_scale_that_is_added_starts_anew_and_one_that_is_not_used_is_left(tmp_path):
    """As fp16's, which no CPU has."""
    run = make(tmp_path, max_steps=3)
    train(run)
    checkpoint = run.folder / "checkpoints" / "step-3"
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    parts = ChangedParts(SimpleNamespace(scaler=scaler), checkpoint, run._trained, averaged=False)
    (line,) = parts.notes(3)
    assert "loss scale" in line and "anew" in line
    with parts.laid_out() as folder:
        assert torch.load(folder / "scaler.pt", weights_only=True)["scale"] == 8.0
        names = {file.name for file in checkpoint.iterdir()}
        assert {file.name for file in folder.iterdir()} == {*names, "scaler.pt"}
        assert all((folder / name).read_bytes() == (checkpoint / name).read_bytes() for name in names)
        torch.save(scaler.state_dict(), checkpoint / "scaler.pt")
    (line,) = ChangedParts(SimpleNamespace(scaler=None), checkpoint, run._trained, averaged=False).notes(3)
    assert "loss scale" in line and "ends" in line


def test_images_that_were_unusable_in_other_data_are_not_skipped_in_these(tmp_path, capsys):
    class Skipping(Points):
        def __init__(self):
            self.bad_images = BadImages(40)

        def try_image(self, index):
            raise ImageError(f"image {index} is broken")

    found = []
    for data, marked in (("before", 7), ("before", None), ("after", None)):
        dataset = Skipping()
        if marked is not None:
            dataset.bad_images.found[marked] = True
        found.append([])
        run = make(tmp_path, max_steps=3 * len(found), dataset=dataset, data=data, other_settings="go_on")
        for _ in run.steps():
            found[-1] = dataset.bad_images.found.nonzero().flatten().tolist()
            loss = sum(weight.sum() for weight in run.model.parameters())
            run.update(loss, Terms.stack({"loss": loss}))
    assert found == [[7], [7], []]
    assert sum("unusable images are looked for anew" in line for line in notes(capsys)) == 1


def test_the_optimiser_goes_on_with_the_options_of_now(tmp_path):
    """Those in the checkpoint are what the run had before."""
    train(make(tmp_path, max_steps=3))
    options = {"weight_decay": 0.5, "betas": (0.5, 0.75), "eps": 1e-3}
    run = make(tmp_path, max_steps=6, **options)
    (group,) = run.main.optimizer.param_groups
    assert {name: group[name] for name in options} == options
    assert all(state["step"] == 3 for state in run.main.optimizer.state_dict()["state"].values())
    before = run.model[0].bias.detach().clone()
    for batch in run.steps():
        loss = 0 * run.main.wrapped(batch["x"]).sum()
        run.update(loss, Terms.stack({"loss": loss}))
        break
    moments = run.main.optimizer.state_dict()["state"]
    assert not torch.equal(before, run.model[0].bias) and len(moments) == 4


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (1, 3), (2, 1), (3, 2), (2, 3)])
def test_processes_and_parts_draw_the_noise_of_the_whole_batch(processes, accumulation):
    def noise(rank, part, parts, images):
        run = SimpleNamespace(accelerator=SimpleNamespace(process_index=rank))
        run.optim = SimpleNamespace(accumulation=parts)
        run.device, run.noise_seed, run._parts_done = torch.device("cpu"), 11, part
        return Run.noise(run, images).words(2)

    places = [(rank, part) for rank in range(processes) for part in range(accumulation)]
    found = [noise(rank, part, accumulation, 12 // len(places)) for rank, part in places]
    assert torch.equal(torch.cat(found), noise(0, 0, 1, 12))
