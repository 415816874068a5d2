"""Checkpoints on disk: when one is complete, and how the shards of several processes become one state again."""

from prmkit.checkpoints.complete import (
    MARKER,
    TRAINER_FILE,
    ShardedCheckpoint,
    newest_checkpoint,
    publish_folder,
    read_sharded,
    remove_checkpoint,
    remove_leftovers,
    steps_taken,
    sync,
    temporary_name,
)
from prmkit.checkpoints.sharded import SHARD_FOLDER, check_pickles, sharded_state, sharded_weights, trainer_state

__all__ = [
    "MARKER",
    "SHARD_FOLDER",
    "TRAINER_FILE",
    "ShardedCheckpoint",
    "check_pickles",
    "newest_checkpoint",
    "publish_folder",
    "read_sharded",
    "remove_checkpoint",
    "remove_leftovers",
    "sharded_state",
    "sharded_weights",
    "steps_taken",
    "sync",
    "temporary_name",
    "trainer_state",
]
