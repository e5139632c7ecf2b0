"""One typed configuration per command, filled from YAML and from flags alike.

Every command is a function that takes one of these, so a notebook does what the terminal does::

    finetune_sam(FinetuneSamConfig(data="dataset", out="runs/sam", epochs=5))

The docstring under a field is its help text on the command line. A module is imported when one of
its configurations is asked for: a command builds its own, not everybody's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.config.base import Config, build, to_yaml

if TYPE_CHECKING:
    from toolkit.config.adapt import AdaptConfig
    from toolkit.config.classifier import FinetuneClassifierConfig
    from toolkit.config.data import (
        BalanceConfig,
        CheckConfig,
        ConvertConfig,
        CropConfig,
        SynthConfig,
    )
    from toolkit.config.evaluate import CompareConfig, EvaluateConfig, ReportConfig, ScoringConfig
    from toolkit.config.experiment import ExperimentConfig, ExperimentPlan
    from toolkit.config.export import ExportConfig
    from toolkit.config.finetune import FinetuneSamConfig, FinetuneYoloConfig
    from toolkit.config.predict import DemoConfig, PredictConfig
    from toolkit.config.pretrain import (
        PretrainClassifierConfig,
        PretrainConfig,
        PretrainSamConfig,
        PretrainYoloConfig,
    )
    from toolkit.config.prompts import PromptsMakeConfig
    from toolkit.config.weights import WeightsGetConfig, WeightsListConfig, WeightsVerifyConfig

__all__ = [
    "AdaptConfig",
    "BalanceConfig",
    "CheckConfig",
    "CompareConfig",
    "Config",
    "ConvertConfig",
    "CropConfig",
    "DemoConfig",
    "EvaluateConfig",
    "ExperimentConfig",
    "ExperimentPlan",
    "ExportConfig",
    "FinetuneClassifierConfig",
    "FinetuneSamConfig",
    "FinetuneYoloConfig",
    "PredictConfig",
    "PretrainClassifierConfig",
    "PretrainConfig",
    "PretrainSamConfig",
    "PretrainYoloConfig",
    "PromptsMakeConfig",
    "ReportConfig",
    "ScoringConfig",
    "SynthConfig",
    "WeightsGetConfig",
    "WeightsListConfig",
    "WeightsVerifyConfig",
    "build",
    "to_yaml",
]

_HOMES = {
    "AdaptConfig": "adapt",
    "FinetuneClassifierConfig": "classifier",
    "BalanceConfig": "data",
    "CheckConfig": "data",
    "ConvertConfig": "data",
    "CropConfig": "data",
    "SynthConfig": "data",
    "CompareConfig": "evaluate",
    "EvaluateConfig": "evaluate",
    "ReportConfig": "evaluate",
    "ScoringConfig": "evaluate",
    "ExperimentConfig": "experiment",
    "ExperimentPlan": "experiment",
    "ExportConfig": "export",
    "FinetuneSamConfig": "finetune",
    "FinetuneYoloConfig": "finetune",
    "DemoConfig": "predict",
    "PredictConfig": "predict",
    "PretrainClassifierConfig": "pretrain",
    "PretrainConfig": "pretrain",
    "PretrainSamConfig": "pretrain",
    "PretrainYoloConfig": "pretrain",
    "PromptsMakeConfig": "prompts",
    "WeightsGetConfig": "weights",
    "WeightsListConfig": "weights",
    "WeightsVerifyConfig": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
