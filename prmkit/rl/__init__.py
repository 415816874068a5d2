"""Reinforcement learning over steps: the MDP and its environment, rollouts with rewards, and advantages.

`mdp` defines states, actions, transitions and ends, and `env` shows them as a Gymnasium environment. `rollouts` samples
groups of solutions and rewards them (`rewards`: parts and their mixture); `advantages` turns rewards into the numbers
that weigh gradients. Losses are in `prmkit.losses`; models, optimisers and the trainer are left to `lightning_modules`.
"""
