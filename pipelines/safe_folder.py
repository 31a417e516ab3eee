"""Check the folder of a pipeline before diffusers loads it.

diffusers imports the libraries that a model_index.json names, and runs Python files that lie next to it.
"""

import inspect
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin, schedulers

from tokenizer.loading.json_config import check_arguments, read_json
from tokenizer.loading.model_folder import check_numbers
from tokenizer.loading.result_folders import class_in

# Timesteps, for each of which a scheduler holds numbers; diffusers' own have 1,000.
_LARGEST_NUMBER = 100_000


def check_pipeline_folder(pipeline: type[DiffusionPipeline], folder: Path, given: Collection[str] = ()) -> None:
    """Check that a folder holds this pipeline and nothing else, and that its scheduler loads.

    The models in it are checked when they are loaded.

    Args:
        pipeline: class of the pipeline; its constructor's annotations name the components and their classes.
        folder: a local folder.
        given: names of components that the caller passes, which are not loaded from the folder.

    Raises:
        ValueError: another pipeline, component, class or library; code; a broken config.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder} holds no pipeline: there is no model_index.json in it")
    config = read_json(index)
    if config.get("_class_name") != pipeline.__name__:
        held = class_in(index)
        remedy = f"load it with {held}.from_pretrained" if held else "get the folder anew"
        name = held or f"{config.get('_class_name')!r:.80}"
        raise ValueError(f"{folder} holds a {name}, not a {pipeline.__name__}; {remedy}")
    classes = component_classes(pipeline)
    check_arguments(pipeline, config, index, skip=tuple(classes))
    for name, value in _options(pipeline, classes).items():
        if config.get(name) is None and name not in given:
            raise ValueError(f"{index} has no {name}, {value}; get the folder anew")
    for part in (folder, *(folder / name for name in classes)):
        if code := next(iter(sorted(part.glob("*.py"))), None):
            raise ValueError(f"{code} is code, and a pipeline's folder needs none; remove it")
    for name, allowed in classes.items():
        chosen = _chosen(config.get(name), allowed, name, index)
        if name not in given:
            _check_component(chosen, folder, name)


@cache
def component_classes(pipeline: type[DiffusionPipeline]) -> dict[str, tuple[type, ...]]:
    """Return the classes that each component may have; a scheduler may be any of diffusers'."""
    classes = {}
    for name, hint in get_type_hints(pipeline.__init__).items():
        models = tuple(model for model in (get_args(hint) or (hint,)) if isinstance(model, type))
        if name == "scheduler":
            classes[name] = (SchedulerMixin,)
        elif models and all(issubclass(model, ModelMixin) for model in models):
            classes[name] = models
    return classes


def _options(pipeline: type[DiffusionPipeline], components: Collection[str]) -> dict[str, str]:
    """List the options that the index holds in addition to the components, with the type of each."""
    parameters = list(inspect.signature(pipeline).parameters.values())
    return {option.name: str(option.annotation) for option in parameters if option.name not in components}


def _chosen(value: Any, allowed: tuple[type, ...], name: str, index: Path) -> type:
    """Return the class that the index names, if it is an allowed one."""
    known = {(_library(model), model.__name__): model for model in allowed if model is not SchedulerMixin}
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
        if SchedulerMixin in allowed and value[0] == "diffusers":
            scheduler = getattr(schedulers, value[1], None)
            if isinstance(scheduler, type) and issubclass(scheduler, SchedulerMixin):
                return scheduler
        if tuple(value) in known:
            return known[tuple(value)]
    wanted = " or ".join(f"{class_name} of {library}" for library, class_name in known) or "a scheduler of diffusers"
    raise ValueError(f"{index}: {name} must be {wanted}, got {value!r:.120}; nothing else is imported")


def _library(component: type) -> str:
    """Return the library that diffusers names in an index for this component."""
    return "diffusers" if component.__module__.startswith("diffusers.") else component.__module__


def _check_component(component: type, folder: Path, name: str) -> None:
    """Raise ValueError if the component's folder is missing, or its scheduler does not load."""
    component_folder = folder / name
    if not component_folder.is_dir():  # diffusers would use the pipeline's own folder instead
        raise ValueError(f"{folder} has no folder {name}; get it anew, or pass the {name}")
    if not component_folder.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{component_folder} leads out of the folder, to {component_folder.resolve()}; copy it, or pass the {name}"
        )
    if issubclass(component, SchedulerMixin):
        file = component_folder / "scheduler_config.json"
        config = read_json(file)
        check_arguments(component, config, file, others=True)  # one made from another keeps the other's numbers
        check_numbers(config, file, _LARGEST_NUMBER)
        try:
            component.from_config(config)
        except Exception as error:  # any error that one of diffusers' schedulers raises for a value
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{file} describes no {component.__name__}: {reason:.500}") from error
