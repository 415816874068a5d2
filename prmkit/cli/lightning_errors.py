"""What Lightning and its loggers refuse while a command runs, as one line that names the key."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from prmkit.errors import ConfigError, MissingDependencyError, PrmkitError

__all__ = ["one_line_errors"]

_SIZES = re.compile(
    r"size mismatch for (?P<name>[^:]+): copying a param with shape torch\.Size\((?P<there>[^)]*)\).*?"
    r"current model is torch\.Size\((?P<here>[^)]*)\)"
)
_NAMES = re.compile(r"(?P<what>Missing|Unexpected) key\(s\) in state_dict: \"(?P<name>[^\"]+)\"")
_MONITOR = re.compile(r"Early stopping conditioned on metric `(?P<name>[^`]*)`.*?following: (?P<there>.*)$", re.S)
_CLASS = re.compile(r"Problem with given class_path '(?P<name>[^']+)':\n(?P<said>.+)")
_REFUSED_BY = ("lightning.", "lightning_utilities.", "lightning_fabric.", "pytorch_lightning.", "wandb.")
_PARAMETERS = frozenset(inspect.signature(Trainer).parameters)


@contextmanager
def one_line_errors(checkpoint: str | None = None) -> Iterator[None]:
    """Turn what Lightning refuses of a user's settings into a PrmkitError of one line, its cause kept for `--debug`.

    Errors of other origin pass: a RuntimeError of a model is a defect, not a setting.

    Args:
        checkpoint: the checkpoint that is loaded, if any; named where its weights do not fit.
    """
    try:
        yield
    except PrmkitError:
        raise
    except Exception as error:
        found = _readable(error, checkpoint)
        if found is None:
            raise
        raise found from error


def _readable(error: Exception, checkpoint: str | None) -> PrmkitError | None:
    text = str(error)
    if any(isinstance(link, ModuleNotFoundError) and "wandb" in str(link) for link in _chain(error)):
        return MissingDependencyError("trainer.logger: W&B is not installed: pip install 'prmkit[wandb]'")
    if refused := list(_CLASS.finditer(text)):  # what the constructor of a class that the config names has refused
        return PrmkitError(f"{refused[-1]['name'].rpartition('.')[2]}: {_joined(refused[-1]['said'])}")
    if "Does not validate against any of the Union subtypes" in text:  # the same of an item of a list
        cause = list(_chain(error))[-1]
        return PrmkitError(f"{_owner(cause)}: {_joined(str(cause) or type(cause).__name__)}")
    if isinstance(error, MisconfigurationException):
        if "requires `forward` method" in text:
            return PrmkitError("prm predict: the model of this config gives no predictions; accepted: a PRM's config.")
        return PrmkitError(_with_key(text))
    if isinstance(error, RuntimeError) and text.startswith("Error(s) in loading state_dict"):
        return _weights(text, checkpoint)
    if stopping := _MONITOR.search(text):
        there = stopping["there"].replace("`", "")
        return ConfigError("trainer.callbacks.EarlyStopping.monitor", stopping["name"], there or "a logged metric")
    if type(error).__module__.startswith("wandb"):
        return PrmkitError(
            f"trainer.logger: W&B refused to start: {_joined(text)} Give it a key (`wandb login` or WANDB_API_KEY), or "
            f"write offline: WANDB_MODE=offline."
        )
    if "different number of parameter groups" in text or "doesn't match the size of optimizer's group" in text:
        return PrmkitError(
            f"--ckpt_path {checkpoint}: its optimiser has other groups of weights than this fit's ({_joined(text)}). "
            f"Keep the optimiser and what is trained, or start from the weights: `prm export` and --model.source.path."
        )
    if isinstance(error, (ValueError, TypeError, ImportError)) and _origin(error).startswith(_REFUSED_BY):
        return PrmkitError(_with_key(text))
    return None


def _weights(text: str, checkpoint: str | None) -> PrmkitError:
    if sizes := _SIZES.search(text):
        what = f"{sizes['name']} is {sizes['there']} there and {sizes['here']} in this config's model"
    elif names := _NAMES.search(text):
        what = f"{names['name']} is {'not there' if names['what'] == 'Missing' else 'not in this config model'}"
    else:
        what = _joined(text)
    return PrmkitError(
        f"--ckpt_path {checkpoint}: {what}. A checkpoint fits the model that wrote it: set model.source as in the "
        f"run's config.yaml, or leave --ckpt_path out."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _origin(error: BaseException) -> str:
    """Module that raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def _owner(error: BaseException) -> str:
    """Class of the object that raised an error, or its module."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owner = frames[-1].f_locals.get("self") if frames else None
    return _origin(error) if owner is None else type(owner).__name__


def _with_key(text: str) -> str:
    """One line, after the trainer's key that it names first."""
    key = next((name for name in re.findall(r"[`(=]?\b([a-z_]+)\b", text) if name in _PARAMETERS and "_" in name), None)
    where = "trainer" if key is None else f"trainer.{key}"
    return f"{where}: {_joined(text)}"


def _joined(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."
