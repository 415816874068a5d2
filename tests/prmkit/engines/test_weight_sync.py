"""Weights of a module as vLLM wants them, and the wire contract against a real server on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from prmkit.engines.vllm.weight_sync import HTTPChannel, check_names, iter_weights, send_weights
from prmkit.errors import ConfigError, EngineLostError
from prmkit.models.lora import LoraSpec, add_lora, merged_state_dict


def small(tied: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            tie_word_embeddings=tied,
        )
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_weights_are_those_of_an_export(tied, lora):
    model = small(tied)
    if lora:
        add_lora(model.base_model, LoraSpec(r=2, target_modules=["q_proj", "down_proj"]), seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start
                torch.nn.init.normal_(parameter)
    wanted = merged_state_dict(model)
    found = {name: tensor.clone() for name, tensor in iter_weights(model)}
    assert found.keys() == wanted.keys()
    assert "lm_head.weight" in found
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    check_names(model)


def test_a_model_of_other_names_than_its_checkpoints_is_refused():
    config = MixtralConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=8, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"mixtral: .* rewritten on loading"):
        check_names(MixtralForCausalLM(config))


class Receiver(ThreadingHTTPServer):
    """Does what a vLLM server does with the routes, and keeps what came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[str] = []
        self.received: dict[str, torch.Tensor] = {}
        self.files: list[Path] = []
        self.broken = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = json.loads(body) if body else {}
        receiver, path = self.server, self.path
        if path == "/init_weight_transfer_engine":
            receiver.folder = Path(content["init_info"]["folder"])
        elif path == "/update_weights":
            file = receiver.folder / content["update_info"]["file"]
            receiver.files.append(file)
            tensors = load_file(file)
            receiver.received.update({name: tensors[name].clone() for name in content["update_info"]["names"]})
        elif path == "/finish_weight_update":
            path += " " + content["weight_version"]
        receiver.calls.append(path)
        self.send_response(500 if path == receiver.broken else 200)
        self.end_headers()
        self.wfile.write(b"out of memory" if path == receiver.broken else b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver():
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_update_over_http_brings_every_weight_in_bounded_pieces(receiver, tmp_path):
    model = small(True)
    report = send_weights(HTTPChannel(receiver.url), iter_weights(model), 7, tmp_path, chunk_bytes=4000)
    updates = ["/update_weights"] * report.files
    assert report.files > 2
    assert receiver.calls == [
        *("/init_weight_transfer_engine", "/pause?mode=wait", "/start_weight_update"),
        *updates,
        *("/finish_weight_update 7", "/reset_prefix_cache", "/resume"),
    ]
    assert receiver.received.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(receiver.received[name], tensor)
    assert report.bytes == sum(tensor.nbytes for tensor in receiver.received.values())
    assert not any(file.exists() for file in receiver.files)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("route", ["/init_weight_transfer_engine", "/update_weights", "/finish_weight_update 3"])
def test_a_failed_update_says_that_the_server_is_lost(receiver, tmp_path, route):
    receiver.broken = route
    with pytest.raises(EngineLostError, match=r"weight update 3 failed .*status 500: out of memory"):
        send_weights(HTTPChannel(receiver.url), iter_weights(small(False)), 3, tmp_path)
    assert receiver.calls[-1] == route
    assert not any(tmp_path.iterdir())


def test_nobody_there(tmp_path):
    with pytest.raises(EngineLostError, match="Connection refused"):
        send_weights(HTTPChannel("http://127.0.0.1:9", timeout=5), [], 1, tmp_path)
