"""Parts by name: taken names, misspelt names, and that no module's name is taken by something else."""

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType

import pytest

from prmkit import plugins
from prmkit.annotation.methods import register_annotation_method
from prmkit.errors import ConfigError, PluginError
from prmkit.plugins import Catalogue, register_head, register_loss
from prmkit.rl.rewards import REWARDS, RewardsConfig, build_rewards, register_reward
from prmkit.rl.rewards.outcome import LengthConfig
from prmkit.search.methods import register_search_method

PACKAGES = ("prmkit", "lightning_modules", "datamodules", "callbacks", "registry")


@dataclass(frozen=True)
class NoSeed:
    n: int = 1


@pytest.fixture(autouse=True)
def undone(monkeypatch):
    """Registrations of a test are undone after it."""
    before = [(catalogue, dict(catalogue._entries)) for catalogue in plugins._CATALOGUES]
    known = len(plugins._CATALOGUES)
    yield
    for catalogue, entries in before:
        catalogue._entries.clear()
        catalogue._entries.update(entries)
    del plugins._CATALOGUES[known:]


def _packages():
    for root in PACKAGES:
        package = importlib.import_module(root)
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{root}."):
            if found.ispkg:
                yield importlib.import_module(found.name)


def test_a_name_in_a_package_is_its_module_or_another_name():
    hidden = [
        f"{package.__name__}.{module.name}"
        for package in _packages()
        for module in pkgutil.iter_modules(package.__path__)
        if not isinstance(vars(package).get(module.name, package), ModuleType)
    ]
    assert not hidden, "something has the name of a module, which cannot be imported by `import a.b as c` any more"


@pytest.mark.parametrize("catalogue", plugins._CATALOGUES, ids=lambda catalogue: catalogue.kind)
def test_every_kind_refuses_taken_and_names_near_and_all(catalogue):
    name = catalogue.known[0]
    with pytest.raises(PluginError, match=f"{catalogue.kind} '{name}' of .*: the name is taken by prmkit"):
        catalogue.add(name, None, NoSeed)
    with pytest.raises(PluginError, match="a name has letters, digits and underscores"):
        catalogue.add("no name", None, NoSeed)
    with pytest.raises(ConfigError) as error:
        catalogue.find(f"{name}x", "some.key")
    assert str(error.value).startswith(f"some.key: got '{name}x'; accepted: ")
    assert all(known in str(error.value) for known in catalogue.known)
    assert f"Did you mean `{name}`?" in str(error.value)
    with pytest.raises(ConfigError, match=f"Did you mean `{name}`"):
        catalogue.find(name[:-1], "some.key")
    assert all(catalogue[known] is not None for known in catalogue)  # built-ins that are imported on use are there


def test_a_definition_that_is_run_again_replaces_itself():
    parts = Catalogue("part", {})
    for value in (1, 2):  # the second time with another body, as in a notebook

        def mine(number=value):
            return number

        parts.add("mine", mine, mine)
    assert parts["mine"]() == 2
    with pytest.raises(PluginError, match=r"taken by .*test_plugins:.*mine"):
        parts.add("mine", NoSeed, NoSeed)


@pytest.mark.parametrize(
    "register",
    [lambda: register_search_method("m", NoSeed), lambda: register_annotation_method("m", NoSeed)],
)
def test_parameters_without_what_all_methods_share_are_refused(register):
    with pytest.raises(PluginError, match="accepted: a frozen dataclass with the fields sampling and seed"):
        register()(lambda: None)


def test_rewards_by_name():
    with pytest.raises(PluginError, match="a dataclass with a field weight"):
        register_reward("mine", NoSeed)(lambda: None)

    @register_reward("mine")
    def make(config, context):
        async def part(batch):
            return []

        return part

    config = RewardsConfig.of({"length": {"max_tokens": 9, "buffer": 3}, "mine": {"weight": 0.5}})
    assert config.length == LengthConfig(9, 3)
    assert config.outcome is not None, "the default stays"
    mixture = build_rewards(config, grader=None)
    assert {name: part.weight for name, part in mixture.parts.items()} == {"outcome": 1.0, "length": 1.0, "mine": 0.5}
    assert set(RewardsConfig.of({"outcome": None, "mine": {}}).parts) == {"mine"}
    for values, said in (
        ({"mien": {}}, "rewards: got 'mien'.*Did you mean `mine`"),
        ({"mine": {"wieght": 1}}, "rewards.mine.wieght: got 1"),
        ({"outcome": None}, "rewards: got 'no part'"),
    ):
        with pytest.raises(ConfigError, match=said):
            RewardsConfig.of(values)
    assert REWARDS.from_outside()["mine"].startswith(__name__)


def test_losses_and_heads_from_outside():
    import torch

    from prmkit.losses import LossOutput, PolicyLossConfig, policy_loss, step_loss

    register_loss("halves")(lambda logits, targets: LossOutput.of(targets.sum() / 2, len(targets)))
    assert step_loss("halves", torch.zeros(2, 1), torch.ones(2)).loss_sum == 1.0
    register_loss("plain", of="policy")(lambda logprobs, ratio, advantages, config: -ratio * advantages)
    ones = torch.ones(1, 2)
    assert policy_loss(ones, ones, ones, ones.bool(), PolicyLossConfig("plain")).loss.loss_sum == -2.0
    register_loss("flat", of="policy")(lambda logprobs, ratio, advantages, config: ratio.sum())
    with pytest.raises(Exception, match=r"policy loss 'flat' gave terms \[\] for tokens \[1, 2\]"):
        policy_loss(ones, ones, ones, ones.bool(), PolicyLossConfig("flat"))
    register_head("wide", outputs=2)(lambda config: torch.nn.Linear(config.hidden_size, 2))
    assert plugins.HEADS["wide"].outputs == 2
