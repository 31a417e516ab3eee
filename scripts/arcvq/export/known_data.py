"""Look up the id on the Hub and the licence of the images of the project's data sets."""

import re
from dataclasses import dataclass

from tokenizer.data.sources import NAMED


@dataclass(frozen=True)
class DataFacts:
    """Facts about a data set that a model card states.

    Attributes:
        name: the public name.
        hub_id: the id on the Hub; None if it is not there.
        licence: licence of the images; None if it is not known.
    """

    name: str
    hub_id: str | None = None
    licence: str | None = None


# Images of the train split and of the held-out one, by which a folder of such a name is told from any other.
_SIZES = {"digits": (1437, 360), "mnist": (60_000, 10_000), "cifar10": (50_000, 10_000), "clothing": (3_409, 372)}

# Licences as the publisher's page states them.
_KNOWN = {
    "digits": DataFacts("digits", None, "CC BY 4.0 (Optical Recognition of Handwritten Digits, UCI; in scikit-learn)"),
    "mnist": DataFacts("mnist", "ylecun/mnist", "MIT (ylecun/mnist)"),
    "cifar10": DataFacts("cifar10", "uoft-cs/cifar10", "not stated by its publisher (uoft-cs/cifar10: unknown)"),
    "clothing": DataFacts("clothing", None, "CC0 1.0 (alexeygrigorev/clothing-dataset-small)"),
}


def is_known(given: str, name: str, line: str, hold_out: int) -> bool:
    """Tell whether images are those that this project knows by a name.

    They are if the name itself was given, which is never taken for a folder, or if a folder has as many.

    Args:
        given: the data set as the run names it.
        name: its public name.
        line: describes the images that the run was trained on, as `data.txt` has it.
        hold_out: training images that were held out.
    """
    if given in NAMED or name not in _SIZES:
        return given in NAMED
    found = re.search(r"\b(\d+) train, (\d+) held out", line)
    train, held_out = map(int, found.groups()) if found else (0, 0)
    size, of_test = _SIZES[name]
    return (train, held_out) == ((size - hold_out, hold_out) if hold_out else (size, of_test))


def data_facts(name: str, hub_id: str | None, licence: str | None) -> DataFacts:
    """Return what is known of a data set by its public name; `hub_id` and `licence`, where given, take precedence."""
    known = _KNOWN.get(name, DataFacts(name, name if name.count("/") == 1 and "://" not in name else None))
    if hub_id is not None and hub_id != known.hub_id:
        known = DataFacts(name, hub_id)  # another data set, of which this licence is not
    return DataFacts(name, known.hub_id, known.licence if licence is None else licence)
