"""The reasoning MDP as a Gymnasium environment over texts.

Importing this module registers `prmkit/Reasoning-v0`; naming the module in the id does both at once:

    env = gymnasium.make("prmkit.rl.env:prmkit/Reasoning-v0", task="accumulator", split="train")
    envs = gymnasium.make_vec("prmkit.rl.env:prmkit/Reasoning-v0", num_envs=8, task="accumulator")

Gymnasium 1.4 loses texts in shared memory: `vectorization_mode="async"` needs `vector_kwargs={"shared_memory": False}`.

An observation is the question, a line break, and the steps so far, each with the separator behind it. An action is the
text of one step; a blank one ends the solution. Rules and reward are those of `prmkit.rl.mdp`. Needs the extra `gym`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from prmkit.errors import ConfigError, DataError, MissingDependencyError
from prmkit.formats.bound import BoundStepFormat
from prmkit.protocols import Task
from prmkit.records import Problem, Step
from prmkit.rl.mdp import ReasoningMDP, RewardHook, State, outcome_reward
from prmkit.tasks import get_task

try:
    import gymnasium
except ModuleNotFoundError:
    raise MissingDependencyError("prmkit.rl.env needs `gymnasium`: pip install 'prmkit[gym]'") from None

__all__ = ["ENV_ID", "ReasoningEnv"]

ENV_ID = "prmkit/Reasoning-v0"
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"


class ReasoningEnv(gymnasium.Env[str, str]):
    """See the module. An episode is one problem.

    `reset(seed)` draws a problem; `reset(options={"index": i})` takes number i. `terminated` is an end by the policy
    itself, `truncated` a limit. `info` holds `problem_id`, `index`, `end` ("" while the solution goes on),
    `reward_missing` and `discarded_characters`: text behind the first separator of an action is not part of it, as
    with a stop string.

    Gymnasium knows no missing reward: where the hook gives None, the reward is 0.0 and `info["reward_missing"]` True;
    a learner must leave such episodes out.

    Args:
        task: a task, or the name of one (see `prmkit.tasks.get_task`).
        split: of the task.
        task_options: further arguments of `get_task`; only with a name.
        n_problems: problems to draw from, the first of the split; at least 1.
        max_steps: steps after which an episode is truncated.
        max_tokens: tokens at which an episode is truncated; needs `bound_format`. None sets no limit.
        answer_ends: a step from which the grader extracts an answer ends the episode. Not for tasks, such as
            accumulator, whose every step looks like an answer.
        reward: reward of a move; None is 1 for a right answer at the end (`prmkit.rl.mdp.outcome_reward`).
        bound_format: gives the separator, and actions their token ids; None leaves actions as text.
        separator: ends a step; only without `bound_format`.
        max_action_characters, max_question_characters: lengths of the text spaces.
        characters: what texts may consist of.
        render_mode: None or "ansi".

    Raises:
        ConfigError: a field that cannot be used.
    """

    observation_space: gymnasium.spaces.Text
    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        task: str | Task = "accumulator",
        split: str = "train",
        *,
        task_options: Mapping[str, Any] | None = None,
        n_problems: int = 1000,
        max_steps: int = 32,
        max_tokens: int | None = None,
        answer_ends: bool = False,
        reward: RewardHook | None = None,
        bound_format: BoundStepFormat | None = None,
        separator: str = "\n",
        max_action_characters: int = 256,
        max_question_characters: int = 4096,
        characters: str = _CHARACTERS,
        render_mode: str | None = None,
    ) -> None:
        if n_problems < 1:
            raise ConfigError("env.n_problems", n_problems, "an integer of at least 1")
        if max_tokens is not None and bound_format is None:
            raise ConfigError("env.max_tokens", max_tokens, "None without env.bound_format, which makes tokens")
        if render_mode not in (None, "ansi"):
            raise ConfigError("env.render_mode", render_mode, "None | ansi")
        made = get_task(task, **(task_options or {})) if isinstance(task, str) else task
        grader = made.grader
        self.render_mode = render_mode
        self._format = bound_format
        self._separator = separator if bound_format is None else bound_format.spec.policy.separator
        self._problems = made.problems(split, n_problems)
        self._mdp = ReasoningMDP(
            max_steps=max_steps,
            max_tokens=max_tokens,
            end_ids=() if bound_format is None else bound_format.end_ids,
            is_answer=(lambda text: grader.extract(text) is not None) if answer_ends else None,
            reward=outcome_reward(grader, self._separator) if reward is None else reward,
        )
        solution = max_steps * (max_action_characters + len(self._separator))
        shown = "".join(sorted({*characters, *self._separator, "\n"}))
        self.observation_space = gymnasium.spaces.Text(max_question_characters + 1 + solution, charset=shown)
        self.action_space = gymnasium.spaces.Text(max_action_characters, min_length=0, charset=characters)
        self._max_question = max_question_characters
        self._index = -1
        self._state: State | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode; see the class.

        Raises:
            ConfigError: an unknown option, or an index that no problem has.
            DataError: the question does not fit the observation space.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        index = options.pop("index", None)
        for name, value in options.items():
            raise ConfigError(f"env.reset.options.{name}", value, "the option index")
        if index is None:
            index = int(self.np_random.integers(len(self._problems)))
        if not 0 <= index < len(self._problems):
            raise ConfigError("env.reset.options.index", index, f"0 .. {len(self._problems) - 1}")
        problem = self._problems[index]
        self._check_question(problem)
        self._index, self._state = index, self._mdp.initial(problem)
        return self._observation(), self._info(0, False)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Write one step; see the class.

        Raises:
            DataError: before `reset`, after the end, or with a text outside the action space.
        """
        if self._state is None:
            raise DataError("env.step: no episode; call reset first")
        if not self.action_space.contains(action):
            raise DataError(f"env.step: {action!r} is not in the action space {self.action_space}")
        text, _, rest = action.partition(self._separator)
        move = self._mdp.step(self._state, self._encode(text))
        self._state = move.next_state
        missing = move.reward is None
        reward = 0.0 if move.reward is None else float(move.reward)
        state = self._state
        return self._observation(), reward, state.terminated, state.truncated, self._info(len(rest), missing)

    def render(self) -> str:  # type: ignore[override]
        """The text of the current state."""
        return self._observation()

    def _encode(self, text: str) -> Step:
        if self._format is None:
            return Step(text)
        if not text.strip():
            return Step(text, (self._format.eos_id,))
        return Step(text.strip(), tuple(self._format.encode_piece(text + self._separator)))

    def _check_question(self, problem: Problem) -> None:
        foreign = sorted(set(problem.question) - self.observation_space.character_set)
        if foreign:
            raise DataError(f"problem {problem.id}: characters {foreign} are not in env.characters; add them there")
        if len(problem.question) > self._max_question:
            raise DataError(
                f"problem {problem.id}: {len(problem.question)} characters; "
                f"env.max_question_characters is {self._max_question}"
            )

    def _observation(self) -> str:
        assert self._state is not None
        steps = (step.text + self._separator for step in self._state.steps)
        return f"{self._state.problem.question}\n{''.join(steps)}"

    def _info(self, discarded: int, missing: bool) -> dict[str, Any]:
        assert self._state is not None
        return {
            "problem_id": self._state.problem.id,
            "index": self._index,
            "end": self._state.end or "",
            "reward_missing": missing,
            "discarded_characters": discarded,
        }


gymnasium.register(id=ENV_ID, entry_point="prmkit.rl.env:ReasoningEnv")
