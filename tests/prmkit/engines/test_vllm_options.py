"""What vLLM is told, and which vLLM; none is needed here."""

import json

import pytest

from prmkit.engines.vllm.options import (
    CPU_TRIAL,
    VLLMOptions,
    check_vllm_version,
    command_line,
    engine_arguments,
)
from prmkit.engines.vllm.server import vllm_version_of
from prmkit.errors import ConfigError, MissingDependencyError


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1.dev3", "0.33.0", "0.33.2+cpu"])
def test_supported_versions_pass(version):
    assert check_vllm_version(version, "here") == version


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0", "dev"])
def test_other_versions_are_named_with_the_range(version):
    with pytest.raises(MissingDependencyError, match=rf"vLLM {version} in there .* >=0\.32,<0\.34"):
        check_vllm_version(version, "there")


def test_engines_promises_are_in_the_arguments():
    arguments = engine_arguments(VLLMOptions(), "m", "t", "module")
    assert arguments["logprobs_mode"] == "processed_logprobs"  # of the distribution that is sampled from
    assert arguments["generation_config"] == "vllm"  # no defaults of the model's files
    assert arguments["enable_prefix_caching"] is True
    assert "worker_extension_cls" not in arguments
    with_updates = engine_arguments(CPU_TRIAL, "m", None, "module")
    assert with_updates["worker_extension_cls"] == "module.WorkerExtension"
    assert "tokenizer" not in with_updates


def test_command_line_of_every_kind_of_value():
    words = command_line(
        {"max_num_seqs": 8, "enforce_eager": True, "async_scheduling": False, "hf": {"a": [1]}, "x": None}
    )
    assert words == ["--max-num-seqs", "8", "--enforce-eager", "--no-async-scheduling", "--hf", json.dumps({"a": [1]})]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"max_num_seqs": 0}, r"vllm\.max_num_seqs"),
        ({"gpu_memory_utilization": 0.0}, r"vllm\.gpu_memory_utilization"),
        ({"extra": {"logprobs_mode": "raw_logits"}}, r"vllm\.extra\.logprobs_mode"),
    ],
)
def test_bad_values_are_named(values, named):
    with pytest.raises(ConfigError, match=named):
        VLLMOptions(**values)


def test_an_interpreter_without_vllm_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"vllm\.interpreter"):
        vllm_version_of(tmp_path / "python")
    empty = tmp_path / "empty"
    empty.write_text("#!/bin/sh\necho\n")
    empty.chmod(0o755)
    with pytest.raises(MissingDependencyError, match="no vLLM"):
        vllm_version_of(empty)
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 0.19.1\n")
    old.chmod(0o755)
    with pytest.raises(MissingDependencyError, match=r"vLLM 0\.19\.1"):
        vllm_version_of(old)
