"""Look up the id on the Hub and the licence of the images of the project's data sets."""

from dataclasses import dataclass


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


# Licences as the publisher's page states them.
_KNOWN = {
    "digits": DataFacts("digits", None, "CC BY 4.0 (Optical Recognition of Handwritten Digits, UCI; in scikit-learn)"),
    "mnist": DataFacts("mnist", "ylecun/mnist", "MIT (ylecun/mnist)"),
    "cifar10": DataFacts("cifar10", "uoft-cs/cifar10", "not stated by its publisher (uoft-cs/cifar10: unknown)"),
    "clothing": DataFacts("clothing", None, "CC0 1.0 (alexeygrigorev/clothing-dataset-small)"),
}


def data_facts(name: str, hub_id: str | None, licence: str | None) -> DataFacts:
    """Return what is known of a data set by its public name; `hub_id` and `licence`, where given, take precedence."""
    known = _KNOWN.get(name, DataFacts(name, name if name.count("/") == 1 and "://" not in name else None))
    if hub_id is not None and hub_id != known.hub_id:
        known = DataFacts(name, hub_id)  # another data set, of which this licence is not
    return DataFacts(name, known.hub_id, known.licence if licence is None else licence)
