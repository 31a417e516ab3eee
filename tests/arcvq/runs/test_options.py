"""The learning rate's schedules, by hand; numbers that cannot work."""

import pytest

from arcvq.runs.options import OptimConfig, RunConfig, check_name
from arcvq.training import ldm as train_ldm
from arcvq.training import pixelcnn as train_pixelcnn
from arcvq.training import tokenizer as train_tokenizer


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", {10: 1, 60: 1, 90: 1, 100: 1, 109: 1}),
        ("cosine", {10: 1, 60: 0.5, 35: (2 + 2**0.5) / 4, 110: 0}),
        ("cooldown", {10: 1, 60: 1, 90: 1, 100: 0.5, 105: 0.25, 110: 0}),
    ],
)
def test_schedules(schedule, expected):
    optim = OptimConfig(lr=2.0, max_steps=110, warmup_steps=10, schedule=schedule)  # 100 steps after the warm-up
    assert [optim.learning_rate(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert {step: optim.learning_rate(step) / 2 for step in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "cooldown"])
def test_a_falling_schedule_ends_at_a_share_of_the_rate(schedule):
    """By which it is the mean of a schedule down to 0 and of a constant one."""
    optim = {
        name: OptimConfig(lr=2.0, max_steps=110, warmup_steps=10, schedule=name) for name in (schedule, "constant")
    }
    half = OptimConfig(lr=2.0, max_steps=110, warmup_steps=10, schedule=schedule, final_lr_share=0.5)
    for step in (0, 9, 10, 55, 100, 110):
        both = [of.learning_rate(step) for of in optim.values()]
        assert half.learning_rate(step) == pytest.approx(sum(both) / 2)
    assert half.learning_rate(110) == 1.0


def test_the_peak_may_be_of_one_image():
    optim = OptimConfig(lr=2e-6, batch_size=50, scale_lr=True, warmup_steps=2)
    assert [optim.learning_rate(step) for step in (0, 1, 7)] == pytest.approx([5e-5, 1e-4, 1e-4])
    assert OptimConfig(lr=2e-6, batch_size=50).learning_rate(7) == 2e-6


def test_a_batch_goes_into_equal_parts_or_is_refused():
    for batch_size, accumulation, processes in ((12, 1, 3), (12, 3, 4), (12, 12, 1)):
        OptimConfig(batch_size=batch_size, accumulation=accumulation).check_batch(processes)
    with pytest.raises(ValueError) as error:
        OptimConfig(batch_size=12, accumulation=4).check_batch(2)
    assert str(error.value) == (
        "optim.batch_size 12 does not go into 2 processes with optim.accumulation 4; make it a multiple of 8"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"accumulation": 0}, "optim.accumulation must be above 0, got 0"),
        ({"lr": float("nan")}, "optim.lr must be above 0, got nan"),
        ({"eps": 0.0}, "optim.eps must be above 0, got 0.0"),
        ({"warmup_steps": -1}, "optim.warmup_steps must not be negative, got -1"),
        ({"betas": (0.9, 1.0)}, "optim.betas must be at least 0 and below 1, got 1.0"),
        ({"max_grad_norm": 0.0}, "optim.max_grad_norm must be above 0, got 0.0"),
        ({"max_grad_value": -1.0}, "optim.max_grad_value must be above 0, got -1.0"),
        (
            {"max_grad_norm": 1.0, "max_grad_value": 1.0},
            "optim.max_grad_norm and .* are two ways of .* set one of them",
        ),
        ({"final_lr_share": 1.0, "schedule": "cosine"}, "optim.final_lr_share must be .* below 1, got 1.0"),
        ({"final_lr_share": 0.5}, "optim.final_lr_share 0.5 is of the schedules cosine and cooldown; .*"),
    ],
)
def test_numbers_that_cannot_work(options, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        OptimConfig(**options).check()
    OptimConfig(max_grad_norm=None).check()


@pytest.mark.parametrize("name", ["log_every", "sample_every", "checkpoint_every", "keep_checkpoints"])
def test_intervals_are_of_one_step_at_least(name):
    with pytest.raises(ValueError, match=f"^run.{name} must be at least 1, got 0$"):
        RunConfig("run", **{name: 0}).check()


INSIDE = [
    "run",
    "my run",
    "a/b",
    "mnist/arcvq/seed-0",
    "..run",
    ".hidden",
    "console",
    "a.con",
    "com10",
    "a~b",
    "Größe",
    "数字",
    "x" * 200,
]
OUTSIDE = ["", ".", "..", "../x", "a/../../b", "a/..", "a/./b", "./a", "a//b", "a/", "/", "/abs", "//abs", "~", "~/x"]
OUTSIDE += [
    "~root",
    "a\0b",
    "a\n",
    "a\tb",
    " a",
    "a ",
    "a /b",
    "a/ b",
    "\u00a0a",
    "a\u200bb",
    "\udcff",
    "a\\b",
    "..\\x",
    "C:\\x",
]
OUTSIDE += ["run..", "...", "a./b", "a:b", "a?", "a*b", 'a"b', "a|b", "<a>", "con", "b/NUL.txt", "Com1", "lpt9.a.b"]
OUTSIDE += ["C:x", "C:/x", "x" * 201, "a/" + "ü" * 101]


@pytest.mark.parametrize("name", INSIDE)
def test_a_run_has_a_folder_inside_that_of_all_runs(name, tmp_path):
    RunConfig(name, str(tmp_path / "runs")).check()
    (tmp_path / "runs" / name).mkdir(parents=True)
    assert (tmp_path / "runs") in (tmp_path / "runs" / name).resolve().parents


@pytest.mark.parametrize("own", ["tokenizer", "pipeline", "checkpoints", "samples", "tensorboard"])
def test_a_run_is_not_put_where_another_keeps_its_result(own, tmp_path):
    RunConfig(f"mnist/{own}", str(tmp_path)).check()
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "config.yaml").write_text("run: {name: mnist}")
    for output_dir, name in ((tmp_path, f"mnist/{own}"), (tmp_path, f"mnist/{own}/b"), (tmp_path / "mnist", own)):
        with pytest.raises(ValueError, match=r"run\.name") as error:
            RunConfig(name, str(output_dir)).check()
        assert str(tmp_path / "mnist" / own) in str(error.value)
    RunConfig("mnist/other", str(tmp_path)).check()


@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_a_name_that_leads_out_of_it_or_nowhere_is_one_line_that_names_it(name):
    with pytest.raises(ValueError, match=r"^run\.name .* run\.output_dir") as error:
        RunConfig(name).check()
    assert "\n" not in str(error.value) and f"{name!r:.100}" in str(error.value)


@pytest.mark.parametrize("script", [train_tokenizer, train_ldm, train_pixelcnn])
@pytest.mark.parametrize("name", ["..", "", "/tmp/elsewhere", "a/../../b"])
def test_a_training_refuses_such_a_name_before_it_reads_an_image(script, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^run\.name"):
        script.main(["--run.name", name, "--data.name", "./none", "--optim.max_steps", "1"])
    assert not list(tmp_path.iterdir())


def test_a_colon_is_no_path_from_the_root():
    with pytest.raises(ValueError, match="Windows has no name with"):
        check_name("a:b")
    with pytest.raises(ValueError, match="it is a path from the root"):
        check_name("C:/runs")
