"""The help of a verb: a first page of two screens, and every option on demand."""

import re

import pytest

from arcvq.cli.parser import ScriptParser
from arcvq.evaluation import command as evaluate
from arcvq.planning.train_or_plan import make_parser
from arcvq.sampling import command as sample
from arcvq.training import ldm, pixelcnn, tokenizer

TRAININGS = {"train-tokenizer": tokenizer, "train-ldm": ldm, "train-pixelcnn": pixelcnn}
PAGES = {name: (module.HELP, lambda module=module: make_parser(module)) for name, module in TRAININGS.items()}
PAGES |= {"sample": (sample.HELP, sample.make_parser), "evaluate": (evaluate.HELP, evaluate.make_parser)}
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
