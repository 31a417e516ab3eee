"""Carry the options that images depend on, such as the latent scale, along with the prior from pipeline to pipeline.

A pipeline is also put together from the components of another, as diffusers' `components` gives them. These options,
which are saved in model_index.json, are therefore noted on the prior too, outside of its config and its weights; a copy
of it takes them along.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from priors.number_arguments import described

_NOTES = "_pipeline_options"


@dataclass(frozen=True)
class Preset:
    """An option's value that is not given but found, in a folder or a pipeline: what a prior says comes before it."""

    value: Any


def note(prior: nn.Module, name: str, value: Any) -> None:
    """Notes an option of a pipeline on its prior, beside those of other pipelines of the same prior."""
    values = noted(prior, name)
    if value not in values:
        setattr(prior, _NOTES, getattr(prior, _NOTES, {}) | {name: [*values, value]})


def noted(prior: Any, name: str) -> list[Any]:
    """All values of an option in the pipelines that have had this prior."""
    return list(getattr(prior, _NOTES, {}).get(name, ()))


def settled(prior: Any, name: str, given: Any) -> Any:
    """An option as it is given, or else as it is noted on the prior; None where neither says it.

    A `Preset` counts where nothing is noted on the prior, or where it is among what is noted.

    Raises:
        ValueError: it is not given, and pipelines of this prior differ in it.
    """
    preset = given.value if isinstance(given, Preset) else None
    if given is not None and not isinstance(given, Preset):
        return given
    values = noted(prior, name)
    if preset is not None and (not values or _as_saved(preset) in map(_as_saved, values)):
        return preset
    if len(values) > 1:
        raise ValueError(
            f"{name} is not clear: pipelines of this {type(prior).__name__} have {described(values[0])} and "
            f"{described(values[1])}; pass {name}, pipe.config.{name} of the one that is meant"
        )
    return values[0] if values else None


def _as_saved(value: Any) -> Any:
    """As JSON has it, whose keys are text."""
    return {str(key): one for key, one in value.items()} if isinstance(value, Mapping) else value


class CarryingPipeline(DiffusionPipeline):
    """A pipeline whose prior carries options of the constructor to other pipelines.

    A subclass names its prior and these options, and ends its constructor with `register`.
    """

    _prior: str
    _carried: tuple[str, ...]

    def register(self, components: dict[str, Any], options: dict[str, Any], said: Collection[str]) -> None:
        """Registers components and options, and notes the options that are `said`, and no default, on the prior."""
        self.register_modules(**components)
        self.register_to_config(**options)
        for name in said:
            note(components[self._prior], name, options[name])
        self.set_progress_bar_config()  # here, and not by whichever call comes first

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; a prior that takes the place of another brings the options along that are noted on it.

        Raises:
            ValueError: pipelines of this prior differ in one, and this pipeline's is not among them.
        """
        made = self._carried[0] in getattr(self, "_internal_dict", {})
        if name != self._prior or not made or not isinstance(value, nn.Module):
            super().__setattr__(name, value)
            return
        brought = {option: settled(value, option, Preset(self.config[option])) for option in self._carried}
        super().__setattr__(name, value)
        self.register_to_config(**brought)
        for option, own in brought.items():
            note(value, option, own)

    @property
    def components(self) -> dict[str, Any]:
        """The components by name, of which `type(pipe)(**components)` makes a pipeline of the same images and names.

        Options are among them where they are not clear from the prior, as it is in pipelines that differ in them.
        """
        components = super().components
        for name in self._carried:
            values, own = noted(components[self._prior], name), self.config[name]
            if values and values != [own]:
                components[name] = own
        return components

    @property
    def parameters(self) -> dict[str, Any]:
        """The options by name, but for those among the components."""
        components = self.components
        return {name: value for name, value in super().parameters.items() if name not in components}

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "CarryingPipeline":
        """Makes a pipeline of another's components and options, as diffusers does: cast to `dtype`, float32 by default.

        Args:
            pipeline: of this class.
            kwargs: components and options to be replaced; a prior brings the options along that are noted on it.

        Raises:
            TypeError: no pipeline.
            ValueError: one that lacks components of this class, which are not passed either.
        """
        if not isinstance(pipeline, DiffusionPipeline):
            raise TypeError(f"from_pipe takes a pipeline, got {described(pipeline)}; load one with from_pretrained")
        needed = [
            one for one in cls._get_signature_keys(cls)[0] if one not in pipeline.components and one not in kwargs
        ]
        if needed:
            names = f"{', '.join(sorted(needed))} of a {cls.__name__}"
            raise ValueError(f"a {type(pipeline).__name__} has no {names}; pass them as well, or load that pipeline")
        found = {name: Preset(pipeline.config[name]) for name in cls._carried if name in pipeline.config}
        return super().from_pipe(pipeline, **found | kwargs)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict[str, Any], ...]:
        """Mark a folder's options as presets, so that a prior that is passed keeps its own."""
        made_of, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        return made_of | {name: Preset(made_of[name]) for name in cls._carried if name in made_of}, unused, hidden

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[type, ...]]:
        """Let diffusers' loader take a `Preset` for a carried option without a warning."""
        allowed = super()._get_signature_types()
        return allowed | {name: (*allowed[name], Preset) for name in cls._carried}
