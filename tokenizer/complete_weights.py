"""A folder that holds exactly a model's weights, or does not load."""

from typing import Any


class CompleteWeights:
    """To be named before diffusers' ModelMixin, whose `from_pretrained` leaves missing tensors empty."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Loads a folder as diffusers does.

        Raises:
            ValueError: tensors that are missing from the folder, or that have no place in the model.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        for problem, names in (("missing", info["missing_keys"]), ("left over", info["unexpected_keys"])):
            if names:
                raise ValueError(
                    f"the weights in {pretrained_model_name_or_path} are not those that its config.json describes: "
                    f"{', '.join(sorted(names)[:3])} {problem}"
                )
        return (model, info) if wants_info else model
