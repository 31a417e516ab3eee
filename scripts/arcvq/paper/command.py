"""Reproduce a table of the paper: train the missing tokenizers and priors, measure them, and write the table.

python scripts/reproduce.py table_1 --data mnist --budget 20m
python scripts/reproduce.py table_12 --data cifar10 --budget full
python scripts/reproduce.py table_12 --data cifar10 --budget full --parallel 4
accelerate launch --multi_gpu --num_processes 8 scripts/reproduce.py table_1 --data cifar10 --budget full
python scripts/reproduce.py table_12 --data cifar10 --budget full --unfinished true
python scripts/reproduce.py figure_2 runs/mnist-arcvq runs/mnist-vq --data.name mnist
python scripts/reproduce.py figures runs/mnist-arcvq runs/mnist-vq --data.name mnist

A budget of time is shared by all trainings, which have equally many steps. `full` is the paper's 500 epochs. Tables
under one budget share their trainings, and the same command resumes an interrupted table. All rows are trained before
the first is measured. The result is a JSON file, a markdown table and a plot with the paper's numbers next to ours, and
the samples of each prior's first seed.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.cli.configs import CONFIGS
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import machine, provenance
from arcvq.compute.process import prepare_process
from arcvq.compute.resumable import LONGEST_WAIT
from arcvq.evaluation import command as evaluate
from arcvq.evaluation.networks import make_metric_networks
from arcvq.paper import figures
from arcvq.paper.budget import Budget, steps_of
from arcvq.paper.given_runs import find_given
from arcvq.paper.result_table import ResultTable, write_table
from arcvq.paper.row_runs import RowRuns, train_rows
from arcvq.paper.rows import (
    FULL_STEPS,
    MeasureConfig,
    config_file,
    measure_arguments,
    prior_options,
    task_of,
    tokenizer_arguments,
    training_facts,
)
from arcvq.paper.tables import TABLES, Table
from arcvq.training import tokenizer as train_tokenizer
from pipelines.metrics.protocols import PROTOCOLS
from tokenizer.losses.lpips import WeightFiles

HELP = HelpPage(
    common=(
        *(
            "data",
            "images",
            "hold_out",
            "budget",
            "scale_schedules",
            "prior_budget",
            "seeds",
            "rows",
            "parallel",
            "unfinished",
            "runs",
            "mixed_precision",
            "output_dir",
            "output",
        ),
        *("measure.protocol", "measure.extractor", "measure.lpips"),
    ),
    examples=(
        "arcvq reproduce table_1 --data mnist --budget 20m",
        "arcvq reproduce table_12 --data cifar10 --budget full",
        "arcvq reproduce figure_1 runs/mnist-arcvq runs/mnist-vq --data.name mnist",
        "arcvq reproduce figures runs/mnist-arcvq runs/mnist-vq --data.name mnist",
        "arcvq reproduce figures --help",
    ),
    writes="OUTPUT: the table as JSON, markdown and plot; OUTPUT_DIR: its trainings",
    following="arcvq reproduce figures RUNS draws figures 1, 2, 3 and 5 of the tokenizers that it trained",
)


def make_parser() -> ScriptParser:
    """Return the parser of this command."""
    parser = ScriptParser("Reproduce a table or, with figure_1 ... figures RUNS, a figure of the paper.", page=HELP)
    parser.add_argument("table", choices=list(TABLES), help="those without a number are this project's own")
    parser.add_argument("--data", choices=["mnist", "cifar10", "ffhq", "imagenet"], default="mnist", help="data set")
    parser.add_argument("--images", type=str | None, default=None, help="a local copy of the data set; None: the Hub's")
    held_out = "training images that all rows are measured on, instead of the test split; 0: the test split"
    parser.add_argument("--hold_out", type=int, default=0, help=held_out)
    budget = "20m: a time for all trainings together; 5epochs or 1200steps: of each; full: the paper's"
    parser.add_argument("--budget", type=str, default="20m", help=budget)
    rates = "scale the quantizers' rates per step from the paper's length to this one; its schedules then end alike"
    parser.add_argument("--scale_schedules", type=bool, default=False, help=rates)
    parser.add_argument("--prior_budget", type=str, default="2000steps", help="steps of each prior, in table_13")
    parser.add_argument("--seeds", type=list[int], default=[0, 1], help="of each row; the spread is that over them")
    parser.add_argument("--rows", type=list[str] | None, default=None, help="some rows only, by their configs' names")
    together = "trainings beside each other on this device, each in its own process; all are measured after the last"
    parser.add_argument("--parallel", type=int, default=1, help=together)
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16", "fp16"], default="no", help="of the trainings on mnist and cifar10"
    )
    as_it_is = (
        "train nothing; measure the newest checkpoint of each training that is not at its end, also of a running one"
    )
    parser.add_argument("--unfinished", type=bool, default=False, help=as_it_is)
    elsewhere = "runs of arcvq train-tokenizer to take for rows, by config, as {arcvq: runs/cifar10-arcvq-paper}"
    parser.add_argument("--runs", type=dict[str, str | list[str]] | None, default=None, help=elsewhere)
    parser.add_argument("--output_dir", type=str, default="runs/reproduce", help="folder of the trainings")
    parser.add_argument("--output", type=str | None, default=None, help="folder of the table; None: next to its runs")
    parser.add_class_arguments(MeasureConfig, "measure")
    parser.add_class_arguments(WeightFiles, "weights")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Train, measure, print the table and write it; or draw a figure of trained tokenizers."""
    args = list(sys.argv[1:] if args is None else args)
    if args and args[0].startswith("figure"):
        figures.main(args)
        return
    config = make_parser().parse(args)
    # Without cpu=True accelerate takes each of several processes without a GPU for the only one.
    PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    table, budget = select_rows(config), parse_budget(config)
    on = f"-hold_out{config.hold_out}" if config.hold_out else ""
    on += "-scaled_schedules" if config.scale_schedules else ""
    bench = Path(config.output_dir, f"{config.data}-{budget.text}{on}")
    given = find_given(config.runs or {}, [row.config for row in table.rows.values()], config.seeds)
    configs = sorted({row.config for row in TABLES[config.table].rows.values()})
    short = [tokenizer_arguments(config, budget, name) for name in configs]
    steps = None
    if not budget.is_full:
        steps = steps_of(budget, short, len(config.seeds), bench / "budget.json")
    elif config.data in FULL_STEPS:
        steps = FULL_STEPS[config.data]

    if PartialState().is_main_process and config.unfinished:
        print(f"nothing is trained; rows are measured as they are: {bench}")
    elif PartialState().is_main_process:
        each = "as long as their configs say" if steps is None else f"of {steps:,} steps each"
        tokenizers = len({row.config for row in table.rows.values()}) * len(config.seeds)
        print(f"{tokenizers} tokenizers, {each}: {bench}")
    results, failures, commits = ResultTable(list(table.rows), config.seeds), [], set()
    stem = Path(config.output or bench, f"{config.table}-{config.data}{on}")
    runs = {
        (name, seed): RowRuns(config, budget, steps, bench, row, seed, given.get((row.config, seed)))
        for seed in config.seeds
        for name, row in table.rows.items()
    }
    for row in runs.values():
        row.note_given()
    failed = {} if config.unfinished else train_rows(list(runs.values()), config.parallel)
    prepare_process()  # only now, as trainings set their own precision
    for (name, seed), row in runs.items():
        try:
            found = row.numbers_so_far() if config.unfinished else row.numbers(failed)
        except ValueError as error:  # one row that diverges does not stop the others
            if PartialState().num_processes > 1:
                raise  # the other processes may not have failed, and would wait for this one
            failures.append(f"{name}, seed {seed}: {error}")
            print(f"failed: {failures[-1]}", flush=True)
            continue
        results.add(name, seed, found.numbers, found.history, found.trainings)
        if found.numbers:
            commits.add(found.commit)
        if found.samples is not None and seed == config.seeds[0] and PartialState().is_main_process:
            config_name, prior = table.rows[name].config, table.rows[name].prior
            stem.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found.samples, stem.with_name(f"{stem.name}-{config_name}-{prior}.png"))
    if PartialState().is_main_process:
        facts = {
            "table": config.table,
            "title": table.title,
            "data": config.data,
            "hold_out": config.hold_out,
            "budget": budget.text,
            "steps": steps,
            "training": training_facts(config, budget, steps),
            "priors": {row.prior: prior_options(config, row.prior) for row in table.rows.values() if row.prior},
            "measure": asdict(config.measure),
            "measured_at": sorted(commits),
            "failures": failures,
        }
        write_table(results, table, config.data, facts | machine() | provenance("reproduce", args), stem)
    if failures:
        raise ValueError(f"{len(failures)} of the table's trainings failed: {'; '.join(failures)}")


