import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from images import write_mnist_size
from places import GOLDEN

from arcvq.evaluation import command as evaluate
from arcvq.faults import forked_process
from arcvq.paper import budget as budgets
from arcvq.paper import command as reproduce
from arcvq.paper import figures, row_runs, trainings
from arcvq.paper import rows as table_rows
from arcvq.paper.budget import Budget, steps_of
from arcvq.paper.result_table import ResultTable, in_order, markdown, summary, write_table
from arcvq.paper.row_runs import RowRuns
from arcvq.paper.rows import RowNumbers, config_file, tokenizer_arguments
from arcvq.paper.tables import METRICS, TABLES, Row, Table
from arcvq.paper.variants import VARIANTS
from arcvq.runs.settings import check_settings
from arcvq.training import tokenizer as train_tokenizer
from arcvq.training.schedule_length import scaled_rates
from tokenizer.quantizers import make_quantizer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("full", (None, None, None)),
        ("20m", (1200, None, None)),
        ("1.5h", (5400, None, None)),
        ("90s", (90, None, None)),
        ("300steps", (None, 300, None)),
        ("1step", (None, 1, None)),
        ("2.5epochs", (None, None, 2.5)),
    ],
)
def test_a_budget_is_a_time_steps_epochs_or_full(text, found):
    budget = Budget.parse(text)
    assert (budget.seconds, budget.steps, budget.epochs) == found and budget.is_full == (text == "full")


@pytest.mark.parametrize("text", ["", "20", "m", "0m", "1.5steps", "20 m", "-3h", "nonsense"])
def test_another_budget_is_refused(text):
    with pytest.raises(ValueError, match=f"or full, got '{text}'"):
        Budget.parse(text)


def test_a_time_is_that_of_all_trainings_and_is_kept(tmp_path, monkeypatch):
    asked = []

    def step_times(script, arguments, steps):
        asked.append(arguments)
        return [100.0] + (steps - 1) * [{"a": 0.5, "b": 1.5}[arguments[0]]]  # the first one warms up

    monkeypatch.setattr(budgets, "step_times", step_times)
    for _ in range(2):  # 2 seeds of steps of 0.5 and 1.5 s
        assert steps_of(Budget.parse("2m"), [["a"], ["b"]], 2, tmp_path / "bench/budget.json") == 30
    assert asked == [["a"], ["b"]]
    with pytest.raises(ValueError, match="budget 3s is less than a step of each training, 4 s"):
        steps_of(Budget.parse("3s"), [["a"], ["b"]], 2, tmp_path / "other.json")


def test_every_row_has_a_config_where_the_paper_has_a_number():
    for name, table in TABLES.items():
        assert set(table.metrics) <= set(METRICS)
        for row in table.rows.values():
            for data, numbers in row.paper.items():
                assert config_file(data, row.config).is_file(), (name, row.config, data)
                assert len(numbers) == len(table.metrics)
        if name not in ("table_2", "table_3", "table_5", "table_10"):
            for data in ("mnist", "cifar10"):
                lacking = [row for row in table.rows.values() if not config_file(data, row.config).is_file()]
                assert not lacking, (name, data)


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_its_config_with_its_own_options_and_nothing_else(name, data):
    parser, budget = train_tokenizer.make_parser(), Budget.parse("1step")
    table = reproduce.make_parser().parse(["table_1", "--data", data])
    base = parser.settings(parser.parse(tokenizer_arguments(table, budget, VARIANTS[name].config)))
    variant = parser.settings(parser.parse(tokenizer_arguments(table, budget, name)))
    options = variant["model"].pop("quantizer_options", {})
    own = VARIANTS[name].options
    for section, option in (key.split(".") for key in own if "." in key):
        assert variant[section].pop(option) == own[f"{section}.{option}"]
        base[section].pop(option)
    for option in (key for key in own if "." not in key):
        assert variant.pop(option) == own[option] != base.pop(option, None)
    assert variant == base  # the files of these configs set no quantizer options
    assert options == VARIANTS[name].quantizer_options
    changed = make_quantizer(base["model"]["quantizer"], 512, 64, options)
    default = make_quantizer(base["model"]["quantizer"], 512, 64, {})
    assert all(
        getattr(changed, option) != getattr(default, option) for option in options if option not in ("init", "table")
    )


