"""Peak memory of a PRM training step: logits at step ends only, against full logits.

    python benchmarks/prm_memory.py [--tokens 512 1024 2048] [--vocabulary 151936]

One step is forward, backward and AdamW's update of a small Qwen2 with Qwen2.5's vocabulary, with a label every 64
tokens. "ours" is PRMModel with two label tokens. "full" differs in one thing: the language model's head is applied to
every token, and the two columns are taken from its [B, T, V] output, as is common. Each is measured in a process of
its own: growth of the resident memory's high-water mark over what is held before the step (model and optimiser state).

Written to results/prm_memory.json:

- peak_vs_full_logits: ours / full at the largest number of tokens.
- peak_mib: both peaks for every number of tokens.
- growth_bytes_per_token: slope of both peaks from the smallest to the largest number of tokens; a single [B, T, V]
  tensor in float32 has 4 x V of them (logits_bytes_per_token).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROW = 512  # tokens a row
STEP = 64  # tokens a step
MIB = 2**20


def peak_of_step(kind: str, tokens: int, vocabulary: int) -> int:
    """Bytes by which one training step raises the memory in use, at its peak. Run in a fresh process."""
    import torch

    from prmkit.formats.bound import BoundStepFormat
    from prmkit.formats.presets import get_step_format
    from prmkit.losses import soft_cross_entropy
    from prmkit.models import ModelSource, build_prm, load_tokenizer

    torch.set_num_threads(1)
    config = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "tie_word_embeddings": True,
        "vocab_size": vocabulary,
    }
    source = ModelSource(config=config, tokenizer="accumulator")
    prm = build_prm(source, BoundStepFormat(get_step_format("plain"), load_tokenizer(source)))
    optimizer = torch.optim.AdamW(prm.parameters(), lr=1e-4)

    def step(rows: int) -> None:
        ids = torch.randint(0, vocabulary, (rows, ROW))
        mask = torch.ones_like(ids, dtype=torch.bool)
        positions = torch.arange(STEP - 1, ROW, STEP).expand(rows, -1)
        if kind == "ours":
            logits = prm(ids, mask, positions, torch.ones_like(positions, dtype=torch.bool))
        else:
            full = prm.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
            logits = full[..., list(prm.format.label_ids or ())][:, positions[0]].flatten(0, 1)
        targets = torch.full((logits.shape[0],), 0.5)
        output = soft_cross_entropy(logits, targets)
        (output.loss_sum / output.count).backward()
        optimizer.step()
        optimizer.zero_grad()

    for parameter in prm.parameters():  # the optimiser's state is not the step's
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    # Forget the high-water mark so far: what loading needed is not the step's.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step(tokens // ROW)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def measure(kind: str, tokens: int, vocabulary: int) -> int:
    """`peak_of_step` in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, "--tokens", str(tokens), "--vocabulary", str(vocabulary)]
    # Freed blocks go back to the system at once, so that the resident size is what is really in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(json.loads(run.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--child", choices=("ours", "full"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(peak_of_step(arguments.child, arguments.tokens[0], arguments.vocabulary))
        return
    from _environment import write_result

    peaks: dict[str, dict[int, int]] = {"ours": {}, "full": {}}
    for kind, found in peaks.items():
        for tokens in sorted(arguments.tokens):
            found[tokens] = measure(kind, tokens, arguments.vocabulary)
            print(f"{kind:>5} {tokens:>6} tokens: {found[tokens] / MIB:8.1f} MiB")
    low, high = min(arguments.tokens), max(arguments.tokens)
    figures = {
        "peak_vs_full_logits": round(peaks["ours"][high] / peaks["full"][high], 4),
        "peak_mib": {k: {str(t): round(v / MIB, 1) for t, v in found.items()} for k, found in peaks.items()},
        "growth_bytes_per_token": {k: round((f[high] - f[low]) / max(1, high - low)) for k, f in peaks.items()},
        "logits_bytes_per_token": 4 * arguments.vocabulary,
    }
    protocol = {"vocabulary": arguments.vocabulary, "tokens": sorted(arguments.tokens), "hidden": 64, "layers": 2}
    print(json.dumps(figures, indent=2))
    print(write_result("prm_memory", figures, ("torch", "transformers"), protocol=protocol))


if __name__ == "__main__":
    main()
