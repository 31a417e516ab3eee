"""Write a model card in the Hub's format from the facts in card.json."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from arcvq.evaluation.result import summarise

_TOKENIZER_USE = """\
import torch
from arcvq import VQTokenizer
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

tokenizer = VQTokenizer.from_pretrained("{folder}")
pixels = pil_to_tensor(Image.open("{folder}/{image}"))[None]  # uint8 (1, {channels}, {size}, {size})
with torch.no_grad():
    {encoded} = {encode}  # {shape}
    restored = {decode}  # about [-1, 1]"""
_PIPELINE_USE = """\
import torch
from arcvq import {name}

pipe = {name}.from_pretrained("{folder}")
seeds = [torch.Generator().manual_seed(seed) for seed in {seeds}]
images = pipe(class_labels={labels}, generator=seeds{call}).images  # of {names}"""


def render_card(card: Mapping[str, Any]) -> str:
    """Write the README.md of an exported folder: YAML head, picture, use, training, numbers, limits, licence.

    Args:
        card: the content of card.json.
    """
    parts = [
        f"---\n{_head(card)}\n---",
        f"# {card['name']}",
        _what_it_is(card),
        f"![{_PICTURES[card['kind']]}](examples.png)\n\n{_PICTURES[card['kind']]}.",
        f"## Use\n\n```python\n{_use(card)}\n```\n\nThe names are those of the `arcvq` package. {_weights(card)}",
        f"## Training\n\n{_training(card)}",
        f"## Numbers\n\nMeasured on the files of this folder.\n\n{_numbers(card)}",
        f"## Examples\n\n{_examples(card)}",
        f"## Limits and intended use\n\n{_limits(card)}",
        f"## Licence\n\n{_licence(card)}",
    ]
    return "\n\n".join(parts) + "\n"


_PICTURES = {
    "tokenizer": "Held-out images above their reconstructions",
    "pipeline": "Samples of each class, not selected",
}


def _head(card: Mapping[str, Any]) -> str:
    """Write the YAML that the Hub reads."""
    is_tokenizer = card["kind"] == "tokenizer"
    data = ModelCardData(
        license=card["licence"],
        library_name="diffusers",
        pipeline_tag="image-feature-extraction" if is_tokenizer else "unconditional-image-generation",
        tags=["arcvq", "vq-vae", "image-tokenizer" if is_tokenizer else "class-conditional"],
        datasets=[card["data"]["hub_id"]] if card["data"]["hub_id"] else None,
    )
    return data.to_yaml()


def _what_it_is(card: Mapping[str, Any]) -> str:
    """Describe the model in a paragraph."""
    model = card["model"]
    options = model["tokenizer"]
    size, channels = options["image_size"], options["in_channels"]
    if model["code_shape"] is None:
        tokens = f"continuous latents of {_by(model['latent_shape'])}"
    else:
        tokens = f"{_by(model['code_shape'])} codes out of {options['codebook_size']:,}"
    tokenizer = (
        f"an image tokenizer of {model['tokenizer_parameters']:,} parameters (network `{options['network']}`, "
        f"quantizer `{options['quantizer']}`) that turns an image of {size} x {size} pixels and {channels} "
        f"channel{'s' * (channels > 1)} into {tokens}, and these back into the image"
    )
    if card["kind"] == "tokenizer":
        return f"{tokenizer[0].upper()}{tokenizer[1:]}. It was trained on {_data(card)}."
    shown = ", ".join(model["classes"][:10]) + (", ..." if len(model["classes"]) > 10 else "")
    return (
        f"A class-conditional pipeline (`{card['class']}`): a prior of {model['prior_parameters']:,} parameters over "
        f"the output of {tokenizer}. It samples images of {len(model['classes'])} classes ({shown}), and was trained "
        f"on {_data(card)}."
    )


def _use(card: Mapping[str, Any]) -> str:
    """Write Python that runs where the folder lies under its name."""
    model, options = card["model"], card["model"]["tokenizer"]
    if card["kind"] == "tokenizer":
        has_codes = model["code_shape"] is not None
        return _TOKENIZER_USE.format(
            folder=card["folder"],
            image=card["examples"][0]["image"],
            channels=options["in_channels"],
            size=options["image_size"],
            encoded="codes" if has_codes else "latents",
            encode="tokenizer.encode_codes(pixels / 127.5 - 1)"
            if has_codes
            else "tokenizer.encode(pixels / 127.5 - 1).latents",
            shape=f"({', '.join(map(str, (1, *(model['code_shape'] or model['latent_shape']))))})",
            decode="tokenizer.decode_codes(codes)" if has_codes else "tokenizer.decode(latents).sample",
        )
    samples = card["examples"]["images"][:2]
    return _PIPELINE_USE.format(
        name=card["class"],
        folder=card["folder"],
        seeds=[sample["seed"] for sample in samples],
        labels=[sample["class_label"] for sample in samples],
        call="".join(f", {name}={value}" for name, value in card["examples"]["call"].items()),
        names=" and ".join(sample["class_name"] for sample in samples),
    )