def test_the_option_of_a_row_comes_before_that_of_all_rows():
    parser, budget = train_tokenizer.make_parser(), Budget.parse("1step")
    table = reproduce.make_parser().parse(["plus", "--data", "mnist"])
    rows = {name: row.config for name, row in TABLES["plus"].rows.items()}
    found = {name: parser.parse(tokenizer_arguments(table, budget, config)) for name, config in rows.items()}
    assert table_rows.common_options(table, budget)["optim.schedule"] == "cooldown"
    falling = found.pop("+ falling rate")
    assert falling.optim.schedule == "cooldown" and {of.optim.schedule for of in found.values()} == {"constant"}
    assert found["+ averaged weights"].ema_decay == 0.999
    assert {of.optim.lr for of in found.values()} == {falling.optim.lr} == {1e-3}


def test_rows_are_trained_and_measured_with_the_same_images_held_out_and_apart_from_other_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = made_up_trainings(monkeypatch, "none-")
    reproduce.main(["plus", "--data", "mnist", "--budget", "1step", "--hold_out", "70", "--rows", "[arcvq_rotation]"])
    assert len(called) == 4
    stem = Path("runs/reproduce/mnist-1step-hold_out70/plus-mnist-hold_out70")
    found = json.loads(stem.with_suffix(".json").read_text())
    assert found["protocol"]["hold_out"] == 70
    row = found["rows"]["+ rotation trick"]
    assert row["options"] == {"optim.schedule": "constant", "model.quantizer_options": {"estimator": "rotation"}}
    text = stem.with_suffix(".md").read_text()
    assert "Measured on 70 images held out of the training split" in text
    assert "`arcvq_rotation`: optim.schedule constant, model.quantizer_options {'estimator': 'rotation'}" in text


def test_scaled_rates_end_where_those_of_the_papers_length_do_and_have_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_up_trainings(monkeypatch, "none-")
    called = []
    monkeypatch.setattr(row_runs, "train_tokenizer", SimpleNamespace(main=called.append))
    reproduce.main(["table_6", "--data", "mnist", "--budget", "10steps", "--scale_schedules", "true", "--seeds", "[0]"])
    assert Path("runs/reproduce/mnist-10steps-scaled_schedules/table_6-mnist-scaled_schedules.json").is_file()
    parser = train_tokenizer.make_parser()
    found = {config.model.quantizer: scaled_rates(config) for config in map(parser.parse, called)}
    assert found["vq"] == {} and found["arc"] == pytest.approx({"arc_decay": 1.45, "ball_growth": 0.87})


