"""What a policy was before it was trained, to measure how far it moved."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from morlaif_hub.bank.bases import find_base
from morlaif_hub.hub.manifest import PolicyManifest, manifest_kind, read_manifest
from morlaif_hub.models.language_model import Dtype, LanguageModel, load_causal_lm, load_tokenizer

Reference = Callable[[], AbstractContextManager[Any]]
"""As `mean_kl` takes it: within the context the policy's model, or the given one, is its base."""


def reference_of(
    policy: LanguageModel, folder: Path, *, dtype: Dtype = "bfloat16"
) -> Reference | None:
    """Return the base of a policy of ours; None for a model that is none, and moved from nowhere.

    Args:
        policy: As `load_policy` returned it.
        folder: Its files.
        dtype: Of the base of a policy whose weights were all trained, which is loaded beside it.

    Raises:
        BaseMismatchError, ModelNotFoundError: As `find_base`.
    """
    if manifest_kind(folder) != "policy":
        return None
    manifest = read_manifest(folder, PolicyManifest)
    if manifest.form == "lora":
        return partial(_without_lora, policy.model)
    base = find_base(manifest.base, policy.name)
    model = load_causal_lm(base.path, dtype=dtype)
    return partial(
        nullcontext, LanguageModel(model, load_tokenizer(base.path), base.base, base.name)
    )


@contextmanager
def _without_lora(model: Any) -> Iterator[None]:
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
