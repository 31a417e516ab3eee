"""Feature extractors of generation metrics; the code is in `pipelines.metrics.extractors`."""

from pipelines.metrics.extractors import Extractor, ExtractorConfig, make_extractor, register_extractor

__all__ = ["Extractor", "ExtractorConfig", "make_extractor", "register_extractor"]
