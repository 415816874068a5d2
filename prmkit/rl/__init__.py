"""Reinforcement learning over steps: from a prompt to the numbers that weigh gradients, and the policy's loss.

`mdp` defines states, actions, transitions and ends, and `env` shows them as a Gymnasium environment. `rollouts` samples
groups of solutions and rewards them (`rewards`: parts and their mixture). `collector` makes experience for
a `learner`: rollouts through one of the `engines` (`ahead` of training where asked), scores, and `advantages`, as the
tensors of `batches`. `policy_step` is the policy's loss on a micro-batch. Modules, optimisers, data modules and the
trainer are left to `lightning_modules` and `datamodules`.
"""
