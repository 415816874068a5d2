"""The whole way without a model: sampled traces, rewards, advantages, loss. A policy that is a table learns by it."""

import asyncio

import pytest
import torch

from prmkit.losses import PolicyLossConfig, normalise, policy_loss
from prmkit.records import SamplingParams
from prmkit.rl.advantages import outcome_advantages, process_advantages, spread_steps, step_index, step_token_counts
from prmkit.rl.mdp import ReasoningMDP, outcome_reward
from prmkit.rl.rewards import OutcomeConfig, ProcessConfig, RewardInput, RewardsConfig, build_rewards, step_ends
from prmkit.scoring import TableScorer
from prmkit.search import Budget, sample_traces

LETTERS = "abc"  # one wrong step or a right one, twice, then the answer that follows
RIGHT = ("b", "c")


class Table:
    """Logits of the next step, [2, 3]: one row for each of the two free steps."""

    def __init__(self):
        self.logits = torch.zeros(2, 3, requires_grad=True)

    def next_steps(self, steps):
        if len(steps) < 2:
            row = self.logits[len(steps)].softmax(0).tolist()
            return dict(zip(LETTERS, row, strict=True))
        return {("=1" if steps == RIGHT else "=0"): 1.0} if len(steps) == 2 else {}

    def logprobs(self, traces, width):
        """[B, T] log-probabilities of the letters; certain tokens have 0."""
        rows = []
        for trace in traces:
            values = [torch.zeros(())] * width
            for s, end in enumerate(step_ends(trace)[:2]):
                values[end - 1] = self.logits[s].log_softmax(0)[LETTERS.index(trace.steps[s].text)]
            rows.append(torch.stack(values))
        return torch.stack(rows)


@pytest.mark.parametrize("signal", ["outcome", "process"])
def test_a_table_learns_from_outcomes_and_from_steps(signal, tree_policy, coin_problem, last_step_grader):
    table = Table()
    engine = tree_policy(table.next_steps)
    scorer = TableScorer(
        lambda question, steps: float(all(a == b for a, b in zip(steps, (*RIGHT, "=1"), strict=False)))
    )
    mixture = build_rewards(
        RewardsConfig(OutcomeConfig(weight=1.0), ProcessConfig(weight=1.0, form="progress", start=1.0)),
        last_step_grader,
        scorer,
    )
    optimizer = torch.optim.SGD([table.logits], lr=2.0)
    config = PolicyLossConfig(clip_high=0.28)
    means = []
    for update in range(30):
        traces = asyncio.run(sample_traces(coin_problem, engine, 16, SamplingParams(), update, Budget()))
        rewards = asyncio.run(mixture([RewardInput(coin_problem, trace) for trace in traces]))
        means.append(rewards.sums["outcome"].total / 16)
        width = max(trace.n_tokens for trace in traces)
        index = step_index([step_ends(trace) for trace in traces], width)
        groups, valid = torch.zeros(16, dtype=torch.long), torch.tensor(rewards.row_mask)
        if signal == "outcome":
            totals = torch.tensor([reward.outcome for reward in rewards.rewards])
            advantages = outcome_advantages("dr_grpo", totals, groups, valid).advantages[:, None]
        else:
            steps = torch.tensor([reward.steps for reward in rewards.rewards])
            by_step = process_advantages("dr_grpo", steps, step_token_counts(index, 3), groups, valid).advantages
            advantages = spread_steps(by_step, index)
        new = table.logprobs(traces, width)
        loss = policy_loss(new, new.detach(), advantages, (index >= 0) & valid[:, None], config).loss
        optimizer.zero_grad()
        normalise(16 * loss.loss_sum, loss.count, ranks=1).backward()
        optimizer.step()
    assert sum(means[:3]) / 3 < 0.4
    assert sum(means[-5:]) / 5 > 0.95

    hook = ReasoningMDP(reward=outcome_reward(last_step_grader))
    episodes = [hook.replay(coin_problem, trace.steps, trace.finish) for trace in traces]
    assert [e.transitions[-1].reward for e in episodes] == [r.outcome for r in rewards.parts["outcome"]]
