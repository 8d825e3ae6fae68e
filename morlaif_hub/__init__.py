"""Multi-objective RL from AI feedback: one small preference model per principle.

The public names are loaded when they are first used, so that `import morlaif_hub` costs next to
nothing and loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` does it
    from morlaif_hub.bank.bank import PMBank
    from morlaif_hub.comparisons import Comparison, read_comparisons
    from morlaif_hub.errors import MorlaifHubError
    from morlaif_hub.feedback.collect import collect_feedback
    from morlaif_hub.feedback.dataset import FeedbackDataset
    from morlaif_hub.hub.catalog import search_hub
    from morlaif_hub.judges.base import load_judge
    from morlaif_hub.judges.validation import validate_judge
    from morlaif_hub.models.embedded import embedded_model
    from morlaif_hub.models.generation import SamplingSettings, sample_responses
    from morlaif_hub.models.language_model import LanguageModel
    from morlaif_hub.policies.artifact import load_policy
    from morlaif_hub.policies.ppo import PPOTrainer
    from morlaif_hub.policies.ppo_config import PPOConfig
    from morlaif_hub.policies.train import train_policy
    from morlaif_hub.preference_models.train import train_preference_models
    from morlaif_hub.principles import Constitution, Principle, load_constitution
    from morlaif_hub.publish.push import push_to_hub
    from morlaif_hub.publish.verify import verify
    from morlaif_hub.rewards import bind_scalarizer, reward_function, reward_functions
    from morlaif_hub.scalarizers import SCALARIZERS
    from morlaif_hub.steering import Steered, best_of_n
    from morlaif_hub.weights import WeightFit, compare_scalarizers, fit_weights

__all__ = [
    "SCALARIZERS",
    "Comparison",
    "Constitution",
    "FeedbackDataset",
    "LanguageModel",
    "MorlaifHubError",
    "PMBank",
    "PPOConfig",
    "PPOTrainer",
    "Principle",
    "SamplingSettings",
    "Steered",
    "WeightFit",
    "best_of_n",
    "bind_scalarizer",
    "collect_feedback",
    "compare_scalarizers",
    "embedded_model",
    "fit_weights",
    "load_constitution",
    "load_judge",
    "load_policy",
    "push_to_hub",
    "read_comparisons",
    "reward_function",
    "reward_functions",
    "sample_responses",
    "search_hub",
    "train_policy",
    "train_preference_models",
    "validate_judge",
    "verify",
]

_MODULES = {
    "bank.bank": ("PMBank",),
    "comparisons": ("Comparison", "read_comparisons"),
    "errors": ("MorlaifHubError",),
    "feedback.collect": ("collect_feedback",),
    "feedback.dataset": ("FeedbackDataset",),
    "hub.catalog": ("search_hub",),
    "judges.base": ("load_judge",),
    "judges.validation": ("validate_judge",),
    "models.embedded": ("embedded_model",),
    "models.generation": ("SamplingSettings", "sample_responses"),
    "models.language_model": ("LanguageModel",),
    "policies.artifact": ("load_policy",),
    "policies.ppo": ("PPOTrainer",),
    "policies.ppo_config": ("PPOConfig",),
    "policies.train": ("train_policy",),
    "preference_models.train": ("train_preference_models",),
    "principles": ("Constitution", "Principle", "load_constitution"),
    "publish.push": ("push_to_hub",),
    "publish.verify": ("verify",),
    "rewards": ("bind_scalarizer", "reward_function", "reward_functions"),
    "scalarizers": ("SCALARIZERS",),
    "steering": (
        "Steered",
        "best_of_n",
    ),
    "weights": ("WeightFit", "compare_scalarizers", "fit_weights"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # so that the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