def test_the_held_out_images_reach_tokenizer_prior_and_measurement(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(table_rows, "evaluate", SimpleNamespace(make_parser=evaluate.make_parser, main=asked.append))
    config = reproduce.make_parser().parse(["table_13", "--data", "mnist", "--hold_out", "70"])
    runs = RowRuns(config, Budget.parse("1step"), 1, tmp_path, TABLES["table_13"].rows["PixelCNN, ArcVQ-VAE"], 3)
    with pytest.raises(FileNotFoundError):  # nothing is measured
        table_rows.ensure_measured(config, Row("arcvq"), tmp_path)
    for arguments in (runs.tokenizer.arguments, runs.prior.arguments, asked[0]):
        assert [word for word in arguments if "hold_out" in word] == ["--data.hold_out=70"]


def test_a_variants_run_bears_the_variants_name(tmp_path):
    """Runs of tables made earlier are found again."""
    config = reproduce.make_parser().parse(["table_4", "--data", "mnist"])
    runs = RowRuns(config, Budget.parse("1step"), 1, tmp_path, Row("arcvq_margin0.5"), 3)
    assert runs.tokenizer.run == tmp_path / "arcvq_margin0.5-seed3"


# Rows of the paper's tables by what they are called in tests/golden/paper_results.json.
PAPER = {
    "table_1": {"vqvae": "vq", "hvqvae": "hvq", "sqvae": "sq", "cvqvae": "cvq", "arcvq": "arcvq"},
    "table_6": {"vqvae": "vq", "bbnr": "arcvq_ball", "bbnr_arc": "arcvq"},
    "table_9": {"vae": "vae", "hyperspherical_vae": "hyperspherical_vae", "vqvae": "vq", "arcvq": "arcvq"},
    "table_11": {"vqvae": "vq", "vqvae_cosine": "cosine", "arcvq": "arcvq"},
    "table_12": {"vqvae": "vq", "arcvq_fixed": "arcvq_fixed", "arcvq": "arcvq"},
    "table_3": {
        "vqgan_fc_ldm": "vqgan_fc_f16",
        "vqgan_ema_ldm": "vqgan_ema_f16",
        "vqgan_lc_ldm": "vqgan_lc_f16",
        "cvqvae_ldm": "cvqvae_f8",
        "arcvq_ldm": "arcvq_f8",
    },
    "table_2": {
        "vqgan": "vqgan_f16",
        "vqgan_fc": "vqgan_fc_f16",
        "vqgan_ema": "vqgan_ema_f16",
        "vit_vqgan": "vit_vqgan_large",
        "rqvae": "rqvae",
        "movq": "movq_f16",
        "cvqvae_16": "cvqvae_f16",
        "cvqvae_32": "cvqvae_f8",
        "df_vqgan": "dfvqgan_f8",
        "vqgan_lc": "vqgan_lc_f8",
        "arcvq_16": "arcvq_f16",
        "arcvq_32": "arcvq_f8",
    },
}
CODEBOOK_SIZE_FIRST = ("table_2", "table_3")  # a column that is the config's, not a result


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers_are_as_printed(name):
    printed = json.loads((GOLDEN / "paper_results.json").read_text())[name]
    table, found = TABLES[name], 0
    for data in {"mnist", "cifar10", "imagenet"} & printed.keys():
        for theirs, config in PAPER[name].items():
            numbers = printed[data][theirs][1:] if name in CODEBOOK_SIZE_FIRST else printed[data][theirs]
            scale = [100 if name == "table_2" and metric == "usage" else 1 for metric in table.metrics]
            (row,) = [row for row in table.rows.values() if row.config == config]
            ours = [of and pytest.approx(of * by) for of, by in zip(row.paper[data], scale, strict=True)]
            assert numbers == ours, (data, theirs)
            found += 1
    assert found == sum(len(row.paper) for row in table.rows.values())


def test_the_papers_sensitivities_sizes_and_priors_are_as_printed():
    printed = json.loads((GOLDEN / "paper_results.json").read_text())
    rows = {row.config: row.paper for row in TABLES["table_4"].rows.values()}
    names = {"top_k": "top", "margin": "margin", "scale": "scale"}
    for option, values in printed["table_4"].items():
        for value, of in values.items() if option != "what" else ():
            default = (option, value) in (("top_k", "3"), ("margin", "0.1"), ("scale", "10"))
            config = "arcvq" if default else f"arcvq_{names[option]}{value}"
            assert {data: list(numbers) for data, numbers in rows[config].items()} == of, config
    for size, (_, usage, *others) in printed["table_5"]["ffhq"].items():
        assert TABLES["table_5"].rows[f"D {size}"].paper["ffhq"] == (usage / 100, *others)
    for codes, (usage, rfid) in printed["table_10"]["imagenet"].items():
        row = TABLES["table_10"].rows[f"{int(codes):,}"]
        assert row.paper["imagenet"] == (pytest.approx(usage / 100), rfid) and row.codes in (None, int(codes))
    fids = {row.config: row.paper["cifar10"] for row in TABLES["table_13"].rows.values() if row.paper}
    assert fids == {"vq": (printed["table_13"]["cifar10"]["pixelcnn_vqvae"],), "arcvq": (43.13,)}


def rows_of(*numbers):
    """Rows with the paper's number and our seeds."""
    return {
        str(index): {"paper": {"psnr": paper}, "ours": {"psnr": summary(seeds)}}
        for index, (paper, seeds) in enumerate(numbers)
    }


def test_pairs_are_in_order_reversed_or_open():
    rows = rows_of((1.0, [10.0, 11.0]), (2.0, [12.0, 13.0]), (3.0, [8.0, 12.5]), (3.0, [0.0, 0.0]))
    # 0 < 1 as in the paper; 0 and 1 against 2 overlap; 3 is below 0 and 1, where the paper has it above.
    assert in_order(rows, "psnr") == {"as_in_the_paper": 1, "reversed": 2, "open": 2}
    assert in_order(rows_of((None, [1.0]), (2.0, [2.0])), "psnr") is None
    # A seed alone has no spread that could be told from nothing.
    alone = rows_of((1.0, [10.0]), (2.0, [12.0, 13.0]))
    assert in_order(alone, "psnr") == {"as_in_the_paper": 0, "reversed": 0, "open": 1}


def test_a_table_says_mean_spread_paper_and_protocol(tmp_path):
    table = Table("title", ("psnr", "rfid"), {"A": Row("a", {"mnist": (20.0, 3.0)}), "B": Row("b"), "C": Row("c")})
    results = ResultTable(list(table.rows), [0, 1])
    for seed in (0, 1):
        numbers = {"psnr[official_jpeg]": 19.0 + seed, "frechet_distance[alexnet,official_jpeg]": 5.0, "images": 10}
        results.add("A", seed, numbers | {"usage": 0.5})
        if seed == 0:
            results.add("B", seed, {name: 2 * value for name, value in numbers.items()} | {"perplexity": "inf"})
    facts = {"table": "table_0", "title": "title", "data": "mnist", "budget": "3steps", "training": {"lr": 1}}
    facts |= {
        "measured_at": ["abc", "def"],
        "priors": {"ldm": {"lr": 2}},
        "command": "python",
        "commit": "abc",
        "failures": ["C, seed 0: diverged"],
    }
    write_table(results, table, "mnist", facts, tmp_path / "new" / "table.0")
    found = json.loads((tmp_path / "new/table.0.json").read_text())
    assert found["rows"]["A"]["ours"]["psnr"] == {"mean": 19.5, "spread": 1.0, "seeds": [19.0, 20.0]}
    assert found["rows"]["A"]["paper"] == {"psnr": 20.0, "rfid": 3.0} and found["rows"]["B"]["paper"] == {}
    assert found["protocol"]["metrics"]["rfid"] == "frechet_distance[alexnet,official_jpeg]"
    text = (tmp_path / "new/table.0.md").read_text()
    assert markdown(found) == text
    assert "| A (`a`) | 19.50 ± 0.50 (20) | 5.00 ± 0.00 (3) | 0.5000 ± 0.0000 |" in text
    assert "| B (`b`) | 38.00 | 10.00 | - |" in text and "| C (`c`), failed | - | - | - |" in text
    assert "frechet_distance[alexnet,official_jpeg] (smaller is better; the paper's: rFID)" in text
    assert "commit abc; measured at abc, def." in text
    assert "Budget 3steps. tokenizers: lr 1; ldm: lr 2; seeds 0, 1." in text
    assert "psnr[official_jpeg] (larger is better)" in text and "Failed: C, seed 0: diverged" in text
    assert (tmp_path / "new/table.0.png").stat().st_size > 1000


@pytest.fixture
def images(tmp_path):
    """A folder of images of MNIST's size."""
    write_mnist_size(tmp_path / "images")
    return tmp_path / "images"


@pytest.mark.slow
def test_a_table_is_trained_measured_and_taken_up_again(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["table_12", "--data", "mnist", "--images", str(images), "--budget", "1step", "--seeds", "[0, 1]"]
    command += ["--rows", "[vq, arcvq_fixed]", "--measure.extractor", "null", "--measure.lpips", "null"]
    reproduce.main(command)
    bench = Path("runs/reproduce/mnist-1step")
    found = json.loads((bench / "table_12-mnist.json").read_text())
    assert list(found["rows"]) == ["VQ-VAE", "ArcVQ-VAE, fixed"] and found["protocol"]["failures"] == []
    for row in found["rows"].values():
        assert [[entry["step"] for entry in of_seed] for of_seed in row["history"].values()] == [[1], [1]]
        assert {"psnr", "usage"} < row["history"]["0"][0].keys()
    assert (bench / "table_12-mnist-history.png").stat().st_size > 1000
    psnr = found["rows"]["VQ-VAE"]["ours"]["psnr"]
    assert len(set(psnr["seeds"])) == 2 and found["rows"]["VQ-VAE"]["paper"]["psnr"] == 26.48
    weights = bench / "vq-seed0/tokenizer/diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    reproduce.main(command)
    again = json.loads((bench / "table_12-mnist.json").read_text())
    assert again["rows"] == found["rows"] and weights.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"run.mixed_precision was 'no' and is now 'bf16'"):
        reproduce.main([*command, "--mixed_precision", "bf16"])


@pytest.mark.slow
def test_two_processes_make_the_table_of_one(tmp_path, images, monkeypatch):
    """Rows and measurements are shared out."""
    monkeypatch.chdir(tmp_path)
    command = ["table_12", "--data", "mnist", "--images", str(images), "--budget", "1step", "--seeds", "[0]"]
    command += ["--rows", "[vq, arcvq]", "--measure.extractor", "null", "--measure.lpips", "null"]
    reproduce.main([*command, "--output_dir", "one"])
    script = [sys.executable, "-m", "arcvq", "reproduce"]
    done = forked_process.run([*script, *command, "--output_dir", "two"], tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stdout
    one, two = (json.loads(Path(folder, "mnist-1step/table_12-mnist.json").read_text()) for folder in ("one", "two"))
    for name, row in one["rows"].items():
        for metric, ours in row["ours"].items():
            assert two["rows"][name]["ours"][metric]["mean"] == pytest.approx(ours["mean"], rel=1e-3), (name, metric)


def test_priors_reductions_and_other_data_are_measured_as_what_they_are(tmp_path, monkeypatch):
    """What is called, with nothing trained."""
    monkeypatch.chdir(tmp_path)
    called = []

    def script(name):
        real = getattr(place_of(name), name)
        parser = real.make_parser if hasattr(real, "make_parser") else None

        def main(arguments):
            called.append((name, arguments))
            if name == "evaluate":
                task, folder = arguments[:2]
                file = Path(folder, "evaluation", f"{task}{'-rfid' if task == 'reconstruction' else ''}.json")
                file.parent.mkdir(parents=True, exist_ok=True)
                found = {"numbers": {"frechet_distance[alexnet]": 3.0}, "protocol": {"commit": "abc"}, "settings": {}}
                file.write_text(json.dumps(found))
                file.with_name(f"{task}.png").write_text(f"samples of {Path(folder).name}")

        return SimpleNamespace(main=main, make_parser=parser)

    def place_of(name):
        return table_rows if name == "evaluate" else row_runs

    for name in ("train_tokenizer", "train_ldm", "train_pixelcnn", "codebook", "evaluate"):
        monkeypatch.setattr(place_of(name), name, script(name))
    monkeypatch.setattr(reproduce, "make_metric_networks", lambda *_: None)
    measure = ["--measure.extractor", "null", "--measure.lpips", "null", "--measure.protocol", "rfid"]
    shared = ["--seeds", "[3]", "--output_dir", "out", *measure]
    priors = ["--prior_budget", "9steps", "--measure.num_inference_steps", "4"]
    reproduce.main(["table_13", "--data", "cifar10", "--budget", "7steps", *priors, *shared])
    found = json.loads(Path("out/cifar10-7steps/table_13-cifar10.json").read_text())
    for name, folder in (("vq-ldm", "vq-seed3-ldm-9steps"), ("arcvq-pixelcnn", "arcvq-seed3-pixelcnn-9steps")):
        assert Path(f"out/cifar10-7steps/table_13-cifar10-{name}.png").read_text() == f"samples of {folder}"
    assert found["protocol"]["priors"]["pixelcnn"]["optim.max_steps"] == 9 and len(found["rows"]) == 8
    names = [name for name, _ in called]
    assert names.count("train_ldm") == names.count("train_pixelcnn") == 4 and names.count("evaluate") == 8
    prior = next(arguments for name, arguments in called if name == "train_pixelcnn")
    assert "--run.name=vq-seed3-pixelcnn-9steps" in prior and "--optim.max_steps=9" in prior and "--run.seed=3" in prior
    assert "--tokenizer=out/cifar10-7steps/vq-seed3" in prior
    short = next(row_runs.train_ldm.make_parser().parse(words) for name, words in called if name == "train_ldm")
    assert short.unet.channels == 64 and short.optim.batch_size == 64 and short.optim.max_steps == 9
    steps = [words[1] for _, words in called if "--sampling.num_inference_steps=4" in words]
    assert len(steps) == 4 and all("-ldm-" in folder for folder in steps)

    called.clear()
    reproduce.main(["reduction", "--data", "mnist", "--budget", "7steps", "--rows", "[lc]", *shared])
    reduced = next(arguments for name, arguments in called if name == "codebook")
    assert reduced[:2] == ["reduce", "out/mnist-7steps/lc-seed3"] and "--codebook_size=256" in reduced

    called.clear()
    reproduce.main(["table_2", "--data", "imagenet", "--budget", "full", "--rows", "[arcvq_f8]", *shared])
    evaluated = next(arguments for name, arguments in called if name == "evaluate")
    for option in ("--data.name=ILSVRC/imagenet-1k", "--data.test_split=validation", "--data.image_size=256"):
        assert option in evaluated
    assert not any(
        word.startswith(("--optim", "--run.mixed"))
        for name, words in called
        for word in words
        if name == "train_tokenizer"
    )


def made_up_trainings(monkeypatch, diverging):
    """Trainings that do nothing, or diverge, and measured numbers that are the seeds'."""
    trained = []

    def main(arguments):
        trained.append(next(word.partition("=")[2] for word in arguments if word.startswith("--run.name=")))
        if trained[-1].startswith(diverging):
            raise ValueError("loss is not finite at step 7")

    monkeypatch.setattr(row_runs, "train_tokenizer", SimpleNamespace(main=main))

    def ensure_measured(config, row, run):
        trained.append(f"measured {run.name}")
        return RowNumbers({"psnr": 20.0 + int(run.name[-1])}, "abc")

    monkeypatch.setattr(row_runs, "ensure_measured", ensure_measured)
    monkeypatch.setattr(reproduce, "make_metric_networks", lambda *_: None)
    return trained


def test_a_row_that_fails_leaves_the_others_their_table(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = made_up_trainings(monkeypatch, "vq-")
    with pytest.raises(ValueError, match="2 of the table's trainings failed: VQ-VAE, seed 0: loss is not finite"):
        reproduce.main(["table_6", "--data", "mnist", "--images", str(images), "--budget", "1step"])
    found = json.loads(Path("runs/reproduce/mnist-1step/table_6-mnist.json").read_text())
    assert found["rows"]["+ ball"]["ours"]["psnr"]["mean"] == 20.5 and "psnr" not in found["rows"]["VQ-VAE"]["ours"]
    assert len(found["protocol"]["failures"]) == 2
    # All are trained before the first is measured.
    assert [name.startswith("measured") for name in called] == 6 * [False] + 4 * [True]

    # Of several processes, the others may know nothing of it: they are to end together.
    several = SimpleNamespace(num_processes=2, is_main_process=True, wait_for_everyone=lambda: None)
    for module in (reproduce, trainings):
        monkeypatch.setattr(module, "PartialState", lambda *_, **__: several)
    called.clear()
    with pytest.raises(ValueError, match=r"^loss is not finite"):
        reproduce.main(["table_6", "--data", "mnist", "--images", str(images), "--budget", "1step"])
    assert called == ["vq-seed0"]
    with pytest.raises(ValueError, match=r"^parallel 3 starts processes of its own"):
        reproduce.main(["table_6", "--data", "mnist", "--budget", "1step", "--parallel", "3"])


def test_a_time_is_not_that_of_an_accelerator(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    one = SimpleNamespace(num_processes=1, is_main_process=True)
    monkeypatch.setattr(reproduce, "PartialState", lambda *_, **__: one)
    monkeypatch.setattr(reproduce.torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ValueError, match="20m, is timed on the CPU; take --budget 5epochs"):
        reproduce.main(["table_6"])
    assert not list(tmp_path.iterdir())


def test_a_files_place_is_not_the_trainings(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "config.yaml").write_text("weights: {alexnet: here.safetensors}\noptim: {lr: 1}\n")
    moved = {"weights": {"alexnet": "there.safetensors"}, "optim": {"lr": 1}}
    check_settings(tmp_path / "config.yaml", moved)
    with pytest.raises(ValueError, match=r"optim.lr was 1 and is now 2"):
        check_settings(tmp_path / "config.yaml", moved | {"optim": {"lr": 2}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table_2", "--data", "mnist"], "table_2 is not one of mnist: take --data imagenet"),
        (["table_1", "--rows", "[arc]"], "table_1 has no row 'arc'; it has arcvq, cvq, hvq, sq, vaevq, vq"),
        (["table_1", "--rows", "[]"], "rows names no row of table_1; it has arcvq, cvq,"),
        (["table_1", "--seeds", "[1, 1]"], "seeds are different numbers"),
        (["table_1", "--budget", "soon"], "got 'soon'"),
        (["table_13", "--budget", "1step", "--prior_budget", "20m"], "prior_budget is a number of steps"),
        (["table_1", "--budget", "1step", "--hold_out", "-1"], "data.hold_out is -1"),
        (["table_2", "--data", "imagenet", "--budget", "full", "--hold_out", "5"], "data.test_split is 'validation'"),
        (["table_1", "--budget", "1step", "--parallel", "0"], "parallel must be at least 1, got 0"),
        (["table_1", "--parallel", "4"], "one training after the other; with --parallel 4 take --budget 5epochs"),
        (["table_2", "--data", "imagenet", "--budget", "full", "--mixed_precision", "fp16"], "that of the configs of"),
        (["table_2", "--data", "imagenet", "--budget", "3epochs"], "imagenet takes --budget full"),
        (["table_1", "--budget", "1step", "--measure.extractor", "null", "--weights.vgg16", "none.pt"], "none.pt"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        reproduce.main(arguments)
    assert not list(tmp_path.iterdir())


def test_the_figures_have_the_same_command(monkeypatch):
    called = []
    monkeypatch.setattr(figures, "main", called.append)
    reproduce.main(["figure_2", "runs/a", "runs/b"])
    assert called == [["figure_2", "runs/a", "runs/b"]]
