import numpy as np
import pytest

from embedders.report.neighbours import (
    MIN_FOR_TSNE,
    count_main_directions,
    draw_map,
    find_closest_pairs,
    find_nearest,
    find_outliers,
    measure_spread,
    normalize,
)


def make_vectors(rows, dimension=16, seed=0):
    return normalize(np.random.default_rng(seed).normal(size=(rows, dimension)))


def test_norms_become_1_and_zero_stays_zero():
    scaled = normalize(np.array([[3, 4], [0, 0]], np.float16))
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


@pytest.mark.parametrize("rows", [1, 2, 5, 2300])
def test_the_nearest_are_those_of_a_full_sort(rows):
    vectors = make_vectors(rows)
    found, cosines = find_nearest(vectors, 6)
    full = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(full, -2)
    expected = np.sort(full, axis=1)[:, ::-1][:, : min(6, rows - 1)]
    assert cosines == pytest.approx(expected, abs=1e-5)
    assert np.take_along_axis(full, found, axis=1) == pytest.approx(expected, abs=1e-5)
    assert not (found == np.arange(rows)[:, None]).any()


def test_a_picture_in_many_copies_fills_one_pair():
    vectors = make_vectors(40)
    vectors[10:20] = vectors[10]
    vectors[30] = normalize(vectors[31:32] + 0.01)
    pairs = find_closest_pairs(*find_nearest(vectors), 8)
    rows = [row for one, other, _ in pairs for row in (one, other)]
    assert len(rows) == len(set(rows))
    assert {30, 31} in [{one, other} for one, other, _ in pairs]
    assert [cosine for *_, cosine in pairs] == sorted((cosine for *_, cosine in pairs), reverse=True)


def test_the_one_far_from_all_is_the_first_outlier():
    vectors = normalize(make_vectors(50) * 0.1 + np.eye(16)[0])
    vectors[23] = -np.eye(16)[0]
    (row, mean), *_ = find_outliers(find_nearest(vectors)[1], 3)
    assert (row, mean < -0.9) == (23, True)


def test_too_few_vectors_have_no_pairs_and_no_outliers():
    for rows in (0, 1):
        nearest = find_nearest(make_vectors(rows))
        assert find_closest_pairs(*nearest, 3) == []
        assert find_outliers(nearest[1], 3) == []


def test_the_spread_is_the_mean_of_all_pairs():
    vectors = make_vectors(30, 5)
    pairs = (vectors @ vectors.T)[np.triu_indices(30, 1)]
    assert measure_spread(vectors) == pytest.approx(pairs.mean(), abs=1e-6)
    assert measure_spread(np.ones((9, 4), np.float32) / 2) == pytest.approx(1)


def test_directions_are_counted_by_their_variance():
    flat = np.random.default_rng(0).normal(size=(400, 3)) @ np.random.default_rng(1).normal(size=(3, 50))
    assert count_main_directions(flat, 0.999) == 3
    assert count_main_directions(np.ones((10, 4))) == 0


@pytest.mark.parametrize("rows", [2, 3, MIN_FOR_TSNE - 1, MIN_FOR_TSNE, 120])
def test_a_map_has_a_place_for_each_row_and_is_the_same_twice(rows):
    vectors = make_vectors(rows)
    positions = draw_map(vectors)
    assert positions.shape == (rows, 2)
    assert np.isfinite(positions).all()
    assert (positions == draw_map(vectors)).all()


def test_groups_stay_together_on_the_map():
    groups = np.repeat(np.arange(4), 30)
    vectors = normalize(np.eye(4, 32)[groups] + 0.1 * make_vectors(120, 32))
    positions = draw_map(vectors)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2) + 1e9 * np.eye(120)
    assert (groups[distances.argmin(axis=1)] == groups).all()
