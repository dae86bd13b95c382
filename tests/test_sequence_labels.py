"""The sequence labeller: attention finds what was said long ago, the same network without it does not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from example import load

labels = load("sequence_labels")


def test_only_a_title_long_ago_tells_the_kind() -> None:
    drawn = labels.draw(np.random.default_rng(0), 50)
    kinds = list(labels.TITLES.values())
    for words, answers, ago in zip(*drawn, strict=True):
        said: dict[int, int] = {}
        for at, word in enumerate(words.tolist()):
            name, title = word >= labels.FIRST_NAME, words[at - 1] - labels.FIRST_TITLE
            titled = name and at > 0 and 0 <= title < len(kinds)
            if titled:
                assert word not in said
                said[word] = at
                assert labels.LABELS[answers[at]] == kinds[title]
            assert ago[at] == (at - said[word] if name and not titled else 0)
            assert answers[at] == (answers[said[word]] if name else 0)
        assert len(said) == labels.INTRODUCED
        assert (ago > 0).sum() == labels.INTRODUCED * labels.MENTIONS
    again = labels.draw(np.random.default_rng(0), 50)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_attention_beats_none(backend: str) -> None:
    models = labels.labellers(labels.FILE)
    assert {name: array.shape for name, array in models["with"].state().items()} == {
        name: array.shape for name, array in models["without"].state().items()
    }
    *near, everywhere = labels.accuracies(models, labels.LENGTH)
    assert everywhere[2] == 500 * labels.INTRODUCED * labels.MENTIONS
    assert sum(row[2] for row in near) == everywhere[2]
    ours, rival = everywhere[3]
    assert ours > 0.99
    assert rival < 0.6
    far = [row for row in near if row[0] >= 32]
    assert far
    assert all(row[3][0] > 0.98 and row[3][1] < 0.5 for row in far)


def test_in_longer_sentences_than_it_was_trained_on(backend: str) -> None:
    ours, rival = labels.accuracies(labels.labellers(labels.FILE), 4 * labels.LENGTH, count=100)[-1][3]
    assert ours > 0.95
    assert rival < 0.6


def test_it_looks_the_kind_up_and_does_not_guess_it() -> None:
    """Without the titles it is as often right as by chance."""
    held = labels.draw(np.random.default_rng(7), 200)
    titles = (held.words >= labels.FIRST_TITLE) & (held.words < labels.FIRST_NAME)
    model = labels.labellers(labels.FILE)["with"]
    bare = held.ago > 0
    right = model(np.where(titles, 0, held.words)).argmax(-1) == held.labels
    assert right[bare].mean() < 0.35
    # and with every title another one, it says the other kind
    other = np.where(titles, labels.FIRST_TITLE + (held.words - labels.FIRST_TITLE + 1) % 4, held.words)
    assert (model(other).argmax(-1) == held.labels % 4 + 1)[bare].mean() > 0.99


def test_it_does_not_read_ahead() -> None:
    held = labels.draw(np.random.default_rng(7), 20)
    for model in labels.labellers(labels.FILE).values():
        np.testing.assert_allclose(model(held.words)[:, :40], model(held.words[:, :40]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("attends", [True, False])
def test_gradients_are_differences(attends: bool) -> None:
    rng = np.random.default_rng(3)
    model = labels.Labeller(attends, dtype=np.float64, rng=rng)
    words, answers, _ = labels.draw(rng, 2)
    loss, grads = model.gradients(words, answers)
    scores = model(words)
    chosen = np.take_along_axis(scores, answers[..., None], -1)[..., 0]
    assert loss == pytest.approx((np.log(np.exp(scores).sum(-1)) - chosen).mean())
    assert list(grads) != []
    assert set(grads) == set(model.state())
    for name, array in model.state().items():
        kept, way, step = array.copy(), rng.standard_normal(array.shape), 1e-5
        array += step * way
        above = model.gradients(words, answers)[0]
        array[...] = kept - step * way
        below = model.gradients(words, answers)[0]
        array[...] = kept
        assert (above - below) / (2 * step) == pytest.approx((grads[name] * way).sum(), rel=1e-5, abs=1e-9), name


def test_the_file_is_small_and_half_precision() -> None:
    assert labels.FILE.stat().st_size < 200_000
    with np.load(labels.FILE) as file:
        assert {array.dtype.name for array in file.values()} == {"float16"}


def test_training_learns() -> None:
    fixed = labels.draw(np.random.default_rng(11), 64)[:2]
    first, later = (labels.train(True, steps, batch=16).gradients(*fixed)[0] for steps in (1, 25))
    assert later < 0.7 * first


def test_it_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels.main([])
    said = capsys.readouterr().out
    (short, long) = re.findall(r"^  all +\d+ +([\d.]+)% +([\d.]+)%$", said, re.M)
    assert float(short[0]) > 99
    assert float(short[1]) < 60
    assert float(long[0]) > 95
    assert re.search(r"^'\w+' is a \w+: 0\.\d\d on ", said.splitlines()[-1])
    file = tmp_path / "new.npz"
    labels.main(["--train", "--steps", "1", "--weights", str(file)])
    assert "training without attention\n  step     1   loss" in capsys.readouterr().out
    assert labels.labellers(file)["with"].state().keys() == labels.labellers(labels.FILE)["with"].state().keys()
