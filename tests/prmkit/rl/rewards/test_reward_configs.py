"""The configurations of policy optimisation as the command line reads them: from mappings, as defaults of classes."""

import pytest
from jsonargparse import ArgumentParser

from prmkit.losses import CorrectionConfig, PolicyLossConfig, PreferenceConfig
from prmkit.rl.advantages import GAEConfig, GroupConfig
from prmkit.rl.rewards import LengthConfig, ProcessConfig, RewardsConfig


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (GAEConfig, {"lam": 0.9}, GAEConfig(lam=0.9)),
        (GroupConfig, {"outcome": "rloo"}, GroupConfig(outcome="rloo")),
        (CorrectionConfig, {"mode": "mask"}, CorrectionConfig(mode="mask")),
        (PolicyLossConfig, {"dual_clip": 3.0}, PolicyLossConfig(dual_clip=3.0)),
        (PreferenceConfig, {"kind": "ipo"}, PreferenceConfig(kind="ipo")),
        (
            RewardsConfig,
            {"outcome": None, "process": {"form": "min"}, "length": {"max_tokens": 64, "buffer": 8}},
            RewardsConfig(outcome=None, process=ProcessConfig(form="min"), length=LengthConfig(64, 8)),
        ),
    ],
)
def test_parsed_from_mappings_and_usable_as_defaults(kind, values, expected):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=kind, default=kind())
    assert parser.instantiate(parser.parse_object({"part": values})).part == expected
    assert parser.instantiate(parser.get_defaults()).part == kind()