def _weights(card: Mapping[str, Any]) -> str:
    """Say how the weights are stored."""
    weights = card["weights"]
    but = ", the quantizer's in float32," if weights["dtype"] != "float32" else ""
    return (
        f"The {weights['values']:,} stored values take {weights['bytes'] / 1e6:.2f} MB in {weights['dtype']}{but} and "
        "compute in float32 unless `from_pretrained` is told otherwise."
    )


def _training(card: Mapping[str, Any]) -> str:
    """List how the model was trained."""
    training = card["training"]
    rows = {
        "data": f"{_data(card)}; {card['data']['line'].removeprefix('data: ')}",
        "steps": f"{training['steps']:,}",
        "images per step": f"{training['batch_size']:,}",
        "seed": training["seed"],
        "precision": "float32" if training["mixed_precision"] == "no" else training["mixed_precision"],
        "averaged weights": "none" if training["ema_decay"] is None else f"decay {training['ema_decay']}",
        "time": f"{_time(training['hours'])}, with the evaluations in between",
    }
    rows["code and machine"] = "; ".join(map(_start, training["starts"])) or training["told"] or "not recorded"
    settings = "All settings are in [config.yaml](config.yaml)."
    if card["data"]["hub_id"] is None and card["data"]["name"] != "digits":
        settings += f" `{card['data']['name']}` in them stands for the data set's folder: set `--data.name` to yours."
    if card["kind"] == "pipeline":
        settings += " The command trains on the outputs of the tokenizer in this folder."
    return f"```sh\n{training['command']}\n```\n\n{settings}\n\n{_table(('', ''), rows)}"


def _time(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def _start(start: Mapping[str, Any]) -> str:
    """Describe one start of the training."""
    device = "" if start["device"] == "cpu" else f"{start['device']}, "
    processes = f"{start['processes']} process{'es' if start['processes'] > 1 else ''}"
    code = f"commit {start['commit']}" if start["commit"] else "outside a checkout"
    torch_version = start["versions"]["torch"]
    return (
        f"from step {start['step']:,}: {code}, torch {torch_version}, {processes}, {device}{start['processor']} with "
        f"{start['cores']} cores"
    )


def _numbers(card: Mapping[str, Any]) -> str:
    """Write each measurement with its command and its protocol."""
    parts = []
    for evaluation in card["evaluations"]:
        protocol = evaluation["protocol"]
        rows = {f"`{name}`": number(value) for name, value in evaluation["numbers"].items()}
        facts = f"{summarise(protocol)}; commit {protocol['commit']}; all facts are in [card.json](card.json)."
        parts.append(f"```sh\n{protocol['command']}\n```\n\n{facts}\n\n{_table(('number', 'value'), rows)}")
    return "\n\n".join(parts)


def number(value: Any) -> str:
    """Write a number of a measurement with six digits; whole numbers, and texts as for infinity, as they are."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _examples(card: Mapping[str, Any]) -> str:
    """Say what the files of examples are."""
    if card["kind"] == "tokenizer":
        return (
            f"`examples/` holds {len(card['examples'])} held-out images as lossless PNG; `card.json` has the PSNR of "
            "the reconstruction of each, and its codes if it has any. Another processor may round a code to its "
            "neighbour."
        )
    call = "".join(f", `{name}` {value}" for name, value in card["examples"]["call"].items())
    return (
        f"`examples/` holds {len(card['examples']['images'])} samples of one call{call}; `card.json` has the class "
        "label and the seed of each. Another processor may round a few pixels by one level."
    )


def _limits(card: Mapping[str, Any]) -> str:
    """Say what the model is for, and what not."""
    size = card["model"]["tokenizer"]["image_size"]
    made = "reconstructs" if card["kind"] == "tokenizer" else "samples"
    return (
        f"An example of what this code trains, for study, teaching and tests. It {made} images of {size} x {size} "
        f"pixels that are like those of {card['data']['name']}, with the faults of these data, and knows no others; "
        "its training was short next to that of published models. Do not use it to decide anything about people, and "
        "do not pass its images off as photographs."
    )


def _licence(card: Mapping[str, Any]) -> str:
    """State the licences of the weights and of the data."""
    licence = card["data"]["licence"] or "not known to the authors of this card"
    own = "Apache 2.0" if card["licence"] == "apache-2.0" else card["licence"]
    return f"Weights and card: {own}. Images of {card['data']['name']}: {licence}."


def _data(card: Mapping[str, Any]) -> str:
    """Name the data set."""
    data = card["data"]
    page = f" ([{data['hub_id']}](https://huggingface.co/datasets/{data['hub_id']}))" if data["hub_id"] else ""
    return f"{data['name']}{page}"


def _by(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [head, ("---", "---"), *rows.items()]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {name} | {value} |" for name, value in cells)
