"""The reasoning MDP: ends in their order, replay against the splitting of ids, rewards, refusals."""

import subprocess
import sys

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import STEP_FORMATS
from prmkit.grading.exact import ExactGrader
from prmkit.records import Grade, Problem, Step
from prmkit.rl.mdp import ReasoningMDP, State, outcome_reward
from prmkit.tasks.vocabulary import character_tokenizer

PROBLEM = Problem("p", "1+1?", "2")
EOS = 9


def step(text, *ids):
    return Step(text, ids, tuple(-float(i) for i in ids))


def test_steps_are_appended_and_states_are_left_alone():
    mdp = ReasoningMDP()
    first = mdp.initial(PROBLEM)
    second = mdp.step(first, step("a", 1, 2)).next_state
    third = mdp.step(second, step("b", 3)).next_state
    assert first == State(PROBLEM)
    assert second.steps == (step("a", 1, 2),)
    assert third.steps == (step("a", 1, 2), step("b", 3))
    assert (third.n_tokens, third.finished, third.end) == (3, False, None)
    assert mdp.step(second, step("b", 3)).next_state == third, "the transition is deterministic"


@pytest.mark.parametrize(
    ("action", "end"),
    [
        (step("=2", 5, 6, EOS), "stop"),
        (step("=2", 5, 6, 7), "answer"),
        (step("x", 5, 6, 7), "max_tokens"),
        (step("x", 5), "max_steps"),
    ],
)
def test_ends_in_their_order(action, end):
    mdp = ReasoningMDP(max_steps=2, max_tokens=5, end_ids=(EOS,), is_answer=lambda text: text.startswith("="))
    state = mdp.step(mdp.initial(PROBLEM), step("a", 1, 2)).next_state
    after = mdp.step(state, action).next_state
    assert after.end == end
    assert (after.terminated, after.truncated) == (end in ("stop", "answer"), end in ("max_tokens", "max_steps"))
    assert after.trace(7).finish == ("stop" if after.terminated else "length")
    assert after.trace(7).weight_version == 7
    with pytest.raises(DataError, match=rf"problem p, step 3: the solution is over \({end}\)"):
        mdp.step(after, action)


def test_a_blank_action_ends_the_solution_and_its_ids_join_the_last_step():
    mdp = ReasoningMDP(end_ids=(EOS,))
    state = mdp.step(mdp.initial(PROBLEM), step("a", 1, 2)).next_state
    after = mdp.step(state, step("", 4, EOS)).next_state
    assert after.end == "stop"
    assert after.steps == (Step("a", (1, 2, 4, EOS), (-1.0, -2.0, -4.0, -9.0)),)
    assert mdp.step(mdp.initial(PROBLEM), Step(" ")).next_state == State(PROBLEM, (), "stop")
    with pytest.raises(DataError, match="a blank step that ends nothing"):
        mdp.step(state, step("", 4))


@pytest.mark.parametrize("text", ["a\nb\n=2\n", "a\n\nb", "\n\na\n\n", "a"])
def test_moves_by_hand_and_replay_agree_with_the_splitting_of_ids(text):
    fmt = BoundStepFormat(STEP_FORMATS["plain"], character_tokenizer("ab=2+-\n"))
    ids = (*fmt.encode_piece(text), fmt.eos_id)
    steps = fmt.split_ids(ids)
    mdp = ReasoningMDP(end_ids=fmt.end_ids)
    episode = mdp.replay(PROBLEM, steps, "stop")
    assert episode.final == State(PROBLEM, steps, "stop")
    assert sum((s.token_ids for s in episode.final.steps), ()) == ids
    state = mdp.initial(PROBLEM)
    for move, action in zip(episode.transitions, steps, strict=True):
        assert (move.state, move.action) == (state, action)
        state = mdp.step(state, action).next_state
        assert move.next_state == state


@pytest.mark.parametrize(("finish", "end"), [("stop", "stop"), ("length", "max_tokens"), ("abort", "abort")])
def test_replay_takes_the_end_of_the_completion_where_no_rule_decides(finish, end):
    mdp = ReasoningMDP()
    episode = mdp.replay(PROBLEM, [Step("a"), Step("b")], finish)
    assert [move.next_state.end for move in episode.transitions] == [None, end]
    assert episode.final.trace().finish == finish
    assert mdp.replay(PROBLEM, [], finish) == type(episode)((), State(PROBLEM, (), end))


def test_replay_leaves_out_what_stands_behind_the_answer():
    mdp = ReasoningMDP(is_answer=lambda text: "=" in text)
    episode = mdp.replay(PROBLEM, [Step("a"), Step("=2"), Step("more")], "length")
    assert episode.final.end == "answer"
    assert [s.text for s in episode.final.steps] == ["a", "=2"]
    assert len(episode.transitions) == 2


class SlowGrader(ExactGrader):
    def grade(self, pairs):
        return [Grade(False, timed_out=True) for _ in pairs]


@pytest.mark.parametrize(
    ("kind", "answer", "finish", "reward"),
    [
        (ExactGrader, "=2", "stop", 1.0),
        (ExactGrader, "=3", "stop", 0.0),
        (ExactGrader, "=2", "length", 0.0),
        (SlowGrader, "=2", "stop", None),
    ],
)
def test_the_outcome_is_the_reward_of_the_last_move(kind, answer, finish, reward):
    grader = kind(lambda text: text.rpartition("=")[2] or None)
    episode = ReasoningMDP(reward=outcome_reward(grader)).replay(PROBLEM, [Step("a"), Step(answer)], finish)
    assert [move.reward for move in episode.transitions] == [0.0, reward]


def test_refusals():
    with pytest.raises(ConfigError, match=r"mdp\.max_steps: got 0; accepted: an integer of at least 1"):
        ReasoningMDP(max_steps=0)
    with pytest.raises(ConfigError, match=r"mdp\.max_tokens"):
        ReasoningMDP(max_tokens=-1)
    with pytest.raises(DataError, match=r"no token ids, which mdp\.max_tokens counts"):
        ReasoningMDP(max_tokens=3).step(State(PROBLEM), Step("a"))
    with pytest.raises(DataError, match="still goes on"):
        State(PROBLEM).trace()


def test_neither_the_mdp_nor_rewards_import_torch():
    code = "import sys, prmkit.rl.mdp, prmkit.rl.rewards, prmkit.rl.env; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
