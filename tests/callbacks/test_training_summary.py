"""The summary of a fit that was killed behind its last step is that of one that was not."""

import json

from callbacks.training_summary import TrainingSummary


class WithoutTokens(TrainingSummary):
    """The toy's batches have no tokens to count."""

    def on_train_batch_end(self, *args):
        pass


def test_metrics_of_steps_before_the_resume(fit, tmp_path):
    def summary(name, **options):
        diary, saved = fit(callbacks=[WithoutTokens(str(tmp_path / name))], **options)
        return json.loads((tmp_path / name).read_text()), diary, saved

    whole, diary, saved = summary("whole.json", folder=tmp_path)
    assert whole["metrics"] == {"row": 3.0, "val": diary[-1][3]}
    assert (whole["steps"], whole["epochs"]) == (12, 3)
    for path in sorted(saved, key=saved.get)[-3:]:  # behind the last batch, the last validation, the last epoch
        again, _, _ = summary("again.json", resume=path)
        assert {**again, "seconds": 0} == {**whole, "seconds": 0}, diary[saved[path] - 1]