def parse_budget(config: Namespace) -> Budget:
    """Parse the budget. Raises ValueError for options that cannot work, before time is spent."""
    budget, prior = Budget.parse(config.budget), Budget.parse(config.prior_budget)
    if not budget.is_full and config.data not in FULL_STEPS:
        raise ValueError(f"a budget of {budget.text} is one of mnist or cifar10; {config.data} takes --budget full")
    if config.scale_schedules and config.data not in FULL_STEPS:
        raise ValueError(f"scale_schedules is one of mnist or cifar10; {config.data} has the paper's length")
    if config.mixed_precision != "no" and config.data not in FULL_STEPS:
        raise ValueError(f"mixed_precision is that of the configs of {config.data}; leave it out")
    if prior.steps is None and not prior.is_full:
        raise ValueError(f"prior_budget is a number of steps, as 2000steps, or full, got {prior.text!r}")
    if config.hold_out:
        parser = train_tokenizer.make_parser()
        for name in {row.config for row in TABLES[config.table].rows.values()}:
            parser.parse(tokenizer_arguments(config, budget, name)).data.check()
    if config.parallel < 1:
        raise ValueError(f"parallel must be at least 1, got {config.parallel}")
    if config.parallel > 1 and PartialState().num_processes > 1:
        raise ValueError(
            f"parallel {config.parallel} starts processes of its own on one device: leave it out under accelerate "
            "launch, or start this without it"
        )
    if budget.seconds is not None and config.parallel > 1:
        raise ValueError(
            f"a budget of time, {budget.text}, is timed for one training after the other; with --parallel "
            f"{config.parallel} take --budget 5epochs or 1200steps"
        )
    if budget.seconds is not None and PartialState().num_processes > 1:
        raise ValueError(f"a budget of time, {budget.text}, is of one process; take --budget 5epochs or 1200steps")
    if budget.seconds is not None and torch.accelerator.is_available():
        raise ValueError(f"a budget of time, {budget.text}, is timed on the CPU; take --budget 5epochs or 1200steps")
    for task in {task_of(row) for row in TABLES[config.table].rows.values()}:
        measuring = evaluate.make_parser().parse([task, "none", *measure_arguments(config, task)])
        make_metric_networks(
            measuring, PROTOCOLS[config.measure.protocol], measuring.extractor
        )  # are all weights there?
    return budget


