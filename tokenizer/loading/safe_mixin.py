"""Load a model from a folder that holds exactly its weights in safetensors; raise ValueError for any other."""

from pathlib import Path
from typing import Any

from tokenizer.loading.model_folder import check_model_folder, local_folder
from tokenizer.loading.result_folders import result_folder, what_it_holds

_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")


class CompleteWeights:
    """Mixin for models, put before ModelMixin: loads safetensors only, and fails on missing or unexpected weights.

    diffusers' own `from_pretrained` reads pickles where there are no safetensors, and leaves missing tensors empty.

    Attributes:
        _result: name of the model's folder in a run folder; None for a model that no training exports by itself.
    """

    _result: str | None = None

    @classmethod
    def current_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Bring a config up to date that an older version of the class has written."""
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Build the model from a config, as diffusers does, also from one that an older version has written."""
        return super().from_config(cls.current_config(config), *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a folder or Hub id as diffusers does, but from safetensors alone.

        A run folder of a tokenizer's training stands for the tokenizer in it.

        Raises:
            ValueError: the folder holds something else, its config or weights are broken, or they do not fit each
                other.
        """
        hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        part = kwargs.pop("subfolder", None) or ""
        only_safetensors(kwargs)
        patterns = [str(Path(part, name)) for name in ("*.json", "*.safetensors")]
        whole = local_folder(pretrained_model_name_or_path, patterns, **hub)
        folder = whole / part
        if not part and cls._result is not None:
            folder = result_folder(folder, cls._result, cls.__name__)
        elif not (folder / "config.json").exists():
            raise ValueError(f"{folder} holds no {cls.__name__}; {whole} holds {what_it_holds(whole)}")
        check_model_folder(cls, folder, kwargs.get("variant"))
        return super().from_pretrained(folder, **kwargs)


def only_safetensors(kwargs: dict[str, Any]) -> None:
    """Set the `use_safetensors` option of diffusers' `from_pretrained`; raise ValueError if it asks for pickles."""
    if kwargs.get("use_safetensors") is False:
        raise ValueError("use_safetensors=False would read pickles, which may run code; arcvq convert reads them")
    kwargs["use_safetensors"] = True
