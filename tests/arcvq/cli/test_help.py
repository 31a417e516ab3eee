"""The help of a verb: a first page of two screens, and every option on demand."""

import os
import re
import subprocess
import sys

import pytest

from arcvq import quickstart
from arcvq.benchmarks import command as benchmark
from arcvq.benchmarks import memory, threads
from arcvq.cli.parser import ScriptParser
from arcvq.conversion import codebook, convert
from arcvq.evaluation import command as evaluate
from arcvq.evaluation import compare_images, schedulers
from arcvq.export import command as export
from arcvq.faults import command as faults
from arcvq.paper import command as reproduce
from arcvq.paper import figures
from arcvq.planning.train_or_plan import make_parser
from arcvq.sampling import command as sample
from arcvq.training import ldm, pixelcnn, tokenizer

TRAININGS = {"train-tokenizer": tokenizer, "train-ldm": ldm, "train-pixelcnn": pixelcnn}
PAGES = {name: (module.HELP, lambda module=module: make_parser(module)) for name, module in TRAININGS.items()}
PAGES |= {"sample": (sample.HELP, sample.make_parser), "evaluate": (evaluate.HELP, evaluate.make_parser)}
# The verbs that make their parser within `main`, and those with few options.
OTHERS = {
    "quickstart": (quickstart.HELP, quickstart.main),
    "export": (export.HELP, export.main),
    "convert": (convert.HELP, convert.main),
    "codebook features": (codebook.FEATURES_HELP, codebook.features),
    "codebook reduce": (codebook.REDUCE_HELP, codebook.reduce),
    "reproduce": (reproduce.HELP, reproduce.main),
    "reproduce figure": (figures.HELP, figures.main),
    "benchmark": (benchmark.HELP, benchmark.main),
    "benchmark memory": (memory.HELP, memory.main),
    "benchmark threads": (threads.HELP, threads.main),
    "faults": (faults.HELP, faults.main),
    "evaluate compare": (compare_images.HELP, compare_images.main),
    "evaluate schedulers": (schedulers.HELP, schedulers.main),
}
every_verb = pytest.mark.parametrize("name", PAGES)


def options_in(text):
    """The options that a help explains."""
    return set(re.findall(r"^  --([\w.]+)", text, flags=re.MULTILINE))


def options_of(parser):
    """The options that a verb takes; a section is none."""
    actions = [action for action in parser._actions if action.option_strings and action.dest != "help"]
    return {action.dest for action in actions if action.dest not in parser.groups}


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@every_verb
def test_the_first_page_explains_the_common_options_on_two_screens(name):
    page, make = PAGES[name]

    text = make().help_on("")

    assert options_in(text) == {option for option in page.common if option != "task"}
    assert len(text.splitlines()) <= 80
    assert all(example in text for example in page.examples) and page.writes in text and page.following in text


@every_verb
def test_all_explains_every_option(name):
    parser = PAGES[name][1]()

    assert options_in(parser.help_on("all")) == options_of(parser)


@every_verb
def test_a_section_is_explained_alone_and_so_is_an_option(name):
    parser = PAGES[name][1]()
    section = sorted(options_of(parser), key=lambda option: "." not in option)[0].partition(".")[0]
    within = {option for option in options_of(parser) if option.startswith(f"{section}.")}

    assert options_in(parser.help_on(section)) == within
    assert options_in(parser.help_on("data.name" if "data.name" in within else min(within))) <= within


@pytest.mark.parametrize("name", OTHERS)
def test_the_first_page_of_every_verb_shows_its_page_and_only_options_that_exist(name, capsys):
    page, main = OTHERS[name]
    shown = {}
    for words in (["--help"], ["--help", "all"]):
        with pytest.raises(SystemExit):
            main(words)
        shown[words[-1]] = capsys.readouterr().out

    assert str(page) in shown["--help"] and all(example.startswith(f"arcvq {name}") for example in page.examples)
    every = options_in(shown["all"])
    assert options_in(shown["--help"]) == (every if page.common is None else set(page.common))


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), ([], 2)])
def test_a_verb_of_several_words_names_them_without_importing_torch(words, status):
    command = [sys.executable, "-X", "importtime", "-m", "arcvq", "codebook", *words]
    done = subprocess.run(command, capture_output=True, text=True)

    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    said = done.stdout + "\n".join(line for line in done.stderr.splitlines() if line not in imports)
    assert done.returncode == status and "features" in said and "reduce" in said
    assert imports and not any(line.split("|")[-1].strip() == "torch" for line in imports)


def test_a_reader_that_has_enough_of_the_help_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "arcvq", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)

    assert done.returncode == 0 and done.stderr == ""


def test_without_words_no_help_is_asked_for():
    assert make_parser(tokenizer).parse([]).run.name == "tokenizer"


def test_help_leaves_the_parser_as_it_was():
    parser = make_parser(tokenizer)
    before = parser.help_on("all")

    parser.help_on("")

    assert parser.help_on("all") == before
    assert parser.parse(["--optim.max_steps", "7"]).optim.max_steps == 7


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["--optim.lr", "much", "--help"], ["--config", "none.yaml", "-h"]]
)
def test_help_is_given_whatever_else_is_wrong(words, capsys):
    with pytest.raises(SystemExit) as end:
        make_parser(tokenizer).parse(words)

    assert end.value.code in (None, 0) and "--optim.lr" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help", "optim"], ["--help=optim"], ["-h", "optim"], ["--help", "--optim"]])
def test_help_takes_a_topic(words, capsys):
    with pytest.raises(SystemExit):
        make_parser(tokenizer).parse(words)

    shown = options_in(capsys.readouterr().out)
    assert "optim.eps" in shown or words[-1].startswith("--")  # a word that begins with - is no topic


def test_no_such_topic_is_one_line_that_names_the_topics(capsys):
    with pytest.raises(SystemExit) as end:
        make_parser(tokenizer).parse(["--help", "optimizer"])

    line = capsys.readouterr().err
    assert end.value.code == 2 and line.count("\n") == 1 and "'optimizer'" in line and "optim" in line


def test_a_verb_without_a_page_shows_all_options(capsys):
    parser = ScriptParser("Does something.")
    parser.add_argument("--number", type=int, default=3, help="of things")

    assert "number" in options_in(parser.help_on("")) and "default: 3" in parser.help_on("number")
