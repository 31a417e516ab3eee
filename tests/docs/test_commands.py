"""Every command and every Python block of README and docs: options are those of the verb, imports resolve."""

import ast
import importlib
import re
import shlex
import shutil
import sys

import pytest
import torch
from doc_pages import PAGES, blocks, inline_code
from places import ROOT

from arcvq.cli import script
from arcvq.cli.parser import ScriptParser
from arcvq.verbs import VERBS, run_verb
from pipelines import ArcVQLDMPipeline
from priors.diffusion import make_scheduler
from priors.unet import make_unet
from tokenizer import VQTokenizer
from tokenizer.quantizers import make_quantizer

BLOCKS = [block for page in PAGES for block in blocks(page)]
# What a block of commands may hold besides the project's own.
OTHERS = ("pip install ", "pip wheel ", "source ", "git clone ", "git tag ", "git push ", "arcvq --help")
# Pages whose Python blocks run as they stand, in a folder with small models of both stages.
RUN = ("README.md", "quantizers.md")


def lines_of(block):
    """The commands of a block: continued lines joined, comments taken off."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    return [" ".join(shlex.split(line, comments=True)) and line for line in joined.splitlines()]


COMMANDS = [
    *(
        pytest.param(line, id=f"{block}: {line[:60]}")
        for block in BLOCKS
        if block.language == "sh"
        for line in lines_of(block)
        if line
    ),
    *(
        pytest.param(code, id=f"{page.name}: {code[:60]}")
        for page in PAGES
        for code in inline_code(page)
        if re.match(r"(python scripts/\w+\.py|arcvq [a-z-]+|accelerate launch .*(scripts/|-m arcvq)\S*) ", code)
        and not re.search(r"\bVERB\b|\.\.\.", code)
    ),
]


def own_words(words):
    """The verb of a command, and the words after it; none where it is no command of the project."""
    words = words[1:] if words[0] == "exec" else words
    if words[0] == "accelerate":
        assert words[1] == "launch"
        if "-m" in words:
            words = words[words.index("-m") + 1 :]
            assert words[0] == "arcvq"
        else:
            words = ["python", *words[next(index for index, word in enumerate(words) if word.startswith("scripts/")) :]]
    if words[:3] == ["python", "-m", "arcvq"]:
        words = words[2:]
    if words[0] == "arcvq":
        return words[1], words[2:]
    if words[0] == "python" and words[1].startswith("scripts/"):
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
        return words[1].removeprefix("scripts/").removesuffix(".py").replace("_", "-"), words[2:]
    return None


class Parsed(Exception):
    """The options of a command, instead of what it would do with them."""


@pytest.fixture
def parse_only(monkeypatch):
    """Commands end with `Parsed` as soon as their options are."""
    parse = ScriptParser.parse

    def parse_and_end(self, args):
        raise Parsed(parse(self, args))

    monkeypatch.setattr(ScriptParser, "parse", parse_and_end)
    monkeypatch.setattr(script, "run_script", lambda main: main())
    monkeypatch.chdir(ROOT)


def parsed(verb, args, monkeypatch):
    monkeypatch.setattr(sys, "argv", [verb, *args])
    try:
        run_verb(verb, args)
    except Parsed as end:
        return end.args[0]
    except SystemExit as end:
        assert not end.code, "the command is refused"
    return None


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_those_of_the_verb(command, parse_only, tmp_path, monkeypatch):
    words = shlex.split(command, comments=True)
    own = own_words(words)
    if own is None:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:
            assert command.startswith(OTHERS), "neither a command of this project nor one that a page may hold"
        return
    verb, args = own
    if verb == "--help":
        return
    assert verb in VERBS
    if "arcvq" in words[:5]:  # works in any folder: configs are found by name
        monkeypatch.chdir(tmp_path)

    config = parsed(verb, args, monkeypatch)

    if verb == "train-tokenizer" and config is not None:
        make_quantizer(config.model.quantizer, 512, 64, dict(config.model.quantizer_options or {}))
        with torch.device("meta"):
            VQTokenizer(3, config.data.image_size or 32, **config.model.as_dict())


def test_an_unknown_option_is_seen(parse_only, monkeypatch):
    with pytest.raises(AssertionError):
        parsed("train-tokenizer", ["--optim.learning_rate", "1"], monkeypatch)
    with pytest.raises(AssertionError):
        parsed("evaluate", ["compare", "one", "--first", "two"], monkeypatch)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_what_it_holds(block):
    assert block.language in ("sh", "python", "yaml", "json", "text", "bibtex")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_imports_resolve(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder with models/, and with runs/tokenizer and runs/ldm, whose networks have a few hundred weights."""
    shutil.copytree(ROOT / "models", tmp_path / "models")
    sizes = {"codebook_size": 16, "codebook_dim": 4, "hidden_channels": 8}
    tokenizer = VQTokenizer(1, 32, **sizes).eval()
    unet = make_unet(tokenizer.latent_shape, 10, 16, (1,), num_blocks=1, head_channels=8, conditioning="embedding")
    pipeline = ArcVQLDMPipeline(tokenizer, unet.eval(), make_scheduler(), latent_scale=1.0)
    tokenizer.save_pretrained(tmp_path / "runs" / "tokenizer" / "tokenizer")
    pipeline.save_pretrained(tmp_path / "runs" / "ldm" / "pipeline")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "python" and block.page.name in RUN], ids=str
)
def test_a_block_runs_as_it_stands(block, trained):
    names = {}
    exec(compile(block.text, str(block), "exec"), names)
    if block.page.name == "README.md":
        assert len(names["images"]) == 2 and names["images"][0].size == (64, 64)
        assert names["restored"].shape == names["pixels"].shape
