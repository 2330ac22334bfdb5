"""CPC: its patches, its context and its logits."""

from __future__ import annotations

import pytest
import torch
from helpers.view_cases import small_cpc

from kintsugi.contrastive import cpc
from kintsugi.rng import generator


def test_a_context_does_not_depend_on_the_rows_below():
    method = small_cpc()
    codes = torch.randn(1, 16, 7, 7, generator=generator(1), requires_grad=True)
    for row in range(7):
        (gradient,) = torch.autograd.grad(method.context(codes)[:, :, row].sum(), codes, retain_graph=True)
        touched = gradient.abs().sum((0, 1, 3)) > 0
        assert touched[: row + 1].all() if row < 5 else touched[row]
        assert not touched[row + 1 :].any()


def test_patches_equal_a_loop_and_are_encoded_on_their_own():
    image = torch.rand(2, 3, 32, 32, generator=generator(1))
    cut = cpc.patches(image, 8)
    for i in range(7):
        for j in range(7):
            assert torch.equal(cut[:, i, j], image[:, :, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8])
    method = small_cpc()
    other = image.clone()
    other[:, :, :8, :8] = 0  # changes the four patches that overlap it
    same = (method.codes(image) == method.codes(other)).all(1).all(0)
    assert not same[:2, :2].any()
    assert same.sum() == 49 - 4


def test_logits_equal_a_loop():
    method = small_cpc()
    image = torch.rand(2, 3, 32, 32, generator=generator(1))
    codes, contrasts = method.contrasts(image)
    context = method.context(codes)
    for ahead, predict in zip(method.steps_ahead, method.predict, strict=True):
        logits, positive = contrasts[ahead]
        row = 0
        for n in range(2):
            for i in range(7 - ahead):
                for j in range(7):
                    guess = predict.weight[:, :, 0, 0] @ context[n, :, i, j] + predict.bias
                    assert logits[row, 17].item() == pytest.approx((guess @ codes[0, :, 2, 3]).item() / 4, abs=1e-4)
                    assert positive[row] == n * 49 + (i + ahead) * 7 + j
                    row += 1
    assert min(contrasts) == 2  # the row just below overlaps the context's patches
