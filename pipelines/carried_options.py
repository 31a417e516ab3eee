"""Carry options that images depend on, such as the latent scale, along with the prior from pipeline to pipeline.

A pipeline can be built from the components of another one, as diffusers' `components` gives them. These options, which
are saved in model_index.json, are therefore also noted on the prior, outside of its config and weights; a copy of the
prior keeps them.
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
    """An option's value from a folder or another pipeline; values noted on the prior take precedence over it."""

    value: Any


def note(prior: nn.Module, name: str, value: Any) -> None:
    """Note an option of a pipeline on its prior, next to those of other pipelines of the same prior."""
    values = noted(prior, name)
    if value not in values:
        setattr(prior, _NOTES, getattr(prior, _NOTES, {}) | {name: [*values, value]})


def noted(prior: Any, name: str) -> list[Any]:
    """Return all values of an option in the pipelines that have had this prior."""
    return list(getattr(prior, _NOTES, {}).get(name, ()))


def settled(prior: Any, name: str, given: Any) -> Any:
    """Return the given value of an option, or else the one noted on the prior; None if neither exists.

    A `Preset` is used if nothing is noted on the prior, or if it is one of the noted values.

    Raises:
        ValueError: the option is not given, and pipelines of this prior differ in it.
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
    """Convert keys of a mapping to text, as JSON stores them."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else value


class CarryingPipeline(DiffusionPipeline):
    """A pipeline whose prior carries options of the constructor to other pipelines.

    A subclass names its prior and these options, and ends its constructor with `register`.
    """

    _prior: str
    _carried: tuple[str, ...]

    def register(self, components: dict[str, Any], options: dict[str, Any], known: Collection[str]) -> None:
        """Register components and options, and note the options named in `known` on the prior.

        Args:
            components: the pipeline's components, by name.
            options: the constructor's options, by name.
            known: names of the options that were given or noted before, and are not mere defaults.
        """
        self.register_modules(**components)
        self.register_to_config(**options)
        for name in known:
            note(components[self._prior], name, options[name])
        self.set_progress_bar_config()  # now, and not at the first call, which may be in any thread

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a prior that replaces another one brings its noted options along.

        Raises:
            ValueError: pipelines of this prior differ in an option, and this pipeline's value is not among them.
        """
        is_built = self._carried[0] in getattr(self, "_internal_dict", {})
        if name != self._prior or not is_built or not isinstance(value, nn.Module):
            super().__setattr__(name, value)
            return
        brought = {option: settled(value, option, Preset(self.config[option])) for option in self._carried}
        super().__setattr__(name, value)
        self.register_to_config(**brought)
        for option, own in brought.items():
            note(value, option, own)

    @property
    def components(self) -> dict[str, Any]:
        """The components by name; `type(pipe)(**components)` builds a pipeline with the same images and class names.

        An option is included where the prior notes another value, or several: the prior alone would not determine it.
        """
        components = super().components
        for name in self._carried:
            values, own = noted(components[self._prior], name), self.config[name]
            if values and values != [own]:
                components[name] = own
        return components

    @property
    def parameters(self) -> dict[str, Any]:
        """The options by name, except those included in the components."""
        components = self.components
        return {name: value for name, value in super().parameters.items() if name not in components}

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "CarryingPipeline":
        """Build a pipeline of another's components and options, as diffusers does: cast to `dtype`, float32 by default.

        Args:
            pipeline: a pipeline with the components of this class.
            kwargs: components and options to replace; a prior brings its noted options along.

        Raises:
            TypeError: no pipeline.
            ValueError: the pipeline lacks components of this class, and they are not passed either.
        """
        if not isinstance(pipeline, DiffusionPipeline):
            raise TypeError(f"from_pipe takes a pipeline, got {described(pipeline)}; load one with from_pretrained")
        expected = cls._get_signature_keys(cls)[0]
        missing = [name for name in expected if name not in pipeline.components and name not in kwargs]
        if missing:
            names = f"{', '.join(sorted(missing))} of a {cls.__name__}"
            raise ValueError(f"a {type(pipeline).__name__} has no {names}; pass them as well, or load that pipeline")
        presets = {name: Preset(pipeline.config[name]) for name in cls._carried if name in pipeline.config}
        return super().from_pipe(pipeline, **presets | kwargs)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict[str, Any], ...]:
        """Mark a folder's options as presets, so that a prior that is passed keeps its own."""
        arguments, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        return arguments | {name: Preset(arguments[name]) for name in cls._carried if name in arguments}, unused, hidden

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[type, ...]]:
        """Let diffusers' loader take a `Preset` for a carried option without a warning."""
        allowed = super()._get_signature_types()
        return allowed | {name: (*allowed[name], Preset) for name in cls._carried}
