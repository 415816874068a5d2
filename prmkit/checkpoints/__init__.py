"""Checkpoints on disk: when one is complete, and which is the newest. `prmkit.checkpoints.sharded`, which needs torch,
reads what several processes wrote."""

from prmkit.checkpoints.complete import (
    MARKER,
    SHARD_FOLDER,
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

__all__ = [
    "MARKER",
    "SHARD_FOLDER",
    "TRAINER_FILE",
    "ShardedCheckpoint",
    "newest_checkpoint",
    "publish_folder",
    "read_sharded",
    "remove_checkpoint",
    "remove_leftovers",
    "steps_taken",
    "sync",
    "temporary_name",
]
