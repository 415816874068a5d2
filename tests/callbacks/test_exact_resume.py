"""Saved at any hook of a fit, and resumed: what follows is what followed in the undisturbed run, hook by hook."""

import pytest


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 2},
        {"check_val_every_n_epoch": 2},
        {"validated": False},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()) or "plain",
)
def test_every_moment(fit, rest_of, tmp_path, options):
    whole, saved = fit(tmp_path, **options)
    validated = {"on_validation_end"} if options.get("validated", True) else set()
    assert {whole[place - 1][0] for place in saved.values()} == {"on_train_batch_end", "on_train_epoch_end"} | validated
    for path, place in saved.items():
        assert fit(resume=path, **options)[0] == rest_of(whole, place), whole[place - 1]


def test_resumed_again_and_again(fit, rest_of, tmp_path):
    """At the last batch of each epoch: counters that are one off would add up."""

    def last_batches(diary, saved):
        found = [(path, diary[place - 1]) for path, place in saved.items()]
        return [(path, entry) for path, entry in found if entry[0] == "on_train_batch_end" and entry[-1] == 3.0]

    whole, saved = fit(tmp_path)
    ends = last_batches(whole, saved)
    assert [entry[1] for _, entry in ends] == [0, 1, 2]
    for number, (_, entry) in enumerate(ends):
        (tmp_path / str(number)).mkdir()
        diary, saved = fit(tmp_path / str(number), ends[0][0])
        assert diary == rest_of(whole, whole.index(entry) + 1)
        ends[:1] = last_batches(diary, saved)[:1]
