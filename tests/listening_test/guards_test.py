"""Signatures, limits and whose request it is."""

import pytest

pytest.importorskip('itsdangerous')

from musiclm_jax.listening_test import guards


def scope(address, *forwarded):
  return {'client': (address, 1), 'headers': [
      (b'x-forwarded-for', each.encode()) for each in forwarded]}


@pytest.mark.parametrize('hops, forwarded, wanted', [
    (0, ['1.1.1.1'], '10.0.0.1'),  # nobody's word is taken
    (1, ['6.6.6.6, 1.1.1.1'], '1.1.1.1'),  # what the client adds comes first
    (1, ['6.6.6.6', '1.1.1.1'], '1.1.1.1'),
    (2, ['6.6.6.6, 1.1.1.1, 10.0.0.2'], '1.1.1.1'),
    (2, ['1.1.1.1'], '10.0.0.1'),
    (1, [], '10.0.0.1'),
    (1, ['<script>'], 'unknown'),
    (1, ['2001:db8:1:2:3::9'], '2001:db8:1:2::/64'),
])
def test_address_of_a_client(hops, forwarded, wanted):
  assert guards.client_address(scope('10.0.0.1', *forwarded), hops) == wanted


def test_bucket_fills_again():
  limit = guards.RateLimit(3, 60)
  assert [limit.allows('a', now=0) for _ in range(4)] == [True, True, True, False]
  assert limit.allows('b', now=0)
  assert [limit.allows('a', now=20) for _ in range(2)] == [True, False]
  assert [limit.allows('a', now=9999) for _ in range(4)] == [True, True, True, False]


def test_buckets_stay_few():
  limit = guards.RateLimit(1, 60, most_names=10)
  for i in range(1000):
    limit.allows(f'{i}', now=0)
  assert len(limit._buckets) == 10


def test_cookies_are_ones_own():
  visitors, others = guards.Visitors('key'), guards.Visitors('other key')
  name = visitors.new()
  cookie = visitors.cookie(name)
  assert visitors.visitor(cookie) == name != visitors.new()
  wrong = ['', 'x', name, others.cookie(name), cookie[:-1], cookie.replace(cookie[3], '_', 1),
           cookie + 'A' * 1000, visitors.form_token(name), '.'.join([name, '', '']), '\udcff']
  assert [visitors.visitor(each) for each in wrong] == [None] * len(wrong)


def test_form_tokens_are_ones_own():
  visitors = guards.Visitors('key')
  one, two = visitors.new(), visitors.new()
  assert visitors.form_is_theirs(one, visitors.form_token(one))
  for token in (visitors.form_token(two), '', '\xff', visitors.cookie(one)):
    assert not visitors.form_is_theirs(one, token)


def test_forms_come_from_this_site():
  host = {'host': 'test.org'}
  assert guards.from_this_site(host | {'sec-fetch-site': 'same-origin'})
  assert guards.from_this_site(host | {'origin': 'https://test.org'})
  assert not guards.from_this_site(host | {'sec-fetch-site': 'cross-site', 'origin': 'https://test.org'})
  assert not guards.from_this_site(host | {'sec-fetch-site': 'same-site'})
  for origin in ('https://evil.org', 'null', 'https://test.org.evil.org', 'https://test.org@evil.org'):
    assert not guards.from_this_site(host | {'origin': origin})