def select_rows(config: Namespace) -> Table:
    """Return the table with the requested rows. Raises ValueError for an unknown row or a missing config."""
    table = TABLES[config.table]
    if not config.seeds or min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"seeds are different numbers from 0 on, got {config.seeds}")
    names = sorted({row.config for row in table.rows.values()})
    if config.rows is not None and not config.rows:
        raise ValueError(f"rows names no row of {config.table}; it has {', '.join(names)}")
    if config.rows is not None and (unknown := [name for name in config.rows if name not in names]):
        raise ValueError(f"{config.table} has no row {unknown[0]!r}; it has {', '.join(names)}")
    rows = {name: row for name, row in table.rows.items() if config.rows is None or row.config in config.rows}
    for option, is_set, kinds in (
        ("unfinished", config.unfinished, ("prior", "codes")),
        ("runs", config.runs is not None, ("codes",)),
    ):
        if is_set and (made := [name for name, row in rows.items() if any(getattr(row, kind) for kind in kinds)]):
            raise ValueError(
                f"{option}: row {made[0]!r} of {config.table} is made of a finished tokenizer; leave out --{option}, "
                "or take a table of tokenizers"
            )
    if lacking := [row.config for row in rows.values() if not config_file(config.data, row.config).is_file()]:
        files = CONFIGS.glob(f"*/{config_file(config.data, lacking[0]).name}")
        where = ", ".join(sorted({file.parent.name for file in files}))
        raise ValueError(f"{config.table} is not one of {config.data}: take --data {where}")
    return Table(table.title, table.metrics, rows)
