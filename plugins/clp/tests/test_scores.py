"""The score of a channel against answers known in closed form."""

from __future__ import annotations

import pytest
import torch

from backdoorkit_clp._scores import can_have_outliers, channel_norms, outliers


def norms(*weights: torch.Tensor, has_identity: bool = False) -> torch.Tensor:
    return channel_norms(weights, has_identity=has_identity, channels=len(weights[0]))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- one kernel ------------------------------------------------------------------------------------


def test_a_single_weight_is_its_own_norm():
    weight = torch.tensor([-2.0, 0.5, 3.0]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(norms(weight).float(), torch.tensor([2.0, 0.5, 3.0]))


def test_a_rank_one_kernel_has_the_product_of_its_factors_norms():
    inputs, taps = random(5), random(9, seed=1)
    weight = torch.outer(inputs, taps).reshape(1, 5, 3, 3)
    torch.testing.assert_close(norms(weight)[0], inputs.norm() * taps.norm())


def test_orthonormal_columns_have_norm_one():
    columns = torch.linalg.qr(random(12, 9)).Q
    torch.testing.assert_close(norms(columns.reshape(1, 12, 3, 3))[0], torch.ones(()).double())


@pytest.mark.parametrize("shape", [(7, 20, 3, 3), (7, 2, 5, 5), (7, 1, 3, 3), (7, 3, 4), (7, 6)])
def test_both_gram_matrices_agree_with_the_singular_values(shape):
    weight = random(*shape)
    matrices = weight.reshape(shape[0], shape[1], -1)
    torch.testing.assert_close(norms(weight), torch.linalg.svdvals(matrices)[:, 0])


def test_a_linear_row_has_its_euclidean_norm():
    weight = random(4, 30)
    torch.testing.assert_close(norms(weight), weight.norm(dim=1))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_sandwich_of_spectral_frobenius_and_operator_norm(size):
    """The convolution's norm on a torus: the largest |M a| over all frequencies."""
    weight = random(6, 4, size, size)
    sigma, frobenius = norms(weight), weight.flatten(1).norm(dim=1)
    spectrum = torch.fft.fft2(weight, s=(32, 32))  # zero-padded kernel
    operator = spectrum.abs().square().sum(1).sqrt().flatten(1).amax(1)
    slack = 1 + 1e-9
    assert (sigma <= frobenius * slack).all()
    if size == 1:
        torch.testing.assert_close(sigma, operator)
        torch.testing.assert_close(sigma, frobenius)
    # 32 frequencies are a grid on the circle, so the maximum is met up to 2 %.
    assert (frobenius <= operator * 1.02).all()
    assert (operator <= size * sigma * slack).all()


def test_single_precision_weights_are_scored_in_double():
    weight = random(3, 4, 3, 3).float()
    assert norms(weight).dtype is torch.float64


# -- residual sums ---------------------------------------------------------------------------------


def test_branches_of_a_sum_are_stacked():
    one, two = random(3, 4, 3, 3), random(3, 2, 3, 3, seed=1)
    stacked = torch.cat([one, two], dim=1).flatten(2)
    torch.testing.assert_close(norms(one, two), torch.linalg.svdvals(stacked)[:, 0])


def test_a_projection_is_centred_in_the_larger_kernel():
    main, projection = torch.zeros(1, 1, 3, 3), torch.full((1, 1, 1, 1), 4.0)
    main[0, 0, 1, 1] = 3.0
    assert norms(main, projection).item() == pytest.approx(5.0)  # the same tap: 3-4-5
    main = main.roll(1, dims=3)
    assert norms(main, projection).item() == pytest.approx(4.0)  # orthogonal taps: the larger


def test_an_identity_skip_is_a_unit_row_at_the_centre():
    main = torch.zeros(2, 1, 3, 3)
    main[0, 0, 1, 1] = 1.0
    found = norms(main, has_identity=True)
    torch.testing.assert_close(found, torch.tensor([2.0, 1.0]).double().sqrt())


def test_channels_that_no_layer_made_have_norm_one():
    assert channel_norms([], has_identity=True, channels=3).tolist() == [1.0, 1.0, 1.0]


# -- non-finite weights ----------------------------------------------------------------------------


def test_a_channel_with_a_broken_weight_does_not_disturb_the_others():
    weight = random(3, 4, 3, 3)
    expected = norms(weight)
    weight[1, 0, 0, 0] = torch.nan
    found = norms(weight)
    assert found[1].item() == torch.inf
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])


# -- outliers --------------------------------------------------------------------------------------


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_one_in_twelve_exceeds_three_deviations_and_one_in_ten_never_does():
    assert outliers(scores(*[1.0] * 11, 10.0), 3.0).tolist() == [11]
    assert outliers(scores(*[1.0] * 9, 10.0), 3.0).tolist() == []
    z = (10 - 21 / 12) / scores(*[1.0] * 11, 10.0).std().item()
    assert z == pytest.approx(3.175, abs=1e-3)


@pytest.mark.parametrize(
    ("threshold", "largest_without"), [(3.0, 10), (5.0, 26)], ids=["u=3", "u=5"]
)
def test_how_many_channels_an_outlier_needs(threshold, largest_without):
    for channels in (largest_without, largest_without + 1):
        found = outliers(scores(*[1.0] * (channels - 1), 1e6), threshold)
        assert can_have_outliers(channels, threshold) == bool(len(found))
    assert not can_have_outliers(largest_without, threshold)
    assert not can_have_outliers(1, 0.0)


def test_equal_scores_are_no_outliers_even_after_rounding():
    equal = torch.full((12,), 0.1, dtype=torch.float64)
    assert outliers(equal, 3.0).tolist() == []
    equal[4] = torch.nextafter(equal[4], torch.tensor(1.0).double())  # z = 3.175, of one ulp
    assert outliers(equal, 3.0).tolist() == []


def test_only_high_scores_are_outliers():
    assert outliers(scores(*[10.0] * 11, 1.0), 3.0).tolist() == []


def test_a_non_finite_score_is_passed_over_and_the_rest_is_judged():
    found = outliers(scores(torch.inf, torch.nan, *[1.0] * 11, 10.0), 3.0)
    assert found.tolist() == [13]


@pytest.mark.parametrize("values", [[], [3.0], [torch.inf, 3.0]])
def test_too_few_scores_to_compare_give_no_outlier(values):
    assert outliers(scores(*values), 0.0).tolist() == []


def test_a_common_factor_changes_nothing():
    values = random(64).abs()
    assert torch.equal(outliers(values, 1.5), outliers(1e4 * values, 1.5))
    assert len(outliers(values, 1.5))
