import pytest

from musiclm_jax.generation import windows


def test_examples():
  assert windows.sliding(10, 4, 2) == [(0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
  assert windows.sliding(10, 4, 2, changes=(0, 7)) == [
      (0, 0, 4), (2, 4, 6), (3, 6, 7), (5, 7, 9), (6, 9, 10)]
  assert windows.sliding(10, 4, 2, changes=(0, 7), overlap=1) == [
      (0, 0, 4), (2, 4, 6), (3, 6, 7), (6, 7, 10)]
  assert windows.sliding(7, 3, 3) == [(0, 0, 3), (3, 3, 6), (4, 6, 7)]
  assert windows.sliding(3, 10, 5) == [(0, 0, 3)]
  assert windows.sliding(9, 4, 2, begin=3) == [(1, 3, 5), (3, 5, 7), (5, 7, 9)]


@pytest.mark.parametrize('total, length, step', [(30, 10, 5), (7, 3, 1), (11, 10, 5), (20, 5, 2)])
@pytest.mark.parametrize('begin', [0, 1, 6])
@pytest.mark.parametrize('changes', [(), (0, 3), (0, 2, 5, 6)])
@pytest.mark.parametrize('overlap', [None, 0, 1, 9])
def test_every_second_is_made_once_within_its_window(total, length, step, begin, changes, overlap):
  made = windows.sliding(total, length, step, begin, changes, overlap)
  assert [s for w in made for s in range(w.first, w.last)] == list(range(begin, total))
  for window in made:
    assert 0 <= window.start <= window.first and window.last <= window.start + length
    assert window.start + length <= max(total, length, *(c + length for c in changes))
    seen, most = window.first - window.start, min(window.first, length - step)
    if overlap is None or window.first not in changes:
      assert seen >= most, 'less is seen than could be'
    else:
      assert seen == min(most, overlap)
    assert not any(window.first < change < window.last for change in changes)
