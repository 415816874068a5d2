"""The Gymnasium environment: its checker, an episode by hand, vectors, refusals."""

import subprocess
import sys
import warnings

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import STEP_FORMATS
from prmkit.grading.exact import ExactGrader
from prmkit.records import Problem
from prmkit.rl.env import ENV_ID, ReasoningEnv
from prmkit.tasks.accumulator import AccumulatorTask

ID = f"prmkit.rl.env:{ENV_ID}"


class TwoProblems:
    """A task small enough to know by heart."""

    name = "two"
    splits = ("train",)
    grader = ExactGrader(lambda text: text.rpartition("=")[2] if "=" in text else None)

    def problems(self, split, limit=None, offset=0):
        return [Problem("a", "1+1", "2"), Problem("b", "2+2", "4")][offset:limit]


@pytest.mark.parametrize("options", [{}, {"render_mode": "ansi"}, {"max_tokens": 40}])
def test_passes_the_checker_without_a_warning(options):
    if "max_tokens" in options:
        options["bound_format"] = BoundStepFormat(STEP_FORMATS["plain"], AccumulatorTask().tokenizer())
        options["characters"] = "0123456789ABCDEFabcdefghijklmnopqrstuvwxyz+-*=,\n"
    env = gymnasium.make(ID, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check="bound_format" in options)


def test_an_episode_by_hand():
    env = gymnasium.make(ID, task=TwoProblems(), render_mode="ansi")
    text, info = env.reset(options={"index": 1})
    assert text == "2+2\n"
    assert info == {
        "problem_id": "b",
        "index": 1,
        "end": "",
        "reward_missing": False,
        "discarded_characters": 0,
    }
    text, reward, terminated, truncated, info = env.step("2+2=4\nand more")
    assert (text, reward, terminated, truncated) == ("2+2\n2+2=4\n", 0.0, False, False)
    assert info["discarded_characters"] == len("and more")
    assert env.render() == text
    text, reward, terminated, truncated, info = env.step("")
    assert (text, reward, terminated, truncated, info["end"]) == ("2+2\n2+2=4\n", 1.0, True, False, "stop")


def test_limits_truncate_and_a_stated_answer_terminates():
    env = ReasoningEnv(TwoProblems(), max_steps=2)
    env.reset(options={"index": 0})
    assert env.step("1+1=2")[1:4] == (0.0, False, False)
    assert env.step("=2")[1:4] == (0.0, False, True), "cut off: no reward for the answer"
    env = ReasoningEnv(TwoProblems(), answer_ends=True)
    env.reset(options={"index": 0})
    assert env.step("think")[1:4] == (0.0, False, False)
    assert env.step("=2")[1:4] == (1.0, True, False)


def test_tokens_are_counted_by_the_format():
    fmt = BoundStepFormat(STEP_FORMATS["plain"], AccumulatorTask().tokenizer())
    env = ReasoningEnv("accumulator", bound_format=fmt, max_tokens=12)
    env.reset(seed=0)
    assert env.step("a+3=4")[2:4] == (False, False)  # 5 characters and a line break: 6 tokens
    assert env.step("b+3=4")[2:4] == (False, True)  # 12 tokens


def test_a_missing_reward_is_flagged():
    env = ReasoningEnv(TwoProblems(), reward=lambda before, action, after: None)
    env.reset(seed=0)
    _, reward, _, _, info = env.step("x")
    assert (reward, info["reward_missing"]) == (0.0, True)


def test_seeds_choose_problems():
    env = ReasoningEnv("accumulator", n_problems=200)
    first = [env.reset(seed=5)[0]] + [env.reset()[0] for _ in range(5)]
    again = [env.reset(seed=5)[0]] + [env.reset()[0] for _ in range(5)]
    assert first == again
    assert len(set(first)) > 3
    questions = {p.question + "\n" for p in AccumulatorTask().problems("train", 200)}
    assert set(first) <= questions


@pytest.mark.parametrize(
    "how", [{"vectorization_mode": "sync"}, {"vectorization_mode": "async", "vector_kwargs": {"shared_memory": False}}]
)
def test_vectors_are_single_environments_side_by_side(how):
    envs = gymnasium.make_vec(ID, num_envs=3, max_steps=4, **how)
    texts, info = envs.reset(seed=7)
    singles = [ReasoningEnv(max_steps=4) for _ in range(3)]
    assert list(texts) == [env.reset(seed=7 + i)[0] for i, env in enumerate(singles)]
    for actions in (("a", "b", "c"), ("a", "b", "")):
        texts, rewards, terminated, truncated, info = envs.step(actions)
        alone = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        assert list(texts) == [result[0] for result in alone]
        assert rewards.tolist() == [result[1] for result in alone]
        assert terminated.tolist() == [result[2] for result in alone]
        assert truncated.tolist() == [result[3] for result in alone]
        assert list(info["end"]) == [result[4]["end"] for result in alone]
    envs.close()


def test_refusals():
    env = ReasoningEnv(TwoProblems(), max_action_characters=4)
    with pytest.raises(DataError, match="call reset first"):
        env.step("a")
    with pytest.raises(ConfigError, match=r"env\.reset\.options\.index: got 2; accepted: 0 \.\. 1"):
        env.reset(options={"index": 2})
    with pytest.raises(ConfigError, match=r"env\.reset\.options\.problem"):
        env.reset(options={"problem": 1})
    env.reset(seed=0)
    for action in ("too long", "é"):
        with pytest.raises(DataError, match="not in the action space"):
            env.step(action)
    env.step("")
    with pytest.raises(DataError, match=r"the solution is over \(stop\)"):
        env.step("a")
    with pytest.raises(DataError, match=r"problem a: characters \['\+'\] are not in env\.characters"):
        ReasoningEnv(TwoProblems(), characters="0123456789=").reset(options={"index": 0})
    with pytest.raises(DataError, match=r"env\.max_question_characters is 2"):
        ReasoningEnv(TwoProblems(), max_question_characters=2).reset(seed=0)
    for field, options in {
        "env.n_problems": {"n_problems": 0},
        "env.max_tokens": {"max_tokens": 9},
        "env.render_mode": {"render_mode": "human"},
        "mdp.max_steps": {"max_steps": 0},
        "task.name": {"task": "chess"},
    }.items():
        with pytest.raises(ConfigError, match=field):
            ReasoningEnv(**{"task": TwoProblems(), **options})


def test_without_gymnasium_the_import_says_what_to_install():
    code = "import sys; sys.modules['gymnasium'] = None; import prmkit.rl.env"
    got = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "MissingDependencyError: prmkit.rl.env needs `gymnasium`: pip install 'prmkit[gym]'" in got.stderr
