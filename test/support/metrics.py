"""What an exposition of metrics says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

_EVERYWHERE = ("model_name", "engine")
"""Labels that all series have."""


def samples(text: str) -> dict[str, float]:
    """Name -> value, with the values of labels that not all have: `lightllm_x_bucket{0.5}`."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = (value for name, value in sorted(sample.labels.items()) if name not in _EVERYWHERE)
            found[sample.name + "".join(f"{{{value}}}" for value in labels)] = sample.value
    return found
