"""Model cards: what they say of figures and of where a pair comes from; their snippets run."""

import ast
import re

import pytest
from huggingface_hub import ModelCard

from prmkit.steps import get_step_format
from registry import Card, Figure, Metrics, Publication, record_recipe
from registry.cards import standard_error
from registry.hub import write_hub_layout

PROTOCOL = {"search": "best_of_n", "selection": "prod-vote", "samples": 16, "sampling": {"temperature": 0.7}, "seed": 3}
METRICS = Metrics(
    "toy/test[0:400]",
    {
        "accuracy": Figure(0.82, 0.781, 0.859, 400),
        "majority": Figure(0.5, n=400),
        "pass_at_1": Figure(0.4, n=100),
        "prm_auroc": Figure(0.9, n=900),
    },
    PROTOCOL,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRMKIT_CACHE", str(tmp_path / "cache"))


def test_standard_errors_by_hand():
    assert standard_error("accuracy", METRICS.figures["accuracy"]) == pytest.approx(0.078 / 3.919928)
    assert standard_error("majority", METRICS.figures["majority"]) == pytest.approx(0.025)
    assert standard_error("pass_at_1", Figure(0.4)) is None
    assert standard_error("prm_auroc", METRICS.figures["prm_auroc"]) is None


@pytest.mark.parametrize("member", ["policy", "prm"])
def test_figures_come_with_method_n_and_standard_error(registry, make_publication, tmp_path, member):
    registry.publish(make_publication(metrics=METRICS))
    place = write_hub_layout(registry.checkout("math@1"), tmp_path / "hub", organisation="org")[member]
    text = (place / "README.md").read_text()
    assert "400 problems. Method: search best_of_n, selection prod-vote, samples 16, seed 3, temperature 0.7." in text
    assert "| accuracy (prod-vote, N = 16) | 0.8200 | 0.0199 | 0.7810 to 0.8590 | 400 |" in text
    assert "| majority (majority, N = 16) | 0.5000 | 0.0250 |  | 400 |" in text
    assert "| pass_at_1 (N = 1) | 0.4000 | 0.0490 |  | 100 |" in text
    results = ModelCard.load(place / "README.md").data.eval_results
    assert (results[0].metric_name, results[0].metric_value) == ("accuracy (prod-vote, N = 16)", 0.82)


def test_what_a_card_leaves_out_comes_from_the_line(registry, make_publication, tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text("{}\n")
    first = Card(license="mit", base_models=("org/base",), languages=("en",))
    registry.publish(make_publication(card=first, recipe=record_recipe(data=["org/problems", data])))
    registry.publish(make_publication(weights=1, parent="math@1", recipe=record_recipe(data=["gsm8k", "org/problems"])))
    registry.publish(make_publication(weights=2, parent="math@2", card=Card(license="apache-2.0")))
    heritage = registry.heritage("math@3")
    places = write_hub_layout(registry.checkout("math@3"), tmp_path / "hub", name="other", heritage=heritage)
    for member, place in places.items():
        assert place.name == f"other-{member}"
        card = ModelCard.load(place / "README.md")
        assert (card.data.license, card.data.base_model, card.data.language) == ("apache-2.0", ["org/base"], ["en"])
        assert card.data.datasets == ["org/problems", "gsm8k"]
        assert f"- {data} (SHA-256 " in card.text
    alone = write_hub_layout(registry.checkout("math@2"), tmp_path / "alone")["prm"]
    assert ModelCard.load(alone / "README.md").data.license is None


@pytest.mark.parametrize("head", ["label_tokens", "token_head", "scalar"])
def test_the_snippets_run_where_the_folders_are(registry, tmp_path, head, monkeypatch, capsys):
    from transformers import AutoConfig

    from prmkit.models import ModelSource, build_policy, build_prm, load_tokenizer, save_policy

    source = ModelSource(
        config={"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 2, "intermediate_size": 32},
        tokenizer="accumulator",
    )  # fmt: skip
    tokenizer = load_tokenizer(source)
    steps = get_step_format({"base": "plain" if head == "label_tokens" else "plain-head", "prm": {"head": head}})
    save_policy(build_policy(source, tokenizer), tokenizer, steps, tmp_path / "policy")
    build_prm(source, steps.bind(tokenizer)).save_pretrained(tmp_path / "prm")
    registry.publish(Publication("toy", tmp_path / "policy", tmp_path / "prm"))
    places = write_hub_layout(registry.checkout("toy"), tmp_path / "org", organisation="org")
    monkeypatch.chdir(tmp_path)
    for member, place in places.items():
        capsys.readouterr()
        (code,) = re.findall(r"```python\n(.*?)\n```", (place / "README.md").read_text(), re.DOTALL)
        code = code.replace("QUESTION", "f+3,1").replace("FIRST STEP", "f+3=4").replace("SECOND STEP", "f+3=5")
        exec(code, {})
        if member == "prm":
            scores = ast.literal_eval(capsys.readouterr().out)
            assert len(scores) == 2
            assert all(0 <= score <= 1 for score in scores)
    labels = {"token_head": ["wrong", "right"], "scalar": ["right"]}.get(head)
    if labels is not None:
        config = AutoConfig.from_pretrained(places["prm"])
        assert (list(config.id2label.values()), config.num_labels) == (labels, len(labels))
        assert config.label2id == {label: number for number, label in enumerate(labels)}
